// A message as programs of this machine pipe it into sendmail: lines of Unix, a header that may lack much or all, and
// recipients among its fields. What leaves here is a whole message with CRLF.

import Primitives
import SMTP

/// A message from standard input, to be completed and submitted.
public struct LocalMessage: Sendable {
  struct Field: Sendable, Equatable {
    var name: String
    /// Behind the colon, with the line ends of folding but not the last.
    var value: [UInt8]
    /// The whole field with its line end.
    var text: [UInt8]
  }

  private(set) var fields: [Field] = []
  private(set) var body: [UInt8] = []

  /// Takes LF, CRLF and a lone CR as line ends. Programs that draw progress with CR send such mail through cron, and a
  /// lone CR must not travel (RFC 5321 2.3.8).
  public init(_ input: some Sequence<UInt8>) {
    let text = Self.withCRLF(input)
    var index = 0
    var isFirst = true
    scan: while index < text.count {
      let end = Self.lineEnd(text, from: index)
      let line = text[index..<(end - 2)]
      // The envelope line of a mailbox file.
      if isFirst, line.starts(with: "From ".utf8) || line.starts(with: ">From ".utf8) {
        index = end
        isFirst = false
        continue
      }
      isFirst = false
      switch line.first {
      case nil:
        index = end
        break scan
      case 0x20, 0x09:
        guard !fields.isEmpty else { break scan }
        fields[fields.count - 1].value += [0x0d, 0x0a] + line
        fields[fields.count - 1].text += text[index..<end]
      default:
        guard let colon = line.firstIndex(of: UInt8(ascii: ":")) else { break scan }
        var name = line[..<colon]
        while name.last == 0x20 || name.last == 0x09 { name = name.dropLast() }
        guard !name.isEmpty, name.allSatisfy({ $0 > 0x20 && $0 < 0x7f }) else { break scan }
        fields.append(
          Field(
            name: String(decoding: name, as: UTF8.self).lowercased(), value: Array(line[(colon + 1)...]),
            text: Array(text[index..<end])))
      }
      index = end
    }
    body = Array(text[index...])
  }

  private static func withCRLF(_ input: some Sequence<UInt8>) -> [UInt8] {
    var out: [UInt8] = []
    out.reserveCapacity(input.underestimatedCount + input.underestimatedCount / 32)
    var previous: UInt8 = 0
    for byte in input {
      if byte == 0x0d || byte == 0x0a && previous != 0x0d {
        out += [0x0d, 0x0a]
      } else if byte != 0x0a {
        out.append(byte)
      }
      previous = byte
    }
    if !out.isEmpty, out.last != 0x0a { out += [0x0d, 0x0a] }
    return out
  }

  /// Behind the line end of the line that begins at `start`.
  private static func lineEnd(_ text: [UInt8], from start: Int) -> Int {
    (text[start...].firstIndex(of: 0x0a) ?? text.count - 1) + 1
  }

  // MARK: - Recipients

  /// Whom the header names (`-t`): To, Cc and Bcc, or their Resent- forms where there is one.
  /// - Returns: the mailboxes, and the values that hold something else.
  public func recipients(defaultDomain: String) -> (mailboxes: [Mailbox], faults: [String]) {
    let isResent = fields.contains { ["resent-to", "resent-cc", "resent-bcc"].contains($0.name) }
    let names = ["to", "cc", "bcc"].map { isResent ? "resent-\($0)" : $0 }
    var mailboxes: [Mailbox] = []
    var faults: [String] = []
    for field in fields where names.contains(field.name) {
      let list = AddressList(parsing: field.value, defaultDomain: defaultDomain)
      if !list.isWellFormed { faults.append(HeaderText.singleLine(String(decoding: field.text, as: UTF8.self))) }
      mailboxes += list.members.map(\.mailbox)
    }
    return (mailboxes, faults)
  }

  // MARK: - Completion

  private func has(_ name: String) -> Bool { fields.contains { $0.name == name } }

  private mutating func add(_ name: String, _ value: String) {
    fields.append(Field(name: name.lowercased(), value: Array(value.utf8), text: Array("\(name): \(value)\r\n".utf8)))
  }

  /// Takes out what must not travel and adds what is missing: From, Date, Message-ID, and a To when nobody is named.
  /// Names without a domain, such as cron's `From: root`, get the default one.
  public mutating func complete(
    author: AddressList.Member, defaultDomain: String, date: Timestamp, utcOffsetSeconds: Int = 0, messageID: String
  ) {
    fields.removeAll { ["bcc", "resent-bcc", "return-path", "content-length"].contains($0.name) }
    for (index, field) in fields.enumerated()
    where ["from", "sender", "reply-to", "to", "cc", "resent-from", "resent-to"].contains(field.name) {
      let list = AddressList(parsing: field.value, defaultDomain: defaultDomain)
      guard list.isCompleted, list.isWellFormed, list.groups.isEmpty else { continue }
      let name = String(decoding: field.text.prefix { $0 != UInt8(ascii: ":") }, as: UTF8.self)
      fields[index].text = Array("\(name): \(AddressList.render(list.members, column: name.utf8.count + 2))\r\n".utf8)
    }
    if !has("from") {
      add("From", AddressList.render([author], column: 6))
    }
    if !has("date") { add("Date", RFC5322Date.format(date, utcOffsetSeconds: utcOffsetSeconds)) }
    if !has("message-id") { add("Message-ID", "<\(messageID)>") }
    if !has("to"), !has("cc"), !has("resent-to") { add("To", "undisclosed-recipients:;") }
  }

  /// The message with CRLF line ends.
  public var content: [UInt8] { fields.flatMap(\.text) + [0x0d, 0x0a] + body }
}
