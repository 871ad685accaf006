// What a command has to know of the machine it runs on.

import Glibc
import Primitives

enum Machine {
  /// The name of the machine, as gethostname(2) has it.
  static var hostname: String {
    var name = [CChar](repeating: 0, count: 256)
    guard gethostname(&name, name.count - 1) == 0 else { return "localhost" }
    return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// How far local time is ahead of UTC.
  static var utcOffsetSeconds: Int {
    var now = time(nil)
    var local = tm()
    return localtime_r(&now, &local) == nil ? 0 : local.tm_gmtoff
  }

  /// Without `<>`.
  static func messageID(at hostname: String) -> String {
    var generator = SystemRandomNumberGenerator()
    let random = String(UInt64.random(in: 0 ... .max, using: &generator), radix: 36)
    return "\(String(SystemTime().wallClock.microseconds, radix: 36)).\(random)@\(hostname)"
  }

  /// The user who runs this, with the full name of the user database.
  static var user: (name: String, fullName: String?) {
    guard let entry = getpwuid(getuid()) else { return ("uid\(getuid())", nil) }
    let name = String(cString: entry.pointee.pw_name)
    // An `&` stands for the name, and what follows a comma is office and telephone.
    let full = String(cString: entry.pointee.pw_gecos).prefix { $0 != "," }.replacing("&", with: name)
    return (name, full.isEmpty ? nil : String(full))
  }
}

extension Endpoint {
  /// Where a daemon that listens here is reached from this machine.
  var onThisMachine: Endpoint {
    guard address.isUnspecified, let loopback = IPAddress(address.isIPv4 ? "127.0.0.1" : "::1") else { return self }
    return Endpoint(address: loopback, port: port)
  }
}
