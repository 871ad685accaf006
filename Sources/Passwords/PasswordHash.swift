// Password hashes of crypt(3): which are accepted, how a password is held against one, and how one is made.

import CCrypt
import Glibc
import Primitives

/// A password hash that is strong enough to stand for a login. It prints as `<redacted>`.
public struct PasswordHash: Sendable, Hashable, CustomStringConvertible, CustomDebugStringConvertible,
  CustomReflectable
{
  /// The methods of crypt(5) that are accepted.
  public enum Method: String, Sendable, CaseIterable {
    case yescrypt = "y"
    case sha512 = "6"
    case sha256 = "5"

    /// Characters of the hash proper, behind the last `$`.
    fileprivate var hashLength: Int { self == .sha512 ? 86 : 43 }
  }

  /// Why a text is no such hash, and what to do.
  public struct Fault: Error, Sendable, Hashable, CustomStringConvertible { public var description: String }

  public let method: Method
  /// As crypt(3) writes it.
  public let text: String

  /// - Throws: ``Fault`` for other methods, and for what is not a whole hash.
  public init(_ text: String) throws(Fault) {
    let fields = text.split(separator: "$", omittingEmptySubsequences: false)
    guard fields.count >= 3, fields[0].isEmpty, text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f && $0 != 0x3a }) else {
      throw Fault(description: "it is not a hash of crypt(3)")
    }
    guard let method = Method(rawValue: String(fields[1])) else {
      throw Fault(description: "its method $\(fields[1].prefix(8))$ is not accepted, only $y$ (yescrypt), $6$ and $5$")
    }
    guard (4...5).contains(fields.count), fields.last?.utf8.count == method.hashLength,
      // SHA-256 counts as legacy for some.
      [CRYPT_SALT_OK, CRYPT_SALT_METHOD_LEGACY].contains(crypt_checksalt(text))
    else { throw Fault(description: "it is cut off or damaged") }
    self.method = method
    self.text = text
  }

  public var description: String { "<redacted>" }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: [:]) }

  /// Whether `password` is the one. Takes a tenth of a second and, with yescrypt, 16 MiB: not on an event loop.
  ///
  /// What is longer than 512 octets, empty, or holds a NUL is no password.
  public func matches(_ password: [UInt8]) -> Bool {
    guard let result = Self.crypt(password, setting: text) else { return false }
    return Self.areEqual(Array(result.utf8), Array(text.utf8))
  }

  public func matches(_ password: String) -> Bool { matches(Array(password.utf8)) }

  /// A new hash of a password, with the strongest method that the machine has.
  /// - Throws: ``Fault`` when the password cannot be hashed.
  public static func make(of password: String) throws(Fault) -> PasswordHash {
    let bytes = Array(password.utf8)
    guard !bytes.isEmpty, !bytes.contains(0) else { throw Fault(description: "the password is empty or holds a NUL") }
    guard bytes.count <= maximumLength else {
      throw Fault(description: "the password is longer than \(maximumLength) octets")
    }
    for method in [Method.yescrypt, .sha512] {
      var setting = [CChar](repeating: 0, count: Int(CRYPT_GENSALT_OUTPUT_SIZE))
      guard crypt_gensalt_rn("$\(method.rawValue)$", 0, nil, 0, &setting, CInt(setting.count)) != nil else { continue }
      let salt = String(decoding: setting.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      if let result = crypt(bytes, setting: salt) { return try PasswordHash(result) }
    }
    throw Fault(description: "the crypt library of this machine can hash passwords neither with yescrypt nor SHA-512")
  }

  /// What crypt(3) takes at most.
  public static let maximumLength = 512

  /// The hash nobody's password has: what a login is held against when there is nothing else.
  public static let unattainable: PasswordHash? = try? PasswordHash(
    "$y$j9T$Uqm5rCkNvRVJZWIvDzCBd0$" + String(repeating: ".", count: 43))

  private static func crypt(_ password: [UInt8], setting: String) -> String? {
    guard !password.contains(0), password.count <= maximumLength else { return nil }
    // 32 KiB, too much for the stack of a thread; its scratch memory must not outlive the call with what was in it.
    let data = UnsafeMutablePointer<crypt_data>.allocate(capacity: 1)
    let size = MemoryLayout<crypt_data>.size
    memset(data, 0, size)
    var phrase = password + [0]
    defer {
      UnsafeMutableRawBufferPointer(start: data, count: size).wipe()
      data.deallocate()
      phrase.wipe()
    }
    let result = phrase.withUnsafeBytes { bytes -> UnsafeMutablePointer<CChar>? in
      guard let base = bytes.bindMemory(to: CChar.self).baseAddress else { return nil }
      return crypt_rn(base, setting, data, CInt(size))
    }
    return result.map { String(cString: $0) }
  }

  /// Compares without telling by its time where the first difference is.
  private static func areEqual(_ a: [UInt8], _ b: [UInt8]) -> Bool {
    guard a.count == b.count else { return false }
    var difference: UInt8 = 0
    for (x, y) in zip(a, b) { difference |= x ^ y }
    return difference == 0
  }
}
