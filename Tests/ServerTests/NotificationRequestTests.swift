// What a client asks to be told of its mail (RFC 3461), and what of it reaches the queue.

import SMTP
import Testing

@Suite(.timeLimit(.minutes(2))) struct NotificationRequestTests {
  @Test func dsnIsOfferedAndWhatIsAskedForIsQueued() async throws {
    let door = try Door(trusting: ["127.0.0.1"])
    try await door.connect { client async throws in
      _ = try await client.reply()
      #expect(try await client.say("EHLO c").split(separator: "\n").contains { $0.dropFirst(4) == "DSN" })
      try await client.send(
        "MAIL FROM:<a@b.test> RET=FULL ENVID=QQ+201\r\n"
          + "RCPT TO:<contact@relay.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;o+2Bx@else.test\r\n"
          + "RCPT TO:<x@gmail.test> NOTIFY=NEVER\r\nRCPT TO:<y@gmail.test>\r\nDATA\r\n")
      #expect(try await client.codes(5) == ["250 2.1.0", "250 2.1.5", "250 2.1.5", "250 2.1.5", "354"])
      #expect(try await client.say("x\r\n.").hasPrefix("250"))
      // What one transaction asked for is not the next one's.
      #expect(try await client.mail("y").hasPrefix("250"))
    }
    let first = try #require(door.queued.first).envelope
    #expect(first.envelopeID == "QQ 1" && first.returnFull == true)
    #expect(first.recipients.map(\.notify) == [5, 0, nil])
    #expect(first.recipients.map(\.originalRecipient) == ["rfc822;o+x@else.test", nil, nil])
    let second = try #require(door.queued.last).envelope
    #expect(second.envelopeID == nil && second.returnFull == nil)
    #expect(second.recipients.map(\.notify) == [nil] && second.recipients.map(\.originalRecipient) == [nil])
    await door.close()
  }

  @Test func everyAddressOfAnAliasInheritsWhatWasAskedFor() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send(
        "MAIL FROM:<a@b.test>\r\nRCPT TO:<team@relay.test> NOTIFY=SUCCESS ORCPT=rfc822;team@relay.test\r\nDATA\r\n")
      #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "354"])
      #expect(try await client.say("x\r\n.").hasPrefix("250"))
    }
    let recipients = try #require(door.queued.first).envelope.recipients
    #expect(recipients.count == 3 && recipients.allSatisfy { $0.notify == 1 && $0.original == "team@relay.test" })
    #expect(recipients.allSatisfy { $0.originalRecipient == "rfc822;team@relay.test" })
    await door.close()
  }

  @Test func whoeverIsNamedTwiceGetsOneCopyAndTheSenderEveryReportAskedFor() async throws {
    let door = try Door(trusting: ["127.0.0.1"])
    try await door.greet { client async throws in
      try await client.send(
        "MAIL FROM:<a@b.test>\r\nRCPT TO:<owner@gmail.test> NOTIFY=NEVER\r\nRCPT TO:<contact@relay.test> NOTIFY=SUCCESS\r\n"
          + "RCPT TO:<p@gmail.test> NOTIFY=SUCCESS\r\nRCPT TO:<p@gmail.test>\r\nDATA\r\n")
      #expect(try await client.codes(6).suffix(1) == ["354"])
      #expect(try await client.say("x\r\n.").hasPrefix("250"))
    }
    let recipients = try #require(door.queued.first).envelope.recipients
    #expect(recipients.map(\.address) == ["owner@gmail.test", "p@gmail.test"])
    #expect(recipients.map(\.notify) == [1, 7], "nothing said means failures and delays")
    await door.close()
  }

  @Test(arguments: ["NOTIFY=NEVER,SUCCESS", "NOTIFY=", "NOTIFY=SOMETIMES", "ORCPT=x", "ORCPT=rfc822;a+0D+0Ab"])
  func requestThatMakesNoSenseIsRefused(_ parameter: String) async throws {
    let door = try Door()
    try await door.greet { client async throws in
      #expect(try await client.say("MAIL FROM:<a@b.test>").hasPrefix("250"))
      #expect(try await client.say("RCPT TO:<contact@relay.test> \(parameter)").hasPrefix("501 5.5.4"))
    }
    await door.close()
  }
}
