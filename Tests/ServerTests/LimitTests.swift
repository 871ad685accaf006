// What a client may cost: each limit with its reply and its count, and what is not to be refused for it.

import Network
import Primitives
import TestSupport
import Testing

@testable import Server

@Suite(.timeLimit(.minutes(2))) struct LimitTests {
  static let open = "MAIL FROM:<a@b>\r\nRCPT TO:<contact@relay.test>\r\n"
  static let letter = "Subject: x\r\n\r\nx"

  private func count(_ door: Door, _ limit: ServerLimit) -> Int { door.server.counters.limits[limit] ?? 0 }

  // MARK: Connections

  @Test func overloadEndsBelowItsMarkAndNotBefore() {
    var admission = Admission()
    func enter(_ address: IPAddress) -> Admission.Verdict { admission.enter(address, maximum: 100, perAddress: 50) }
    let addresses = (0..<101).map { IPAddress("192.0.2.\($0)")! }
    for address in addresses[..<100] {
      #expect(admission.enter(address, maximum: 100, perAddress: 50) == .admitted)
    }
    #expect(enter(addresses[100]) == .tooMany)
    for address in addresses[..<5] { admission.leave(address) }
    #expect(enter(addresses[0]) == .tooMany, "95 are still there")
    admission.leave(addresses[5])
    for address in addresses[..<6] {
      #expect(admission.enter(address, maximum: 100, perAddress: 50) == .admitted, "the door is open up to the limit")
    }
    #expect(enter(addresses[100]) == .tooMany)
  }

  @Test func aNetworkOfIPv6IsOneClientAndAMappedAddressAnIPv4One() {
    var admission = Admission()
    func enter(_ address: String) -> Admission.Verdict {
      admission.enter(IPAddress(address)!, maximum: 100, perAddress: 2)
    }
    #expect(enter("2001:db8:0:1::1") == .admitted)
    #expect(enter("2001:db8:0:1:ffff::2") == .admitted)
    #expect(enter("2001:db8:0:1:8000::3") == .tooManyFromThere)
    #expect(enter("2001:db8:0:2::1") == .admitted)
    #expect(enter("192.0.2.1") == .admitted)
    #expect(enter("::ffff:192.0.2.1") == .admitted)
    #expect(enter("192.0.2.1") == .tooManyFromThere)
    #expect(enter("192.0.2.2") == .admitted)
    admission.leave(IPAddress("2001:db8:0:1::9")!)
    #expect(enter("2001:db8:0:1:8000::3") == .admitted)
  }

  // MARK: Messages

  @Test func clientBeginsOnlySoManyMessagesAMinute() async throws {
    let door = try Door { $0.limits.messagesPerMinute = 3 }
    try await door.greet { client async throws in
      for _ in 0..<3 { #expect(try await client.mail(Self.letter).hasPrefix("250")) }
      #expect(try await client.say("MAIL FROM:<a@b>").hasPrefix("451 4.7.1"))
      #expect(try await client.say("RCPT TO:<contact@relay.test>").hasPrefix("503"))
      // Another session does not help.
      try await door.greet { second async throws in
        #expect(try await second.say("MAIL FROM:<a@b>").hasPrefix("451 4.7.1"))
      }
      door.time.advance(by: .seconds(20))
      #expect(try await client.mail(Self.letter).hasPrefix("250"))
      #expect(try await client.say("MAIL FROM:<a@b>").hasPrefix("451 4.7.1"))
      door.time.advance(by: .seconds(60))
      for _ in 0..<3 { #expect(try await client.mail(Self.letter).hasPrefix("250")) }
    }
    #expect(count(door, .messageRate) == 3)
    await door.close()
  }

  @Test func trustedClientIsNotHeldToTheRate() async throws {
    let door = try Door(trusting: ["127.0.0.0/8"]) {
      $0.limits.messagesPerMinute = 1
      $0.limits.messagesPerSession = 1
    }
    try await door.greet { client async throws in
      for _ in 0..<3 { #expect(try await client.mail(Self.letter).hasPrefix("250")) }
    }
    await door.close()
  }

  @Test func noCrowdOfOthersMakesTheTableForgetWhoHasUsedUpItsShare() {
    var rates = ClientRates(capacity: 100)
    let start = MonotonicInstant(nanoseconds: 1_000_000_000)
    let greedy = IPAddress("192.0.2.1")!
    func admit(_ client: IPAddress, after seconds: Int = 0) -> Bool {
      rates.admit(client, limit: 10, now: start + .seconds(seconds))
    }
    for _ in 0..<10 { #expect(admit(greedy)) }
    for i in 0..<5000 {
      #expect(admit(IPAddress("10.0.\(i / 250).\(i % 250)")!))
      #expect(rates.count <= 100)
    }
    #expect(!admit(greedy))
    #expect(!admit(greedy, after: 5))
    #expect(admit(greedy, after: 6))
  }

  @Test func sessionHasOnlySoManyMessages() async throws {
    let door = try Door { $0.limits.messagesPerSession = 2 }
    try await door.greet { client async throws in
      for _ in 0..<2 { #expect(try await client.mail(Self.letter).hasPrefix("250")) }
      #expect(try await client.say("MAIL FROM:<a@b>").hasPrefix("421 4.7.0"))
      #expect(try await client.reply() == "")
    }
    #expect(count(door, .messages) == 1)
    await door.close()
  }

  // MARK: Commands

  @Test(arguments: [
    "NOOP", "RSET", "VRFY x", "HELP", "EHLO again.test", "MAIL FROM:<a@b>\r\nRSET",
    "MAIL FROM:<a@b>\r\nRCPT TO:<nobody@relay.test>",
  ])
  func commandsWithoutAMessageComeToAnEnd(_ command: String) async throws {
    let door = try Door {
      $0.limits.commands = 50
      $0.limits.errors = 1000
    }
    try await door.greet { client async throws in
      let sending = Task { try await client.send(String(repeating: command + "\r\n", count: 60)) }
      var last = ""
      var replies = 0
      while case let reply = try await client.reply(), reply != "" { (last, replies) = (reply, replies + 1) }
      #expect(last.hasPrefix("421 4.7.0 Too many commands"))
      #expect(replies <= 102)
      _ = await sending.result
    }
    #expect(count(door, .commands) == 1)
    #expect(await door.lines.line(containing: "Too many commands").hasPrefix("warning: 127.0.0.1: sent away"))
    await door.close()
  }

  @Test func messagesMakeRoomForMoreCommands() async throws {
    let door = try Door { $0.limits.commands = 20 }
    try await door.greet { client async throws in
      for _ in 0..<5 {
        for _ in 0..<15 { #expect(try await client.say("NOOP").hasPrefix("250")) }
        #expect(try await client.mail(Self.letter).hasPrefix("250"))
      }
    }
    await door.close()
  }

  @Test func aHundredRefusedRecipientsDoNotEndTheSession() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      let unknown = String(repeating: "RCPT TO:<nobody@relay.test>\r\n", count: 100)
      try await client.send("MAIL FROM:<a@b>\r\n" + unknown + "RCPT TO:<contact@relay.test>\r\nDATA\r\n")
      #expect(Set(try await client.codes(103)) == ["250 2.1.0", "550 5.1.1", "250 2.1.5", "354"])
      #expect(try await client.say(Self.letter + "\r\n.").hasPrefix("250"))
    }
    await door.close()
  }

  @Test func senderWithFarTooManyRecipientsMaySayThemAll() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      let many = String(repeating: "RCPT TO:<contact@relay.test>\r\n", count: 1000)
      try await client.send("MAIL FROM:<a@b.test>\r\n" + many + "DATA\r\n")
      let codes = try await client.codes(1002)
      #expect(codes.count { $0 == "250 2.1.5" } == 100 && codes.count { $0 == "452 4.5.3" } == 900)
      #expect(codes.last == "354")
      #expect(try await client.say(Self.letter + "\r\n.").hasPrefix("250"))
    }
    await door.close()
  }

  @Test func errorsAndLinesAndRecipientsAreCounted() async throws {
    let door = try Door {
      $0.limits.errors = 3
      $0.maximumRecipients = 1
    }
    try await door.greet { client async throws in
      try await client.send(Self.open + "RCPT TO:<contact@relay.test>\r\nRSET\r\n")
      #expect(try await client.codes(4)[2] == "452 4.5.3")
      #expect(try await client.say(String(repeating: "x", count: 5000)).hasPrefix("500 5.5.2"))
      for _ in 0..<2 { #expect(try await client.say("NONSENSE").hasPrefix("500")) }
      #expect(try await client.say("NONSENSE").hasPrefix("421 4.7.0"))
      #expect(try await client.reply() == "")
    }
    #expect(count(door, .recipients) == 1 && count(door, .lineLength) == 1 && count(door, .errors) == 1)
    await door.close()
  }

  @Test func lineWithoutAnEndIsNotReadForever() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      let sending = Task { try await client.send([UInt8](repeating: 0x78, count: 8 << 20)) }
      #expect(try await client.reply().hasPrefix("500 5.5.2"))
      #expect(try await client.reply() == "")
      await client.close()
      _ = await sending.result
    }
    #expect(count(door, .lineLength) == 1)
    await door.close()
  }

  // MARK: Content

  @Test(arguments: [false, true]) func headerThatIsTooLargeIsRefused(_ chunked: Bool) async throws {
    let door = try Door { $0.limits.headerSize = 20_000 }
    try await door.greet { client async throws in
      let field = "X-Filler: " + String(repeating: "x", count: 988) + "\r\n"
      for (fields, code) in [(19, "250"), (20, "552")] {
        let text = String(repeating: field, count: fields) + "\r\n" + String(repeating: "body\r\n", count: 10_000)
        let reply: String
        if chunked {
          try await client.send(Self.open + "BDAT \(text.utf8.count) LAST\r\n" + text)
          _ = try await client.codes(2)
          reply = try await client.reply()
        } else {
          reply = try await client.mail(text)
        }
        #expect(reply.hasPrefix(code), "\(fields) fields: \(reply)")
      }
    }
    #expect(count(door, .headerSize) == 1 && count(door, .size) == 0)
    #expect(door.queued.count == 1)
    await door.close()
  }

  @Test func lineOfAHeaderMayBeLong() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      let text = "Subject: x\r\nReferences: " + String(repeating: "y", count: 50_000) + "\r\n\r\nx"
      #expect(try await client.mail(text).hasPrefix("250"))
    }
    await door.close()
  }

  @Test func headerIsMeasuredWhereverThePiecesEnd() {
    for (text, length) in [
      ("a: b\r\n\r\nbody\r\n\r\n", 8), ("\r\nbody", 2), ("a\r\r\n\r\n", 6), ("a\r\n\rb\r\n\r\n", 9), ("no end", nil),
    ] as [(String, Int?)] {
      let bytes = Array(text.utf8)
      for split in 0...bytes.count {
        var meter = HeaderMeter()
        for piece in [bytes[..<split], bytes[split...]] { Array(piece).withUnsafeBytes { meter.scan($0) } }
        #expect(meter.count == length ?? bytes.count && meter.hasEnded == (length != nil), "\(text.debugDescription)")
      }
    }
  }

  /// Sessions that each hold half a message in memory go to files sooner once they are many.
  @Test func contentsGoToFilesSoonerWhenMemoryIsShort() async throws {
    let budget = ContentBudget(limit: 1_000_000)
    let store = MemoryStore()
    var receivers: [ContentReceiver] = []
    let header = Array("a: b\r\n\r\n".utf8)
    let piece = [UInt8](repeating: 0x78, count: 200_000)
    for _ in 0..<20 {
      let receiver = ContentReceiver(
        id: store.nextID(), store: store, limit: 1 << 30, budget: budget, hostname: "h", recipients: []
      ) { _ in }
      (header + piece).withUnsafeBytes { receiver.take($0) }
      await receiver.spill()
      receivers.append(receiver)
    }
    #expect(budget.octets < 1_300_000, "not the 4,000,000 that they have sent")
    for receiver in receivers { await receiver.discard() }
    receivers = []
    #expect(budget.octets == 0)
  }

  // MARK: Time

  @Test(arguments: ["DATA\r\n", "BDAT 1000000\r\n"])
  func messageThatDripsIsNotWaitedFor(_ command: String) async throws {
    let door = try Door { $0.limits.messageTime = .milliseconds(300) }
    try await door.greet { client async throws in
      try await client.send(Self.open + command)
      _ = try await client.codes(command.hasPrefix("DATA") ? 3 : 2)
      // Never silent for as long as the timeout, and yet too long.
      let drip = Task { while !Task.isCancelled { try await client.send("x") } }
      #expect(try await client.reply().hasPrefix("421 4.4.2 relay.test waited too long for the whole message"))
      drip.cancel()
      _ = await drip.result
    }
    #expect(count(door, .messageTime) == 1)
    #expect(door.queued.isEmpty)
    await door.close()
  }

  @Test func clockOfAMessageKnowsWhatHasCome() {
    var limits = ServerLimits()
    limits.dataRate = 1000
    limits.messageTime = .seconds(600)
    let start = MonotonicInstant(nanoseconds: 0)
    var meter = SessionMeter(start)
    meter.transactionBegins(start)
    meter.contentBegins(start + .seconds(10))
    func end(_ now: Int) -> Duration {
      meter.contentDeadline(start + .seconds(now + 60), timeout: .seconds(60), limits) - start
    }
    #expect(end(10) == .seconds(70))
    meter.contentCame(100_000)
    #expect(end(20) == .seconds(80), "a client that was quick may be silent for the timeout")
    #expect(end(120) == .seconds(170), "10 s + the timeout + 100 s for 100,000 octets")
    #expect(meter.awaited == .messageTime)
    meter.contentCame(10_000_000)
    #expect(end(590) == .seconds(600), "however much has come")
    limits.messageTime = .seconds(3600)
    limits.dataRate = 0
    #expect(end(590) == .seconds(650) && meter.awaited == .commandTime)
  }

  @Test func sessionEndsBetweenTwoTransactionsOnly() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      #expect(try await client.say("MAIL FROM:<a@b>").hasPrefix("250"))
      var settings = door.server.settings
      settings.limits.sessionTime = .zero
      door.server.configure(settings)
      #expect(try await client.say("RCPT TO:<contact@relay.test>").hasPrefix("250"))
      #expect(try await client.say("DATA").hasPrefix("354"))
      #expect(try await client.say(Self.letter + "\r\n.").hasPrefix("250"), "a message is not cut off")
      #expect(try await client.reply().hasPrefix("421 4.7.0 This session"))
    }
    #expect(count(door, .sessionTime) == 1)
    #expect(door.queued.count == 1)
    await door.close()
  }

  @Test func clientThatGoesOnWithoutAPauseIsToldToComeAgain() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      var settings = door.server.settings
      settings.limits.sessionTime = .zero
      door.server.configure(settings)
      try await client.send(Self.open + "DATA\r\n")
      #expect(try await client.reply().hasPrefix("421 4.7.0 This session"))
      #expect(try await client.reply() == "")
    }
    await door.close()
    #expect(door.queued.isEmpty)
  }

  @Test func handshakeThatStallsIsEnded() async throws {
    let tls = try makeTLS()
    let door = try Door {
      $0.tls = tls.server
      $0.limits.handshakeTime = .milliseconds(50)
    }
    try await door.greet { client async throws in
      #expect(try await client.say("STARTTLS").hasPrefix("220"))
      // The beginning of a record that never comes.
      try await client.send([0x16, 3, 1, 2, 0, 1])
      #expect(try await client.reply() == "")
    }
    #expect(count(door, .handshakeTime) == 1)
    #expect(door.server.counters.handshakes == HandshakeCounters(done: 0, resumed: 0, failed: 0, timedOut: 1))
    await door.close()
  }

  // MARK: Others

  /// One loop, and a client that never stops sending: a second one must have its turn.
  @Test(arguments: ["DATA\r\n", "BDAT 99999999999\r\n"])
  func clientThatFloodsDelaysNobody(_ command: String) async throws {
    let door = try Door { $0.maximumMessageSize = 100_000 }
    try await door.greet { flood async throws in
      try await flood.send(Self.open + command)
      _ = try await flood.codes(command.hasPrefix("DATA") ? 3 : 2)
      let line = [UInt8](repeating: 0x78, count: 65_534) + [0x0d, 0x0a]
      let flooding = Task { while !Task.isCancelled { try await flood.send(line) } }
      // One of them is on the same loop.
      for _ in 0..<4 {
        try await door.greet { client async throws in #expect(try await client.mail(Self.letter).hasPrefix("250")) }
      }
      flooding.cancel()
      await flood.close()
      _ = await flooding.result
    }
    await door.close()
  }

  @Test func logOfManySuchLinesSaysHowManyAreLeftOut() {
    var log = LimitLog()
    let start = MonotonicInstant(nanoseconds: 0)
    let written = (0..<1000).compactMap { _ in log.suffix(now: start) }
    #expect(written == [String](repeating: "", count: 20))
    let later = (0..<2).map { _ in log.suffix(now: start + .seconds(1)) }
    #expect(later == [" (and 980 more such lines that are left out)", nil])
  }
}
