// From on the way out: each way to write a name, what a stranger may try with it, and what must not change.

import SMTP
import Testing

@testable import Message

@Suite struct FromRewritingTests {
  static let account = try! Mailbox(parsing: "relay@ours.test")

  private static func rewriting(reversePath: String? = "bounce@example.org") -> FromRewriting {
    FromRewriting(
      address: account, label: "Support", reversePath: reversePath.flatMap { try? Mailbox(parsing: $0) },
      isOurs: { $0.domain.lowercased() == "ours.test" })
  }

  private static func rewritten(_ message: String, reversePath: String? = "bounce@example.org") -> String {
    let bytes = Array(message.utf8)
    return String(decoding: rewriting(reversePath: reversePath).rewritten(bytes) ?? bytes, as: UTF8.self)
  }

  /// The value of a field, unfolded.
  private static func field(_ name: String, _ message: String) -> [String] {
    Array(message.utf8).withUnsafeBytes { bytes in
      let header = HeaderView(bytes)
      return header.fields.filter { header.name(of: $0).lowercased() == name.lowercased() }
        .map { header.unfoldedValue(of: $0) }
    }
  }

  struct Case: Sendable, CustomTestStringConvertible {
    var from: String
    var shown: String
    var replyTo: String
    var testDescription: String { from }
  }

  static let cases = [
    Case(
      from: "Jane Doe <jane@example.org>", shown: "Jane Doe via Support <relay@ours.test>",
      replyTo: "Jane Doe <jane@example.org>"),
    Case(
      from: "jane@example.org", shown: "\"jane@example.org via Support\" <relay@ours.test>",
      replyTo: "jane@example.org"),
    Case(
      from: "jane@example.org (Jane (the boss) Doe)", shown: "\"Jane (the boss) Doe via Support\" <relay@ours.test>",
      replyTo: "\"Jane (the boss) Doe\" <jane@example.org>"),
    Case(
      from: "\"Doe, \\\"J\\\" Jane\" <jane@example.org>",
      shown: "\"Doe, \\\"J\\\" Jane via Support\" <relay@ours.test>",
      replyTo: "\"Doe, \\\"J\\\" Jane\" <jane@example.org>"),
    Case(
      from: "=?UTF-8?Q?J=C3=B6rg?= =?utf-8?B?IE3DvGxsZXI=?= <j@example.org>",
      shown: encoded("Jörg Müller via Support") + " <relay@ours.test>",
      replyTo: encoded("Jörg Müller") + " <j@example.org>"),
    Case(
      from: "\"=?iso-8859-1?Q?J=F6rg?=\" <j@example.org>", shown: encoded("Jörg via Support") + " <relay@ours.test>",
      replyTo: encoded("Jörg") + " <j@example.org>"),
    Case(
      from: "=?koi8-r?B?6dfBzg==?= Petrov <i@example.org>",
      shown: encoded("Иван Petrov via Support") + " <relay@ours.test>",
      replyTo: encoded("Иван Petrov") + " <i@example.org>"),
    Case(
      from: "=?UTF-8?B?ww==?= =?UTF-8?B?vGJlcg==?= <i@example.org>",
      shown: encoded("über via Support") + " <relay@ours.test>", replyTo: encoded("über") + " <i@example.org>"),
    Case(
      from: "Jane Doe jane@example.org", shown: "\"bounce@example.org via Support\" <relay@ours.test>",
      replyTo: "bounce@example.org"),
    Case(
      from: "=?x-unheard-of?Q?Jane?= <jane@example.org>",
      shown: "\"jane@example.org via Support\" <relay@ours.test>", replyTo: "jane@example.org"),
    Case(
      from: "Jörg <j@example.org>", shown: encoded("Jörg via Support") + " <relay@ours.test>",
      replyTo: encoded("Jörg") + " <j@example.org>"),
    Case(
      from: "Jane <jane@example.org>, Bob <bob@ours.test>",
      shown: "\"Jane, Bob via Support\" <relay@ours.test>",
      replyTo: "Jane <jane@example.org>, Bob <bob@ours.test>"),
    Case(
      from: "a@e.org, b@e.org, c@e.org, d@e.org, e@e.org",
      shown: "\"a@e.org, b@e.org, c@e.org, 2 more via Support\" <relay@ours.test>",
      replyTo: "a@e.org, b@e.org, c@e.org, d@e.org, e@e.org"),
    Case(
      from: "The Team: Jane <jane@example.org>, bob@example.org;",
      shown: "\"Jane, bob@example.org via Support\" <relay@ours.test>",
      replyTo: "Jane <jane@example.org>, bob@example.org"),
    Case(
      from: "Nobody Here:;", shown: "\"bounce@example.org via Support\" <relay@ours.test>",
      replyTo: "bounce@example.org"),
    Case(
      from: "Jane <jane@example.org", shown: "Jane via Support <relay@ours.test>", replyTo: "Jane <jane@example.org>"),
    Case(
      from: "not an address", shown: "\"bounce@example.org via Support\" <relay@ours.test>",
      replyTo: "bounce@example.org"),
    Case(from: "", shown: "\"bounce@example.org via Support\" <relay@ours.test>", replyTo: "bounce@example.org"),
    Case(
      from: "Jane <@relay.test:jane@example.org>", shown: "Jane via Support <relay@ours.test>",
      replyTo: "Jane <jane@example.org>"),
    Case(
      from: "\"jane doe\"@example.org", shown: "\"\\\"jane doe\\\"@example.org via Support\" <relay@ours.test>",
      replyTo: "\"jane doe\"@example.org"),
    Case(
      from: "jané@exämple.org", shown: encoded("jané@exämple.org via Support") + " <relay@ours.test>",
      replyTo: "jané@exämple.org"),
  ]

