// The client's transaction against every turn a server can take.

import Testing

@testable import SMTP

@Suite struct ClientTransactionTests {
  static let ok = Reply(250, "2.1.0", "OK")
  static let queued = Reply(250, "2.0.0", "queued")
  static let go = Reply(354, nil, "go")
  static let noUser = Reply(550, "5.1.1", "no such user")
  static let later = Reply(451, "4.3.0", "later")
  static let closing = Reply(421, "4.7.0", "closing")
  static let badSequence = Reply(503, "5.5.1", "no recipients")

  static func capabilities(_ words: String...) -> Capabilities {
    Capabilities(ehlo: Reply(code: 250, enhanced: nil, lines: ["x"] + words))
  }

  static func make(_ capabilities: Capabilities, recipients: Int = 2) -> ClientTransaction {
    ClientTransaction(
      reversePath: "s@x", recipients: (1...recipients).map { "r\($0)@y" }, size: 42, is8Bit: true, smtpUTF8: false,
      capabilities: capabilities)
  }

  static let chunked = capabilities("PIPELINING", "CHUNKING", "SIZE 100", "8BITMIME")
  static let pipelined = capabilities("PIPELINING")

  /// Plays `replies`; all but the last must leave the transaction open.
  func outcome(_ transaction: inout ClientTransaction, _ replies: [Reply]) throws -> ClientTransaction.Outcome {
    for reply in replies.dropLast() {
      if case .finished = transaction.receive(reply) { Issue.record("finished early at \(reply)") }
    }
    guard case .finished(let outcome) = transaction.receive(try #require(replies.last)) else {
      Issue.record("not finished")
      throw CancellationError()
    }
    return outcome
  }

