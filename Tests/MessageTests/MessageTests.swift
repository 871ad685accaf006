// Dates, headers, trace fields, loops, reports and composed mail.

import Primitives
import SMTP
import Testing

@testable import Message

func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

func withHeader<R>(_ message: String, _ body: (HeaderView) throws -> R) rethrows -> R {
  try Array(message.utf8).withUnsafeBytes { try body(HeaderView($0)) }
}

/// Every line ends in CRLF, none is too long, no CR or LF stands alone.
func expectWellFormed(_ message: [UInt8]) {
  var scanner = BareLineBreakScanner()
  message.withUnsafeBytes { scanner.scan($0) }
  scanner.finish()
  #expect(!scanner.sawBareLineBreak && scanner.endsInLineBreak)
  #expect(message.split(separator: 10).allSatisfy { $0.count <= 999 })
}

@Suite struct RFC5322DateTests {
  @Test(arguments: [
    (0, 0, "Thu, 1 Jan 1970 00:00:00 +0000"), (1_795_486_384, 0, "Tue, 24 Nov 2026 02:13:04 +0000"),
    (951_782_400, 0, "Tue, 29 Feb 2000 00:00:00 +0000"), (4_107_542_399, 0, "Sun, 28 Feb 2100 23:59:59 +0000"),
    (4_107_542_400, 0, "Mon, 1 Mar 2100 00:00:00 +0000"), (-1, 0, "Wed, 31 Dec 1969 23:59:59 +0000"),
    (0, 3600, "Thu, 1 Jan 1970 01:00:00 +0100"), (0, -12_600, "Wed, 31 Dec 1969 20:30:00 -0330"),
    (1_735_689_599, 0, "Tue, 31 Dec 2024 23:59:59 +0000"),
  ])
  func datesAreThoseOfTheCalendar(_ seconds: Int64, _ offset: Int, _ expected: String) {
    #expect(RFC5322Date.format(Timestamp(seconds: seconds), utcOffsetSeconds: offset) == expected)
  }
}

@Suite struct HeaderViewTests {
  @Test func fieldsAreFoundAndUnfolded() {
    withHeader("Subject: a\r\n b\r\n\tc\r\nTo : x@y\r\nEmpty:\r\n\r\nBody: no\r\n") { header in
      #expect(header.fields.map { header.name(of: $0) } == ["Subject", "To", "Empty"])
      #expect(header.value("SUBJECT") == "a b\tc")
      #expect(header.value("to") == "x@y")
      #expect(header.value("empty") == "")
      #expect(!header.hasHeader("Body") && !header.hasHeader("Subj"))
      #expect(header.bodyStart == 40 && header.malformedLineCount == 0)
    }
  }

  @Test(arguments: [
    ("", 0, 0, 0), ("\r\n", 0, 0, 2), ("\r\nA: b\r\n", 0, 0, 2), ("A: b", 1, 0, 4), ("A: b\r\n", 1, 0, 6),
    ("A: b\n\nbody", 1, 0, 6), ("garbage\r\nA: b\r\n\r\n", 1, 1, 17), (" folded first\r\nA: b\r\n\r\n", 1, 1, 23),
    ("A b: c\r\nD: e\r\n\r\n", 1, 1, 16), (": x\r\n\r\n", 0, 1, 7), ("A: b\r\n  \r\nC: d\r\n\r\nx", 2, 0, 18),
  ])
  func oddMessagesAreBorne(_ message: String, _ fields: Int, _ malformed: Int, _ body: Int) {
    withHeader(message) { header in
      #expect(header.fields.count == fields)
      #expect(header.malformedLineCount == malformed)
      #expect(header.bodyStart == body)
    }
  }

