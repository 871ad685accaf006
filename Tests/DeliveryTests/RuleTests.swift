// The rules of delivery that need no network: the bucket, the schedule, the meaning of replies.

import Delivery
import Primitives
import SMTP
import Testing

@Suite struct TokenBucketTests {
  @Test func windowNeverHoldsMoreThanRateAndBurst() {
    let start = MonotonicInstant(nanoseconds: 0)
    var bucket = TokenBucket(perMinute: 100, burst: 10, now: start)
    var taken = 0
    // Somebody asks every 10 ms for three minutes.
    for step in 0..<18_000 where bucket.reserve(now: start + .milliseconds(10 * step)) == nil { taken += 1 }
    #expect(taken == 310 || taken == 309)
  }

  @Test func refusalSaysWhenToAskAgain() throws {
    let start = MonotonicInstant(nanoseconds: 0)
    var bucket = TokenBucket(perMinute: 60, burst: 1, now: start)
    #expect(bucket.reserve(now: start) == nil)
    let answer = bucket.reserve(now: start)
    let again = try #require(answer)
    #expect(again - start >= .milliseconds(999) && again - start <= .milliseconds(1001))
    #expect(bucket.reserve(now: again) == nil)
  }

  @Test func refundedTokenCanBeTaken() {
    let start = MonotonicInstant(nanoseconds: 0)
    var bucket = TokenBucket(perMinute: 1, burst: 1, now: start)
    #expect(bucket.reserve(now: start) == nil)
    bucket.refund()
    #expect(bucket.reserve(now: start) == nil)
    #expect(bucket.reserve(now: start) != nil)
  }

  @Test func reloadIsNoWayAroundTheLimit() {
    let start = MonotonicInstant(nanoseconds: 0)
    var bucket = TokenBucket(perMinute: 1, burst: 5, now: start)
    for _ in 0..<5 { #expect(bucket.reserve(now: start) == nil) }
    bucket.change(perMinute: 1, burst: 50, now: start)
    #expect(bucket.reserve(now: start) != nil)
  }
}

@Suite struct RetryScheduleTests {
  @Test(arguments: [(1, 60), (2, 300), (3, 900), (7, 14400), (8, 14400), (100, 14400)])
  func stepsFollowEachOtherAndTheLastRepeats(attempt: Int, seconds: Int) {
    #expect(RetrySchedule.standard.delay(afterAttempt: attempt, random: 0.5) == .seconds(seconds))
  }

  @Test func jitterStaysWithinATenth() {
    #expect(RetrySchedule.standard.delay(afterAttempt: 1, random: 0) == .seconds(54))
    #expect(RetrySchedule.standard.delay(afterAttempt: 1, random: 1) == .seconds(66))
  }

  @Test func patienceIsTheSumOfTheWaits() {
    #expect(RetrySchedule.standard.patience(afterAttempts: 0) == .zero)
    #expect(RetrySchedule.standard.patience(afterAttempts: 2) == .seconds(360))
    #expect(RetrySchedule.standard.patience(afterAttempts: 8) == .seconds(28_260 + 14_400))
  }
}

extension RetryScheduleTests {
  @Test(arguments: [(1, 1), (60, 1), (61, 2), (360, 2), (28_260, 7), (28_261, 8), (432_000, 36)])
  func lastAttemptIsTheOneAtWhichPatienceEnds(lifetime: Int, attempt: Int) {
    let schedule = RetrySchedule.standard
    #expect(schedule.lastAttempt(within: .seconds(lifetime)) == attempt)
    #expect(schedule.patience(afterAttempts: attempt) >= .seconds(lifetime))
    #expect(schedule.patience(afterAttempts: attempt - 1) < .seconds(lifetime))
  }
}
