// What becomes of content: the end of data, chunks, limits, smuggling, loops, the trace field, and a queue that fails.

import SMTP
import Spool
import TestSupport
import Testing

@testable import Server

@Suite struct ContentTests {
  @Test func shortageOfSpaceRefusesMailAndEndsByItself() async throws {
    let door = try Door()
    door.memory.beShortOfSpace(true)
    try await door.greet { client async throws in
      try await client.send("MAIL FROM:<a@b> SIZE=1000\r\n")
      #expect(try await client.reply().hasPrefix("452 4.3.1"))
      // The session goes on, and so does the mail once there is room.
      door.memory.beShortOfSpace(false)
      #expect(try await client.mail("x").hasPrefix("250"))
      try await client.send(Self.open + "DATA\r\n")
      _ = try await client.codes(3)
      // The disk fills up while the message is on its way.
      door.memory.beShortOfSpace(true)
      try await client.send("Subject: x\r\n\r\nx\r\n.\r\n")
      #expect(try await client.reply().hasPrefix("452 4.3.1"))
    }
    #expect(try await door.bodies().count == 1)
    await door.close()
  }

  static let open = "MAIL FROM:<a@b>\r\nRCPT TO:<contact@relay.test>\r\n"

  /// Each octet by a write of its own, and all of it through the receiver at every split.
  @Test func dotsAreTakenOutWhereverThePiecesEnd() async throws {
    let sent = "Subject: d\r\n\r\n..\r\n...x\r\n.y\r\na.b\r\n\r\n.\r\n"
    let kept = "Subject: d\r\n\r\n.\r\n..x\r\ny\r\na.b\r\n\r\n"
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send(Self.open + "DATA\r\n")
      _ = try await client.codes(3)
      for octet in sent.utf8 { try await client.send([octet]) }
      #expect(try await client.reply().hasPrefix("250"))
    }
    #expect(try await door.bodies() == [kept])
    await door.close()

