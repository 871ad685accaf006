// Messages made from scratch, for the `send` command.

import Primitives
import SMTP

/// Why a message cannot be composed.
public enum ComposeError: Error, Hashable, Sendable, CustomStringConvertible {
  /// A header name or value holds CR, LF or another control character.
  case controlCharacter(field: String)
  case badHeaderName(String)
  /// A header that has an option of its own, or that the composer writes itself.
  case reservedHeader(String)
  case badContentType(String)
  case badAddress(String, AddressError)
  case noRecipients

  public var description: String {
    switch self {
    case .controlCharacter(let field): "\(field) contains a line break or another control character"
    case .badHeaderName(let name): "not a header name: \(HeaderText.singleLine(name, limit: 80))"
    case .reservedHeader(let name): "the header \(name) is written by the composer and cannot be set"
    case .badContentType(let type): "not a content type: \(HeaderText.singleLine(type, limit: 80))"
    case .badAddress(let text, let error): "\(HeaderText.singleLine(text, limit: 80)): \(error)"
    case .noRecipients: "the message has no recipient"
    }
  }
}

/// Builds a message (RFC 5322, MIME) with CRLF line ends that never needs 8BITMIME for its content.
public struct MessageComposer: Sendable {
  /// An address with the name to show.
  public struct Address: Hashable, Sendable {
    public var name: String?
    public var mailbox: Mailbox

    public init(name: String? = nil, mailbox: Mailbox) {
      self.name = name
      self.mailbox = mailbox
    }

    /// Parses `a@b`, `Name <a@b>` or `"Name" <a@b>`.
    public init(parsing text: String) throws(ComposeError) {
      var address = text[...]
      var name: Substring?
      if text.hasSuffix(">"), let open = text.lastIndex(of: "<") {
        name = text[..<open]
        address = text[open...]
      }
      do throws(AddressError) { mailbox = try Mailbox(parsing: address) } catch { throw .badAddress(text, error) }
      guard var shown = name else { return }
      while shown.last == " " { shown.removeLast() }
      while shown.first == " " { shown.removeFirst() }
      if shown.count >= 2, shown.hasPrefix("\""), shown.hasSuffix("\"") {
        shown = shown.dropFirst().dropLast()
        self.name = String(shown).replacing("\\\"", with: "\"")
      } else {
        self.name = shown.isEmpty ? nil : String(shown)
      }
    }
  }

  public struct Attachment: Hashable, Sendable {
    public var name: String
    /// Like `application/pdf`.
    public var contentType: String
    public var content: [UInt8]

    public init(name: String, contentType: String = "application/octet-stream", content: [UInt8]) {
      self.name = name
      self.contentType = contentType
      self.content = content
    }
  }

  public var from: Address
  public var to: [Address]
  public var cc: [Address] = []
  public var subject: String
  public var text: String
  public var html: String?
  public var attachments: [Attachment] = []
  /// Further fields, in order.
  public var headers: [(name: String, value: String)] = []
  public var date: Timestamp
  /// Seconds east of UTC, for the Date field.
  public var utcOffsetSeconds = 0
  /// Without `<>`.
  public var messageID: String

  public init(from: Address, to: [Address], subject: String, text: String, date: Timestamp, messageID: String) {
    self.from = from
    self.to = to
    self.subject = subject
    self.text = text
    self.date = date
    self.messageID = messageID
  }

  private static let reserved: Set<String> = [
    "date", "from", "to", "cc", "bcc", "subject", "message-id", "mime-version", "content-type",
    "content-transfer-encoding", "content-disposition", "received", "return-path",
  ]

