// Ways in which mail could get stuck, be doubled or do harm, each of which has happened once.

import Delivery
import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(2))) struct FaultTests {
  private func enable(_ bench: Bench) async {
    var enabled = bench.settings
    enabled.isEnabled = true
    await bench.delivery.configure([enabled], DeliverySettings(hostname: "mailer.example.test"))
  }

  @Test func idleConnectionThatNeedsAResetIsResetOnceWithoutPipelining() async throws {
    let bench = try await Bench([.noChunking, .noPipelining, .recipient("slow@", "450 4.2.1 no", times: 1)]) {
      $0.maximumConnections = 1
    }
    let id = try await bench.submit(to: ["slow@example.test"])
    await bench.settled(id, attempts: 1)
    bench.time.advance(by: .seconds(31))
    try await bench.submit()
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    #expect(bench.upstream.statistics.connections == 1)
    await bench.end()
  }

  @Test func messageThatCannotBeReadIsTriedAgain() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 no", times: 1)])
    let id = try await bench.submit(to: ["slow@example.test"])
    await bench.settled(id, attempts: 1)
    bench.store.failReads(with: .failed("the disk is tired"))
    bench.time.advance(by: .seconds(60))
    _ = await bench.lines.line(containing: "cannot read the message")
    bench.store.failReads(with: nil)
    while bench.time.nextDeadline == nil { await Task.yield() }
    bench.time.advance(by: .seconds(60))
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func messageThatIsDeadForOneRecipientStillReachesTheOther() async throws {
    let bench = try await Bench([
      .recipient("nobody@", "550 5.1.1 no", times: nil), .recipient("slow@", "450 4.2.1 no", times: 1),
    ])
    let id = try await bench.submit(to: ["nobody@example.test", "slow@example.test"], from: "x@nowhere.test")
    await bench.settled(id, attempts: 1)
    #expect(bench.store.messages[id]?.state.deadReason != nil)
    bench.time.advance(by: .seconds(60))
    #expect(await bench.upstream.messages(atLeast: 1).first?.recipients == ["slow@example.test"])
    await bench.end()
    #expect(bench.store.messages[id]?.state.deadReason != nil)
  }

  @Test func upstreamThatThrowsUsOutIsAskedEverMoreSeldom() async throws {
    let bench = try await Bench([.answer(.mail, "421 4.3.0 Temporary System Problem. gsmtp")])
    try await bench.submit()
    for wait in [1, 2, 4, 8, 16] {
      while bench.time.nextDeadline == nil { await Task.yield() }
      let next = try #require(bench.time.nextDeadline)
      #expect(next - bench.time.now == .seconds(wait))
      bench.time.advance(by: .seconds(wait))
    }
    #expect(await bench.account().counters.inDoubt == 0)
    await bench.end()
    #expect(bench.store.messages.count == 1)
  }

  @Test func nothingIsHandedToAConnectionThatHasSaidGoodbye() async throws {
    // Without CHUNKING no message flies behind another, however slow the machine is at the moment.
    let bench = try await Bench([.noChunking, .answer(.mail, "421 4.3.0 Temporary System Problem. gsmtp", times: 1)]) {
      $0.maximumConnections = 1
      $0.isEnabled = false
    }
    for _ in 0..<5 { try await bench.submit() }
    #expect(await bench.account().queued == 5)
    // So that the one that is refused goes behind the others.
    bench.time.advance(by: .seconds(1))
    await enable(bench)
    while bench.time.nextDeadline == nil { await Task.yield() }
    bench.time.advance(by: .seconds(1))
    #expect(await bench.upstream.messages(atLeast: 5).count == 5)
    #expect(await bench.account().counters.inDoubt == 0)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func messageThatEndsEachConnectionDoesNotSpendALoginEachTime() async throws {
    let bench = try await Bench([.answer(.content, "421 4.3.0 Temporary System Problem. gsmtp")])
    let id = try await bench.submit()
    await bench.until { bench.state(id)?.lanes["example.test"] != nil }
    #expect(bench.state(id)?.lanes["example.test"]?.nextAttempt == bench.time.wallClock + .seconds(30))
    #expect(bench.state(id)?.lanes["example.test"]?.attempts == 0)
    await bench.end()
    #expect(bench.store.messages.count == 1)
  }

  @Test func recipientsTooManyForOneTransactionFollowAtOnce() async throws {
    let bench = try await Bench([.recipient("late@", "452 4.5.3 Too many recipients", times: 1)])
    try await bench.submit(to: ["support@example.test", "late@example.test"])
    let messages = await bench.upstream.messages(atLeast: 2)
    #expect(messages.map(\.recipients) == [["support@example.test"], ["late@example.test"]])
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func secretThatTheUpstreamRepeatsIsNotLogged() async throws {
    let bench = try await Bench([.rejectAuth("535 5.7.8 wrong: correct horse", times: nil)])
    try await bench.submit()
    _ = await bench.lines.line(containing: "badCredentials")
    #expect(!bench.lines.all.contains { $0.contains("correct horse") })
    await bench.end()
  }

  @Test func retryOfOneMessageDoesNotLetTheOthersLooseOnABlockedAccount() async throws {
    let bench = try await Bench([.answer(.mail, "550 5.4.5 Daily user sending limit exceeded. gsmtp")]) {
      $0.maximumConnections = 1
    }
    let id = try await bench.submit()
    _ = await bench.lines.line(containing: "on hold (dailyLimit)")
    for _ in 0..<5 { try await bench.submit() }
    #expect(await bench.account().queued == 6)
    let since = await bench.account().hold?.since
    bench.time.advance(by: .seconds(10))
    try await bench.delivery.retry(id)
    while bench.lines.all.filter({ $0.contains("on hold (dailyLimit)") }).count < 2 { await Task.yield() }
    // The hold went on all the while.
    #expect(await bench.account().hold?.since == since)
    await bench.end()
    #expect(bench.lines.all.filter { $0.contains("on hold (dailyLimit)") }.count == 2)
  }

  @Test func orderOnManyMessagesTriesABlockedAccountOnce() async throws {
    let bench = try await Bench([.answer(.mail, "550 5.4.5 Daily user sending limit exceeded. gsmtp")]) {
      $0.maximumConnections = 1
    }
    func holds() -> Int { bench.lines.all.filter { $0.contains("on hold (dailyLimit)") }.count }
    var ids = [try await bench.submit()]
    _ = await bench.lines.line(containing: "on hold (dailyLimit)")
    for _ in 0..<5 { ids.append(try await bench.submit()) }
    for _ in 0..<20 {
      for id in ids { try await bench.delivery.retry(id) }
    }
    await bench.until { holds() == 2 }
    for id in ids { try await bench.delivery.retry(id) }
    #expect(await bench.account().queued == 6)
    #expect(bench.upstream.statistics.authentications <= 2)
    bench.time.advance(by: .seconds(10))
    await bench.until { holds() == 3 }
    #expect(await bench.account().queued == 6)
    await bench.end()
    #expect(holds() == 3)
  }

  @Test func faultOfTheAccountEndsNobodysMailThoughAnotherRecipientIsPutOff() async throws {
    let bench = try await Bench([
      .recipient("slow@", "450 4.2.1 no", times: nil), .recipient("limit@", "550 5.4.5 Daily limit", times: nil),
    ])
    var settings = DeliverySettings(hostname: "mailer.example.test")
    settings.queueLifetime = .seconds(1)
    await bench.delivery.configure([bench.settings], settings)
    let id = try await bench.submit(to: ["slow@example.test", "limit@example.test"])
    _ = await bench.lines.line(containing: "on hold (dailyLimit)")
    await bench.settled(id, attempts: 1)
    // With the second attempt its lifetime is over.
    bench.time.advance(by: .seconds(60))
    await bench.settled(id, attempts: 2)
    await bench.end()
    #expect(bench.store.messages[id]?.state.recipients.isEmpty == true)
  }

  /// A message for two accounts, of which only the first exists.
  private func submitToTwoAccounts(_ bench: Bench) async throws -> QueueID {
    let id = bench.store.nextID()
    let recipients = ["example.test", "other.test"].map {
      Recipient(address: "support@\($0)", original: "support@\($0)", account: $0)
    }
    let envelope = Envelope(reversePath: "jane@example.org", recipients: recipients, arrival: bench.time.wallClock)
    let content = Content.bytes(Array("Subject: two\r\n\r\nHello\r\n".utf8))
    try await bench.store.append(id, envelope, content)
    bench.delivery.submit(id, envelope, content)
    return id
  }

  @Test func messageThatOneAccountDeliversNowCannotBeDeleted() async throws {
    let bench = try await Bench([.hang(.content, times: 1)])
    let id = try await submitToTwoAccounts(bench)
    // The upstream has it and does not answer: it stays under way until the connection breaks.
    _ = await bench.upstream.wait { $0.scriptedFaults == 1 }
    #expect(try await bench.delivery.delete(id) == .isUnderWay)
    await bench.upstream.stop()
    _ = await bench.lines.line(containing: "in doubt")
    #expect(await bench.delivery.snapshots().map(\.active) == [0, 0])
    #expect(try await bench.delivery.delete(id) == .deleted)
    #expect(bench.store.messages.isEmpty)
    await bench.end()
  }

  @Test func messageThatOneAccountHasDeliveredIsKeptForTheOther() async throws {
    let bench = try await Bench()
    let id = try await submitToTwoAccounts(bench)
    _ = await bench.lines.line(containing: "status=sent")
    #expect(await bench.delivery.snapshots().map(\.queued) == [0, 1])
    #expect(bench.store.messages[id]?.state.recipients == [0: .delivered])
    #expect(try await bench.delivery.delete(id) == .deleted)
    #expect(bench.store.messages.isEmpty)
    await bench.end()
  }

  @Test func thousandsOfMessagesThatMayNotBeOfferedDoNotPileUpOnTheStack() async throws {
    let hello = "250-smtp.gmail.com\n250-STARTTLS\n250-PIPELINING\n250-CHUNKING\n250-AUTH PLAIN\n250 SIZE 10"
    let bench = try await Bench([.answer(.ehlo, hello)]) {
      $0.isEnabled = false
      $0.maximumConnections = 1
      $0.messagesPerConnection = 100_000
    }
    for _ in 0..<5000 { try await bench.submit(from: "x@nowhere.test") }
    #expect(await bench.account().queued == 5000)
    await enable(bench)
    while bench.store.messages.values.contains(where: { $0.state.deadReason == nil }) { await Task.yield() }
    #expect(bench.store.messages.values.allSatisfy { $0.state.deadReason?.contains("5.3.4") == true })
    await bench.end()
  }
}