  @Test func oneFlightCarriesEverythingWithChunking() {
    var transaction = Self.make(Self.chunked)
    var output: [UInt8] = []
    #expect(transaction.flight(into: &output) == .chunked)
    #expect(
      String(decoding: output, as: UTF8.self)
        == "MAIL FROM:<s@x> SIZE=42 BODY=8BITMIME\r\nRCPT TO:<r1@y>\r\nRCPT TO:<r2@y>\r\nBDAT 42 LAST\r\n")
  }

  @Test func onlyWhatIsOfferedIsUsed() {
    var transaction = Self.make(Self.pipelined)
    var output: [UInt8] = []
    #expect(transaction.flight(into: &output) == .pipelined)
    #expect(
      String(decoding: output, as: UTF8.self) == "MAIL FROM:<s@x>\r\nRCPT TO:<r1@y>\r\nRCPT TO:<r2@y>\r\nDATA\r\n")
  }

  @Test func reportOptionsGoOutEncoded() {
    let original = RecipientParameters.OriginalRecipient(addressType: "rfc822", address: "a+b@c")
    let dsn = ClientTransaction.DSNOptions(
      ret: .headers, envelopeID: "id 1", recipients: [.init(notify: .never, originalRecipient: original)])
    for (words, expected) in [
      (
        Self.capabilities("PIPELINING", "DSN"),
        "MAIL FROM:<> RET=HDRS ENVID=id+201\r\nRCPT TO:<r> NOTIFY=NEVER ORCPT=rfc822;a+2Bb@c\r\nDATA\r\n"
      ),
      (Self.pipelined, "MAIL FROM:<>\r\nRCPT TO:<r>\r\nDATA\r\n"),
    ] {
      var transaction = ClientTransaction(
        reversePath: "", recipients: ["r"], size: 1, is8Bit: false, smtpUTF8: false, capabilities: words, dsn: dsn)
      var output: [UInt8] = []
      _ = transaction.flight(into: &output)
      #expect(String(decoding: output, as: UTF8.self) == expected)
    }
  }

  @Test func aTypeOfAnAddressThatIsNoAtomIsLeftOut() {
    let original = RecipientParameters.OriginalRecipient(addressType: "rfc822 NOTIFY=NEVER X=", address: "a@b")
    var transaction = ClientTransaction(
      reversePath: "", recipients: ["r"], size: 1, is8Bit: false, smtpUTF8: false,
      capabilities: Self.capabilities("PIPELINING", "DSN"),
      dsn: .init(ret: nil, envelopeID: nil, recipients: [.init(notify: nil, originalRecipient: original)]))
    var output: [UInt8] = []
    _ = transaction.flight(into: &output)
    #expect(String(decoding: output, as: UTF8.self) == "MAIL FROM:<>\r\nRCPT TO:<r>\r\nDATA\r\n")
  }

  @Test func noAddressCanBeginACommand() {
    var transaction = ClientTransaction(
      reversePath: "a\r\nQUIT", recipients: ["b\nDATA"], size: 1, is8Bit: false, smtpUTF8: false,
      capabilities: Self.pipelined)
    var output: [UInt8] = []
    _ = transaction.flight(into: &output)
    #expect(String(decoding: output, as: UTF8.self) == "MAIL FROM:<aQUIT>\r\nRCPT TO:<bDATA>\r\nDATA\r\n")
  }

  @Test func allAreAcceptedByTheReplyToTheContent() throws {
    for (capabilities, replies) in [
      (Self.chunked, [Self.ok, Self.ok, Self.ok, Self.queued]),
      (Self.pipelined, [Self.ok, Self.ok, Self.ok, Self.go, Self.queued]),
    ] {
      var transaction = Self.make(capabilities)
      let result = try outcome(&transaction, replies)
      #expect(result.recipients == [.accepted(Self.queued), .accepted(Self.queued)])
      #expect(!result.mustClose && !result.needsReset && !result.isInDoubt)
    }
  }

  @Test func contentWaitsFor354() {
    var transaction = Self.make(Self.pipelined, recipients: 1)
    #expect(transaction.receive(Self.ok) == .wait)
    #expect(transaction.receive(Self.ok) == .wait)
    #expect(transaction.receive(Self.go) == .sendContent(dotStuffed: true))
    #expect(transaction.awaitsFinalReply)
  }

  @Test func refusedRecipientsDoNotHinderTheOthers() throws {
    var transaction = Self.make(Self.chunked)
    let result = try outcome(&transaction, [Self.ok, Self.noUser, Self.ok, Self.queued])
    #expect(result.recipients == [.refused(Self.noUser, stage: .rcpt), .accepted(Self.queued)])
  }

  @Test func aRefusedSenderIsTheReplyForAllAndTheRestIsSwallowed() throws {
    for (capabilities, last) in [(Self.chunked, Self.badSequence), (Self.pipelined, Self.badSequence)] {
      var transaction = Self.make(capabilities)
      let result = try outcome(&transaction, [Self.later, Self.badSequence, Self.badSequence, last])
      #expect(result.recipients == [.refused(Self.later, stage: .mail), .refused(Self.later, stage: .mail)])
      #expect(!result.needsReset)
    }
  }

  @Test func theRefusalOfTheChunkDoesNotHideWhyRecipientsFailed() throws {
    var transaction = Self.make(Self.chunked)
    let result = try outcome(&transaction, [Self.ok, Self.noUser, Self.later, Self.badSequence])
    #expect(result.recipients == [.refused(Self.noUser, stage: .rcpt), .refused(Self.later, stage: .rcpt)])
    #expect(result.needsReset)
  }

  @Test func anEmptyMessageEndsADATAThatNobodyWanted() throws {
    var transaction = Self.make(Self.pipelined, recipients: 1)
    _ = transaction.receive(Self.ok)
    _ = transaction.receive(Self.noUser)
    #expect(transaction.receive(Self.go) == .send(commands: Array(".\r\n".utf8)))
    #expect(
      transaction.receive(Self.badSequence)
        == .finished(
          .init(
            recipients: [.refused(Self.noUser, stage: .rcpt)], isInDoubt: false, mustClose: false, needsReset: false)))
  }

  @Test func dataAndContentRefusalsAreTold() throws {
    var atData = Self.make(Self.pipelined, recipients: 1)
    let data = try outcome(&atData, [Self.ok, Self.ok, Self.later])
    #expect(data.recipients == [.refused(Self.later, stage: .data)] && data.needsReset)
    var atContent = Self.make(Self.pipelined, recipients: 1)
    let content = try outcome(&atContent, [Self.ok, Self.ok, Self.go, Self.noUser])
    #expect(content.recipients == [.refused(Self.noUser, stage: .content)] && !content.needsReset)
  }

  @Test func lockStepSendsOneCommandAReply() throws {
    var transaction = Self.make(Capabilities())
    var output: [UInt8] = []
    #expect(transaction.flight(into: &output) == .lockStep)
    #expect(String(decoding: output, as: UTF8.self) == "MAIL FROM:<s@x>\r\n")
    #expect(transaction.receive(Self.ok) == .send(commands: Array("RCPT TO:<r1@y>\r\n".utf8)))
    #expect(transaction.receive(Self.noUser) == .send(commands: Array("RCPT TO:<r2@y>\r\n".utf8)))
    #expect(transaction.receive(Self.ok) == .send(commands: Array("DATA\r\n".utf8)))
    #expect(transaction.receive(Self.go) == .sendContent(dotStuffed: true))
    let result = try outcome(&transaction, [Self.queued])
    #expect(result.recipients == [.refused(Self.noUser, stage: .rcpt), .accepted(Self.queued)])
  }

  @Test func lockStepEndsEarlyWhenNobodyIsLeft() throws {
    var transaction = Self.make(Capabilities())
    let result = try outcome(&transaction, [Self.ok, Self.noUser, Self.noUser])
    #expect(result.needsReset && result.recipients.allSatisfy { !$0.isAccepted })
    var refused = Self.make(Capabilities())
    #expect(
      try outcome(&refused, [Self.noUser]).recipients == Array(repeating: .refused(Self.noUser, stage: .mail), count: 2)
    )
  }

  @Test(arguments: [0, 1, 2, 3])
  func theServerMayCloseAtAnyReply(_ before: Int) throws {
    var transaction = Self.make(Self.chunked)
    let replies = [Self.ok, Self.noUser, Self.ok].prefix(before) + [Self.closing]
    let result = try outcome(&transaction, Array(replies))
    #expect(result.mustClose && !result.isInDoubt)
    #expect(result.recipients[0].reply == (before >= 2 ? Self.noUser : Self.closing))
    #expect(result.recipients[1].reply == Self.closing)
  }

  @Test func repliesThatMakeNoSenseNeitherAcceptNorBounce() throws {
    var transaction = Self.make(Self.pipelined, recipients: 1)
    let result = try outcome(&transaction, [Self.ok, Self.ok, Self.ok])
    #expect(result.mustClose && result.recipients[0].reply.isTransient)
  }

  @Test func aConnectionLostAfterTheContentLeavesDoubt() {
    var transaction = Self.make(Self.pipelined)
    for reply in [Self.ok, Self.noUser, Self.ok] { _ = transaction.receive(reply) }
    #expect(!transaction.connectionFailed(contentFullySent: false).isInContent)
    _ = transaction.receive(Self.go)
    let unsent = transaction.connectionFailed(contentFullySent: false)
    #expect(!unsent.isInDoubt && unsent.isInContent && unsent.mustClose)
    let sent = transaction.connectionFailed(contentFullySent: true)
    #expect(sent.isInDoubt)
    #expect(sent.recipients[0] == .refused(Self.noUser, stage: .rcpt))
    #expect(sent.recipients[1] == .refused(ClientTransaction.connectionLost, stage: .connection))
    #expect(Self.make(Self.chunked).connectionFailed(contentFullySent: true).isInDoubt)
  }

  @Test func whatAServerCannotTakeIsKnownBefore() {
    #expect(ClientTransaction.obstacle(size: 101, smtpUTF8: false, capabilities: Self.chunked)?.code == 552)
    #expect(ClientTransaction.obstacle(size: 100, smtpUTF8: false, capabilities: Self.chunked) == nil)
    #expect(ClientTransaction.obstacle(size: 1, smtpUTF8: true, capabilities: Self.chunked)?.code == 550)
  }
}