  private static func encoded(_ text: String) -> String { "=?UTF-8?B?\(Base64.encode(Array(text.utf8)))?=" }

  /// Folding inside a long name splits an encoded word; the parts are put together again.
  private static func joined(_ text: String) -> String {
    let list = AddressList(parsing: text.utf8)
    return list.members.map { "\($0.name ?? "")|\($0.mailbox)" }.joined(separator: ", ")
  }

  @Test(arguments: cases)
  func fromNamesTheAuthorAndTheAccountAndRepliesGoToTheAuthor(_ given: Case) {
    let before = "Received: x\r\nFrom: \(given.from)\r\nSubject: =?UTF-8?Q?un=C3=A4ltered?=\r\n\r\nbody\r\n.\r\n"
    let after = Self.rewritten(before)
    #expect(Self.field("From", after).map(Self.joined) == [Self.joined(given.shown)])
    if given.shown.utf8.count < 60 { #expect(Self.field("From", after) == [given.shown]) }
    #expect(Self.field("Reply-To", after).map(Self.joined) == [Self.joined(given.replyTo)])
    #expect(Self.field("X-Original-From", after) == [given.from])
    #expect(after.hasPrefix("Received: x\r\nFrom: "))
    #expect(after.hasSuffix("\r\nSubject: =?UTF-8?Q?un=C3=A4ltered?=\r\n\r\nbody\r\n.\r\n"))
    #expect(after.split(separator: "\r\n").allSatisfy { $0.utf8.count <= 998 })
  }

  @Test(arguments: [
    "Jane <jane@ours.test>", "jane@OURS.test", "a@ours.test, b@ours.test", "Team: a@ours.test;",
  ])
  func ownAuthorsKeepTheirFrom(from: String) {
    let message = "From: \(from)\r\n\r\nbody\r\n"
    #expect(Self.rewriting().rewritten(Array(message.utf8)) == nil)
  }

  @Test func replyToThatIsThereStaysTheOnlyOne() {
    let after = Self.rewritten("REPLY-TO: list@example.net\r\nFrom: Jane <jane@example.org>\r\n\r\n")
    #expect(Self.field("Reply-To", after) == ["list@example.net"])
  }

  @Test(arguments: [
    "Reply-To:\r\nFrom: jane@example.org\r\nSubject: x\r\n", "From: jane@example.org\r\nReply-To: \r\nSubject: x\r\n",
    "From: jane@example.org\r\nSubject: x\r\nReply-To:\r\n \t\r\n", "Reply-To:\r\nSubject: x\r\nreply-to: \r\n",
  ])
  func replyToWithoutAValueMakesRoomForTheAuthor(header: String) {
    let after = Self.rewritten(header + "\r\nbody\r\n", reversePath: "jane@example.org")
    #expect(Self.field("Reply-To", after) == ["jane@example.org"])
    #expect(Self.field("Subject", after) == ["x"])
    #expect(after.hasSuffix("\r\n\r\nbody\r\n"))
    // Without an author there is nobody to answer to, and all stays.
    let nobody = Self.rewritten("Reply-To:\r\n\r\nbody\r\n", reversePath: nil)
    #expect(nobody.hasPrefix("Reply-To:\r\nFrom: "))
  }

  @Test func missingFromIsMadeOfTheReversePathAndNothingElse() {
    let after = Self.rewritten("Subject: x\r\n\r\nbody\r\n")
    #expect(
      after == "Subject: x\r\nFrom: \"bounce@example.org via Support\" <relay@ours.test>\r\n"
        + "Reply-To: bounce@example.org\r\n\r\nbody\r\n")
    let null = Self.rewritten("Subject: x", reversePath: nil)
    #expect(null == "Subject: x\r\nFrom: Unknown sender via Support <relay@ours.test>\r\n")
    #expect(Self.rewritten("Subject: x\r\n\r\n", reversePath: "jane@ours.test") == "Subject: x\r\n\r\n")
    let bare = Self.rewritten("\r\nbody\r\n")
    #expect(bare.hasPrefix("From: ") && bare.hasSuffix("\r\n\r\nbody\r\n"))
  }

