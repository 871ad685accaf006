// Moments and durations at the ends of what can be reckoned.

import Primitives
import Testing

@Suite struct TimeTests {
  @Test func sumsOfMomentsAndDurationsSaturate() {
    let first = Timestamp(microseconds: .min)
    let last = Timestamp(microseconds: .max)
    let now = Timestamp(seconds: 1_795_000_000)
    let long = Duration.seconds(Int64.max)
    #expect(now + long == last && last + .seconds(1) == last)
    #expect(Timestamp(seconds: -2) - long == first && first - .seconds(1) == first)
    #expect(first + .seconds(-1) == first && last - .seconds(-1) == last)
    #expect(last - first == .microseconds(Int64.max) && first - last == .microseconds(Int64.min))
    #expect(Timestamp(seconds: .max) == last && Timestamp(seconds: .min) == first)
    #expect(now + .seconds(60) - now == .seconds(60))
  }

  @Test func sumsOfMonotonicInstantsSaturate() {
    let first = MonotonicInstant(nanoseconds: .min)
    let now = MonotonicInstant(nanoseconds: 1)
    #expect(now + .seconds(Int64.max) == .distantFuture && .distantFuture + .seconds(1) == .distantFuture)
    #expect(first + .seconds(-1) == first)
    #expect(MonotonicInstant.distantFuture - first == .nanoseconds(Int64.max))
    #expect(first - .distantFuture == .nanoseconds(Int64.min))
    #expect(now + .seconds(60) - now == .seconds(60))
  }
}
