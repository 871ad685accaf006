// Mail filters at work: what they are told, what each of their verdicts and changes does, and that a filter that is down,
// slow or out of its mind does what the configuration says and nothing else.

import Filters
import Glibc
import Network
import Primitives
import Spool
import TestSupport
import Testing

@testable import Server

/// A door with filters behind it.
private func door(
  _ milters: [ScriptedMilter], fallback: MilterSettings.Fallback = .temporaryFailure, timeout: Duration = .seconds(60),
  _ change: (inout ServerSettings) -> Void = { _ in }
) throws -> Door {
  let time = ManualTime()
  let log = LogLines().logger
  return try Door { settings in
    settings.milters = milters.enumerated().map { number, scripted in
      var milter = MilterSettings(name: "milter-\(number)", address: scripted.address)
      milter.fallback = fallback
      (milter.connectTimeout, milter.commandTimeout, milter.contentTimeout) = (timeout, timeout, timeout)
      return Milter(milter, time: time, resolver: Resolver(source: SystemNames(), time: time), log: log)
    }
    change(&settings)
  }
}

private typealias Scripted = ScriptedMilter

/// Answers the packets of one letter so, and all others as usual.
private func on(
  _ code: Character, _ packets: [UInt8]...
) -> @Sendable (ScriptedMilter.Packet) -> ScriptedMilter.Answer? {
  { $0.code == code ? .packets(packets) : nil }
}

private func isTold(_ milter: ScriptedMilter, _ dialogue: String) async {
  await milter.isTold { $0 == dialogue }
  #expect(milter.dialogue == dialogue)
}

private let content = "Subject: test\r\nX-Old: 1\r\nx-old: 2\r\n\tfolded\r\n\r\nfirst\r\nsecond"

