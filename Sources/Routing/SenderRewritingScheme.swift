// The sender rewriting scheme: envelope senders of our own domain that carry the original one, so that SPF holds for
// what we send and bounces still find home. The address authenticates itself; nothing is kept.

import COpenSSL
import Primitives
import SMTP

/// SRS0 and SRS1 as https://www.libsrs2.org describes them, with a longer hash: `SRS0=hash=day=domain=local@ours` for a
/// sender, `SRS1=hash=host==hash=day=domain=local@ours` for a sender that another host has rewritten already, whose
/// bounces go there.
public struct SenderRewritingScheme: Sendable {
  /// Why an address of ours is not taken back.
  public enum Fault: Error, Sendable, Hashable, CustomStringConvertible {
    case malformed
    /// Made with another secret, or by hand.
    case forged
    case expired

    public var description: String {
      switch self {
      case .malformed: "it is no complete SRS address"
      case .forged: "its hash is not of one of our secrets"
      case .expired: "it is older than 21 days"
      }
    }
  }

  private let secrets: [[UInt8]]
  /// Lowercased.
  public let domain: String

  /// In days: longer than any queue keeps a message, and its bounce.
  static let maximumAge = 21
  /// Base64 digits of the hash. libsrs2 has 4, which compared without case are 2 million: too few for the only lock of
  /// a door. 6 are 3 thousand million.
  private static let hashLength = 6
  private static let digits = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")

  /// - Parameter secrets: the first signs, all verify; at least one.
  public init?(secrets: [String], domain: String) {
    guard !secrets.isEmpty else { return nil }
    self.secrets = secrets.map { Array($0.utf8) }
    self.domain = domain.lowercased()
  }

  // MARK: Out

  /// The address that stands for `sender`; nil when it would be too long for a local part (64 octets).
  public func forward(_ sender: Mailbox, now: Timestamp) -> Mailbox? {
    if let parts = Self.parts(of: sender) {
      switch parts {
      case .srs0(let rest):
        return make("SRS1", [sender.domain, rest])
      // One whose host is none has no way home: it is carried as any other address is.
      case .srs1(_, let host, let rest) where (try? Self.mailbox("SRS0\(rest)", at: host)) != nil:
        return make("SRS1", [host, rest])
      case .srs1, .broken: break
      }
    }
    return make("SRS0", [Self.stamp(Self.day(now)), sender.domain, sender.localPart])
  }

  private func make(_ kind: String, _ fields: [String]) -> Mailbox? {
    let hash = Self.hash(fields, secrets[0])
    return try? Mailbox(localPart: "\(kind)=\(hash)=\(fields.joined(separator: "="))", domain: domain)
  }

  // MARK: Home

  /// Whether an address claims to be one that ``forward(_:now:)`` has made.
  public func claims(_ mailbox: Mailbox) -> Bool {
    mailbox.domain.lowercased() == domain && Self.parts(of: mailbox) != nil
  }

  /// The address that `mailbox` stands for: the original sender, or the host that rewrote it before us.
  public func reverse(_ mailbox: Mailbox, now: Timestamp) throws(Fault) -> Mailbox {
    switch Self.parts(of: mailbox) {
    case nil, .broken: throw .malformed
    case .srs0(let rest):
      // With the separator of a host's own choice in front, which is `=` in ours.
      let fields = rest.dropFirst().split(separator: "=", maxSplits: 3, omittingEmptySubsequences: false)
      guard fields.count == 4 else { throw .malformed }
      try check(String(fields[0]), fields[1...].map(String.init))
      try Self.checkAge(fields[1], now)
      return try Self.mailbox(String(fields[3]), at: String(fields[2]))
    case .srs1(let hash, let host, let rest):
      try check(hash, [host, rest])
      return try Self.mailbox("SRS0\(rest)", at: host)
    }
  }

  private func check(_ hash: String, _ fields: [String]) throws(Fault) {
    // Mail systems may change the case of a local part; base64 then loses some of its strength and none of its use.
    let wanted = hash.lowercased()
    guard hash.utf8.count >= Self.hashLength,
      secrets.contains(where: { Self.isEqual(Self.hash(fields, $0).lowercased(), wanted) })
    else { throw .forged }
  }

  private static func mailbox(_ local: String, at domain: String) throws(Fault) -> Mailbox {
    do throws(AddressError) { return try Mailbox(localPart: local, domain: domain) } catch { throw .malformed }
  }

  // MARK: The parts of an address

  private enum Parts {
    /// All behind `SRS0`, the separator included.
    case srs0(String)
    /// `rest` is all behind the host and its separator: what stood behind `SRS0` there.
    case srs1(hash: String, host: String, rest: String)
    case broken
  }

  private static func parts(of mailbox: Mailbox) -> Parts? {
    let local = mailbox.localPart
    guard local.utf8.count > 5, let separator = local.utf8.dropFirst(4).first, "=+-".utf8.contains(separator) else {
      return nil
    }
    let rest = String(Substring(local.utf8.dropFirst(4)))
    switch local.prefix(4).uppercased() {
    case "SRS0": return .srs0(rest)
    case "SRS1":
      let fields = rest.dropFirst().split(separator: "=", maxSplits: 2, omittingEmptySubsequences: false)
      guard fields.count == 3, !fields[1].isEmpty, let first = fields[2].utf8.first, "=+-".utf8.contains(first) else {
        return .broken
      }
      return .srs1(hash: String(fields[0]), host: String(fields[1]), rest: String(fields[2]))
    default: return nil
    }
  }

  // MARK: Time and hash

  private static func day(_ time: Timestamp) -> Int { Int(time.seconds / 86_400) }

  /// Two base32 digits: the day modulo 1024.
  static func stamp(_ day: Int) -> String {
    String([digits[(day >> 5) & 31], digits[day & 31]])
  }

  private static func checkAge(_ stamp: Substring, _ now: Timestamp) throws(Fault) {
    let values = stamp.uppercased().compactMap { digits.firstIndex(of: $0) }
    guard stamp.count == 2, values.count == 2 else { throw .malformed }
    let age = (day(now) - (values[0] << 5 | values[1])) & 1023
    guard age <= maximumAge else { throw .expired }
  }

  /// HMAC-SHA-1 (RFC 2104) over the lowercased fields, in base64, cut.
  private static func hash(_ fields: [String], _ secret: [UInt8]) -> String {
    let text = Array(fields.joined(separator: "\0").lowercased().utf8)
    var digest = [UInt8](repeating: 0, count: Int(EVP_MAX_MD_SIZE))
    var count: UInt32 = 0
    _ = HMAC(EVP_sha1(), secret, CInt(secret.count), text, text.count, &digest, &count)
    return String(Base64.encode(digest[..<Int(count)]).prefix(hashLength))
  }

  /// Takes as long whatever differs.
  private static func isEqual(_ one: String, _ other: String) -> Bool {
    let (one, other) = (Array(one.utf8), Array(other.utf8.prefix(one.utf8.count)))
    guard one.count == other.count else { return false }
    return zip(one, other).reduce(UInt8(0)) { $0 | ($1.0 ^ $1.1) } == 0
  }
}
