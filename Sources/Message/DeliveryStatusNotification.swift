// Reports about mail that did not arrive, or not yet: for the person who sent it first, for programs second.

import Primitives
import SMTP

#if canImport(Glibc)
  import Glibc
#endif

/// A delivery status notification (RFC 3464 in a multipart/report of RFC 6522).
public struct DeliveryStatusNotification: Sendable {
  public enum Action: String, Hashable, Sendable {
    case failed, delayed, delivered, relayed, expanded
  }

  /// What became of one recipient.
  public struct Recipient: Sendable {
    /// The address that delivery was tried to.
    public var finalRecipient: String
    /// What ORCPT said, or the address before it was rewritten.
    public var originalRecipient: RecipientParameters.OriginalRecipient?
    public var action: Action
    /// The last reply, a server's or our own.
    public var reply: Reply
    /// The server that gave the reply; nil when it is our own.
    public var remoteMTA: String?
    /// What that server said, when `reply` is what we made of it.
    public var diagnostic: Reply?
    public var lastAttempt: Timestamp?
    /// For `delayed`: until when delivery is tried.
    public var willRetryUntil: Timestamp?

    public init(
      finalRecipient: String, originalRecipient: RecipientParameters.OriginalRecipient? = nil, action: Action,
      reply: Reply, remoteMTA: String? = nil, diagnostic: Reply? = nil, lastAttempt: Timestamp? = nil,
      willRetryUntil: Timestamp? = nil
    ) {
      self.finalRecipient = finalRecipient
      self.originalRecipient = originalRecipient
      self.action = action
      self.reply = reply
      self.remoteMTA = remoteMTA
      self.diagnostic = diagnostic
      self.lastAttempt = lastAttempt
      self.willRetryUntil = willRetryUntil
    }

    /// Whether it failed without anybody knowing that it did not arrive, by our own words: also when they come from the
    /// queue.
    var isInDoubt: Bool {
      action == .failed && (remoteMTA == nil || diagnostic != nil)
        && reply.text.contains(DeliveryStatusNotification.doubt)
    }

    /// The Status field: the reply's enhanced code where it has one that fits the action (RFC 3464 2.3.4).
    public var status: EnhancedStatusCode {
      let expected: UInt8 =
        switch action {
        case .failed: 5
        case .delayed: 4
        case .delivered, .relayed, .expanded: 2
        }
      guard let code = reply.enhanced else { return EnhancedStatusCode(expected, 0, 0) }
      // What failed because its time ran out has a transient last reply, but failed for good.
      return EnhancedStatusCode(expected, code.subject, code.detail)
    }
  }

  /// In a reply of our own: no answer came to the end of the message.
  public static let doubt = "it may have arrived"

  public var hostname: String
  /// Whom the report goes to: the reverse-path, never null.
  public var reversePath: Mailbox
  public var queueID: String
  public var envelopeID: String?
  public var arrivalDate: Timestamp
  public var date: Timestamp
  /// Of the report, without `<>`.
  public var messageID: String
  public var recipients: [Recipient]
  /// How much of the original comes back; nil: the header only (RFC 3461 4.3 leaves the choice to us).
  public var ret: MailParameters.Return?
  /// Whether it goes with SMTPUTF8, so that its header fields may hold UTF-8 (RFC 6532). Without, any server can
  /// take it.
  public var isInternationalized = false
  /// How often delivery was tried, and when for the first time: said to people when it was more than once.
  public var attempts = 0
  public var firstAttempt: Timestamp?

  public init(
    hostname: String, reversePath: Mailbox, queueID: String, envelopeID: String? = nil, arrivalDate: Timestamp,
    date: Timestamp, messageID: String, recipients: [Recipient], ret: MailParameters.Return? = nil
  ) {
    self.hostname = hostname
    self.reversePath = reversePath
    self.queueID = queueID
    self.envelopeID = envelopeID
    self.arrivalDate = arrivalDate
    self.date = date
    self.messageID = messageID
    self.recipients = recipients
    self.ret = ret
  }

