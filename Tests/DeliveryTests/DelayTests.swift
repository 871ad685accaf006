// Mail that has to wait: when its sender is told, when it ends, and what does not make it older.

import Delivery
import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(2))) struct DelayTests {
  private static let never = Rule.recipient("never@", "450 4.2.1 not now")
  private static let hourly = DeliverySettings.test {
    $0.delayWarning = .seconds(600)
    $0.retrySchedule = RetrySchedule([.seconds(3600)])
    $0.queueLifetime = .seconds(3 * 3600)
  }

  private func bench(_ settings: DeliverySettings = hourly) async throws -> Bench {
    let bench = try await Bench([Self.never])
    await bench.delivery.configure([bench.settings], settings)
    return bench
  }

  /// Moves the clock in steps that let the account look at it.
  private func pass(_ seconds: Int, _ bench: Bench) async {
    var left = seconds
    while left > 0 {
      bench.time.advance(by: .seconds(min(left, 60)))
      left -= 60
      await bench.asleep()
    }
  }

  @Test func delayIsReportedAtItsTimeAndOnce() async throws {
    let bench = try await bench()
    let arrival = bench.time.wallClock
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    await pass(599, bench)
    #expect(bench.upstream.messages.isEmpty && bench.state(id)?.isDelayReported == false)
    bench.time.advance(by: .seconds(1))
    let report = await bench.reports(1)[0]
    #expect(report.contains("Subject: Your message is delayed") && report.contains("Action: delayed"))
    #expect(report.contains("Status: 4.2.1") && report.contains("Diagnostic-Code: smtp; 450 4.2.1 not now"))
    // Three waits of an hour are the lifetime: the fourth attempt, three hours after the first, is the last.
    #expect(report.contains("Will-Retry-Until: \(text(arrival + .seconds(3 * 3600)))"))
    await bench.until { bench.state(id)?.isDelayReported == true }
    #expect(bench.state(id)?.lanes["example.test"]?.attempts == 1, "it came between two attempts")
    #expect(bench.state(id)?.life.map(\.kind) == [.deferred, .notified])
    bench.time.advance(by: .seconds(3000))
    await bench.settled(id, attempts: 2)
    await pass(1200, bench)
    #expect(await bench.reports(1).count == 1)
    await bench.end()
  }

  private func text(_ time: Timestamp) -> String {
    // The time is fixed, so the date is known: 2026-11-18.
    let seconds = time.seconds % 86_400
    func two(_ number: Int64) -> String { number < 10 ? "0\(number)" : "\(number)" }
    return "Wed, 18 Nov 2026 \(two(seconds / 3600)):\(two(seconds / 60 % 60)):\(two(seconds % 60)) +0000"
  }

  @Test func delayIsReportedByTheNextDaemonAndNotTwice() async throws {
    let bench = try await bench()
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    bench.time.advance(by: .seconds(300))
    let second = try await bench.restart(Self.hourly)
    await bench.until { bench.time.nextDeadline != nil }
    for _ in 0..<5 {
      bench.time.advance(by: .seconds(60))
      await bench.until { bench.time.nextDeadline != nil || bench.state(id)?.isDelayReported == true }
    }
    await bench.until { bench.state(id)?.isDelayReported == true }
    _ = await bench.reports(1)
    await second.stop(within: .seconds(30))
    let third = try await bench.restart(Self.hourly)
    await bench.until { bench.time.nextDeadline != nil }
    bench.time.advance(by: .seconds(1200))
    await bench.until { bench.time.nextDeadline != nil }
    await third.stop(within: .seconds(30))
    #expect(bench.upstream.messages.count == 1)
    await bench.upstream.stop()
  }

  @Test(arguments: [RecipientParameters.Notify.never, .failure, [.success, .failure]])
  func delayThatNobodyWantsToHearOfIsNotReported(notify: RecipientParameters.Notify) async throws {
    let bench = try await bench()
    let id = try await bench.submit([.test("never@example.test", notify)])
    await bench.settled(id, attempts: 1)
    await pass(1200, bench)
    #expect(bench.upstream.messages.isEmpty && bench.state(id)?.isDelayReported == false)
    await bench.end()
  }

  @Test func zeroNeverWarns() async throws {
    var settings = Self.hourly
    settings.delayWarning = .zero
    let bench = try await bench(settings)
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    await pass(1200, bench)
    #expect(bench.upstream.messages.isEmpty)
    await bench.end()
  }

  @Test func notificationThatIsLateItselfIsNotReported() async throws {
    let bench = try await bench()
    let id = try await bench.submit(to: ["never@example.test"], from: "")
    await bench.settled(id, attempts: 1)
    await pass(1200, bench)
    #expect(bench.upstream.messages.isEmpty)
    await bench.end()
  }

  @Test func noDelayIsReportedWhileTheAccountIsOnHold() async throws {
    let bench = try await Bench([
      Self.never, .recipient("full@", "550 5.4.5 Daily user sending limit exceeded. gsmtp", times: 4),
    ])
    await bench.delivery.configure([bench.settings], Self.hourly)
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    try await bench.submit(to: ["full@example.test"])
    _ = await bench.lines.line(containing: "on hold (dailyLimit)")
    // 60, 120, 240 seconds, and then eight minutes more.
    await pass(840, bench)
    #expect(await bench.account().hold != nil && bench.upstream.messages.isEmpty)
    await pass(120, bench)
    _ = await bench.lines.line(containing: "sends again")
    #expect(await bench.reports(1).count == 1)
    #expect(await bench.upstream.messages(atLeast: 2).count == 2)
    await bench.end()
  }

  @Test func messageOfTwoAccountsIsReportedOnceForBoth() async throws {
    let bench = try await bench()
    var other = bench.settings
    other.name = "other.test"
    await bench.delivery.configure([bench.settings, other], Self.hourly)
    var recipients = [Recipient.test("never@example.test"), .test("never@other.test"), .test("support@example.test")]
    recipients[1].account = "other.test"
    let id = try await bench.submit(recipients)
    await bench.until { bench.state(id)?.lanes.count == 2 }
    await bench.settled(id, attempts: 1)
    await pass(600, bench)
    await bench.until { bench.state(id)?.isDelayReported == true }
    await pass(600, bench)
    let reports = await bench.reports(1)
    #expect(reports.count == 1 && reports[0].components("Action: delayed") == 2)
    #expect(!reports[0].contains("support@example.test"))
    await bench.end()
  }

  // MARK: Age

  @Test func attemptsAreCountedOverRestarts() async throws {
    let bench = try await bench()
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    bench.time.advance(by: .seconds(3600))
    await bench.settled(id, attempts: 2)
    let second = try await bench.restart(Self.hourly)
    // However long the machine was off: the fourth attempt is the last.
    bench.time.advance(by: .seconds(86_400))
    await bench.settled(id, attempts: 3)
    bench.time.advance(by: .seconds(3600))
    await bench.until { bench.store.messages[id] == nil }
    let report = await bench.reports(2)
    #expect(report.contains { $0.contains("gave up after 4 attempts") && $0.contains("Delivery was tried 4 times") })
    await second.stop(within: .seconds(30))
    await bench.upstream.stop()
  }

  @Test(arguments: [1, 90])
  func finalAttemptFallsOnAShortLifetime(lifetime: Int) async throws {
    let bench = try await bench(
      .test {
        $0.retrySchedule = RetrySchedule([.seconds(60)])
        $0.queueLifetime = .seconds(lifetime)
      })
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    var left = lifetime
    for attempt in 2... {
      bench.time.advance(by: .seconds(min(left, 60) - 1))
      await bench.asleep()
      #expect(bench.state(id)?.lanes["example.test"]?.attempts == attempt - 1)
      bench.time.advance(by: .seconds(1))
      left -= min(left, 60)
      await bench.settled(id, attempts: attempt)
      if left == 0 { break }
    }
    await bench.until { bench.store.messages[id] == nil }
    #expect(await bench.reports(1)[0].contains("gave up after \(lifetime == 1 ? 2 : 3) attempts"))
    await bench.end()
  }

  /// The largest values that the configuration takes.
  @Test func messageThatIsToWaitForACenturyWaits() async throws {
    let century = Duration.seconds(36_525 * 86_400)
    let bench = try await bench(
      .test {
        $0.retrySchedule = RetrySchedule([.seconds(3600), century])
        $0.queueLifetime = century
        $0.delayWarning = .seconds(600)
      })
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    await pass(600, bench)
    let report = await bench.reports(1)[0]
    #expect(report.contains("Will-Retry-Until:") && report.contains(" 2126 "))
    await bench.until { bench.state(id)?.isDelayReported == true }
    await pass(3000, bench)
    await bench.settled(id, attempts: 2)
    let wait = try #require(bench.state(id)?.lanes["example.test"]).nextAttempt - bench.time.wallClock
    #expect(wait == century - .seconds(3600))
    var settings = DeliverySettings.test { $0.delayWarning = century }
    await bench.delivery.configure([bench.settings], settings)
    let other = try await bench.submit(to: ["never@example.test"])
    await bench.settled(other, attempts: 1)
    settings.delayWarning = .seconds(1)
    await bench.delivery.configure([bench.settings], settings)
    await bench.end()
    #expect(bench.store.messages.count == 2)
  }

  @Test func waitsAreThoseOfTheScheduleWithinATenth() async throws {
    for random in [0.0, 1.0] {
      let bench = try await Bench([Self.never])
      let delivery = Delivery(
        store: bench.store, resolver: Bench.resolver(bench.time), loops: [try .init(name: "delivery-jitter")],
        time: bench.time, settings: .test(), log: bench.lines.logger, random: { random }, routeBounce: { _, _ in [] })
      await delivery.configure([bench.settings], .test())
      let id = bench.store.nextID()
      let envelope = Envelope(
        reversePath: "jane@example.org", recipients: [.test("never@example.test")], arrival: bench.time.wallClock)
      try await bench.store.append(id, envelope, .bytes([]))
      delivery.submit(id, envelope, .bytes([]))
      await bench.settled(id, attempts: 1)
      let wait = try #require(bench.state(id)?.lanes["example.test"]).nextAttempt - bench.time.wallClock
      #expect(wait == (random == 0 ? .seconds(54) : .seconds(66)))
      await delivery.stop(within: .seconds(30))
      await bench.end()
    }
  }

  @Test func holdOfTheAccountMakesNobodysMailOlder() async throws {
    let bench = try await Bench([.answer(.mail, "550 5.4.5 Daily user sending limit exceeded. gsmtp", times: 12)])
    await bench.delivery.configure([bench.settings], .test { $0.queueLifetime = .seconds(60) })
    let id = try await bench.submit()
    for count in 1...11 {
      await bench.until { bench.lines.all.filter { $0.contains("on hold (dailyLimit)") }.count == count }
      await bench.asleep()
      #expect(bench.state(id)?.lanes["example.test"]?.attempts == 0)
      // The longest wait of a hold is an hour.
      bench.time.advance(by: .seconds(3600))
    }
    await bench.until { bench.lines.all.filter { $0.contains("on hold (dailyLimit)") }.count == 12 }
    await bench.asleep()
    bench.time.advance(by: .seconds(3600))
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }
}