    let bytes = Array(sent.utf8)
    for split in 0...bytes.count {
      let store = MemoryStore()
      let receiver = ContentReceiver(
        id: store.nextID(), store: store, limit: 1000, hostname: "h", recipients: []
      ) { _ in }
      var ends: [Bool] = []
      for piece in [bytes[..<split], bytes[split...]] where !piece.isEmpty {
        ends.append(Array(piece).withUnsafeBytes { receiver.decode($0).1 })
      }
      #expect(ends.last == true && ends.dropLast().allSatisfy { !$0 }, "split at \(split)")
      guard case .success(.bytes(let content)) = await receiver.commit(Self.envelope) else {
        Issue.record("refused at \(split)")
        continue
      }
      #expect(String(decoding: content, as: UTF8.self) == kept, "split at \(split)")
    }
  }

  static let envelope = Envelope(reversePath: "", recipients: [], arrival: .init(seconds: 0))

  /// A client may pipeline BDAT behind MAIL and RCPT and still want their replies before it sends the octets.
  @Test func repliesDoNotWaitForTheOctetsOfAChunk() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send(Self.open + "BDAT 4 LAST\r\n")
      #expect(try await client.codes(2) == ["250 2.1.0", "250 2.1.5"])
      try await client.send("a")
      try await client.send("b\r\n")
      #expect(try await client.codes(1) == ["250 2.0.0"])
    }
    #expect(try await door.bodies() == ["ab\r\n"])
    await door.close()
  }

  @Test func chunksAreJoined() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send(
        Self.open + "BDAT 7\r\nabc\r\n.\rBDAT 3\r\n\nxyBDAT 0\r\nNOOP\r\nBDAT 0 LAST\r\n" + Self.open
          + "BDAT 2 LAST\r\n\r\nNOOP\r\n")
      #expect(
        try await client.codes(11) == [
          "250 2.1.0", "250 2.1.5", "250 2.0.0", "250 2.0.0", "250 2.0.0", "250 2.0.0", "250 2.0.0", "250 2.1.0",
          "250 2.1.5", "250 2.0.0", "250 2.0.0",
        ])
    }
    #expect(try await door.bodies() == ["abc\r\n.\r\nxy", "\r\n"])
    await door.close()
  }

  @Test func chunksBehindARefusedRecipientAreNotReadAsCommands() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      var text = "MAIL FROM:<a@b>\r\nRCPT TO:<nobody@relay.test>\r\n"
      for _ in 0..<40 { text += "BDAT 6\r\nQUIT\r\n" }
      try await client.send(text + "BDAT 6 LAST\r\nQUIT\r\nRSET\r\n")
      let codes = try await client.codes(44)
      #expect(codes[0...1] == ["250 2.1.0", "550 5.1.1"])
      #expect(codes[2...42].allSatisfy { $0 == "554 5.5.1" }, "\(codes)")
      #expect(codes[43] == "250 2.0.0")
      #expect(try await client.mail("next").hasPrefix("250"))
    }
    #expect(try await door.bodies() == ["next\r\n"])
    await door.close()
  }

  /// Every sequence that some server has taken for the end of data.
  @Test(arguments: [
    "\n.\n", "\n.\r\n", "\r.\r", "\r.\r\n", "\r\n.\n", "\r\n.\r", "\n.\r", "\r.\n", "\r\r\n.\n", "\n\n.\n\n",
    "\r\n.\r\r\n", "\r\n.\n\r\n", "\r\n..\n", "\n", "\r", "\r\r\n",
  ])
  func smuggledEndOfDataIsRefusedAndTheConnectionUsable(_ form: String) async throws {
    let door = try Door()
    let smuggled = "MAIL FROM:<x@y>\r\nRCPT TO:<contact@relay.test>\r\nDATA\r\nsmuggled"
    try await door.greet { client async throws in
      #expect(try await client.mail("Subject: s\r\n\r\ntext\(form)\(smuggled)").hasPrefix("554 5.6.0"))
      let text = "text\(form)\(smuggled)\r\n"
      try await client.send(Self.open + "BDAT \(text.utf8.count) LAST\r\n\(text)")
      #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "554 5.6.0"])
      #expect(door.queued.isEmpty)
      #expect(try await client.mail("honest").hasPrefix("250"))
    }
    #expect(try await door.bodies() == ["honest\r\n"])
    #expect(door.server.counters.refused == 2 && door.server.counters.accepted == 1)
    await door.close()
  }

  @Test func lineBreakTornByTheEndOfAChunkIsWholeOnlyWithTheNext() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send(Self.open + "BDAT 2\r\na\rBDAT 2 LAST\r\n\nb" + Self.open + "BDAT 2\r\na\rBDAT 1 LAST\r\nb")
      #expect(try await client.codes(4).last == "250 2.0.0")
      #expect(try await client.codes(4).last == "554 5.6.0")
      try await client.send(Self.open + "BDAT 2 LAST\r\na\r")
      #expect(try await client.codes(3).last == "554 5.6.0")
    }
    #expect(try await door.bodies() == ["a\r\nb"])
    await door.close()
  }

  @Test func oversizeIsRefusedHoweverItComesAndTheNextMessageWorks() async throws {
    let door = try Door { $0.maximumMessageSize = 1000 }
    try await door.greet { client async throws in
      #expect(try await client.say("MAIL FROM:<a@b> SIZE=1001").hasPrefix("552 5.3.4"))
      #expect(try await client.mail(String(repeating: "x", count: 998)).hasPrefix("250"), "1000 with the line end")
      #expect(try await client.mail(String(repeating: "x", count: 999)).hasPrefix("552 5.3.4"))
      #expect(try await client.mail(String(repeating: "0123456\r\n", count: 50_000)).hasPrefix("552 5.3.4"))
      // All chunks at once: those behind the refused one are its consequence and no errors.
      var text = Self.open
      for _ in 0..<50 { text += "BDAT 400\r\n" + String(repeating: "y", count: 400) }
      try await client.send(text + "BDAT 5 LAST\r\nQUIT\nRSET\r\n")
      let codes = try await client.codes(54)
      #expect(codes[2...4] == ["250 2.0.0", "250 2.0.0", "552 5.3.4"])
      #expect(codes[5...52].allSatisfy { $0 == "503 5.5.1" })
      #expect(codes[53] == "250 2.0.0")
      #expect(try await client.mail("after").hasPrefix("250"))
    }
    #expect(try await door.bodies().map(\.utf8.count) == [1000, 7])
    await door.close()
  }

  @Test func traceFieldNamesTheSingleRecipientOnly() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      #expect(try await client.mail("one").hasPrefix("250"))
      #expect(try await client.mail(to: "team@relay.test", "alias").hasPrefix("250"))
      try await client.send(Self.open + "RCPT TO:<team@relay.test>\r\nDATA\r\n")
      _ = try await client.codes(4)
      #expect(try await client.say("several\r\n.").hasPrefix("250"))
      #expect(try await client.say("HELO old.test").hasPrefix("250 relay.test"))
      #expect(try await client.mail("old").hasPrefix("250"))
    }
    var texts: [String] = []
    for message in door.queued { texts.append(String(decoding: try await message.content.octets(), as: UTF8.self)) }
    let date = "Wed, 18 Nov 2026 11:06:40 +0000"
    let id = door.queued[0].id
    #expect(
      texts[0]
        == "Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTP id \(id)\r\n\tfor <contact@relay.test>;\r\n\t\(date)\r\none\r\n"
    )
    #expect(texts[1].contains("\r\n\tfor <team@relay.test>;"), "the targets of an alias are nobody's business")
    #expect(!texts[1].contains("gmail.test"))
    #expect(!texts[2].contains("for <"), "recipients must not learn of each other")
    #expect(texts[3].contains("from old.test") && texts[3].contains("with SMTP id"))
    await door.close()
  }

  @Test func loopingMessagesAreStopped() async throws {
    let door = try Door()
    let hop = "Received: from a by b.test with SMTP id 1; Wed, 18 Nov 2026 09:46:40 +0000\r\n"
    @Sendable func own(_ recipient: String) -> String {
      "Received: from a ([127.0.0.1])\r\n\tby relay.test with ESMTP id 0\r\n\tfor <\(recipient)>;\r\n\tWed, 18 Nov 2026 09:46:40 +0000\r\n"
    }
    try await door.greet { client async throws in
      #expect(try await client.mail(String(repeating: hop, count: 51) + "\r\nx").hasPrefix("554 5.4.6"))
      #expect(try await client.mail(String(repeating: hop, count: 50) + "\r\nx").hasPrefix("250"))
      #expect(try await client.mail(own("contact@relay.test") + "\r\nx").hasPrefix("554 5.4.6"))
      #expect(try await client.mail(own("team@relay.test") + "\r\nx").hasPrefix("250"), "another recipient's way")
      #expect(try await client.mail("Subject: x\r\n\r\n" + own("contact@relay.test")).hasPrefix("250"), "in the body")
      let large = own("contact@relay.test") + "\r\n" + String(repeating: "0123456789\r\n", count: 40_000)
      #expect(try await client.mail(large).hasPrefix("554 5.4.6"))
    }
    #expect(door.queued.count == 3)
    #expect(door.store.writers.withLock { $0.made } == 0, "a loop costs no disk")
    await door.close()
  }

  @Test func fullOrFailingQueueIsSaidToTheClientAndTheLog() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      door.memory.fail(with: .full)
      #expect(try await client.mail("x").hasPrefix("452 4.3.1"))
      door.memory.fail(with: .failed("the sync failed"))
      #expect(try await client.mail("x").hasPrefix("452 4.3.0"))
      let line = await door.lines.line(containing: "the sync failed")
      #expect(line.hasPrefix("error:"), "the operator needs the reason")
      // The queue says no while a large content is still coming.
      #expect(try await client.mail("\r\n" + String(repeating: "0123456789\r\n", count: 60_000)).hasPrefix("452 4.3.0"))
      door.memory.fail(with: nil)
      door.store.writers.withLock { $0.isFull = true }
      #expect(try await client.mail("\r\n" + String(repeating: "0123456789\r\n", count: 60_000)).hasPrefix("452 4.3.1"))
      door.store.writers.withLock { $0.isFull = false }
      #expect(try await client.mail("at last").hasPrefix("250"))
    }
    #expect(try await door.bodies() == ["at last\r\n"])
    #expect(door.store.writers.withLock { $0.discarded } == door.store.writers.withLock { $0.made })
    await door.close()
  }

  @Test(arguments: [false, true]) func largeContentIsWrittenPieceByPiece(inChunks: Bool) async throws {
    let door = try Door()
    let content = "Subject: large\r\n\r\n" + String(repeating: "0123456789abcde\r\n", count: 131_072)
    try await door.greet { client async throws in
      if inChunks {
        try await client.send(Self.open + "BDAT \(content.utf8.count)\r\n\(content)BDAT 0 LAST\r\n")
      } else {
        try await client.send(Self.open + "DATA\r\n\(content).\r\n")
      }
      #expect(try await client.codes(4).last == "250 2.0.0")
    }
    #expect(try await door.bodies() == [content])
    let writers = door.store.writers.withLock { $0 }
    #expect(writers.made == 1 && writers.finished == 1 && writers.discarded == 0)
    #expect(writers.largestPiece <= 512 * 1024, "memory per session is bounded: \(writers.largestPiece)")
    await door.close()
  }

  @Test func clientThatVanishesInTheMiddleLeavesNothing() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send(Self.open + "DATA\r\nhalf a message\r\n")
      _ = try await client.codes(3)
    }
    #expect(await door.lines.line(containing: "in the middle of a message").hasPrefix("info"))
    try await door.greet { client async throws in
      try await client.send(Self.open + "DATA\r\n\r\n" + String(repeating: "0123456789\r\n", count: 60_000))
      _ = try await client.codes(3)
    }
    await door.close()
    #expect(door.queued.isEmpty && door.handed.withLock { $0.isEmpty })
    let writers = door.store.writers.withLock { $0 }
    #expect(writers.made == 1 && writers.discarded == 1)
  }
}