  @Test func receivedFieldsAreCounted() {
    withHeader("Received: a\r\nX: y\r\nreceived: b\r\n c\r\n\r\nReceived: body\r\n") { #expect($0.receivedCount == 2) }
  }
}

@Suite struct ReceivedFieldTests {
  static func render(_ origin: ReceivedField.Origin, for recipient: String? = nil) -> String {
    var out: [UInt8] = []
    ReceivedField.render(
      into: &out, origin: origin, by: "mx.example", queueID: "Q1", for: recipient, date: Timestamp(seconds: 0))
    return text(out)
  }
  static let address = IPAddress("192.0.2.1")!

  @Test func theFieldSaysWhoWhenAndHow() {
    let origin = ReceivedField.Origin(
      helo: "c.example", clientAddress: Self.address, isESMTP: true, tls: "TLSv1.3 TLS_AES", isAuthenticated: true)
    #expect(
      Self.render(origin, for: "a@b")
        == "Received: from c.example ([192.0.2.1])\r\n\tby mx.example with ESMTPSA\r\n\t(TLSv1.3 TLS_AES) id Q1\r\n\tfor <a@b>;"
        + "\r\n\tThu, 1 Jan 1970 00:00:00 +0000\r\n")
  }

  @Test(arguments: [
    (false, false, false, false, "SMTP"), (true, false, false, false, "ESMTP"), (true, false, true, false, "ESMTPS"),
    (true, false, false, true, "ESMTPA"), (true, true, true, true, "UTF8SMTPSA"),
    (true, true, false, false, "UTF8SMTP"),
  ])
  func transmissionTypesAreThoseOfTheRegistry(_ esmtp: Bool, _ utf8: Bool, _ tls: Bool, _ auth: Bool, _ type: String) {
    let origin = ReceivedField.Origin(
      helo: "x", clientAddress: Self.address, isESMTP: esmtp, isSMTPUTF8: utf8, tls: tls ? "t" : nil,
      isAuthenticated: auth)
    #expect(origin.transmissionType == type)
  }

  @Test func nothingAClientSaysLeavesItsPlace() {
    let origin = ReceivedField.Origin(
      helo: "evil\r\nX-Injected: 1 (by mx.example; <", clientAddress: Self.address, isESMTP: true, tls: "a)\r\nX: b")
    let field = Self.render(origin, for: "a\r\nY: z@b")
    withHeader(field + "\r\n") { header in
      #expect(header.fields.count == 1 && header.malformedLineCount == 0)
    }
    #expect(field.contains("from evilX-Injected:1bymx.example ("))
  }

  @Test func ourOwnTraceForTheSameRecipientIsALoop() {
    let ours = Self.render(.init(helo: "c", clientAddress: Self.address, isESMTP: true), for: "A@b.example")
    withHeader(ours + "Subject: x\r\n\r\n") { header in
      #expect(LoopDetector.examine(header, hostname: "MX.example", recipients: ["a@B.example"]) == .seenBefore)
      #expect(LoopDetector.examine(header, hostname: "mx.example", recipients: ["c@b.example"]) == .fine)
      #expect(LoopDetector.examine(header, hostname: "other.example", recipients: ["a@b.example"]) == .fine)
    }
  }

  @Test func moreThanFiftyHopsAreALoop() {
    func examine(_ count: Int) -> LoopDetector.Verdict {
      withHeader(String(repeating: "Received: by x; y\r\n", count: count) + "\r\n") {
        LoopDetector.examine($0, hostname: "mx.example", recipients: [])
      }
    }
    #expect(examine(50) == .fine)
    #expect(examine(51) == .tooManyHops(51))
  }
}

@Suite struct DeliveryStatusNotificationTests {
  static func make(_ recipients: [DeliveryStatusNotification.Recipient]) throws -> DeliveryStatusNotification {
    DeliveryStatusNotification(
      hostname: "mx.example", reversePath: try Mailbox(parsing: "sender@x.example"), queueID: "Q1", envelopeID: "env 1",
      arrivalDate: Timestamp(seconds: 0), date: Timestamp(seconds: 60), messageID: "m1@mx.example",
      recipients: recipients)
  }
  static let original = Array("From: a@b\r\nSubject: hello\r\n\r\nsecret body\r\n".utf8)
  static let failed = DeliveryStatusNotification.Recipient(
    finalRecipient: "new@g.example", originalRecipient: .init(addressType: "rfc822", address: "old+a=b@x.example"),
    action: .failed,
    reply: Reply(550, "5.1.1", "No such user"), remoteMTA: "gmail.example")

