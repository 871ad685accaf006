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
    let wait = RetrySchedule.standard.delay(afterAttempt: attempt, within: .seconds(5_000_000), random: 0.5)
    #expect(wait == .seconds(seconds))
  }

  @Test func jitterStaysWithinATenth() {
    let schedule = RetrySchedule.standard
    #expect(schedule.delay(afterAttempt: 1, within: .seconds(432_000), random: 0) == .seconds(54))
    #expect(schedule.delay(afterAttempt: 1, within: .seconds(432_000), random: 1) == .seconds(66))
  }

  @Test func patienceIsTheSumOfTheWaitsSoFar() {
    let schedule = RetrySchedule.standard
    #expect(schedule.patience(atAttempt: 0) == .zero && schedule.patience(atAttempt: 1) == .zero)
    #expect(schedule.patience(atAttempt: 3) == .seconds(360))
    #expect(schedule.patience(atAttempt: 9) == .seconds(28_260 + 14_400))
  }

  @Test(arguments: [(1, 2), (60, 2), (61, 3), (360, 3), (28_260, 8), (28_261, 9), (432_000, 37)])
  func finalAttemptFallsOnTheEndOfTheLifetime(lifetime: Int, attempts: Int) {
    let schedule = RetrySchedule.standard
    let lifetime = Duration.seconds(lifetime)
    var sum = Duration.zero
    var attempt = 1
    while schedule.patience(atAttempt: attempt) < lifetime {
      sum += schedule.delay(afterAttempt: attempt, within: lifetime, random: 0.5)
      attempt += 1
    }
    #expect(attempt == attempts && sum == lifetime)
  }

  @Test func longestDurationsCanBeReckonedWith() {
    let century = Duration.seconds(36_525 * 86_400)
    for step in [century, .seconds(Int64.max / 1_000_000_000), .seconds(1_000_000_000_000)] {
      let schedule = RetrySchedule([step])
      for attempt in [1, 2, 36, Int(UInt32.max)] {
        #expect(schedule.patience(atAttempt: attempt) >= step || attempt == 1)
        #expect(schedule.delay(afterAttempt: attempt, within: century, random: 1) > .zero)
      }
    }
    #expect(RetrySchedule.standard.patience(atAttempt: .max) > century)
    let wait = RetrySchedule([century]).delay(afterAttempt: 1, within: century * 2, random: 0.5)
    #expect(wait == century)
  }
}
