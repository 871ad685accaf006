// What makes a message older and what does not, and that each one comes to an end.

import Delivery
import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(2))) struct PatienceTests {
  static let hourly = DeliverySettings.test {
    $0.delayWarning = .seconds(600)
    $0.retrySchedule = RetrySchedule([.seconds(3600)])
    $0.queueLifetime = .seconds(3 * 3600)
  }

  func bench(_ rules: [Rule], _ settings: DeliverySettings = hourly) async throws -> Bench {
    let bench = try await Bench(rules)
    await bench.delivery.configure([bench.settings], settings)
    return bench
  }

  // MARK: Ahead of their time

  @Test(arguments: [true, false])
  func triesAheadOfTheirTimeCostNoPatience(all: Bool) async throws {
    let bench = try await bench([.recipient("never@", "450 4.2.1 not now")])
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    let planned = try #require(bench.lane(id)?.nextAttempt)
    for count in 2...36 {
      bench.time.advance(by: .seconds(1))
      try await bench.delivery.retry(all ? nil : id)
      await bench.deferrals(count)
      #expect(bench.lane(id)?.attempts == 1 && bench.lane(id)?.nextAttempt == planned)
    }
    #expect(bench.state(id)?.life.last?.text.contains("ahead of its time, not counted, next try") == true)
    // Its sender hears of the delay, and the attempt that was planned is made and counts.
    await bench.pass(565)
    #expect(await bench.reports(1)[0].contains("Action: delayed"))
    await bench.pass(3000)
    await bench.settled(id, attempts: 2)
    #expect(bench.lane(id)?.nextAttempt == planned + .seconds(3600))
    #expect(bench.lines.all.allSatisfy { !$0.contains("expired") })
    await bench.end()
  }

  @Test func releasesOfAHoldCostNoPatience() async throws {
    let bench = try await bench([.recipient("never@", "450 4.2.1 not now")])
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    let planned = try #require(bench.lane(id)?.nextAttempt)
    for count in 2...10 {
      #expect(try await bench.delivery.hold(id, by: "operator"))
      #expect(try await bench.delivery.release(id, by: "operator"))
      await bench.deferrals(count)
      #expect(bench.lane(id)?.attempts == 1 && bench.lane(id)?.nextAttempt == planned)
    }
    // Behind its time it is the attempt that was planned.
    #expect(try await bench.delivery.hold(id, by: "operator"))
    bench.time.advance(by: .seconds(4000))
    await bench.until { await bench.account().active == 0 }
    #expect(try await bench.delivery.release(id, by: "operator"))
    await bench.settled(id, attempts: 2)
    #expect(bench.lane(id)?.nextAttempt == bench.time.wallClock + .seconds(3600))
    await bench.end()
  }

  @Test func planOfAClockThatWasAheadIsNoReasonToTryForNothing() async throws {
    let bench = try await bench([.recipient("never@", "450 4.2.1 not now")])
    let id = try await bench.submit(to: ["never@example.test"])
    await bench.settled(id, attempts: 1)
    bench.store.update(id) { $0.lanes["example.test"]?.nextAttempt = Timestamp(seconds: 3_000_000_000) }
    try await bench.delivery.retry(id)
    await bench.settled(id, attempts: 2)
    #expect(bench.lane(id)?.nextAttempt == bench.time.wallClock + .seconds(3600))
    await bench.end()
  }
}

extension Bench {
  func lane(_ id: QueueID) -> Lane? { state(id)?.lanes["example.test"] }

  /// Until so many recipients have been put off, and the account sleeps.
  func deferrals(_ count: Int) async {
    await until { await account().counters.deferred == count }
    await asleep()
  }

  /// Moves the clock in steps that let the account look at it.
  func pass(_ seconds: Int, step: Int = 60) async {
    var left = seconds
    while left > 0 {
      time.advance(by: .seconds(min(left, step)))
      left -= step
      await asleep()
    }
  }
}