  public func compose() throws(ComposeError) -> [UInt8] {
    guard !to.isEmpty || !cc.isEmpty else { throw .noRecipients }
    var out: [UInt8] = []
    Self.line("Date: \(RFC5322Date.format(date, utcOffsetSeconds: utcOffsetSeconds))", to: &out)
    Self.line("From: \(try Self.list([from], field: "From"))", to: &out)
    if !to.isEmpty { Self.line("To: \(try Self.list(to, field: "To"))", to: &out) }
    if !cc.isEmpty { Self.line("Cc: \(try Self.list(cc, field: "Cc"))", to: &out) }
    try Self.check(subject, field: "Subject")
    Self.line("Subject: \(HeaderText.unstructured(subject, column: 9))", to: &out)
    try Self.check(messageID, field: "Message-ID")
    Self.line("Message-ID: <\(messageID)>", to: &out)
    for (name, value) in headers { try header(name, value, to: &out) }
    Self.line("MIME-Version: 1.0", to: &out)

    var part = Self.textPart(text, subtype: "plain")
    if let html {
      part = multipart("alternative", [part, Self.textPart(html, subtype: "html")])
    }
    if !attachments.isEmpty {
      var parts = [part]
      for attachment in attachments { parts.append(try Self.part(attachment)) }
      part = multipart("mixed", parts)
    }
    out += part
    return out
  }

