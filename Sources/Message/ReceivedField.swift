// The trace field that every relay puts on top, and what it tells about loops.

import Primitives
import SMTP

/// Renders `Received:` (RFC 5321 4.4).
public enum ReceivedField {
  /// What is known about the connection a message came by.
  public struct Origin: Sendable {
    /// What the client called itself; not to be trusted.
    public var helo: String?
    public var clientAddress: IPAddress
    public var isESMTP: Bool
    public var isSMTPUTF8: Bool
    /// For example `TLSv1.3 TLS_AES_256_GCM_SHA384`; nil without TLS.
    public var tls: String?
    public var isAuthenticated: Bool

    public init(
      helo: String?, clientAddress: IPAddress, isESMTP: Bool, isSMTPUTF8: Bool = false, tls: String? = nil,
      isAuthenticated: Bool = false
    ) {
      self.helo = helo
      self.clientAddress = clientAddress
      self.isESMTP = isESMTP
      self.isSMTPUTF8 = isSMTPUTF8
      self.tls = tls
      self.isAuthenticated = isAuthenticated
    }

    /// The transmission type (RFC 3848, RFC 6531 4.3).
    public var transmissionType: String {
      guard isESMTP else { return "SMTP" }
      return (isSMTPUTF8 ? "UTF8SMTP" : "ESMTP") + (tls == nil ? "" : "S") + (isAuthenticated ? "A" : "")
    }
  }

  /// Appends the folded field with its line end.
  /// - Parameter recipient: the forward-path, only when it is the message's single one: others must not learn of it.
  public static func render(
    into output: inout [UInt8], origin: Origin, by hostname: String, queueID: String, for recipient: String? = nil,
    date: Timestamp
  ) {
    let helo = clean(origin.helo ?? "", limit: 255) { $0 > 0x20 && $0 < 0x7f && !"()<>\\\",;".utf8.contains($0) }
    let address = origin.clientAddress.literal
    output.reserveCapacity(output.count + 320)
    output.append(contentsOf: "Received: from ".utf8)
    output.append(contentsOf: (helo.isEmpty ? Array(address.utf8) : helo))
    output.append(contentsOf: " (\(address))".utf8)
    output.append(contentsOf: "\r\n\tby \(hostname) with \(origin.transmissionType)".utf8)
    if let tls = origin.tls {
      output.append(contentsOf: "\r\n\t(".utf8)
      output.append(contentsOf: clean(tls, limit: 200) { $0 >= 0x20 && $0 < 0x7f && !"()\\".utf8.contains($0) })
      output.append(0x29)
    }
    output.append(contentsOf: " id \(queueID)".utf8)
    if let recipient {
      output.append(contentsOf: "\r\n\tfor <".utf8)
      output.append(contentsOf: clean(recipient, limit: 320) { $0 >= 0x20 && $0 != 0x7f })
      output.append(0x3e)
    }
    output.append(contentsOf: ";\r\n\t".utf8)
    RFC5322Date.append(date, to: &output)
    output.append(contentsOf: [0x0d, 0x0a])
  }

  private static func clean(_ text: String, limit: Int, _ allowed: (UInt8) -> Bool) -> [UInt8] {
    text.utf8.prefix(limit).filter(allowed)
  }
}

/// Tells a message that goes in circles (RFC 5321 6.3).
public enum LoopDetector {
  public enum Verdict: Hashable, Sendable {
    case fine
    /// More ``maximumHops`` than any honest way has.
    case tooManyHops(Int)
    /// It was here before, for the same recipient.
    case seenBefore
  }

  public static let maximumHops = 50

  /// - Parameters:
  ///   - hostname: the name our own Received fields say `by`.
  ///   - recipients: the forward-paths the message has now.
  public static func examine(_ header: HeaderView, hostname: String, recipients: [String]) -> Verdict {
    var hops = 0
    var wanted: Set<String>?
    let host = hostname.lowercased()
    for field in header.fields where header.isNamed(field, "Received") {
      hops += 1
      let value = header.unfoldedValue(of: field).lowercased().replacing("\t", with: " ")
      guard mentions(value, by: host), let recipient = recipient(in: value) else { continue }
      if wanted == nil { wanted = Set(recipients.map { $0.lowercased() }) }
      if wanted?.contains(recipient) == true { return .seenBefore }
    }
    return hops > maximumHops ? .tooManyHops(hops) : .fine
  }

  private static func mentions(_ value: String, by host: String) -> Bool {
    let words = value.split { $0 == " " || $0 == "\t" }
    guard let by = words.firstIndex(of: "by"), by + 1 < words.count else { return false }
    return words[by + 1] == host || words[by + 1] == host + ";"
  }

  /// The address of ` for <address>` before the last semicolon.
  private static func recipient(in value: String) -> String? {
    let clauses = value[..<(value.lastIndex(of: ";") ?? value.endIndex)]
    guard clauses.hasSuffix(">"), let start = clauses.lastRange(of: " for <") else { return nil }
    return String(clauses[start.upperBound...].dropLast())
  }
}

extension Substring {
  /// The last place where `needle` stands.
  fileprivate func lastRange(of needle: String) -> Range<Index>? { ranges(of: needle).last }
}
