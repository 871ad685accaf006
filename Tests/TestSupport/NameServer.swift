// NSD, the authoritative name server of Debian, on a free loopback port with zones made for a test.

import Glibc
import Network
import Primitives

/// Binds a socket to a free port of 127.0.0.1, which is returned.
public func bindToLoopback(_ descriptor: Int32) -> UInt16? {
  var address = sockaddr_in()
  address.sin_family = sa_family_t(AF_INET)
  address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
  var size = socklen_t(MemoryLayout<sockaddr_in>.size)
  return withUnsafeMutablePointer(to: &address) { pointer in
    pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic -> UInt16? in
      guard bind(descriptor, generic, size) == 0, getsockname(descriptor, generic, &size) == 0 else { return nil }
      return UInt16(bigEndian: UnsafeRawPointer(generic).assumingMemoryBound(to: sockaddr_in.self).pointee.sin_port)
    }
  }
}

/// A name server that runs. Stop it, or it stays.
public struct NameServer: Sendable {
  public struct NotStarted: Error { public var reason: String }

  public let endpoint: Endpoint
  private let pid: pid_t
  private let folder: String

  /// - Parameter zones: the text of each zone file by the zone's name; nil is a zone whose file is missing.
  public static func start(path: String, zones: [String: String?]) async throws -> NameServer {
    var template = Array("/tmp/ssmtp-mailer-nsd.XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw NotStarted(reason: "mkdtemp") }
    let folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    // A port that is free now may be taken a moment later.
    for _ in 0..<5 {
      let probe = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
      let port = bindToLoopback(probe)
      close(probe)
      guard let port else { continue }
      if let server = try await start(path, folder, port, zones) { return server }
    }
    let log = read("\(folder)/log")
    _ = run("/bin/rm", ["-rf", folder])
    throw NotStarted(reason: "NSD does not start: \(log)")
  }

  private static func start(
    _ path: String, _ folder: String, _ port: UInt16, _ zones: [String: String?]
  ) async throws -> NameServer? {
    var configuration = """
      server:
        ip-address: 127.0.0.1
        port: \(port)
        username: ""
        chroot: ""
        zonesdir: "\(folder)"
        database: ""
        pidfile: "\(folder)/pid"
        zonelistfile: "\(folder)/zones"
        xfrdfile: "\(folder)/xfrd"
        xfrdir: "\(folder)"
        logfile: "\(folder)/log"
        server-count: 1
        rrl-ratelimit: 0
      remote-control:
        control-enable: no

      """
    for (name, text) in zones {
      configuration += "zone:\n  name: \"\(name)\"\n  zonefile: \"\(name).zone\"\n"
      if let text { try write(text + "\n", to: "\(folder)/\(name).zone") }
    }
    try write(configuration, to: "\(folder)/nsd.conf")
    guard let pid = run(path, ["-d", "-c", "\(folder)/nsd.conf"]) else {
      throw NotStarted(reason: "\(path) cannot be run")
    }
    let endpoint = Endpoint("127.0.0.1:\(port)")
    guard let endpoint, let zone = zones.first(where: { $0.value != nil })?.key else {
      throw NotStarted(reason: "there is no zone")
    }
    let client = DNSClient(server: endpoint, patience: 1)
    for _ in 0..<500 {
      var status: Int32 = 0
      if waitpid(pid, &status, WNOHANG) == pid { return nil }
      let answer = await client.ask(zone, .mx)
      if answer.status == .found || answer.status == .noData {
        return NameServer(endpoint: endpoint, pid: pid, folder: folder)
      }
      try await Task.sleep(for: .milliseconds(20))
    }
    kill(pid, SIGKILL)
    return nil
  }

  public func stop() {
    kill(pid, SIGTERM)
    var status: Int32 = 0
    waitpid(pid, &status, 0)
    if let remover = Self.run("/bin/rm", ["-rf", folder]) { waitpid(remover, &status, 0) }
  }

  private static func run(_ path: String, _ arguments: [String]) -> pid_t? {
    var none = sigset_t()
    var all = sigset_t()
    sigemptyset(&none)
    sigfillset(&all)
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    // The threads of a test runner block signals, and a child would inherit that.
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setsigdefault(&attributes, &all)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    for descriptor in Int32(0)...2 {
      posix_spawn_file_actions_addopen(&actions, descriptor, "/dev/null", descriptor == 0 ? O_RDONLY : O_WRONLY, 0)
    }
    var words: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    var child: pid_t = 0
    return posix_spawn(&child, path, &actions, &attributes, &words, environ) == 0 ? child : nil
  }

  private static func write(_ text: String, to path: String) throws {
    guard let file = fopen(path, "w") else { throw NotStarted(reason: "cannot write \(path)") }
    fputs(text, file)
    fclose(file)
  }

  private static func read(_ path: String) -> String {
    guard let file = fopen(path, "r") else { return "" }
    defer { fclose(file) }
    var piece = [UInt8](repeating: 0, count: 4096)
    let count = fread(&piece, 1, piece.count, file)
    return String(decoding: piece[..<count], as: UTF8.self)
  }
}
