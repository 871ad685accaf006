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

  // MARK: Broken in the content

  @Test(arguments: ["421 4.7.0 Try again later, closing connection. gsmtp", "421 4.3.0 Temporary System Problem"])
  func messageWhoseContentAlwaysEndsTheConnectionAgesAndIsReturned(reply: String) async throws {
    let bench = try await bench([.noChunking, .answer(.content, reply)])
    let id = try await bench.submit()
    await bench.deferrals(1)
    #expect(bench.lane(id)?.attempts == 0)
    #expect(bench.lane(id)?.nextAttempt == bench.time.wallClock + .seconds(30))
    #expect(bench.state(id)?.life.last?.text.contains("in its content, not counted the first time") == true)
    _ = await bench.lines.line(containing: "\(id): to=<support@example.test>")
    #expect(bench.lines.all.contains { $0.contains("status=deferred (421 4.") })
    let slowed = await bench.account().slowed?.ratePerMinute
    #expect((slowed != nil) == reply.contains("4.7.0"))
    await bench.reach(id, attempts: 1)
    #expect(try #require(bench.lane(id)).nextAttempt - bench.time.wallClock > .seconds(3500))
    // Nothing else leaves, so that the account has no connection; its sender is told all the same.
    await bench.until {
      if bench.time.nextDeadline != nil { bench.time.advance(by: .seconds(30)) }
      return bench.state(id)?.isDelayReported == true
    }
    #expect(bench.lane(id)?.attempts == 1)
    await bench.reach(id, attempts: 4)
    #expect(bench.store.messages[id] == nil)
    #expect(
      bench.lines.all.contains { $0.contains("status=expired (550 5.4.7") || $0.contains("gave up after 4 attempts") })
    // Once for the message, and once for each notification about it.
    #expect(bench.lines.all.filter { $0.contains("finds it too fast") }.count <= 3)
    await bench.end()
  }

  @Test func repeatedComplaintAboutOneContentSlowsNobodyElseDown() async throws {
    let bench = try await Bench([.noChunking, .answer(.content, "421 4.7.0 Try again later. gsmtp", times: 4)]) {
      $0.rate = .init(perMinute: 64, burst: 10)
    }
    await bench.delivery.configure([bench.settings], .test { $0.retrySchedule = RetrySchedule([.seconds(60)]) })
    let id = try await bench.submit()
    for attempts in 1...3 { await bench.reach(id, attempts: attempts) }
    #expect(await bench.account().slowed?.ratePerMinute == 32)
    await bench.reach(id, attempts: 4)
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  // MARK: Faults of ours

  @Test(arguments: [true, false])
  func senderOfAMessageThatIsKeptForAFaultOfOursIsToldOfTheDelay(restarts: Bool) async throws {
    let bench = try await bench([.recipient("odd@", "502 5.5.1 What do you mean?")])
    let id = try await bench.submit(to: ["odd@example.test"])
    await bench.deferrals(1)
    #expect(bench.lane(id)?.attempts == 0)
    let second = restarts ? try await bench.restart(Self.hourly) : nil
    await bench.until {
      if bench.time.nextDeadline != nil { bench.time.advance(by: .seconds(30)) }
      return bench.state(id)?.isDelayReported == true
    }
    let report = await bench.reports(1)[0]
    #expect(report.contains("Action: delayed") && report.contains("502 5.5.1 What do you mean?"))
    #expect(!report.contains("Will-Retry-Until"), "nothing ends it")
    await second?.stop(within: .seconds(30))
    await bench.end()
    #expect(bench.store.messages.keys.contains(id))
  }

  @Test func addressThatTheUpstreamCannotReadComesBack() async throws {
    let bench = try await bench([.recipient("odd@", "501 bad address syntax")])
    try await bench.submit(to: ["odd@example.test"])
    #expect(await bench.reports(1)[0].contains("501 bad address syntax"))
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  // MARK: In doubt

  @Test func messageInDoubtToTheEndIsReturnedAsOneThatMayHaveArrived() async throws {
    let bench = try await bench(
      [.disconnectAfterDot(times: 2)],
      .test {
        $0.retrySchedule = RetrySchedule([.seconds(60)])
        $0.queueLifetime = .seconds(60)
      })
    let id = try await bench.submit()
    await bench.reach(id, attempts: 1)
    #expect(bench.lane(id)?.lastReply.contains("which may have arrived") == true)
    await bench.reach(id, attempts: 2)
    await bench.until {
      if bench.time.nextDeadline != nil { bench.time.advance(by: .seconds(10)) }
      return bench.upstream.messages.contains { $0.reversePath.isEmpty }
    }
    let report = await bench.reports(1)[0]
    #expect(report.contains("Subject: Your message may not have been delivered"))
    #expect(report.contains("It is not known whether your message has reached:"))
    #expect(report.contains("it may have arrived: the connection broke 2 times behind the end of the message"))
    #expect(!report.contains("could not be delivered") && !report.contains("answer"))
    #expect(report.contains("Status: 5.4.7"))
    #expect(!report.contains("Diagnostic-Code") && !report.contains("Remote-MTA"))
    #expect(bench.lines.all.contains { $0.contains("status=expired") && $0.contains("it may have arrived") })
    await bench.end()
  }

  @Test func doubtOfAnEarlierAttemptIsNotForgotten() async throws {
    let bench = try await bench(
      [.disconnectAfterDot(times: 1), .after(messages: 1, .recipient("support@", "450 4.2.1 not now"))],
      .test {
        $0.retrySchedule = RetrySchedule([.seconds(60)])
        $0.queueLifetime = .seconds(60)
      })
    let id = try await bench.submit()
    for attempts in 1...2 { await bench.reach(id, attempts: attempts) }
    let report = await bench.reports(1)[0]
    #expect(report.contains("it may have arrived: the connection broke once behind the end of the message"))
    #expect(report.contains("the last answer was: 450 4.2.1 not now"))
    #expect(report.contains("Diagnostic-Code: smtp; 450 4.2.1 not now"))
    await bench.end()
  }

  /// Too large for the buffers on the way, so that the connection breaks while it is written.
  private struct LargeContent: StoredContent {
    let count = 32 * 1024 * 1024
    func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
      Array(repeating: UInt8(ascii: "x"), count: min(count, self.count - offset))
    }
  }

  @Test(arguments: [[], [Rule.noChunking]])
  func connectionThatBreaksInTheSameContentAgainCounts(rules: [Rule]) async throws {
    let bench = try await bench(rules + [.disconnectInData(afterBytes: 10)])
    let id = bench.store.nextID()
    let envelope = Envelope(
      reversePath: "jane@example.org", recipients: [.test("support@example.test")], arrival: bench.time.wallClock)
    try await bench.store.append(id, envelope, .file(LargeContent()))
    bench.delivery.submit(id, envelope, .file(LargeContent()))
    await bench.deferrals(1)
    #expect(bench.lane(id)?.attempts == 0 && bench.lane(id)?.inDoubt == 0)
    #expect(bench.lane(id)?.lastReply.contains("in the middle of the message") == true)
    #expect(bench.lane(id)?.nextAttempt == bench.time.wallClock + .seconds(30))
    #expect(bench.lines.all.contains { $0.hasPrefix("\(id)") || $0.contains("status=deferred (451 4.4.2") })
    await bench.reach(id, attempts: 1)
    #expect(try #require(bench.lane(id)).nextAttempt - bench.time.wallClock > .seconds(3500))
    await bench.end()
  }
}

extension Bench {
  /// Moves the clock until the queue has recorded that many attempts, or has let go of the message.
  func reach(_ id: QueueID, attempts: Int) async {
    await until {
      guard let message = store.messages[id], (message.state.lanes["example.test"]?.attempts ?? 0) < attempts else {
        return true
      }
      if await account().active == 0, time.nextDeadline != nil { time.advance(by: .seconds(10)) }
      return false
    }
    await until { await account().active == 0 }
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
