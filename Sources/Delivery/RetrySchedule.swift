// When a message that could not be delivered is tried again.

import Primitives

/// The waits between attempts; the last one repeats.
public struct RetrySchedule: Sendable, Equatable {
  public let steps: [Duration]
  /// Each wait is changed by up to this share, so that messages deferred together do not come back together.
  public static let jitter = 0.1

  /// - Precondition: `steps` is not empty.
  public init(_ steps: [Duration]) {
    precondition(!steps.isEmpty, "a retry schedule has at least one step")
    self.steps = steps
  }

  /// 1, 5, 15, 30 minutes, 1, 2, 4 hours.
  public static let standard = RetrySchedule([60, 300, 900, 1800, 3600, 7200, 14400].map { .seconds($0) })

  /// The wait after the attempt with this number; the first is 1. `random` is in 0...1. The last one is shortened, so
  /// that the final attempt falls on the end of `lifetime`.
  public func delay(afterAttempt attempt: Int, within lifetime: Duration, random: Double) -> Duration {
    let step = steps[min(max(attempt, 1), steps.count) - 1]
    let left = lifetime - patience(atAttempt: attempt)
    // Behind its end a message is tried on when a fault of the account, or of ours, has kept it from being given up.
    return Self.jittered(left > .zero ? min(step, left) : step, random)
  }

  /// The time a message has been waited for when the attempt with this number is made, without jitter: the sum of the
  /// waits between its attempts so far, none at the first. With this attempt it is given up when that has reached its
  /// lifetime.
  public func patience(atAttempt attempt: Int) -> Duration {
    // As many as the queue can count, and each of them as long as can be counted, fit into a Duration.
    let waits = min(max(attempt - 1, 0), Int(UInt32.max))
    let last = min(steps[steps.count - 1], .nanoseconds(Int64.max))
    return steps.prefix(waits).reduce(.zero, +) + last * max(waits - steps.count, 0)
  }

  static func jittered(_ wait: Duration, _ random: Double) -> Duration {
    // Half of what can be counted leaves room for the jitter.
    let wait = min(wait.nanoseconds, .max / 2)
    return .nanoseconds(Int64(Double(wait) * (1 + jitter * (2 * random - 1))))
  }
}

/// Waits that grow with each failure in a row: for logins and connections of an account.
struct BackOff {
  var first: Duration
  var limit: Duration
  private(set) var failures = 0

  init(first: Duration, limit: Duration) {
    self.first = first
    self.limit = limit
  }

  mutating func fail(random: Double) -> Duration {
    failures += 1
    let doubled = Double(first.nanoseconds) * Double(1 << min(failures - 1, 20))
    return RetrySchedule.jittered(.nanoseconds(Int64(min(doubled, Double(limit.nanoseconds)))), random)
  }

  mutating func succeed() { failures = 0 }
}
