// Accounts that carry each other's mail: who sends what, what comes back, and that nothing goes twice.

import Delivery
import Glibc
import Network
import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

/// An account with another one to fall back to, each at an upstream of its own.
private struct Pair {
  let main: Bench
  /// Only its upstream is of interest.
  let spare: Bench

  init(
    _ mainRules: [Rule] = [], _ spareRules: [Rule] = [], trusts: Bool = true,
    changeMain: (inout UpstreamSettings) -> Void = { _ in }, changeSpare: (inout UpstreamSettings) -> Void = { _ in }
  ) async throws {
    main = try await Bench(mainRules, trusts: trusts) {
      $0.fallbacks = ["missing.test", "spare.test"]
      $0.maximumConnections = 1
      changeMain(&$0)
    }
    spare = try await Bench(spareRules) {
      $0.name = "spare.test"
      changeSpare(&$0)
    }
    await main.delivery.configure([main.settings, spare.settings], .test())
  }

  func account(_ name: String) async throws -> AccountSnapshot {
    try #require(await main.delivery.snapshots().first { $0.name == name })
  }

  func end() async {
    await main.end()
    await spare.end()
  }
}

@Suite(.timeLimit(.minutes(2))) struct FailoverTests {
  private static let limit = "550 5.4.5 Daily user sending limit exceeded. gsmtp"

  @Test func mailIsCarriedDuringAHoldAndNewMailReturnsAfterwards() async throws {
    // Without CHUNKING no message flies behind another, however slow the machine is at the moment.
    let pair = try await Pair([.noChunking, .answer(.mail, Self.limit, times: 1)])
    for _ in 0..<5 { try await pair.main.submit() }
    #expect(await pair.spare.upstream.messages(atLeast: 5).count == 5)
    _ = await pair.main.lines.line(containing: "carried by spare.test while it is on hold (dailyLimit)")
    _ = await pair.main.lines.line(containing: "account=example.test, carried_by=spare.test")
    await pair.main.until { pair.main.store.messages.isEmpty }
    #expect(try await pair.account("example.test").carriedBy == "spare.test")
    #expect(try await pair.account("spare.test").counters.carried == 5)
    #expect(pair.main.upstream.messages.isEmpty)
    pair.main.time.advance(by: .seconds(60))
    try await pair.main.submit()
    #expect(await pair.main.upstream.messages(atLeast: 1).count == 1)
    await pair.main.until { await pair.main.account().hold == nil }
    for _ in 0..<3 { try await pair.main.submit() }
    #expect(await pair.main.upstream.messages(atLeast: 4).count == 4)
    _ = await pair.main.lines.line(containing: "carries its own mail again, after spare.test")
    await pair.end()
    #expect(pair.spare.upstream.messages.count == 5 && pair.main.store.messages.isEmpty)
  }

  @Test func whatTheCarrierPutsOffStaysWithItsOwner() async throws {
    let pair = try await Pair(
      [.answer(.mail, Self.limit)], [.recipient("slow@", "450 4.2.1 no", times: 1)])
    let id = try await pair.main.submit(to: ["slow@example.test", "support@example.test"])
    await pair.main.settled(id, attempts: 1)
    let state = try #require(pair.main.state(id))
    #expect(state.lanes.keys.sorted() == ["example.test"] && state.recipients[1] == .delivered)
    #expect(state.life.contains { $0.account == "example.test" && $0.text.contains("carried by spare.test while") })
    #expect(pair.main.store.messages[id]?.envelope.recipients.allSatisfy { $0.account == "example.test" } == true)
    await pair.main.until { await pair.main.account().queued == 1 }
    pair.main.time.advance(by: .seconds(60))
    #expect(await pair.spare.upstream.messages(atLeast: 2).last?.recipients == ["slow@example.test"])
    await pair.end()
    #expect(pair.main.store.messages.isEmpty)
  }

  @Test func triesAheadOfTheirTimeOverACarrierCostNoPatience() async throws {
    let pair = try await Pair([.answer(.mail, Self.limit)], [.recipient("slow@", "450 4.2.1 no")])
    let id = try await pair.main.submit(to: ["slow@example.test"])
    await pair.main.settled(id, attempts: 1)
    let planned = try #require(pair.main.state(id)?.lanes["example.test"]?.nextAttempt)
    for count in 2...6 {
      // The owner itself tries it first, and is on hold again.
      try await pair.main.delivery.retry(count.isMultiple(of: 2) ? nil : id)
      await pair.main.until { (try? await pair.account("spare.test").counters.deferred) == count }
      await pair.main.until { await pair.main.account().active == 0 }
      #expect(pair.main.state(id)?.lanes["example.test"]?.attempts == 1)
      #expect(pair.main.state(id)?.lanes["example.test"]?.nextAttempt == planned)
    }
    let last = try #require(pair.main.state(id)?.life.last?.text)
    #expect(last.contains("ahead of its time, not counted") && last.contains("carried by spare.test while"))
    await pair.end()
  }

  /// The owner's hold of an hour must not stretch a wait of a minute.
  @Test func whatTheCarrierPutsOffGoesAtItsTimeThoughTheHoldLasts() async throws {
    let pair = try await Pair(
      [.answer(.mail, Self.limit)], [.recipient("slow@", "450 4.2.1 no", times: 2)])
    // Whoever waits to warn of a delay looks each minute, and would hide it.
    await pair.main.delivery.configure([pair.main.settings, pair.spare.settings], .test { $0.delayWarning = .zero })
    let first = try await pair.main.submit()
    await pair.main.until { pair.main.store.messages[first] == nil }
    for _ in 0..<7 {
      // Each hold is longer than the last one.
      let count = pair.main.lines.all.filter { $0.contains("on hold (dailyLimit)") }.count
      let next = try #require(try await pair.account("example.test").hold?.nextTry)
      pair.main.time.advance(by: next - pair.main.time.wallClock)
      try await pair.main.submit()
      await pair.main.until {
        pair.main.lines.all.filter { $0.contains("on hold (dailyLimit)") }.count > count
          && pair.main.store.messages.isEmpty
      }
    }
    let until = try #require(try await pair.account("example.test").hold?.nextTry)
    let id = try await pair.main.submit(to: ["slow@example.test"])
    await pair.main.settled(id, attempts: 1)
    for attempt in 2...3 {
      let next = try #require(pair.main.state(id)?.lanes["example.test"]?.nextAttempt)
      await pair.main.until { await pair.main.account().queued == 1 && pair.main.time.nextDeadline != nil }
      while pair.main.time.wallClock < next {
        await pair.main.until { pair.main.time.nextDeadline != nil }
        pair.main.time.advance(by: min(next - pair.main.time.wallClock, .seconds(60)))
      }
      await pair.main.settled(id, attempts: attempt)
    }
    #expect(pair.main.store.messages[id] == nil && pair.main.time.wallClock < until)
    await pair.end()
  }

  @Test func fullLedgerSendsTheRestThroughTheFallbackWhoseLedgerCounts() async throws {
    let pair = try await Pair(changeMain: { $0.dailyLimit = 2 }, changeSpare: { $0.dailyLimit = 100 })
    for _ in 0..<5 { try await pair.main.submit() }
    #expect(await pair.spare.upstream.messages(atLeast: 3).count == 3)
    await pair.main.until { pair.main.store.messages.isEmpty }
    #expect(pair.main.upstream.messages.count == 2)
    #expect(try await pair.account("example.test").ledger?.used == 2)
    #expect(try await pair.account("spare.test").ledger?.used == 3)
    // A day later nothing waits any more, and nobody is told of a limit that is over.
    #expect(try await pair.account("example.test").hold?.fault == .dailyLimit)
    pair.main.time.advance(by: .seconds(86_400 + 600))
    await pair.main.until { await pair.main.account().hold == nil }
    await pair.end()
  }

  @Test func accountThatCannotLogInIsCarried() async throws {
    let pair = try await Pair(trusts: false)
    try await pair.main.submit()
    #expect(await pair.spare.upstream.messages(atLeast: 1).count == 1)
    _ = await pair.main.lines.line(containing: "carried by spare.test while it is on hold (certificate)")
    await pair.end()
    #expect(pair.main.store.messages.isEmpty)
  }

  @Test func whatWaitsAtTheCarrierCanStillBeDeletedAndHeld() async throws {
    let pair = try await Pair([.answer(.mail, Self.limit)]) {
      $0.maximumConnections = 1
    } changeSpare: {
      $0.rate = .init(perMinute: 1, burst: 1)
      $0.maximumConnections = 3
    }
    var ids: [QueueID] = []
    for _ in 0..<4 { ids.append(try await pair.main.submit()) }
    _ = await pair.spare.upstream.messages(atLeast: 1)
    await pair.main.until { pair.main.store.messages.count == 3 }
    // Until three wait at the carrier.
    await pair.main.until { await pair.main.delivery.messagesUnderWay().count == 3 }
    let rest = ids.filter { pair.main.store.messages[$0] != nil }
    #expect(try await pair.main.delivery.delete(rest[0]) == .deleted)
    #expect(try await pair.main.delivery.hold(rest[1], by: "operator"))
    #expect(pair.main.store.messages.count == 2)
    pair.main.time.advance(by: .seconds(61))
    #expect(await pair.spare.upstream.messages(atLeast: 2).count == 2)
    await pair.main.until { pair.main.store.messages.count == 1 }
    #expect(pair.main.state(rest[1])?.isHeld == true)
    #expect(try await pair.main.delivery.release(rest[1], by: "operator"))
    pair.main.time.advance(by: .seconds(61))
    #expect(await pair.spare.upstream.messages(atLeast: 3).count == 3)
    await pair.end()
    #expect(pair.main.store.messages.isEmpty)
  }

  @Test func mailWaitsUnagedWhileBothAreOnHoldAndGoesOnce() async throws {
    // Without CHUNKING no message flies behind another, however slow the machine is at the moment.
    let pair = try await Pair(
      [.noChunking, .answer(.mail, Self.limit, times: 1)], [.noChunking, .answer(.mail, Self.limit, times: 1)])
    var ids: [QueueID] = []
    for _ in 0..<3 { ids.append(try await pair.main.submit()) }
    _ = await pair.main.lines.line(containing: "account spare.test: on hold (dailyLimit)")
    await pair.main.until { await pair.main.account().queued == 3 }
    #expect(ids.allSatisfy { (pair.main.state($0)?.lanes["example.test"]?.attempts ?? 0) == 0 })
    await pair.main.until { pair.main.time.nextDeadline != nil }
    pair.main.time.advance(by: .seconds(60))
    await pair.main.until { pair.main.upstream.messages.count + pair.spare.upstream.messages.count >= 3 }
    await pair.end()
    #expect(pair.main.upstream.messages.count + pair.spare.upstream.messages.count == 3)
    #expect(pair.main.store.messages.isEmpty)
  }

  @Test func disabledFallbackCarriesNothing() async throws {
    let pair = try await Pair([.answer(.mail, Self.limit)], changeSpare: { $0.isEnabled = false })
    try await pair.main.submit()
    _ = await pair.main.lines.line(containing: "on hold (dailyLimit)")
    await pair.main.asleep()
    #expect(await pair.main.account().carriedBy == nil && pair.spare.upstream.messages.isEmpty)
    await pair.end()
    #expect(pair.main.store.messages.count == 1)
  }
}