  @Test func aBounceIsAReport() throws {
    let bytes = try Self.make([Self.failed]).compose(original: Self.original)
    expectWellFormed(bytes)
    let message = text(bytes)
    for part in [
      "From: Mail Delivery System <MAILER-DAEMON@mx.example>\r\n", "To: <sender@x.example>\r\n",
      "Auto-Submitted: auto-replied\r\n",
      "multipart/report; report-type=delivery-status;\r\n boundary=", "Reporting-MTA: dns; mx.example\r\n",
      "Original-Envelope-Id: env 1\r\n", "Original-Recipient: rfc822; old+a=b@x.example\r\n",
      "Final-Recipient: rfc822; new@g.example\r\nAction: failed\r\nStatus: 5.1.1\r\nRemote-MTA: dns; gmail.example\r\n",
      "Diagnostic-Code: smtp; 550 5.1.1 No such user\r\n", "text/rfc822-headers", "Subject: hello\r\n",
    ] { #expect(message.contains(part), "\(part)") }
    #expect(!message.contains("secret body"))
  }

  @Test func theWholeMessageComesBackWhenAskedFor() throws {
    var report = try Self.make([Self.failed])
    report.ret = .full
    let message = text(report.compose(original: Self.original))
    #expect(message.contains("Content-Type: message/rfc822\r\n") && message.contains("secret body\r\n"))
  }

  @Test func repliesCannotAddLinesOrFields() throws {
    var recipient = Self.failed
    recipient.reply = Reply(550, "5.1.1", "x\r\nAction: delivered\r\n\r\n--", String(repeating: "long ", count: 600))
    recipient.remoteMTA = "evil\r\nStatus: 2.0.0"
    let bytes = try Self.make([recipient]).compose(original: Self.original)
    expectWellFormed(bytes)
    #expect(!text(bytes).contains("\r\nAction: delivered") && !text(bytes).contains("\r\nStatus: 2.0.0"))
  }

  @Test func statusFollowsTheAction() {
    var recipient = Self.failed
    recipient.reply = Reply(451, "4.4.1", "expired")
    #expect(recipient.status.description == "5.4.1")
    recipient.action = .delayed
    #expect(recipient.status.description == "4.4.1")
    recipient.reply = Reply(451, nil, "later")
    #expect(recipient.status.description == "4.0.0")
  }

  @Test func ourOwnVerdictStandsBesideTheServersLastWords() throws {
    var recipient = Self.failed
    recipient.reply = Reply(550, "4.4.7", "gave up after 9 attempts")
    recipient.diagnostic = Reply(450, "4.2.1", "too quickly")
    recipient.lastAttempt = Timestamp(seconds: 7200)
    var report = try Self.make([recipient])
    report.attempts = 9
    report.firstAttempt = Timestamp(seconds: 3600)
    let message = text(report.compose(original: Self.original))
    #expect(message.contains("Status: 5.4.7\r\nRemote-MTA: dns; gmail.example\r\n"))
    #expect(message.contains("Diagnostic-Code: smtp; 450 4.2.1 too quickly\r\n"))
    #expect(message.contains("    gave up after 9 attempts\r\n") && !message.contains("gmail.example said"))
    #expect(
      message.contains(
        "Delivery was tried 9 times:\r\n  first on Thu, 1 Jan 1970 01:00:00 +0000\r\n"
          + "  last on Thu, 1 Jan 1970 02:00:00 +0000\r\n"))
  }