  /// Renders the report about `original`, a message with CRLF line ends.
  /// - Parameter isCut: `original` is only the beginning of the message.
  public func compose(original: [UInt8], isCut: Bool = false) -> [UInt8] {
    let returned = returnedPart(of: original, isCut: isCut)
    let text = explanation()
    let status = statusFields()
    let isText8Bit = text.utf8.contains { $0 >= 0x80 }
    let boundary = Boundary.unused(
      seed: messageID + queueID, in: [returned.octets, Array(text.utf8), Array(status.utf8)])

    var out: [UInt8] = []
    out.reserveCapacity(returned.octets.count + 4096)
    func line(_ text: String) {
      out.append(contentsOf: text.utf8)
      out.append(contentsOf: [0x0d, 0x0a])
    }
    line("Date: \(RFC5322Date.format(date))")
    line("From: Mail Delivery System <MAILER-DAEMON@\(hostname)>")
    line("To: \(addressee)")
    line("Subject: \(subject)")
    line("Message-ID: <\(HeaderText.singleLine(messageID))>")
    line("Auto-Submitted: auto-replied")
    line("MIME-Version: 1.0")
    line("Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"\(boundary)\"")
    if returned.encoding == "8bit" || isText8Bit { line("Content-Transfer-Encoding: 8bit") }
    line("")
    line("This is a delivery status notification in MIME format.")
    line("")
    line("--\(boundary)")
    line("Content-Type: text/plain; charset=utf-8")
    line("Content-Transfer-Encoding: \(isText8Bit ? "8bit" : "7bit")")
    line("Content-Description: Notification")
    line("")
    out.append(contentsOf: text.utf8)
    line("")
    line("--\(boundary)")
    line("Content-Type: message/delivery-status")
    line("Content-Description: Delivery report")
    line("")
    out.append(contentsOf: status.utf8)
    line("")
    line("--\(boundary)")
    line("Content-Type: \(returned.type)")
    if let encoding = returned.encoding { line("Content-Transfer-Encoding: \(encoding)") }
    line("Content-Description: \(returned.description)")
    line("")
    out.append(contentsOf: returned.octets)
    line("")
    line("--\(boundary)--")
    return out
  }

  /// The part that returns the message or its header, as it is written.
  private struct Returned {
    var type: String
    /// nil for 7bit.
    var encoding: String?
    var description: String
    var octets: [UInt8]
  }

  /// A header with UTF-8 cannot go as it is where SMTPUTF8 is not: message/global and message/global-headers may then
  /// be encoded (RFC 6532 3.7, RFC 6533 6.3), as message/rfc822 may not. In base64, because servers that look into
  /// parts leave that alone, and because it grows by a third at most. Octets that are no UTF-8 were never right, and
  /// come back as they are, in a part that says 8bit.
  private func returnedPart(of original: [UInt8], isCut: Bool) -> Returned {
    let isWhole = ret == .full
    let (header, isHeaderCut) = original.withUnsafeBytes { bytes in
      let view = HeaderView(bytes)
      // Where the end of the header is missing, the last field that is there is cut somewhere.
      let isHeaderCut = isCut && view.bodyStart == bytes.count
      let end = isHeaderCut ? view.fields.dropLast().last?.field.upperBound : view.headerRange.upperBound
      return (0..<(end ?? 0), isHeaderCut)
    }
    var octets = isWhole ? original : Array(original[header])
    if octets.suffix(2) != [0x0d, 0x0a] { octets += [0x0d, 0x0a] }
    let what = isWhole ? "The message" : isHeaderCut ? "The beginning of its header" : "The header of the message"
    let isUTF8 =
      original[header].contains { $0 >= 0x80 } && String(validating: original[header], as: UTF8.self) != nil
    guard isUTF8 else {
      return Returned(
        type: isWhole ? "message/rfc822" : "text/rfc822-headers",
        encoding: octets.contains { $0 >= 0x80 } ? "8bit" : nil, description: what, octets: octets)
    }
    let type = isWhole ? "message/global" : "message/global-headers"
    if isInternationalized { return Returned(type: type, encoding: "8bit", description: what, octets: octets) }
    return Returned(type: type, encoding: "base64", description: what, octets: Self.base64(octets))
  }