  @Test func secondFromCannotHideBehindOneOfOurs() {
    let after = Self.rewritten("From: boss@ours.test\r\nTo: x\r\nfrom: jane@example.org\r\n\r\n")
    #expect(Self.field("From", after).count == 1)
    #expect(Self.field("X-Original-From", after) == ["boss@ours.test", "jane@example.org"])
  }

  @Test(arguments: [
    "=?UTF-8?Q?Jane=0D=0ABcc:_victim@example.net?= <jane@example.org>",
    "=?UTF-8?B?SmFuZQ0KQmNjOiB2aWN0aW1AZXhhbXBsZS5uZXQ=?= <jane@example.org>",
    "\"Jane\r\n\tBcc: victim@example.net\" <jane@example.org>",
    "=?UTF-8?Q?=E2=80=A8Bcc:_victim@example.net?= <jane@example.org>",
    "\"=?UTF-8?Q?x?=\\\r\n Bcc: v@example.net\" <jane@example.org>",
    "jane@example.org (\\\r\n Bcc: v@example.net)",
  ])
  func nameOfAStrangerMakesNoHeaderField(from: String) {
    let after = Self.rewritten("From: \(from)\r\nSubject: x\r\n\r\nbody\r\n")
    let names = Array(after.utf8).withUnsafeBytes { bytes in
      let header = HeaderView(bytes)
      #expect(header.malformedLineCount == 0)
      return header.fields.map { header.name(of: $0) }
    }
    #expect(names == ["From", "Reply-To", "X-Original-From", "Subject"])
    #expect(!after.unicodeScalars.contains { $0.value == 0x2028 })
  }

  @Test func veryLongFieldsAreFoldedAndCut() {
    let name = String(repeating: "Jane Ö ", count: 400)
    let authors = (0..<300).map { "author number \($0) <a\($0)@example.org>" }.joined(separator: ", ")
    for from in ["\(name)<jane@example.org>", authors, String(repeating: "x", count: 985) + "@example.org"] {
      let after = Self.rewritten("From: \(from)\r\n\r\n")
      let ours = after.components(before: "X-Original-From:")
      #expect(ours.split(separator: "\r\n").allSatisfy { $0.utf8.count <= 998 })
      #expect(Self.field("From", after)[0].utf8.count < 1000)
      #expect(Self.field("X-Original-From", after) == [from.trimmed])
    }
  }

