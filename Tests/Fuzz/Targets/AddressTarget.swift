// Mailboxes, paths and xtext: what is taken can be written down and read again, and is safe wherever it is printed.

import SMTP

extension FuzzTarget {
  static let address = FuzzTarget("address", limit: 600) { input in
    let text = String(decoding: input, as: UTF8.self)
    try xtext(text)
    let mailbox: Mailbox
    do throws(AddressError) { mailbox = try Mailbox(parsing: text) } catch {
      return try expect(isOneLine(error.description), "the error shows a control character")
    }
    try check(mailbox)
  }

  static func check(_ mailbox: Mailbox) throws {
    let shown = mailbox.description
    try expect(isOneLine(shown), "\(shown.debugDescription) would break a line")
    try expect(shown.utf8.count <= 254, "\(shown) is longer than an address may be")
    try expect(mailbox.needsSMTPUTF8 || shown.utf8.allSatisfy { $0 < 0x80 }, "\(shown) is not what SMTP carries")
    let again = try Mailbox(parsing: shown)
    try expect(again.description == shown, "\(shown) is written as \(again) the next time")
    try expect(again.localPart == mailbox.localPart && again.domain == mailbox.domain, "\(shown) changes its parts")
    let bracketed = try Mailbox(parsing: "<\(shown)>")
    try expect(bracketed == mailbox, "\(shown) means something else between brackets")
    // As it stands in a command of ours to an upstream.
    let command = try Command(parsing: "MAIL FROM:<\(shown)>\(mailbox.needsSMTPUTF8 ? " SMTPUTF8" : "")")
    guard case .mail(.mailbox(let read), _) = command else { throw Violation(description: "\(shown) is no path") }
    try expect(read == mailbox, "\(shown) is \(read) in a command")
  }

  private static func xtext(_ text: String) throws {
    let encoded = XText.encode(text)
    try expect(encoded.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f }, "xtext with \(encoded.debugDescription)")
    if let decoded = XText.decode(text) {
      try expect(!decoded.utf8.contains { $0 < 0x20 || $0 == 0x7f }, "a control character came out of xtext")
      try expect(XText.decode(XText.encode(decoded)) == decoded, "\(decoded) does not come back from xtext")
    }
    if let back = XText.decode(encoded) { try expect(back == text, "\(text) comes back as \(back)") }
  }
}