  @Test func whatMayHaveArrivedIsNotSaidToHaveFailed() throws {
    var doubtful = Self.failed
    doubtful.remoteMTA = nil
    doubtful.finalRecipient = "doubtful@g.example"
    doubtful.reply = Reply(550, "4.4.7", "gave up; \(DeliveryStatusNotification.doubt)")
    let alone = text(try Self.make([doubtful]).compose(original: Self.original))
    #expect(alone.contains("Subject: Your message may not have been delivered\r\n"))
    #expect(alone.contains("Action: failed\r\n") && !alone.contains("could not be delivered"))
    let both = text(try Self.make([Self.failed, doubtful]).compose(original: Self.original))
    #expect(both.contains("Subject: Your message could not be delivered\r\n"))
    #expect(
      both.contains("could not be delivered to:\r\n") && both.contains("not known whether your message has reached:"))
    // A server that says so knows what it says.
    var failed = Self.failed
    failed.reply = doubtful.reply
    #expect(!text(try Self.make([failed]).compose(original: Self.original)).contains("not known"))
  }

  @Test(arguments: [DeliveryStatusNotification.Action.relayed, .expanded])
  func mailThatWasHandedOnIsNoFailure(_ action: DeliveryStatusNotification.Action) throws {
    var recipient = Self.failed
    recipient.action = action
    recipient.reply = Reply(250, "2.0.0", "OK")
    let message = text(try Self.make([recipient]).compose(original: Self.original))
    #expect(message.contains("Subject: Your message was handed on\r\n"))
    #expect(message.contains("Action: \(action.rawValue)\r\nStatus: 2.0.0\r\n"))
    #expect(!message.lowercased().contains("undelivered") && !message.contains("could not"))
  }

  @Test func addressesOutsideASCIIAreEscapedForPrograms() throws {
    var recipient = Self.failed
    recipient.finalRecipient = "é@g.example"
    let message = text(try Self.make([recipient]).compose(original: Self.original))
    #expect(message.contains("Final-Recipient: utf-8; \\x{E9}@g.example\r\n"))
    #expect(message.contains("Content-Transfer-Encoding: 8bit"))
  }

  @Test func aReplyOutsideASCIIMakesNoLineThatIsTooLong() throws {
    var recipient = Self.failed
    recipient.reply = Reply(550, "5.1.1", String(repeating: "\u{E9}\u{4E2D}", count: 300))
    let bytes = try Self.make([recipient]).compose(original: Self.original)
    expectWellFormed(bytes)
    // Not cut within the form of a character.
    let line = try #require(text(bytes).split(separator: "\r\n").first { $0.contains("\\x{E9}") })
    #expect(line.hasSuffix("}") && line.utf8.count > 850)
  }

  @Test func aHeaderWithoutItsEndIsReturnedUpToTheLastWholeField() throws {
    let report = try Self.make([Self.failed])
    let beginning = Array("From: a@b\r\nSubject: hello\r\n world\r\nX-Long: one\r\n tw".utf8)
    let cut = text(report.compose(original: beginning, isCut: true))
    #expect(cut.contains("From: a@b\r\nSubject: hello\r\n world\r\n\r\n--") && !cut.contains("X-Long"))
    #expect(cut.contains("Content-Description: The beginning of its header\r\n"))
    let whole = text(report.compose(original: beginning))
    #expect(whole.contains("X-Long: one\r\n tw\r\n"), "a message may be no more than a header")
    let body = text(report.compose(original: beginning + Array("o\r\n\r\nbody".utf8), isCut: true))
    #expect(body.contains("X-Long: one\r\n two\r\n"), "only the body is cut")
  }

  @Test(arguments: [MailParameters.Return.headers, .full])
  func aHeaderInUTF8GoesInFormsThatAnyServerTakes(ret: MailParameters.Return) throws {
    let header = "From: J\u{F6}rg <a@b>\r\nSubject: \u{4E2D}\u{6587}\r\n"
    let original = Array("\(header)\r\nbody\r\n".utf8)
    let expected = ret == .full ? original : Array(header.utf8)
    var report = try Self.make([Self.failed])
    report.ret = ret
    let type = ret == .full ? "message/global" : "message/global-headers"
    let bytes = report.compose(original: original)
    expectWellFormed(bytes)
    #expect(bytes.allSatisfy { $0 < 0x80 })
    let parts = text(bytes).split(separator: "Content-Type: \(type)\r\nContent-Transfer-Encoding: base64\r\n")
    let encoded = try #require(parts.last?.firstRange(of: "\r\n\r\n")).upperBound
    let lines = try #require(parts.last)[encoded...].split(separator: "\r\n").prefix { !$0.hasPrefix("--") }
    #expect(Base64.decode(lines.joined()) == expected)
    // With SMTPUTF8 they need no disguise.
    report.isInternationalized = true
    let open = text(report.compose(original: original))
    #expect(open.contains("Content-Type: \(type)\r\nContent-Transfer-Encoding: 8bit\r\n") && open.contains(header))
  }

  @Test func aHeaderWithOctetsThatAreNoUTF8ComesBackAsItIs() throws {
    let original = Array("Subject: J".utf8) + [0xf6] + Array("rg\r\n\r\n".utf8)
    let bytes = try Self.make([Self.failed]).compose(original: original)
    #expect(text(bytes).contains("Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: 8bit\r\n"))
    #expect(bytes.contains(0xf6))
  }

  @Test func aSenderOutsideASCIIStandsInToOnlyWithSMTPUTF8() throws {
    var report = try Self.make([Self.failed])
    report.reversePath = try Mailbox(parsing: "j\u{F6}rg@x.example")
    let bytes = report.compose(original: Self.original)
    let end = try #require(text(bytes).firstRange(of: "\r\n\r\n"))
    let header = text(bytes)[..<end.lowerBound]
    #expect(
      header.utf8.allSatisfy { $0 < 0x80 } && header.contains("\r\nTo: =?UTF-8?B?") && header.contains("?= :;\r\n"))
    report.isInternationalized = true
    #expect(text(report.compose(original: Self.original)).contains("\r\nTo: <j\u{F6}rg@x.example>\r\n"))
  }

  @Test func anOriginalThatHoldsTheBoundaryGetsAnother() throws {
    let report = try Self.make([Self.failed])
    let first = Boundary.unused(seed: "m1@mx.exampleQ1", in: [])
    let message = text(report.compose(original: Array("X: --\(first)\r\n\r\n".utf8)))
    #expect(!message.contains("boundary=\"\(first)\""))
  }
}