  @Test func octetsThatAreNoUTF8AreReadAsWesternAndKeptAsTheyWere() {
    let before = Array("From: J".utf8) + [0xf6] + Array("rg <j@example.org>\r\n\r\n".utf8)
    let after = Self.rewriting().rewritten(before) ?? []
    let text = String(decoding: after, as: UTF8.self)
    #expect(Self.joined(Self.field("From", text)[0]) == "Jörg via Support|relay@ours.test")
    #expect(after.suffix(before.count - 5) == before.suffix(before.count - 5)[...])
  }

  @Test func noOctetsOfAStrangerMakeAFieldOrALongLine() {
    var state: UInt64 = 0x9e37_79b9_7f4a_7c15
    func random(_ limit: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int(state >> 33) % limit
    }
    let pieces = [
      "\"", "\\", "(", ")", "<", ">", ",", ":", ";", "@", " ", "\t", "\r\n ", "=?UTF-8?Q?=0D=0AX:_y?=", "=?utf-8?b?",
      "?=", "=?iso-2022-jp?B?GyRC?=", "=?gb18030?Q?=81=30?=", "jane", "example.org", "[", "]", "ü", "\u{2028}", "\0",
    ].map { Array($0.utf8) }
    for _ in 0..<3000 {
      var value: [UInt8] = []
      for _ in 0..<random(14) { value += random(9) == 0 ? [UInt8(random(256))] : pieces[random(pieces.count)] }
      // What the front door refuses.
      let text = value.filter { $0 != 0x0a && $0 != 0x0d }
      for from in [text, Array("x\r\n ".utf8) + text] {
        let message = Array("From:".utf8) + from + Array("\r\nSubject: x\r\n\r\nbody\r\n".utf8)
        guard let after = Self.rewriting().rewritten(message) else { continue }
        after.withUnsafeBytes { bytes in
          let header = HeaderView(bytes)
          let names = header.fields.map { header.name(of: $0) }
          #expect(names == ["From", "Reply-To", "X-Original-From", "Subject"], "\(from)")
          #expect(header.malformedLineCount == 0, "\(from)")
          let address = header.value("From").map { AddressList(parsing: $0.utf8) }
          #expect(address?.members.map(\.mailbox) == [Self.account] && address?.isWellFormed == true, "\(from)")
        }
      }
    }
  }

  /// Found by the fuzzer: a name of nothing but blanks was folded into a line that ends the header for some readers.
  @Test func nameOfBlanksDoesNotBecomeAnEmptyLine() throws {
    let mailbox = try Mailbox(parsing: "a@b.test")
    let name = String(repeating: "\u{6}", count: 200) + " b"
    #expect(HeaderText.named(name, mailbox, column: 6) == "b <a@b.test>")
    let shown = AddressList.render([.init(mailbox: mailbox), .init(name: name, mailbox: mailbox)], column: 10)
    #expect(shown == "a@b.test,\r\n b <a@b.test>")
  }

  @Test func namesWithoutADomainAreCompletedOnRequestOnly() {
    let completed = AddressList(parsing: "root (Cron Daemon)".utf8, defaultDomain: "host.test")
    #expect(completed.members == [.init(name: "Cron Daemon", mailbox: try! Mailbox(parsing: "root@host.test"))])
    #expect(completed.isCompleted && completed.isWellFormed)
    #expect(!AddressList(parsing: "root".utf8).isWellFormed)
  }
}

extension String {
  fileprivate func components(before mark: String) -> String {
    guard let range = firstRange(of: mark) else { return self }
    return String(self[..<range.lowerBound])
  }

  fileprivate var trimmed: String {
    var text = self
    while text.last == " " { text.removeLast() }
    return text
  }
}