  private func header(_ name: String, _ value: String, to out: inout [UInt8]) throws(ComposeError) {
    guard !name.isEmpty, name.utf8.count <= 76, name.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f && $0 != 0x3a }) else {
      throw .badHeaderName(name)
    }
    guard !Self.reserved.contains(name.lowercased()) else { throw .reservedHeader(name) }
    try Self.check(value, field: name)
    let column = name.utf8.count + 2
    let text = Self.addresses(name, value, column) ?? HeaderText.unstructured(value, column: column)
    Self.line("\(name): \(text)", to: &out)
  }

  private static let addressFields: Set<String> = [
    "reply-to", "sender", "resent-from", "resent-sender", "resent-to", "resent-cc", "mail-reply-to",
    "mail-followup-to", "disposition-notification-to", "return-receipt-to", "errors-to",
  ]

  /// The value of a field that holds addresses, when a name in it has to be encoded: within an encoded word an address
  /// is none (RFC 2047 5), and a reply would go to nobody. nil for what may stay as it is.
  private static func addresses(_ name: String, _ value: String, _ column: Int) -> String? {
    guard addressFields.contains(name.lowercased()), !value.utf8.allSatisfy({ $0 < 0x80 }) else { return nil }
    let list = AddressList(parsing: value.utf8)
    guard list.isWellFormed, list.groups.isEmpty, !list.members.isEmpty else { return nil }
    return AddressList.render(list.members, column: column)
  }

  private static func check(_ text: String, field: String) throws(ComposeError) {
    guard !text.unicodeScalars.contains(where: { $0.value < 0x20 && $0.value != 9 || (0x7f...0x9f).contains($0.value) })
    else { throw .controlCharacter(field: field) }
  }

  private static func list(_ addresses: [Address], field: String) throws(ComposeError) -> String {
    var texts: [String] = []
    for address in addresses {
      guard let name = address.name, !name.isEmpty else {
        texts.append(address.mailbox.description)
        continue
      }
      try check(name, field: field)
      let isAtoms = name.utf8.allSatisfy {
        $0 == 0x20 || (0x30...0x39).contains($0) || (0x41...0x5a).contains($0) || (0x61...0x7a).contains($0)
      }
      var shown = name
      if !name.utf8.allSatisfy({ $0 < 0x80 }) || name.utf8.count > 200 {
        shown = HeaderText.encodedWords(name, column: field.utf8.count + 2)
      } else if !isAtoms {
        shown = "\"" + name.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"") + "\""
      }
      texts.append("\(shown) <\(address.mailbox)>")
    }
    return texts.joined(separator: ",\r\n ")
  }

  // MARK: - Parts

  private func multipart(_ subtype: String, _ parts: [[UInt8]]) -> [UInt8] {
    let boundary = Boundary.unused(seed: subtype + messageID, in: parts)
    var out: [UInt8] = []
    out.reserveCapacity(parts.reduce(512) { $0 + $1.count + 64 })
    Self.line("Content-Type: multipart/\(subtype);\r\n boundary=\"\(boundary)\"", to: &out)
    Self.line("", to: &out)
    for part in parts {
      Self.line("--\(boundary)", to: &out)
      out += part
      Self.line("", to: &out)
    }
    Self.line("--\(boundary)--", to: &out)
    return out
  }

  private static func textPart(_ text: String, subtype: String) -> [UInt8] {
    let bytes = Array(text.utf8)
    // Splits at CRLF, LF and lone CR alike, so that whatever an editor wrote becomes CRLF.
    var lines: [[UInt8]] = [[]]
    var previous: UInt8 = 0
    for byte in bytes {
      if byte == 0x0d || byte == 0x0a {
        if !(byte == 0x0a && previous == 0x0d) { lines.append([]) }
      } else {
        lines[lines.count - 1].append(byte)
      }
      previous = byte
    }
    if lines.last?.isEmpty == true { lines.removeLast() }
    let isPlain = lines.allSatisfy { line in
      line.count <= 998 && line.allSatisfy { $0 >= 0x20 && $0 < 0x7f || $0 == 0x09 }
    }
    var out: [UInt8] = []
    line("Content-Type: text/\(subtype); charset=utf-8", to: &out)
    line("Content-Transfer-Encoding: \(isPlain ? "7bit" : "quoted-printable")", to: &out)
    line("", to: &out)
    for content in lines {
      if isPlain { out += content } else { QuotedPrintable.encode(line: content, into: &out) }
      out += [0x0d, 0x0a]
    }
    return out
  }

  private static func part(_ attachment: Attachment) throws(ComposeError) -> [UInt8] {
    try check(attachment.name, field: "the attachment's name")
    let type = attachment.contentType
    let halves = type.split(separator: "/", omittingEmptySubsequences: false)
    guard halves.count == 2, type.utf8.count <= 100,
      halves.allSatisfy({ half in
        !half.isEmpty && half.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f && !"()<>@,;:\\\"[]?=".utf8.contains($0) }
      })
    else { throw .badContentType(type) }
    var out: [UInt8] = []
    line("Content-Type: \(type);\r\n \(HeaderText.parameter("name", attachment.name))", to: &out)
    line("Content-Disposition: attachment;\r\n \(HeaderText.parameter("filename", attachment.name))", to: &out)
    line("Content-Transfer-Encoding: base64", to: &out)
    line("", to: &out)
    var index = 0
    while index < attachment.content.count {
      let end = min(index + 57, attachment.content.count)
      Base64.encode(attachment.content[index..<end], into: &out)
      out += [0x0d, 0x0a]
      index = end
    }
    return out
  }

  private static func line(_ text: String, to out: inout [UInt8]) {
    out.append(contentsOf: text.utf8)
    out.append(0x0d)
    out.append(0x0a)
  }
}

/// The content transfer encoding quoted-printable (RFC 2045 6.7).
enum QuotedPrintable {
  private static let digits = Array("0123456789ABCDEF".utf8)

  /// Appends one line, its end not included, with soft line breaks before column 76.
  static func encode(line: [UInt8], into out: inout [UInt8]) {
    var column = 0
    for (index, byte) in line.enumerated() {
      let isBlank = byte == 0x20 || byte == 0x09
      let isLiteral = byte > 0x20 && byte < 0x7f && byte != 0x3d || isBlank && index + 1 < line.count
      let width = isLiteral ? 1 : 3
      if column + width > 75 {
        out += [0x3d, 0x0d, 0x0a]
        column = 0
      }
      if isLiteral {
        out.append(byte)
      } else {
        out += [0x3d, digits[Int(byte >> 4)], digits[Int(byte & 15)]]
      }
      column += width
    }
  }
}