@Suite(.timeLimit(.minutes(1))) struct MilterTests {
  // MARK: What filters are told

  @Test func filterIsToldEverythingInOrder() async throws {
    let milter = try Scripted(flags: .leadingSpace)
    let door = try door([milter])
    try await door.greet { client async throws in
      try await client.send("MAIL FROM:<a@b.test> BODY=8BITMIME\r\nRCPT TO:<contact@relay.test>\r\nDATA\r\n")
      #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "354"])
      let reply = try await client.say(content + "\r\n.")
      #expect(reply.hasPrefix("250 2.0.0"))
      #expect(try await client.say("QUIT").hasPrefix("221"))
      _ = try await client.reply()
    }
    await isTold(milter, "CHMRTLLLNBEQ")
    let id = try #require(door.queued.first?.id.description)
    #expect(milter.all("C")[0].words[0] == "[127.0.0.1]4" || milter.all("C")[0].words[0] == "[127.0.0.1]")
    #expect(milter.all("H").map(\.words) == [["client.test"]])
    #expect(milter.all("M").map(\.words) == [["<a@b.test>", "BODY=8BITMIME"]])
    #expect(milter.all("R").map(\.words) == [["<contact@relay.test>"]])
    #expect(
      milter.all("L").map(\.words) == [["Subject", " test"], ["X-Old", " 1"], ["x-old", " 2\n\tfolded"]],
      "our own Received is not shown")
    #expect(milter.all("B").map(\.words) == [["first\r\nsecond\r\n"]])
    #expect(milter.macro("j", for: "C") == "relay.test")
    #expect(milter.macro("_", for: "C") == "[127.0.0.1]")
    #expect(milter.macro("{daemon_port}", for: "C") == "\(door.endpoint.port)")
    #expect(milter.macro("{mail_addr}", for: "M") == "a@b.test")
    #expect(milter.macro("{rcpt_addr}", for: "R") == "contact@relay.test")
    #expect(["M", "R", "T", "N", "E"].map { milter.macro("i", for: $0) } == Array(repeating: id, count: 5))
    #expect(try await door.bodies() == [content + "\r\n"], "and nothing is changed")
    await door.close()
    await milter.stop()
  }

  @Test func whatAFilterDoesNotWantItIsNotTold() async throws {
    let milter = try Scripted(flags: [
      .noConnect, .noHelo, .noMail, .noRecipients, .noData, .noHeaders, .noEndOfHeaders, .noBody,
    ])
    let door = try door([milter])
    try await door.greet { client async throws in
      #expect(try await client.mail(content).hasPrefix("250"))
    }
    await isTold(milter, "EQ")
    await door.close()
    await milter.stop()
  }

  @Test func whatAFilterWillNotAnswerIsNotWaitedFor() async throws {
    let milter = try Scripted(flags: [
      .silentConnect, .silentHelo, .silentMail, .silentRecipients, .silentData, .silentHeaders, .silentEndOfHeaders,
      .silentBody,
    ])
    let door = try door([milter])
    try await door.greet { client async throws in
      #expect(try await client.mail(content).hasPrefix("250"))
    }
    await isTold(milter, "CHMRTLLLNBEQ")
    await door.close()
    await milter.stop()
  }

  @Test func olderFilterIsSpokenToInItsVersion() async throws {
    // Flags of later versions mean nothing to it.
    let milter = try Scripted(version: 2, flags: [.silentMail, .noHelo]) { packet in
      packet.code == "M" ? .packets([Scripted.packet("c")]) : nil
    }
    let door = try door([milter])
    try await door.greet { client async throws in
      #expect(try await client.mail(content).hasPrefix("250"))
    }
    await isTold(milter, "CMRLLLNBEQ")
    await door.close()
    await milter.stop()
  }

  @Test func oneConnectionServesAllMessagesOfASession() async throws {
    let milter = try Scripted(flags: [.noHeaders, .noBody])
    let door = try door([milter])
    try await door.greet { client async throws in
      for _ in 0..<2 { #expect(try await client.mail(content).hasPrefix("250")) }
      try await client.send("MAIL FROM:<a@b.test>\r\nRSET\r\n")
      #expect(try await client.codes(2) == ["250 2.1.0", "250 2.0.0"])
      #expect(try await client.say("MAIL FROM:<a@b.test>").hasPrefix("250"))
    }
    await isTold(milter, "CHMRTNEMRTNEMAMQ")
    #expect(milter.connections == 1)
    await door.close()
    await milter.stop()
  }

  @Test func introductionAfterStartTLSIsToldWithItsCipher() async throws {
    let (ours, theirs) = try makeTLS()
    let milter = try Scripted(flags: [.noHeaders, .noBody])
    let door = try door([milter]) { $0.tls = ours }
    try await door.greet { client async throws in
      #expect(try await client.mail(content).hasPrefix("250"))
      #expect(milter.macro("{tls_version}", for: "H") == nil)
      #expect(try await client.say("STARTTLS").hasPrefix("220"))
      try await client.startTLS(theirs)
      _ = try await client.say("EHLO client.test")
      #expect(try await client.mail(content).hasPrefix("250"))
    }
    await isTold(milter, "CHMRTNEHMRTNEQ")
    #expect(milter.macro("{tls_version}", for: "H") == "TLSv1.3")
    #expect(milter.macro("{cipher}", for: "H")?.hasPrefix("TLS_") == true)
    await door.close()
    await milter.stop()
  }

  @Test func socketInTheFileSystemServesToo() async throws {
    var template = Array("/tmp/ssmtp-mailer-milter.XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    let milter = try Scripted(path: folder + "/socket")
    let door = try door([milter])
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("250")) }
    await door.close()
    await milter.stop()
    unlink(folder + "/socket")
    rmdir(folder)
  }

  @Test func chunkedMessageIsFilteredAsWell() async throws {
    let milter = try Scripted(answerAtEnd("h", "X-Seen", "yes"))
    let door = try door([milter])
    try await door.greet { client async throws in
      try await client.send(
        "MAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\nBDAT 6\r\nX: 1\r\nBDAT 6 LAST\r\n\r\none\n")
      #expect(try await client.codes(4) == ["250 2.1.0", "250 2.1.5", "250 2.0.0", "554 5.6.0"])
      try await client.send(
        "MAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\nBDAT 6\r\nX: 1\r\nBDAT 7 LAST\r\n\r\none\r\n")
      #expect(try await client.codes(4) == ["250 2.1.0", "250 2.1.5", "250 2.0.0", "250 2.0.0"])
    }
    #expect(try await door.bodies() == ["X: 1\r\nX-Seen: yes\r\n\r\none\r\n"])
    await isTold(milter, "CHMRAMRTLNBEQ")
    await door.close()
    await milter.stop()
  }

  // MARK: Verdicts

  private static let no = Scripted.packet("y", "550 5.7.1 not here")

  @Test(arguments: [
    ("C", "r", "550 5.7.1"), ("C", "t", "451 4.7.1"), ("H", "r", "550 5.7.1"), ("M", "r", "550 5.7.1"),
    ("M", "t", "451 4.7.1"), ("M", "f", "451 4.7.1"), ("M", "4", "451 4.7.1"),
  ]) func refusalBeforeTheSenderRefusesTheSender(stage: Character, verdict: Character, expected: String) async throws {
    let milter = try Scripted(on(stage, Scripted.packet(verdict)))
    let door = try door([milter])
    try await door.greet { client async throws in
      // Each one of the session: what was said about the connection holds.
      for _ in 0..<2 {
        try await client.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\n")
        #expect(try await client.codes(2) == [expected, "503 5.5.1"])
      }
    }
    await door.close()
    await milter.stop()
  }

  @Test func refusedRecipientLeavesTheOthers() async throws {
    let milter = try Scripted(flags: [.noHeaders, .noBody]) { packet in
      packet.code == "R" && packet.words[0] == "<team@relay.test>" ? .packets([Self.no]) : nil
    }
    let door = try door([milter])
    try await door.greet { client async throws in
      try await client.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<team@relay.test>\r\nRCPT TO:<contact@relay.test>\r\n")
      #expect(try await client.codes(1) == ["250 2.1.0"])
      #expect(try await client.reply() == "550 5.7.1 not here")
      #expect(try await client.codes(1) == ["250 2.1.5"])
      #expect(try await client.say("DATA").hasPrefix("354"))
      #expect(try await client.say(content + "\r\n.").hasPrefix("250"))
    }
    #expect(door.queued.map(\.envelope.recipients).map { $0.map(\.original) } == [["contact@relay.test"]])
    await door.close()
    await milter.stop()
  }

  @Test(arguments: ["T", "L", "N", "B", "E"] as [Character])
  func refusalOfTheContentIsTheReplyToItsEnd(stage: Character) async throws {
    let milter = try Scripted(on(stage, Self.no))
    let door = try door([milter])
    try await door.greet { client async throws in
      #expect(try await client.mail(content) == "550 5.7.1 not here")
      #expect(try await client.say("NOOP").hasPrefix("250"))
    }
    #expect(door.queued.isEmpty)
    #expect(door.server.counters.refused == 1)
    #expect(door.server.settings.milters[0].health.rejected == 1)
    await door.close()
    await milter.stop()
  }

  @Test(arguments: ["C", "H", "M", "R", "T", "L", "N", "B", "E"] as [Character])
  func acceptanceEndsTheQuestions(stage: Character) async throws {
    let milter = try Scripted(on(stage, Scripted.packet("a")))
    let door = try door([milter])
    try await door.greet { client async throws in
      #expect(try await client.mail(content).hasPrefix("250"))
      #expect(try await client.say("QUIT").hasPrefix("221"))
      _ = try await client.reply()
    }
    await milter.isTold { $0.last == "Q" }
    #expect(milter.dialogue.filter { $0 != "A" && $0 != "Q" }.last == stage)
    #expect(try await door.bodies() == [content + "\r\n"])
    await door.close()
    await milter.stop()
  }

  @Test(arguments: ["M", "R", "T", "L", "B", "E"] as [Character])
  func discardedMessageIsAcknowledgedAndGoesNowhere(stage: Character) async throws {
    let milter = try Scripted(on(stage, Scripted.packet("d")))
    let door = try door([milter])
    try await door.greet { client async throws in
      #expect(try await client.mail(content).hasPrefix("250 2.0.0 Queued as"))
      #expect(await door.lines.line(containing: "discarded").contains("from=<a@b.test>"))
    }
    #expect(door.queued.isEmpty)
    #expect(door.server.counters.accepted == 0)
    await door.close()
    await milter.stop()
  }

  @Test func enoughOfTheBodyIsEnough() async throws {
    let milter = try Scripted(flags: .skip, on("B", Scripted.packet("s")))
    let door = try door([milter])
    let large = "X: y\r\n\r\n" + String(repeating: String(repeating: "x", count: 98) + "\r\n", count: 5000)
    try await door.greet { client async throws in
      for _ in 0..<2 { #expect(try await client.mail(large).hasPrefix("250")) }
    }
    await isTold(milter, "CHMRTLNBEMRTLNBEQ")
    #expect(milter.all("B").allSatisfy { $0.data.count == 65_535 })
    await door.close()
    await milter.stop()
  }

  // MARK: Changes

  @Test func headerIsChangedAsTheFilterWants() async throws {
    let milter = try Scripted { packet in
      packet.code != "E"
        ? nil
        : .packets([
          Scripted.packet("p"), Scripted.packet("h", "X-Last", "end"),
          Scripted.packet("i", index: 0, "DKIM-Signature", "v=1;\n\tb=x"),
          Scripted.packet("i", index: 2, "X-Third", "3"), Scripted.packet("m", index: 2, "X-OLD", ""),
          Scripted.packet("m", index: 1, "X-Old", "new"), Scripted.packet("p"), Scripted.packet("c"),
        ])
    }
    let door = try door([milter])
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("250")) }
    let expected =
      "DKIM-Signature: v=1;\r\n\tb=x\r\nSubject: test\r\nX-Third: 3\r\nX-Old: new\r\nX-Last: end\r\n\r\nfirst\r\nsecond\r\n"
    // Our own Received stays on top.
    #expect(try await door.bodies() == [expected])
    #expect(door.server.settings.milters[0].health.changed == 1)
    await door.close()
    await milter.stop()
  }

  @Test func valueWithLineEndsCannotForgeAFieldOrABody() async throws {
    let milter = try Scripted(answerAtEnd("h", "X-Evil", "a\r\nBcc: all@world\r\n\r\nbody"))
    let door = try door([milter])
    try await door.greet { client async throws in #expect(try await client.mail("A: 1\r\n\r\nx").hasPrefix("250")) }
    #expect(try await door.bodies() == ["A: 1\r\nX-Evil: a\r\n\tBcc: all@world\r\n\tbody\r\n\r\nx\r\n"])
    await door.close()
    await milter.stop()
  }

  @Test func envelopeIsChangedAsTheFilterWants() async throws {
    let milter = try Scripted { packet in
      packet.code != "E"
        ? nil
        : .packets([
          Scripted.packet("e", "<new@sender.test>"), Scripted.packet("+", "<someone@elsewhere.test>"),
          Scripted.packet("2", "contact@relay.test", "NOTIFY=NEVER"), Scripted.packet("-", "<TEAM@relay.test>"),
          Scripted.packet("+", "no address"), Scripted.packet("c"),
        ])
    }
    let door = try door([milter])
    try await door.greet { client async throws in
      #expect(try await client.mail(to: "team@relay.test", content).hasPrefix("250"))
    }
    let envelope = try #require(door.queued.first?.envelope)
    #expect(envelope.reversePath == "new@sender.test")
    #expect(envelope.recipients.map(\.address) == ["someone@elsewhere.test", "owner@gmail.test"])
    #expect(await door.lines.line(containing: "that it adds is no address").contains("milter-0"))
    #expect(try await door.bodies() == [content + "\r\n"])
    await door.close()
    await milter.stop()
  }

  @Test func messageWithoutRecipientsLeftIsDiscarded() async throws {
    let milter = try Scripted(answerAtEnd("-", "<contact@relay.test>"))
    let door = try door([milter])
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("250")) }
    #expect(await door.lines.line(containing: "discarded").contains("removed all its recipients"))
    #expect(door.queued.isEmpty)
    await door.close()
    await milter.stop()
  }

  @Test func removedRecipientLeavesTheOneThatSharesItsAddress() async throws {
    let milter = try Scripted(answerAtEnd("-", "<contact@relay.test>"))
    let door = try door([milter]) { $0.router = Door.router(aliases: ["info": ["owner@gmail.test"]]) }
    try await door.greet { client async throws in
      try await client.send(
        "MAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\nRCPT TO:<info@relay.test>\r\nDATA\r\n")
      #expect(try await client.codes(4).last == "354")
      #expect(try await client.say(content + "\r\n.").hasPrefix("250"))
    }
    let envelope = try #require(door.queued.first?.envelope)
    #expect(envelope.recipients.map(\.address) == ["owner@gmail.test"])
    #expect(envelope.recipients.allSatisfy { $0.original == "info@relay.test" })
    await door.close()
    await milter.stop()
  }

  @Test func bodyOfAFilterIsBodyAndHasTheLinesOfMail() async throws {
    let packets = [
      Scripted.packet("b", Array("X-Evil: one\n.\ntwo\r".utf8)), Scripted.packet("b", Array("\nthree\0x\rfour\r".utf8)),
      Scripted.packet("c"),
    ]
    let milter = try Scripted { $0.code == "E" ? .packets(packets) : nil }
    let door = try door([milter])
    // A message of nothing but a header: what the filter adds must not become a part of that.
    try await door.greet { client async throws in
      #expect(try await client.mail("Subject: only").hasPrefix("250"))
    }
    #expect(try await door.bodies() == ["Subject: only\r\n\r\nX-Evil: one\r\n.\r\ntwo\r\nthree x\r\nfour\r\n"])
    await door.close()
    await milter.stop()
  }

  @Test func quarantinedMessageIsQueuedOnHoldWithItsReason() async throws {
    let milter = try Scripted(answerAtEnd("q", "looks\r\nodd"))
    let door = try door([milter])
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("250")) }
    let message = try #require(door.queued.first)
    #expect(message.state.isHeld)
    #expect(message.state.life.map(\.kind) == [.held])
    #expect(message.state.life.first?.text.contains("milter-0: looks") == true)
    #expect(message.state.life.first?.text.contains("\n") == false)
    #expect(door.handed.withLock { $0 }.isEmpty, "nobody delivers it")
    await door.close()
    await milter.stop()
  }

  @Test(arguments: [10, 300_000]) func bodyIsReplaced(count: Int) async throws {
    let line = [UInt8](repeating: 0x61, count: 98) + [13, 10]
    let body = (0..<((count + 99) / 100)).flatMap { _ in line }
    let milter = try Scripted { packet in
      guard packet.code == "E" else { return nil }
      var packets: [[UInt8]] = []
      var rest = body[...]
      while !rest.isEmpty {
        packets.append(Scripted.packet("b", Array(rest.prefix(65_535))))
        rest = rest.dropFirst(65_535)
      }
      return .packets(packets + [Scripted.packet("h", "X-New", "body"), Scripted.packet("c")])
    }
    let door = try door([milter])
    try await door.greet { client async throws in #expect(try await client.mail("A: 1\r\n\r\nold").hasPrefix("250")) }
    let text = try #require(try await door.bodies().first)
    #expect(text == "A: 1\r\nX-New: body\r\n\r\n" + String(decoding: body, as: UTF8.self))
    let writers = door.store.writers.withLock { $0 }
    #expect(writers.made == writers.finished + writers.discarded, "no file is left over")
    await door.close()
    await milter.stop()
  }

  @Test(arguments: [false, true]) func largeMessageIsChangedFromFileToFile(isChunked: Bool) async throws {
    let body = String(repeating: String(repeating: "0123456789", count: 9) + "\r\n", count: 20_000)
    let milter = try Scripted(answerAtEnd("i", index: 0, "X-First", "1"))
    let door = try door([milter])
    try await door.greet { client async throws in
      if isChunked {
        let whole = "A: 1\r\n\r\n" + body
        try await client.send(
          "MAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\nBDAT \(whole.utf8.count) LAST\r\n" + whole)
        #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "250 2.0.0"])
      } else {
        #expect(try await client.mail("A: 1\r\n\r\n" + body.dropLast()).hasPrefix("250"))
      }
    }
    #expect(try await door.bodies() == ["X-First: 1\r\nA: 1\r\n\r\n" + body])
    #expect(String(decoding: milter.all("B").flatMap(\.data), as: UTF8.self) == body)
    let writers = door.store.writers.withLock { $0 }
    #expect(writers.made == 2 && writers.finished == 1 && writers.discarded == 1)
    #expect(writers.largestPiece <= 1 << 20)
    await door.close()
    await milter.stop()
  }

  @Test func eachFilterSeesWhatTheOneBeforeHasMade() async throws {
    let first = try Scripted { packet in
      packet.code != "E"
        ? nil
        : .packets([
          Scripted.packet("h", "X-First", "1"), Scripted.packet("m", index: 1, "Subject", ""),
          Scripted.packet("b", Array("new\r\n".utf8)), Scripted.packet("c"),
        ])
    }
    let second = try Scripted(answerAtEnd("m", index: 1, "X-First", "changed"))
    let door = try door([first, second])
    try await door.greet { client async throws in
      #expect(try await client.mail("Subject: x\r\nTo: y\r\n\r\nold").hasPrefix("250"))
    }
    #expect(second.all("L").map(\.words) == [["To", "y"], ["X-First", "1"]])
    #expect(second.all("B").map(\.words) == [["new\r\n"]])
    #expect(try await door.bodies() == ["To: y\r\nX-First: changed\r\n\r\nnew\r\n"])
    await door.close()
    await first.stop()
    await second.stop()
  }

  @Test func refusalOfOneIsNoMatterOfTheNext() async throws {
    let first = try Scripted(on("M", Self.no))
    let second = try Scripted()
    let door = try door([second, first, second])
    try await door.greet { client async throws in
      #expect(try await client.say("MAIL FROM:<a@b.test>") == "550 5.7.1 not here")
    }
    await second.isTold { $0.count { $0 == "Q" } == 2 }
    #expect(second.all("M").count == 1 && second.all("A").count == 1, "whoever was told is told that it has ended")
    await door.close()
    await first.stop()
    await second.stop()
  }

  @Test func loopThatAFilterShowsIsStillALoop() async throws {
    let milter = try Scripted(
      answerAtEnd("h", "Received", "from x by relay.test id 1 for <contact@relay.test>; Mon, 1 Jan 2024 00:00:00 +0000")
    )
    let door = try door([milter])
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("554 5.4.6")) }
    await door.close()
    await milter.stop()
  }

  @Test func changedMessageIsDurableBeforeItIsAcknowledged() async throws {
    let milter = try Scripted(answerAtEnd("h", "X-Seen", "yes"))
    let door = try door([milter])
    door.memory.fail(with: .full)
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("452 4.3.1")) }
    await door.close()
    await milter.stop()
  }

  // MARK: Filters that fail

  static let faults: [@Sendable (ScriptedMilter.Packet) -> ScriptedMilter.Answer?] = [
    { $0.code == "O" ? .close : nil },
    { $0.code == "O" ? .silence : nil },
    { $0.code == "O" ? .octets(Array("HTTP/1.1 400 Bad Request\r\n\r\n".utf8)) : nil },
    { $0.code == "O" ? .packets([Scripted.negotiation(7, [])]) : nil },
    { $0.code == "O" ? .packets([Scripted.negotiation(1, [])]) : nil },
    { $0.code == "O" ? .packets([Scripted.packet("c")]) : nil },
    { $0.code == "C" ? .close : nil },
    { $0.code == "M" ? .silence : nil },
    { $0.code == "M" ? .packets([Scripted.packet("h", "X", "y")]) : nil },
    { $0.code == "M" ? .packets([Scripted.packet("y", "250 all is well")]) : nil },
    { $0.code == "M" ? .octets([0, 0, 0, 0]) : nil },
    { $0.code == "M" ? .octets([0xff, 0xff, 0xff, 0xff, 0x63]) : nil },
  ]

  @Test(arguments: 0..<12) func filterThatCannotBeAskedIsTempfail(number: Int) async throws {
    let milter = try Scripted(Self.faults[number])
    let door = try door([milter], timeout: .milliseconds(300))
    try await door.greet { client async throws in
      #expect(try await client.say("MAIL FROM:<a@b.test>").hasPrefix("451 4.7.1"))
      #expect(try await client.say("NOOP").hasPrefix("250"))
    }
    let health = door.server.settings.milters[0].health
    #expect(health.isUp == false && health.failures >= 1 && health.lastError != nil)
    await door.close()
    await milter.stop()
  }

  @Test(arguments: 0..<12) func filterThatCannotBeAskedIsPassedByWhenSoConfigured(number: Int) async throws {
    let milter = try Scripted(Self.faults[number])
    let door = try door([milter], fallback: .accept, timeout: .milliseconds(300))
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("250")) }
    #expect(try await door.bodies() == [content + "\r\n"])
    await door.close()
    await milter.stop()
  }

  @Test(arguments: ["R", "T", "L", "N", "B", "E"] as [Character])
  func filterThatDiesInAMessageIsTempfail(stage: Character) async throws {
    let milter = try Scripted { $0.code == stage ? .close : nil }
    let door = try door([milter])
    try await door.greet { client async throws in
      try await client.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\nDATA\r\n")
      if stage == "R" {
        #expect(try await client.codes(3) == ["250 2.1.0", "451 4.7.1", "554 5.5.1"])
        #expect(try await client.say("RSET").hasPrefix("250"))
      } else {
        #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "354"])
        #expect(try await client.say(content + "\r\n.").hasPrefix("451 4.7.1"))
      }
      // And the next message asks it anew.
      #expect(try await client.say("MAIL FROM:<a@b.test>").hasPrefix("250"))
    }
    #expect(milter.connections == 2)
    #expect(door.queued.isEmpty)
    await door.close()
    await milter.stop()
  }

  @Test func filterThatWasRestartedBetweenTwoMessagesIsAskedAnew() async throws {
    let senders = Mutex(0)
    let milter = try Scripted { packet in
      guard packet.code == "M" else { return nil }
      let count = senders.withLock { count in
        count += 1
        return count
      }
      return count == 2 ? .close : nil
    }
    let door = try door([milter])
    try await door.greet { client async throws in
      for _ in 0..<3 { #expect(try await client.mail(content).hasPrefix("250")) }
    }
    #expect(milter.connections == 2)
    await door.close()
    await milter.stop()
  }

  @Test func filterThatDiesAfterChangesHasChangedNothing() async throws {
    let milter = try Scripted { packet in
      packet.code == "E" ? .packets([Scripted.packet("h", "X-Half", "done"), [0, 0, 0, 0]]) : nil
    }
    let door = try door([milter], fallback: .accept)
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("250")) }
    #expect(try await door.bodies() == [content + "\r\n"])
    await door.close()
    await milter.stop()
  }

  @Test func nobodyListeningIsWhatTheConfigurationSays() async throws {
    let gone = try Scripted()
    await gone.stop()
    for (fallback, expected) in [
      (MilterSettings.Fallback.temporaryFailure, "451 4.7.1"), (.reject, "550 5.7.1"), (.accept, "250 2.1.0"),
      (.quarantine, "250 2.1.0"),
    ] {
      let door = try door([gone], fallback: fallback)
      try await door.greet { client async throws in
        #expect(try await client.say("MAIL FROM:<a@b.test>").hasPrefix(expected))
        guard fallback == .quarantine else { return }
        try await client.send("RCPT TO:<contact@relay.test>\r\nDATA\r\n")
        #expect(try await client.codes(2) == ["250 2.1.5", "354"])
        #expect(try await client.say(content + "\r\n.").hasPrefix("250"))
        #expect(door.queued.first?.state.isHeld == true)
      }
      await door.close()
    }
  }

  @Test func bodyBeyondTheLimitIsTheFiltersFault() async throws {
    let milter = try Scripted { packet in
      packet.code == "E"
        ? .packets(Array(repeating: Scripted.packet("b", [UInt8](repeating: 0x61, count: 65_535)), count: 3)) : nil
    }
    let door = try door([milter]) { $0.maximumMessageSize = 131_072 }
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("451 4.7.1")) }
    #expect(door.server.settings.milters[0].health.lastError?.contains("max_message_size") == true)
    await door.close()
    await milter.stop()
  }

  @Test func headerThatIsTooLargeToExamineIsRefused() async throws {
    let milter = try Scripted()
    let door = try door([milter])
    let field = "X: " + String(repeating: "x", count: 900) + "\r\n"
    try await door.greet { client async throws in
      #expect(try await client.mail(String(repeating: field, count: 400) + "\r\nbody").hasPrefix("552 5.3.4"))
    }
    await door.close()
    await milter.stop()
  }

  @Test func stopDoesNotWaitForAFilterThatIsSilent() async throws {
    let milter = try Scripted { $0.code == "E" ? .silence : nil }
    let door = try door([milter], timeout: .seconds(600))
    try await door.greet { client async throws in
      try await client.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\nDATA\r\n\(content)\r\n.\r\n")
      await milter.isTold { $0.contains("E") }
      await door.close()
    }
    #expect(door.queued.isEmpty)
    await milter.stop()
  }

  @Test func filterThatAReloadKeepsKeepsWhatItHasCounted() async throws {
    let (first, second) = (try Scripted(), try Scripted())
    let door = try door([first])
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("250")) }
    var settings = door.server.settings
    let before = settings.milters[0]
    func again(_ settings: MilterSettings) -> Milter {
      Milter(
        settings, time: door.time, resolver: Resolver(source: SystemNames(), time: door.time), log: door.lines.logger)
    }
    settings.milters = [again(before.settings), again(MilterSettings(name: "new", address: second.address))]
    door.server.configure(settings)
    #expect(door.server.settings.milters[0] === before)
    try await door.greet { client async throws in #expect(try await client.mail(content).hasPrefix("250")) }
    #expect(door.server.settings.milters.map(\.health.messages) == [2, 1])
    await door.close()
    await first.stop()
    await second.stop()
  }

  @Test func pipelinedTransactionsAreAnsweredInOrder() async throws {
    let milter = try Scripted { packet in
      packet.code == "M" && packet.words[0] == "<bad@b.test>" ? .packets([Self.no]) : nil
    }
    let door = try door([milter])
    try await door.connect { client async throws in
      var text = "EHLO c\r\n"
      for sender in ["one", "bad", "two"] {
        text += "MAIL FROM:<\(sender)@b.test>\r\nRCPT TO:<contact@relay.test>\r\nBDAT 8 LAST\r\nA: 1\r\n\r\n"
      }
      try await client.send(text + "QUIT\r\n")
      #expect(
        try await client.codes(12) == [
          "220 relay.test", "250-relay.test\n250-SIZE", "250 2.1.0", "250 2.1.5", "250 2.0.0", "550 5.7.1", "503 5.5.1",
          "503 5.5.1", "250 2.1.0", "250 2.1.5", "250 2.0.0", "221 2.0.0",
        ])
    }
    #expect(door.queued.map(\.envelope.reversePath) == ["one@b.test", "two@b.test"])
    await door.close()
    await milter.stop()
  }
}

/// Wants one change at the end of each message.
private func answerAtEnd(
  _ code: Character, index: UInt32? = nil, _ words: String...
) -> @Sendable (ScriptedMilter.Packet) -> ScriptedMilter.Answer? {
  let data = (index?.octets ?? []) + words.flatMap { Array($0.utf8) + [0] }
  let packet = ScriptedMilter.packet(code, data)
  return { $0.code == "E" ? .packets([packet, ScriptedMilter.packet("c")]) : nil }
}