  private static func base64(_ octets: [UInt8]) -> [UInt8] {
    var out: [UInt8] = []
    // 57 octets make a line of 76 (RFC 2045 6.8).
    for start in stride(from: 0, to: octets.count, by: 57) {
      Base64.encode(octets[start..<min(start + 57, octets.count)], into: &out)
      out += [0x0d, 0x0a]
    }
    return out
  }

  /// The value of To. An address that could not stand there without SMTPUTF8 is the name of a group without members,
  /// as when mail is downgraded (RFC 6857 3.1.8).
  private var addressee: String {
    guard reversePath.needsSMTPUTF8, !isInternationalized else { return "<\(reversePath)>" }
    return "\(HeaderText.encodedWords(reversePath.description, column: 4)) :;"
  }

  private var subject: String {
    let actions = Set(recipients.map(\.action))
    if actions == [.delayed] { return "Your message is delayed" }
    if actions == [.delivered] { return "Your message was delivered" }
    if actions.isSubset(of: [.delivered, .relayed, .expanded]) { return "Your message was handed on" }
    if recipients.allSatisfy(\.isInDoubt) { return "Your message may not have been delivered" }
    return "Your message could not be delivered"
  }

  // MARK: - The part for people

  private func explanation() -> String {
    var lines = ["This is the mail system at host \(hostname).", ""]
    let failed = recipients.filter { $0.action == .failed && !$0.isInDoubt }
    let doubtful = recipients.filter(\.isInDoubt)
    let delayed = recipients.filter { $0.action == .delayed }
    let done = recipients.filter { [.delivered, .relayed, .expanded].contains($0.action) }
    if !failed.isEmpty {
      lines += ["Your message could not be delivered to:", ""]
      for recipient in failed { lines += paragraph(recipient) }
      lines += [
        "It will not be tried again. Check the address for mistakes; if it is right,",
        "ask the recipient by another way, or forward this report to your postmaster.", "",
      ]
    }
    if !doubtful.isEmpty {
      lines += ["It is not known whether your message has reached:", ""]
      for recipient in doubtful { lines += paragraph(recipient) }
      lines += [
        "It will not be tried again. Before you send it once more, ask the recipient by",
        "another way whether it has arrived.", "",
      ]
    }
    if !delayed.isEmpty {
      lines += ["Your message has not been delivered yet to:", ""]
      for recipient in delayed { lines += paragraph(recipient) }
      lines += ["You need not do anything: delivery is tried again."]
      if let until = delayed.compactMap(\.willRetryUntil).max() {
        lines += ["If it has not succeeded by \(RFC5322Date.format(until)),", "you will be told."]
      }
      lines += [""]
    }
    if !done.isEmpty {
      lines += ["Your message was handed on for:", ""]
      for recipient in done { lines += paragraph(recipient) }
      if done.contains(where: { $0.action != .delivered }) {
        lines += ["The next mail system has taken it. No further report of success is to be expected.", ""]
      }
    }
    lines += history()
    lines += ["Queue ID: \(queueID)"]
    return lines.map { HeaderText.singleLine($0) + "\r\n" }.joined()
  }

  private func history() -> [String] {
    guard attempts > 1 else { return [] }
    var lines = ["Delivery was tried \(attempts) times:"]
    if let firstAttempt { lines += ["  first on \(RFC5322Date.format(firstAttempt))"] }
    if let last = recipients.compactMap(\.lastAttempt).max() { lines += ["  last on \(RFC5322Date.format(last))"] }
    return lines + [""]
  }

