// What is said and answered before any content: greeting, envelope, who may relay, limits on recipients and errors.

import Testing

@testable import Server

@Suite struct DialogueTests {
  @Test(arguments: ["127.0.0.1:0", "[::1]:0"]) func messageIsTakenWordByWord(address: String) async throws {
    let door = try Door(at: address)
    try await door.connect { client async throws in
      #expect(try await client.reply() == "220 relay.test ESMTP ready")
      let ehlo = try await client.say("EHLO client.test")
      #expect(
        ehlo
          == "250-relay.test\n250-SIZE 35882577\n250-8BITMIME\n250-SMTPUTF8\n250-PIPELINING\n250-CHUNKING\n250-ENHANCEDSTATUSCODES\n250 DSN"
      )
      #expect(try await client.say("MAIL FROM:<a@b.test> BODY=8BITMIME").hasPrefix("250 2.1.0"))
      #expect(try await client.say("RCPT TO:<contact@relay.test>").hasPrefix("250 2.1.5"))
      #expect(try await client.say("DATA").hasPrefix("354"))
      let reply = try await client.say("Subject: x\r\n\r\nbody\r\n.")
      let id = try #require(door.queued.first?.id)
      #expect(reply == "250 2.0.0 Queued as \(id)")
      #expect(try await client.say("QUIT").hasPrefix("221 2.0.0"))
      #expect(try await client.reply() == "", "the connection is closed")
    }
    let message = try #require(door.queued.first)
    #expect(message.envelope.reversePath == "a@b.test")
    #expect(message.envelope.recipients.map(\.address) == ["owner@gmail.test"])
    #expect(message.envelope.recipients.map(\.original) == ["contact@relay.test"])
    #expect(message.envelope.recipients.map(\.account) == ["gmail"])
    #expect(message.envelope.is8Bit && !message.envelope.smtpUTF8)
    #expect(message.envelope.helo == "client.test")
    #expect(message.envelope.clientAddress == (address.first == "[" ? "::1" : "127.0.0.1"))
    #expect(door.handed.withLock { $0 } == [message.id])
    let line = await door.lines.line(containing: "\(message.id)")
    #expect(line.contains("from=<a@b.test>") && line.contains("nrcpt=1") && line.contains("helo=client.test"))
    let size = try await message.content.octets().count
    #expect(line.contains("size=\(size),"))
    await door.close()
  }

  @Test func wholeDialogueInOneWriteIsAnsweredInOrder() async throws {
    let door = try Door()
    try await door.connect { client async throws in
      try await client.send(
        "EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<contact@relay.test>\r\nDATA\r\nfirst\r\n.\r\n"
          + "MAIL FROM:<a@b>\r\nRCPT TO:<nobody@relay.test>\r\nRCPT TO:<contact@relay.test>\r\nBDAT 8 LAST\r\nsecond\r\n"
          + "NOOP\r\nRSET\r\nVRFY x\r\nEXPN x\r\nHELP\r\nQUIT\r\n")
      #expect(
        try await client.codes(16) == [
          "220 relay.test", "250-relay.test\n250-SIZE", "250 2.1.0", "250 2.1.5", "354", "250 2.0.0", "250 2.1.0",
          "550 5.1.1",
          "250 2.1.5", "250 2.0.0", "250 2.0.0", "250 2.0.0", "252 2.5.2", "502 5.5.1", "214-2.0.0", "221 2.0.0",
        ])
      #expect(try await client.reply() == "")
    }
    #expect(try await door.bodies() == ["first\r\n", "second\r\n"])
    #expect(door.queued.map(\.envelope.reversePath) == ["", "a@b"])
    await door.close()
  }

  @Test(arguments: ["postmaster", "Postmaster@relay.test", "POSTMASTER@RELAY.TEST"])
  func postmasterIsAlwaysHeard(_ recipient: String) async throws {
    let door = try Door()
    try await door.greet { client async throws in
      #expect(try await client.mail(to: recipient, "help").hasPrefix("250 2.0.0"))
    }
    #expect(door.queued.first?.envelope.recipients.map(\.address) == ["owner@gmail.test"])
    await door.close()
  }

  @Test(arguments: [
    ([], "x@elsewhere.test", "550 5.7.1"), ([], "x@relay.test", "550 5.1.1"), ([], "contact@relay.test", "250 2.1.5"),
    (["127.0.0.0/8"], "x@elsewhere.test", "250 2.1.5"), (["10.0.0.0/8"], "x@elsewhere.test", "550 5.7.1"),
    ([], "x%elsewhere.test@relay.test", "550 5.1.1"), ([], "\"x@elsewhere.test\"@relay.test", "550 5.1.1"),
    ([], "@relay.test:x@elsewhere.test", "550 5.7.1"), ([], "x@[127.0.0.1]", "550 5.7.1"),
  ])
  func onlyTrustedClientsRelayAndMappingsAreForAll(
    _ trusted: [String], _ recipient: String, _ code: String
  ) async throws {
    let door = try Door(trusting: trusted)
    try await door.greet { client async throws in
      // A sender that looks like one of us proves nothing.
      #expect(try await client.say("MAIL FROM:<contact@relay.test>").hasPrefix("250"))
      #expect(try await client.say("RCPT TO:<\(recipient)>").hasPrefix(code))
      if code != "250 2.1.5" {
        #expect(try await client.say("DATA").hasPrefix("554 5.5.1"), "nobody is left to send to")
        #expect(await door.lines.line(containing: "refused from").contains(code))
      }
    }
    #expect(door.queued.isEmpty)
    await door.close()
  }

  @Test func aliasFansOutToEachTargetOnce() async throws {
    let door = try Door(trusting: ["127.0.0.1"])
    try await door.greet { client async throws in
      try await client.send(
        "MAIL FROM:<a@b>\r\nRCPT TO:<team@relay.test>\r\nRCPT TO:<b@gmail.test>\r\nRCPT TO:<contact@relay.test>\r\nDATA\r\n"
      )
      #expect(try await client.codes(5) == ["250 2.1.0", "250 2.1.5", "250 2.1.5", "250 2.1.5", "354"])
      #expect(try await client.say("x\r\n.").hasPrefix("250"))
    }
    let recipients = try #require(door.queued.first).envelope.recipients
    #expect(recipients.map(\.address) == ["a", "b", "c", "owner"].map { $0 + "@gmail.test" })
    #expect(recipients.map(\.original) == ["team", "team", "team", "contact"].map { $0 + "@relay.test" })
    await door.close()
  }

  @Test func recipientsBeyondTheLimitComeLater() async throws {
    let door = try Door(trusting: ["127.0.0.1"])
    try await door.greet { client async throws in
      var text = "MAIL FROM:<a@b>\r\n"
      for number in 0..<130 { text += "RCPT TO:<r\(number)@gmail.test>\r\n" }
      try await client.send(text + "DATA\r\n")
      let codes = try await client.codes(132)
      #expect(codes[1...100].allSatisfy { $0 == "250 2.1.5" })
      #expect(codes[101...130].allSatisfy { $0 == "452 4.5.3" }, "they are no errors: the session goes on")
      #expect(codes[131] == "354")
      #expect(try await client.say("x\r\n.").hasPrefix("250"))
    }
    #expect(door.queued.first?.envelope.recipients.count == 100)
    await door.close()
  }

  @Test func transactionAbandonedBetweenChunksLeavesNothingToTheNext() async throws {
    for abandon in ["RSET", "EHLO again.test", "HELO again.test"] {
      let door = try Door()
      try await door.greet { client async throws in
        try await client.send(
          "MAIL FROM:<a@b>\r\nRCPT TO:<contact@relay.test>\r\nBDAT 8\r\nsecret\r\n\(abandon)\r\n")
        _ = try await client.codes(4)
        if abandon == "HELO again.test" { #expect(try await client.say("EHLO c").hasPrefix("250")) }
        try await client.send("MAIL FROM:<c@d>\r\nRCPT TO:<team@relay.test>\r\nBDAT 6 LAST\r\nopen\r\n")
        #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "250 2.0.0"])
      }
      #expect(try await door.bodies() == ["open\r\n"], "after \(abandon)")
      let text = String(decoding: try await door.queued[0].content.octets(), as: UTF8.self)
      #expect(text.contains("for <team@relay.test>"))
      await door.close()
    }
  }

  /// What a client has sent beyond must not turn the last reply into a reset.
  @Test func clientThatOnlyMakesErrorsIsToldWhyItIsSentAway() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send(String(repeating: "NONSENSE\r\n", count: 60_000))
      #expect(try await client.codes(20).allSatisfy { $0 == "500 5.5.1" })
      #expect(try await client.reply().hasPrefix("421 4.7.0"))
      #expect(try await client.reply() == "", "an end, not a reset")
    }
    await door.close()
  }

  @Test func inputBehindQuitDoesNotDestroyTheFarewell() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send("QUIT\r\n" + String(repeating: "NOOP\r\n", count: 20_000))
      #expect(try await client.reply().hasPrefix("221"))
      #expect(try await client.reply() == "")
    }
    await door.close()
  }

  @Test func overlongAndBareLinesAreRefusedAndTheSessionGoesOn() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      #expect(try await client.say("NOOP " + String(repeating: "x", count: 5000)).hasPrefix("500 5.5.2"))
      try await client.send("NOOP\nNOOP\r\n")
      #expect(try await client.codes(2) == ["500 5.5.2", "250 2.0.0"])
      #expect(try await client.say("RCPT TO:<a@b>").hasPrefix("503 5.5.1"))
      #expect(try await client.say("MAIL FROM:<a@b> FOO=1").hasPrefix("555 5.5.4"))
      #expect(try await client.say("MAIL FROM:<ü@b>").hasPrefix("553 5.6.7"))
      #expect(try await client.mail("still here").hasPrefix("250"))
    }
    await door.close()
  }

  @Test func internationalMailIsTakenWithSMTPUTF8() async throws {
    let door = try Door(trusting: ["127.0.0.1"])
    try await door.greet { client async throws in
      #expect(try await client.say("MAIL FROM:<jürgen@müller.test> SMTPUTF8 BODY=8BITMIME").hasPrefix("250"))
      #expect(try await client.say("RCPT TO:<δοκιμή@gmail.test>").hasPrefix("250"))
      #expect(try await client.say("DATA").hasPrefix("354"))
      #expect(try await client.say("Subject: ü\r\n\r\n.").hasPrefix("250"))
    }
    let message = try #require(door.queued.first)
    #expect(message.envelope.smtpUTF8 && message.envelope.is8Bit)
    #expect(message.envelope.reversePath == "jürgen@müller.test")
    let text = String(decoding: try await message.content.octets(), as: UTF8.self)
    #expect(text.contains("with UTF8SMTP id"))
    await door.close()
  }
}
