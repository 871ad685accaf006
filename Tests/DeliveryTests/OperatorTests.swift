// What an operator does to single messages.

import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

@testable import Delivery

@Suite(.timeLimit(.minutes(2))) struct OperatorTests {
  private func enable(_ bench: Bench) async {
    var enabled = bench.settings
    enabled.isEnabled = true
    await bench.delivery.configure([enabled], .test())
  }

  @Test func heldMessageWaitsThoughItIsFreshAndGoesWhenItIsReleased() async throws {
    let bench = try await Bench { $0.isEnabled = false }
    let id = try await bench.submit()
    #expect(await bench.account().queued == 1)
    #expect(try await bench.delivery.hold(id, by: "operator: looks odd"))
    let other = try await bench.submit()
    await enable(bench)
    _ = await bench.upstream.messages(atLeast: 1)
    await bench.until { await bench.account().queued == 0 }
    #expect(bench.store.removed == [other] && bench.state(id)?.isHeld == true)
    #expect(try await bench.delivery.release(id, by: "operator: it is not"))
    #expect(await bench.upstream.messages(atLeast: 2).count == 2)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func ordersAtTheSameTimeDoNotTakeAMessageOutOfTheScheduler() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 no", times: 1)])
    let id = try await bench.submit(to: ["slow@example.test"], from: "")
    await bench.settled(id, attempts: 1)
    for _ in 0..<50 {
      await withTaskGroup(of: OperatorBounce.self) { group in
        for _ in 0..<6 { group.addTask { await bench.delivery.bounce(id, by: "test") } }
        for await outcome in group { #expect(outcome != .bounced && outcome != .noSuchMessage) }
      }
    }
    #expect(await bench.account().queued == 1)
    bench.time.advance(by: .seconds(60))
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func clockThatWasAheadHoldsNothingBack() async throws {
    let bench = try await Bench { $0.isEnabled = false }
    let id = try await bench.submit()
    let year = Duration.seconds(365 * 86_400)
    bench.store.update(id) { [time = bench.time] state in
      state.lanes["example.test"] = Lane(nextAttempt: time.wallClock + year, attempts: 3, lastReply: "450 no")
    }
    let other = bench.store.nextID()
    let recipients = [Recipient(address: "a@example.test", original: "a@example.test", account: "example.test")]
    let envelope = Envelope(reversePath: "", recipients: recipients, arrival: bench.time.wallClock + year)
    try await bench.store.append(other, envelope, .bytes(Array("Subject: x\r\n\r\n".utf8)))
    await bench.delivery.recover(
      [(id, 3), (other, 0)].map { id, attempts in
        let lane = EntryLane(
          account: "example.test", nextAttempt: bench.time.wallClock + year, attempts: attempts)
        return QueueEntry(
          id: id, size: 10, arrival: bench.time.wallClock, lanes: [lane], isHeld: false, isDead: false)
      })
    await enable(bench)
    #expect(await bench.upstream.messages(atLeast: 2).count == 2)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func timeOnHoldDoesNotAgeAndReleaseTriesAtOnce() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 no", times: 1)])
    let id = try await bench.submit(to: ["slow@example.test"])
    await bench.settled(id, attempts: 1)
    #expect(try await bench.delivery.hold(id, by: "operator"))
    bench.time.advance(by: .seconds(20 * 86_400))
    await bench.until { await bench.account().queued == 0 }
    #expect(bench.state(id)?.lanes["example.test"]?.attempts == 1)
    #expect(try await bench.delivery.hold(id, by: "again") && bench.state(id)?.life.map(\.kind) == [.deferred, .held])
    #expect(try await bench.delivery.release(id, by: "operator"))
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func heldMessageStaysHeldOverARestartAndCanBeReleasedThen() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 no", times: 1)])
    let id = try await bench.submit(to: ["slow@example.test"])
    await bench.settled(id, attempts: 1)
    #expect(try await bench.delivery.hold(id, by: "operator"))
    let next = try await bench.restart()
    #expect(await next.snapshots().map(\.queued) == [0])
    #expect(try await next.release(id, by: "operator"))
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await next.stop(within: .seconds(30))
    await bench.upstream.stop()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func whoComesTooLateHearsThatTheMessageIsGoneOrUnderWay() async throws {
    let bench = try await Bench([.hang(.content, times: 1)])
    let gone = bench.store.nextID()
    #expect(try await bench.delivery.delete(gone) == .noSuchMessage)
    #expect(try await bench.delivery.retry(gone) == false)
    let id = try await bench.submit()
    _ = await bench.upstream.wait { $0.scriptedFaults == 1 }
    #expect(try await bench.delivery.retry(id) == false, "it is under way")
    #expect(try await bench.delivery.delete(id) == .isUnderWay)
    await bench.upstream.stop()
    await bench.until { await bench.account().active == 0 }
    #expect(try await bench.delivery.retry(id))
    await bench.end()
  }

  @Test func messageThatIsNotQueuedCanNeitherBeHeldNorReleasedNorReturned() async throws {
    let bench = try await Bench()
    let id = bench.store.nextID()
    #expect(try await bench.delivery.hold(id, by: "x") == false)
    #expect(try await bench.delivery.release(id, by: "x") == false)
    #expect(await bench.delivery.bounce(id, by: "x") == .noSuchMessage)
    await bench.end()
  }

  @Test func returnedMessageIsReportedAndGone() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 no")])
    let id = try await bench.submit([
      .test("slow@example.test"), .test("slow@other.test", .never), .test("support@example.test"),
    ])
    await bench.settled(id, attempts: 1)
    #expect(try await bench.delivery.hold(id, by: "operator"))
    #expect(await bench.delivery.bounce(id, by: "sent by mistake") == .bounced)
    let report = await bench.reports(1)[0]
    #expect(report.contains("Returned by the operator of this relay: sent by mistake"))
    #expect(report.contains("Final-Recipient: rfc822; slow@example.test") && report.contains("Status: 5.7.0"))
    #expect(!report.contains("support@example.test") && !report.contains("slow@other.test"))
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func whoDidNotWantToHearOfFailuresIsNotSaidToHaveBeenTold() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 no")])
    let id = try await bench.submit([.test("slow@example.test", .never)])
    await bench.settled(id, attempts: 1)
    #expect(await bench.delivery.bounce(id, by: "sent by mistake") == .removedUntold)
    #expect(await bench.delivery.bounce(id, by: "again") == .noSuchMessage)
    await bench.end()
    #expect(bench.store.messages.isEmpty && bench.upstream.messages.isEmpty)
  }

  @Test func failureThatWasReportedIsNotReportedTwiceAndTheLastReplyIsTold() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 too quickly"), .recipient("nobody@", "550 5.1.1 no")])
    let id = try await bench.submit([.test("nobody@example.test"), .test("slow@example.test")])
    let first = await bench.reports(1)[0]
    #expect(first.contains("nobody@example.test") && !first.contains("slow@example.test"))
    await bench.settled(id, attempts: 1)
    #expect(await bench.delivery.bounce(id, by: "enough") == .bounced)
    let second = await bench.reports(2)[1]
    #expect(second.contains("slow@example.test") && !second.contains("nobody@example.test"))
    #expect(second.contains("by the operator of this relay: enough; the last answer was: 450 4.2.1 too quickly"))
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test(arguments: [("451 4.7.0 looks odd", false), ("450 4.2.1 too quickly", true)])
  func contentThatWasPutOffIsNotReturnedByTheOperatorEither(reply: String, isReturned: Bool) async throws {
    let bench = try await Bench([.recipient("slow@", reply)])
    let id = try await bench.submit([.test("slow@example.test")], body: "the body\r\n") { $0.returnFull = true }
    await bench.settled(id, attempts: 1)
    #expect(await bench.delivery.bounce(id, by: "enough") == .bounced)
    #expect(await bench.reports(1)[0].contains("the body") == isReturned)
    await bench.end()
  }

  @Test(arguments: [
    (LostReply.behindContent, 2, "enough; it may have arrived: the connection broke 2 times behind the end", false),
    (LostReply.inContent, 0, "enough; the last attempt had no answer: The connection to the next server", false),
    (ClientTransaction.connectionLost, 0, "enough; the last attempt had no answer: The connection to the next", true),
  ])
  func lostConnectionIsNoAnswerOfAServer(last: Reply, doubts: Int, words: String, isReturned: Bool) async throws {
    let bench = try await Bench { $0.isEnabled = false }
    let id = try await bench.submit([.test("a@example.test")], body: "the body\r\n") { $0.returnFull = true }
    bench.store.update(id) { [now = bench.time.wallClock] state in
      state.lanes["example.test"] = Lane(nextAttempt: now, attempts: 2, lastReply: "\(last)", inDoubt: doubts)
    }
    #expect(await bench.delivery.bounce(id, by: "enough") == .bounced)
    let report = String(decoding: try #require(bench.store.messages.values.first).content.octets, as: UTF8.self)
    #expect(report.contains(words) && !report.contains("the last answer was"))
    #expect(report.contains("It is not known whether your message has reached:") == (doubts > 0))
    #expect(report.contains("the body") == isReturned)
    await bench.end()
  }

  @Test(arguments: [("550 not this", false), ("554 5.0.0 no", false), ("550 5.1.1 nobody", true)])
  func deadContentIsReturnedOnlyWhereItWasNotRefused(reply: String, isReturned: Bool) async throws {
    let bench = try await Bench { $0.isEnabled = false }
    let id = try await bench.submit([.test("a@example.test")], body: "the body\r\n") { $0.returnFull = true }
    bench.store.update(id) { state in
      state.recipients[0] = .failed(reply)
      state.deadReason = "too many notifications"
    }
    #expect(await bench.delivery.bounce(id, by: "the storm is over") == .bounced)
    let report = try #require(bench.store.messages.values.first).content.octets
    #expect(String(decoding: report, as: UTF8.self).contains("the body") == isReturned)
    await bench.end()
  }

  @Test func messageUnderWayIsNotReturned() async throws {
    let bench = try await Bench([.hang(.content, times: 1)])
    let id = try await bench.submit()
    _ = await bench.upstream.wait { $0.scriptedFaults == 1 }
    #expect(await bench.delivery.bounce(id, by: "x") == .isUnderWay)
    // Held now, it finishes its attempt, and goes nowhere then.
    #expect(try await bench.delivery.hold(id, by: "x"))
    await bench.upstream.stop()
    await bench.until { await bench.account().active == 0 }
    #expect(bench.state(id)?.isHeld == true && bench.state(id)?.lanes["example.test"]?.inDoubt == 1)
    await bench.end()
  }

  @Test func messageWithoutASenderToTellStays() async throws {
    let bench = try await Bench { $0.isEnabled = false }
    let notification = try await bench.submit(from: "")
    let stranger = try await bench.submit(from: "x@nowhere.test")
    for id in [notification, stranger] {
      guard case .nobodyToTell(let reason) = await bench.delivery.bounce(id, by: "x") else {
        Issue.record("somebody was told")
        continue
      }
      #expect(reason.contains("notification") || reason.contains("no route"))
    }
    await enable(bench)
    #expect(await bench.upstream.messages(atLeast: 2).count == 2, "they go on as if nothing had been asked")
    await bench.end()
  }
}
