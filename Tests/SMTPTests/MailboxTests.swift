// Mailbox syntax, as a table.

import Testing

@testable import SMTP

@Suite struct MailboxTests {
  @Test(arguments: [
    ("a@b", "a@b"), ("Joe.Doe@Example.COM", "Joe.Doe@Example.COM"), ("<a@b.example>", "a@b.example"),
    ("<@hop.example,@other.example:user@c.example>", "user@c.example"),
    ("\"john doe\"@x.example", "\"john doe\"@x.example"),
    ("\"john\"@x", "john@x"), ("\"a\\\"b\"@x", "\"a\\\"b\"@x"), ("\"a@b\"@x", "\"a@b\"@x"), ("\"\"@x", "\"\"@x"),
    ("a+tag@x", "a+tag@x"), ("!#$%&'*+-/=?^_`{|}~@x", "!#$%&'*+-/=?^_`{|}~@x"), ("a@[192.0.2.1]", "a@[192.0.2.1]"),
    ("a@[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"), ("é@bücher.example", "é@bücher.example"),
    ("a@web_1.example", "a@web_1.example"),
    ("\"..\"@x", "\"..\"@x"),
  ])
  func validAddressesKeepTheirMeaning(_ text: String, _ printed: String) throws {
    let mailbox = try Mailbox(parsing: text)
    #expect(mailbox.description == printed)
    #expect(try Mailbox(parsing: mailbox.description) == mailbox)
    #expect(try Mailbox(localPart: mailbox.localPart, domain: mailbox.domain) == mailbox)
  }

  @Test(arguments: [
    ("", AddressError.empty), ("<>", .empty), ("a", .missingAt), ("@b", .localPart), ("a@", .domain),
    ("a..b@c", .localPart),
    (".a@c", .localPart), ("a.@c", .localPart), ("a b@c", .localPart), ("a@b@c", .domain), ("a@b..c", .domain),
    ("a@-b", .domain), ("a@b-", .domain), ("a@b.", .domain), ("a@b c", .domain), ("<a@b", .unbalancedBrackets),
    ("a@b>", .domain), ("a@[1.2.3]", .addressLiteral), ("a@[2001:db8::1]", .addressLiteral),
    ("a@[IPv6:1.2.3.4]", .addressLiteral),
    ("a@[192.0.2.1", .addressLiteral), ("\"a@b", .localPart), ("\"a\"b@c", .missingAt), ("<@a b@c>", .sourceRoute),
    ("<@:b@c>", .sourceRoute), ("\"a\r\nb\"@c", .controlCharacter), ("\"a\0b\"@c", .controlCharacter),
    ("a@b\r\nRCPT TO:<x@y>", .controlCharacter), ("a\u{85}b@c", .controlCharacter), ("a\u{2028}b@c", .controlCharacter),
    ("\"a\u{7f}\"@c", .controlCharacter),
  ])
  func invalidAddressesAreRefusedWithTheReason(_ text: String, _ reason: AddressError) {
    #expect(throws: AddressError.self) { try Mailbox(parsing: text) }
    do throws(AddressError) { _ = try Mailbox(parsing: text) } catch {
      #expect(error == reason || (reason == .missingAt && error == .localPart), "\(text.debugDescription)")
    }
  }

  @Test func lengthLimitsHold() throws {
    let local = String(repeating: "a", count: 64)
    let label = String(repeating: "b", count: 63)
    _ = try Mailbox(parsing: "\(local)@\(label).example")
    #expect(throws: AddressError.tooLong) { try Mailbox(parsing: "a\(local)@x") }
    #expect(throws: AddressError.domain) { try Mailbox(parsing: "a@b\(label)") }
    let domain = "\(label).\(label).\(label)"
    #expect(throws: AddressError.tooLong) { try Mailbox(parsing: "\(local)@\(domain)") }

  }

  @Test func comparisonIgnoresCase() throws {
    #expect(try Mailbox(parsing: "Joe@Example.COM") == Mailbox(parsing: "joe@example.com"))
    #expect(try Set([Mailbox(parsing: "A@b"), Mailbox(parsing: "a@B")]).count == 1)
    #expect(try Mailbox(parsing: "a@b") != Mailbox(parsing: "a@c"))
  }

  @Test func needForSMTPUTF8IsKnown() throws {
    #expect(try Mailbox(parsing: "é@b").needsSMTPUTF8)
    #expect(try Mailbox(parsing: "a@bücher.example").needsSMTPUTF8)
    #expect(try !Mailbox(parsing: "a@b").needsSMTPUTF8)
  }

  @Test func octetsThatAreNotUTF8AreRefused() {
    #expect(throws: AddressError.self) { try Mailbox(utf8: [0xff, 0x40, 0x62]) }
  }

  @Test(arguments: ["", "a@b", "\"a b\"@c"])
  func reversePathsComeBackFromTheirText(_ text: String) throws {
    #expect(try ReversePath(parsing: text).text == text)
    #expect(try (ReversePath(parsing: text) == .null) == text.isEmpty)
  }

  @Test func forwardPathsComeBackFromTheirText() throws {
    #expect(try ForwardPath(parsing: "PostMaster") == .postmaster)
    #expect(try ForwardPath(parsing: "postmaster@x").text == "postmaster@x")
    #expect(throws: AddressError.empty) { try ForwardPath(parsing: "") }
  }
}