@Suite struct MessageComposerTests {
  static func make(subject: String = "Hi", body: String = "Hello\n") throws -> MessageComposer {
    MessageComposer(
      from: try .init(parsing: "Jane Doe <jane@x.example>"), to: [try .init(parsing: "bob@y.example")],
      subject: subject,
      text: body, date: Timestamp(seconds: 0), messageID: "id@x.example")
  }

  @Test func aPlainMessageIsPlain() throws {
    let bytes = try Self.make().compose()
    #expect(
      text(bytes)
        == "Date: Thu, 1 Jan 1970 00:00:00 +0000\r\nFrom: Jane Doe <jane@x.example>\r\nTo: bob@y.example\r\nSubject: Hi\r\n"
        + "Message-ID: <id@x.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        + "Content-Transfer-Encoding: 7bit\r\n\r\nHello\r\n")
  }

  @Test(arguments: [
    "a\nb", "a\rb\r", "a\r\nb\r\n", "a\n\n\nb", "é", ".", "From x\n.\n", String(repeating: "x", count: 3000), "a \n",
  ])
  func anyBodyBecomesSendableLines(_ body: String) throws {
    let bytes = try Self.make(body: body).compose()
    expectWellFormed(bytes)
    #expect(bytes.allSatisfy { $0 < 0x80 })
  }

