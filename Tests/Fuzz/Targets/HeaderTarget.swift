// Headers of strangers: looked at in place, their addresses read and written anew, From replaced. Nothing of it may
// bring a field that was not there.

import Message
import Primitives
import SMTP

extension FuzzTarget {
  static let header = FuzzTarget("header") { input in
    try look(at: input)
    // What the front door lets in has no other line ends.
    let message = normalised(input)
    try look(at: message)
    try addresses(input)
    try rewrite(message)
    try text(input)
  }

  private static func normalised(_ input: [UInt8]) -> [UInt8] {
    var out: [UInt8] = []
    for byte in input where byte != 0x0d { out += byte == 0x0a ? [0x0d, 0x0a] : [byte] }
    return out
  }

  private static func look(at message: [UInt8]) throws {
    try message.withUnsafeBytes { bytes in
      let view = HeaderView(bytes)
      var end = 0
      for field in view.fields {
        try expect(field.field.lowerBound >= end && field.field.upperBound <= bytes.count, "a field is out of place")
        try expect(
          field.field.contains(field.name.lowerBound) && field.name.upperBound <= field.value.lowerBound
            && field.value.upperBound <= field.field.upperBound, "the parts of a field are out of order")
        end = field.field.upperBound
        let value = view.unfoldedValue(of: field)
        try expect(!value.utf8.contains { $0 == 0x0d || $0 == 0x0a }, "an unfolded value has a line end")
        try expect(view.name(of: field).utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f && $0 != 0x3a }, "a field's name")
      }
      try expect(view.bodyStart <= bytes.count && end <= view.bodyStart, "the header ends behind the body's start")
      try expect(view.headerRange.upperBound == end, "the header is not what its fields are")
      _ = LoopDetector.examine(view, hostname: "relay.test", recipients: ["a@relay.test"])
    }
  }

  // MARK: Addresses

  private static func addresses(_ value: [UInt8]) throws {
    let list = AddressList(parsing: value)
    for member in list.members { try check(member.mailbox) }
    let shown = AddressList.render(list.members, column: 10)
    try isValue(shown)
    let again = AddressList(parsing: shown.utf8)
    try expect(again.isWellFormed, "what is written cannot be read: \(shown.debugDescription)")
    try expect(
      again.members.map(\.mailbox.description) == list.members.map(\.mailbox.description),
      "\(shown.debugDescription) holds \(again.members.map(\.mailbox)), not \(list.members.map(\.mailbox))")
    _ = AddressList(parsing: value, defaultDomain: "relay.test").members.count
  }

  /// A value that stays one: each line end in it is a fold.
  private static func isValue(_ text: String) throws {
    let bytes = Array(text.utf8)
    for (index, byte) in bytes.enumerated() {
      if byte == 0x0a { try expect(index > 0 && bytes[index - 1] == 0x0d, "a bare LF in \(text.debugDescription)") }
      guard byte == 0x0d else { continue }
      try expect(
        index + 2 < bytes.count && bytes[index + 1] == 0x0a && (bytes[index + 2] == 0x20 || bytes[index + 2] == 0x09),
        "\(text.debugDescription) ends its field")
    }
    for line in text.split(separator: "\r\n") {
      try expect(line.utf8.contains { $0 != 0x20 && $0 != 0x09 }, "an empty line in \(text.debugDescription)")
    }
  }

  // MARK: From

  private static func rewrite(_ message: [UInt8]) throws {
    guard let account = try? Mailbox(parsing: "relay@gmail.test") else { return }
    let rewriting = FromRewriting(
      address: account, label: "Support", reversePath: try? Mailbox(parsing: "jane@example.org"),
      isOurs: { $0.domain == "ours.test" })
    guard let result = rewriting.rewritten(message) else { return }
    try expect(rewriting.rewritten(message) == result, "the same message is rewritten in two ways")
    let before = parts(of: message)
    let after = parts(of: result)
    try expect(after.body == before.body, "the body has changed")
    let froms = after.fields.filter { $0.name == "from" }
    try expect(froms.count == 1, "\(froms.count) From fields")
    let authors = AddressList(parsing: froms[0].value)
    try expect(authors.members.map(\.mailbox) == [account], "From is \(authors.members.map(\.mailbox))")
    try expect(
      after.fields.count { $0.name == "x-original-from" }
        == before.fields.count { $0.name == "from" || $0.name == "x-original-from" },
      "an original From is lost or new")
    func others(_ parts: Parts) -> [String] {
      parts.fields.map(\.name).filter { !["from", "x-original-from", "reply-to"].contains($0) }
    }
    try expect(others(after) == others(before), "other fields have come or gone: \(others(after)), \(others(before))")
    let replies = before.fields.count { $0.name == "reply-to" }
    try expect(after.fields.count { $0.name == "reply-to" } <= max(replies, 1), "a Reply-To too many")
  }

  private struct Parts {
    var fields: [(name: String, value: [UInt8])]
    var body: [UInt8]
  }

  private static func parts(of message: [UInt8]) -> Parts {
    message.withUnsafeBytes { bytes in
      let view = HeaderView(bytes)
      return Parts(
        fields: view.fields.map { (view.name(of: $0).lowercased(), Array(bytes[$0.value])) },
        body: Array(bytes[view.bodyStart...]))
    }
  }

  // MARK: Text

  private static func text(_ input: [UInt8]) throws {
    let text = String(decoding: input.prefix(600), as: UTF8.self)
    let line = HeaderText.singleLine(text)
    try expect(isOneLine(line), "singleLine has left two")
    let encoded = HeaderText.unstructured(line, column: 9)
    try isValue("x" + encoded)
    if let decoded = EncodedWord.decode(
      encoded.split(whereSeparator: { $0 == " " || $0 == "\r\n" }).map { Array($0.utf8) }),
      encoded.hasPrefix("=?UTF-8?B?")
    {
      try expect(decoded == line, "\(line.debugDescription) comes back as \(decoded.debugDescription)")
    }
    let named = HeaderText.named(text, try Mailbox(parsing: "a@b.test"), column: 6)
    try isValue(named)
    let members = AddressList(parsing: named.utf8).members
    try expect(members.map(\.mailbox.description) == ["a@b.test"], "\(named.debugDescription) is \(members)")
    try isValue(HeaderText.parameter("name", line))
    var received: [UInt8] = []
    ReceivedField.render(
      into: &received,
      origin: .init(helo: text, clientAddress: .ipv4Any, isESMTP: true, tls: text), by: "relay.test", queueID: "1",
      for: line, date: Timestamp(microseconds: 0))
    let fields = received.withUnsafeBytes { HeaderView($0).fields.count }
    try expect(fields == 1 && received.suffix(2) == [0x0d, 0x0a], "Received is \(fields) fields")
    try isValue(String(decoding: received.dropLast(2), as: UTF8.self))
  }
}