  private func paragraph(_ recipient: Recipient) -> [String] {
    var lines = ["  <\(recipient.finalRecipient)>"]
    if let original = recipient.originalRecipient, original.address != recipient.finalRecipient {
      lines[0] += " (written to as <\(original.address)>)"
    }
    if let remote = recipient.remoteMTA, recipient.diagnostic == nil {
      lines += ["    The server \(remote) said:", "    \(recipient.reply)"]
    } else {
      lines += ["    \(recipient.reply.text)"]
    }
    return lines + [""]
  }

  // MARK: - The part for programs

  private func statusFields() -> String {
    var out = ""
    func field(_ name: String, _ value: String) {
      // With the name, below the 998 octets of a line (RFC 5322 2.1.1) also where it cannot be folded.
      let clean = Self.ascii(HeaderText.singleLine(value), limit: 900)
      out += "\(name): \(HeaderText.fold(clean, column: name.utf8.count + 2))\r\n"
    }
    // Decoded, both of them: xtext is how SMTP carries them (RFC 3461 4), and nothing that a report knows.
    if let envelopeID { field("Original-Envelope-Id", envelopeID) }
    field("Reporting-MTA", "dns; \(hostname)")
    field("Arrival-Date", RFC5322Date.format(arrivalDate))
    for recipient in recipients {
      out += "\r\n"
      if let original = recipient.originalRecipient {
        field("Original-Recipient", "\(original.addressType); \(original.address)")
      }
      let type = recipient.finalRecipient.utf8.allSatisfy { $0 < 0x80 } ? "rfc822" : "utf-8"
      field("Final-Recipient", "\(type); \(recipient.finalRecipient)")
      field("Action", recipient.action.rawValue)
      field("Status", recipient.status.description)
      if let remote = recipient.remoteMTA {
        field("Remote-MTA", "dns; \(remote)")
        field("Diagnostic-Code", "smtp; \(recipient.diagnostic ?? recipient.reply)")
      }
      if let last = recipient.lastAttempt { field("Last-Attempt-Date", RFC5322Date.format(last)) }
      if let until = recipient.willRetryUntil { field("Will-Retry-Until", RFC5322Date.format(until)) }
    }
    return out
  }

  /// Characters outside ASCII as `\x{HEX}` (RFC 6533 3, utf-8-addr-unitext), because message/delivery-status is 7bit.
  /// - Parameter limit: in octets, once it is written so.
  private static func ascii(_ text: String, limit: Int) -> String {
    var out = ""
    var length = 0
    for scalar in text.unicodeScalars {
      let piece =
        scalar.value < 0x80 ? String(Character(scalar)) : "\\x{\(String(scalar.value, radix: 16, uppercase: true))}"
      length += piece.utf8.count
      if length > limit { break }
      out += piece
    }
    return out
  }
}

/// Separators between MIME parts (RFC 2046 5.1.1).
enum Boundary {
  /// A boundary that occurs in none of `parts`; the same input gives the same one.
  static func unused(seed: String, in parts: [[UInt8]]) -> String {
    // FNV-1a: spread is all that is asked of it, the search below gives the certainty.
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in seed.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    var attempt = 0
    while true {
      let boundary = "=_\(String(hash, radix: 36))_\(attempt)"
      let needle = Array("--\(boundary)".utf8)
      if !parts.contains(where: { contains($0, needle) }) { return boundary }
      attempt += 1
    }
  }

  private static func contains(_ haystack: [UInt8], _ needle: [UInt8]) -> Bool {
    haystack.withUnsafeBytes { hay in
      needle.withUnsafeBytes { pin in
        guard let base = hay.baseAddress, let wanted = pin.baseAddress, let first = needle.first else { return false }
        var index = 0
        while index + pin.count <= hay.count {
          guard let hit = memchr(base + index, Int32(first), hay.count - pin.count - index + 1) else { return false }
          if memcmp(hit, wanted, pin.count) == 0 { return true }
          index = UnsafeRawPointer(hit) - base + 1
        }
        return false
      }
    }
  }
}