  @Test func textOutsideASCIIIsQuotedPrintable() throws {
    #expect(text(try Self.make(body: "é=\u{20}").compose()).hasSuffix("quoted-printable\r\n\r\n=C3=A9=3D=20\r\n"))
  }

  @Test func subjectsOutsideASCIIBecomeEncodedWords() throws {
    #expect(text(try Self.make(subject: "Grüße").compose()).contains("\r\nSubject: =?UTF-8?B?R3LDvMOfZQ==?=\r\n"))
    let long = text(try Self.make(subject: String(repeating: "ü", count: 200)).compose())
    #expect(long.split(separator: "\r\n").allSatisfy { $0.utf8.count <= 76 })
    #expect(text(try Self.make(subject: "=?UTF-8?Q?fake?=").compose()).contains("Subject: =?UTF-8?B?"))
  }

  @Test func alternativesAndAttachmentsNest() throws {
    var composer = try Self.make()
    composer.html = "<p>Hello</p>"
    composer.attachments = [
      .init(name: "Übersicht \"1\".pdf", contentType: "application/pdf", content: Array(repeating: 65, count: 200))
    ]
    let bytes = try composer.compose()
    expectWellFormed(bytes)
    let message = text(bytes)
    for part in [
      "multipart/mixed;", "multipart/alternative;", "text/html; charset=utf-8",
      "filename*=UTF-8''%C3%9Cbersicht%20%221%22.pdf",
    ] {
      #expect(message.contains(part), "\(part)")
    }
    #expect(message.split(separator: "\r\n").allSatisfy { $0.utf8.count <= 78 })
  }

  @Test(arguments: [
    ("Jörg <j@example.org>", "=?UTF-8?B?SsO2cmc=?= <j@example.org>"),
    (
      "Jörg <j@example.org>, \"Doe, Jane\" <jane@example.org>",
      "=?UTF-8?B?SsO2cmc=?= <j@example.org>,\r\n \"Doe, Jane\" <jane@example.org>"
    ),
    ("\"Doe, Jane\" <jane@example.org>", "\"Doe, Jane\" <jane@example.org>"),
  ])
  func addressInAFurtherHeaderStaysOneWhenItsNameIsEncoded(_ value: String, _ field: String) throws {
    var composer = try Self.make()
    composer.headers = [("Reply-To", value)]
    #expect(String(decoding: try composer.compose(), as: UTF8.self).contains("\r\nReply-To: \(field)\r\n"))
  }

  @Test(arguments: [
    ("X-Test", "a\r\nBcc: x@y"), ("X-Test", "a\0"), ("X Test", "a"), ("", "a"), ("X:Y", "a"), ("From", "a@b"),
    ("content-type", "x"),
  ])
  func headersThatWouldHarmAreRefused(_ name: String, _ value: String) throws {
    var composer = try Self.make()
    composer.headers = [(name, value)]
    #expect(throws: ComposeError.self) { try composer.compose() }
  }

  @Test func lineBreaksInSubjectNameAndAttachmentAreRefused() throws {
    #expect(throws: ComposeError.controlCharacter(field: "Subject")) { try Self.make(subject: "a\nBcc: b").compose() }
    var named = try Self.make()
    named.from.name = "a\r\nb"
    #expect(throws: ComposeError.controlCharacter(field: "From")) { try named.compose() }
    var attached = try Self.make()
    attached.attachments = [.init(name: "x", contentType: "a/b\r\nX: y", content: [])]
    #expect(throws: ComposeError.self) { try attached.compose() }
  }

  @Test(
    arguments: [
      ("a@b", nil, "a@b"), ("Jane <a@b>", "Jane", "a@b"), ("\"Doe, Jane\" <a@b>", "Doe, Jane", "a@b"),
      ("<a@b>", nil, "a@b"),
    ] as [(String, String?, String)])
  func addressesWithNamesAreRead(_ input: String, _ name: String?, _ mailbox: String) throws {
    let address = try MessageComposer.Address(parsing: input)
    #expect(address.name == name && address.mailbox.description == mailbox)
  }
}