/// Ledgers in memory, which can fail.
private final class MemoryLedgers: LedgerStore {
  private let state = Mutex<(files: [String: [UInt8]], isBroken: Bool, saves: Int)>(([:], false, 0))
  var saves: Int { state.withLock { $0.saves } }
  func breakDown() { state.withLock { $0.isBroken = true } }

  func load(_ name: String) async throws(DiskError) -> [UInt8]? { state.withLock { $0.files[name] } }
  func save(_ name: String, _ bytes: [UInt8]) async throws(DiskError) {
    let isBroken = state.withLock { state in
      if !state.isBroken { state.files[name] = bytes }
      state.saves += 1
      return state.isBroken
    }
    if isBroken { throw DiskError(operation: "pwrite", path: name, code: EIO) }
  }
}

@Suite(.timeLimit(.minutes(2))) struct LimitTests {
  private func delivery(_ bench: Bench, _ ledgers: MemoryLedgers) async throws -> Delivery {
    let delivery = Delivery(
      store: bench.store, resolver: Bench.resolver(bench.time), loops: [try EventLoop(name: "delivery-limit")],
      time: bench.time, settings: .test(), log: bench.lines.logger, random: { 0.5 }, ledgers: ledgers,
      routeBounce: { sender, _ in [(sender, "example.test")] })
    await delivery.configure([bench.settings], .test())
    return delivery
  }

  private func submit(_ bench: Bench, _ delivery: Delivery, _ recipients: [String] = ["a@example.test"]) async throws {
    let id = bench.store.nextID()
    let envelope = Envelope(
      reversePath: "jane@example.org", recipients: recipients.map { .test($0) }, arrival: bench.time.wallClock)
    let content = Content.bytes(Array("Subject: x\r\n\r\nx\r\n".utf8))
    try await bench.store.append(id, envelope, content)
    delivery.submit(id, envelope, content)
  }

  @Test func overTheLimitMailWaitsUnagedUntilTheWindowFrees() async throws {
    let bench = try await Bench { $0.dailyLimit = 3 }
    for _ in 0..<2 { try await bench.submit(to: ["a@example.test", "b@example.test"]) }
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.until { await bench.account().hold?.fault == .dailyLimit }
    let account = await bench.account()
    #expect(account.ledger?.used == 2 && account.ledger?.left == 1 && account.queued == 1)
    #expect(account.hold?.nextTry == bench.time.wallClock + .seconds(86_700))
    _ = await bench.lines.line(containing: "daily_limit of 3 recipients in 24 hours is reached (2 sent)")
    await bench.asleep()
    bench.time.advance(by: .seconds(86_699))
    await bench.asleep()
    #expect(bench.upstream.messages.count == 1)
    bench.time.advance(by: .seconds(1))
    #expect(await bench.upstream.messages(atLeast: 2).count == 2)
    await bench.until { bench.store.messages.isEmpty }
    #expect(await bench.account().hold == nil)
    #expect(!bench.lines.all.contains { $0.contains("status=deferred") || $0.contains("status=bounced") })
    await bench.end()
  }

  @Test func recipientsThatWereRefusedDoNotCount() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 no", times: nil)]) { $0.dailyLimit = 3 }
    let id = try await bench.submit(to: ["slow@example.test", "support@example.test"])
    await bench.settled(id, attempts: 1)
    #expect(await bench.account().ledger?.used == 1)
    await bench.end()
  }

  @Test func restartRemembersWhatWasSent() async throws {
    let bench = try await Bench { $0.dailyLimit = 3 }
    let ledgers = MemoryLedgers()
    let first = try await delivery(bench, ledgers)
    for _ in 0..<3 { try await submit(bench, first) }
    _ = await bench.upstream.messages(atLeast: 3)
    await first.stop(within: .seconds(30))
    bench.time.advance(by: .seconds(3600))
    let second = try await delivery(bench, ledgers)
    // Whoever asks for the state need not wait for the first message.
    await bench.until { await second.snapshots()[0].ledger?.used == 3 }
    try await submit(bench, second)
    await bench.until { await second.snapshots()[0].hold?.fault == .dailyLimit }
    #expect(await second.snapshots()[0].ledger?.used == 3)
    #expect(bench.upstream.messages.count == 3)
    bench.time.advance(by: .seconds(86_700 - 3600))
    #expect(await bench.upstream.messages(atLeast: 4).count == 4)
    await second.stop(within: .seconds(30))
    await bench.end()
  }

  @Test func ledgerThatCannotBeWrittenStopsNoMail() async throws {
    let bench = try await Bench { $0.dailyLimit = 100 }
    let ledgers = MemoryLedgers()
    ledgers.breakDown()
    let delivery = try await delivery(bench, ledgers)
    for _ in 0..<5 { try await submit(bench, delivery) }
    #expect(await bench.upstream.messages(atLeast: 5).count == 5)
    _ = await bench.lines.line(containing: "ledger/ cannot be written")
    #expect(ledgers.saves < 3)
    await delivery.stop(within: .seconds(30))
    await bench.end()
  }

  @Test func upstreamThatFindsTheLimitReachedIsAskedWhenOurOwnCountFrees() async throws {
    let bench = try await Bench([.answer(.mail, "550 5.4.5 Daily user sending limit exceeded. gsmtp")]) {
      $0.dailyLimit = 4
      $0.maximumConnections = 1
    }
    let ledgers = MemoryLedgers()
    try await ledgers.save(
      "example.test", Array("ssmtp-mailer ledger 1\nwritten 1795000000\n1794990000 3\n".utf8))
    let delivery = try await delivery(bench, ledgers)
    try await submit(bench, delivery)
    await bench.until { await delivery.snapshots()[0].hold != nil }
    let next = try #require(await delivery.snapshots()[0].hold?.nextTry)
    #expect(next == Timestamp(seconds: 1_794_990_000 + 86_700))
    await delivery.stop(within: .seconds(30))
    await bench.end()
  }

  @Test func complaintAboutTheRateSlowsTheAccountDownAndSuccessSpeedsItUp() async throws {
    let bench = try await Bench([.answer(.mail, "421 4.7.0 Try again later. gsmtp", times: 1)]) {
      $0.rate = .init(perMinute: 60, burst: 10)
      $0.maximumConnections = 4
    }
    try await bench.submit()
    await bench.until { await bench.account().slowed != nil }
    _ = await bench.lines.line(containing: "finds it too fast (421 4.7.0")
    #expect(await bench.account().slowed?.connections == 2)
    await bench.until { bench.time.nextDeadline != nil }
    bench.time.advance(by: .seconds(60))
    _ = await bench.upstream.messages(atLeast: 1)
    for round in 2...20 {
      await bench.until { bench.store.messages.isEmpty }
      bench.time.advance(by: .seconds(300))
      try await bench.submit()
      _ = await bench.upstream.messages(atLeast: round)
    }
    await bench.until { await bench.account().slowed == nil }
    _ = await bench.lines.line(containing: "as fast as it is configured again")
    #expect(await bench.account().tokens ?? 0 <= 10)
    await bench.end()
  }

  @Test(arguments: [Step.banner, .ehlo, .auth])
  func complaintAboutTheRateBeforeAnyMailSlowsTheAccountDownToo(step: Step) async throws {
    let bench = try await Bench([.answer(step, "421 4.7.0 Try again later, closing connection. gsmtp", times: 1)]) {
      $0.rate = .init(perMinute: 60, burst: 10)
      $0.maximumConnections = 4
    }
    try await bench.submit()
    await bench.until { await bench.account().slowed != nil }
    #expect(await bench.account().slowed?.connections == 2)
    _ = await bench.lines.line(containing: "finds it too fast (421 4.7.0")
    // The message only waits.
    await bench.until { bench.time.nextDeadline != nil }
    bench.time.advance(by: .seconds(3600))
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func ledgerFileIsReplacedAsAWhole() async throws {
    var template = Array("/tmp/ledger-XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    let files = LedgerFiles(directory: folder + "/ledger", disk: PosixDisk())
    #expect(try await files.load("example.test") == nil)
    try await files.save("Example.test", Array("one and more".utf8))
    try await files.save("example.test", Array("two".utf8))
    try await files.save("../odd", Array("three".utf8))
    #expect(try await files.load("example.test") == Array("two".utf8))
    #expect(try PosixDisk().list(folder + "/ledger").sorted() == ["..%2fodd.ledger", "example.test.ledger"])
  }
}
