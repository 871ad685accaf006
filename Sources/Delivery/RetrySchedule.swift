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

  /// The wait after the attempt with this number; the first is 1. `random` is in 0...1.
  public func delay(afterAttempt attempt: Int, random: Double) -> Duration {
    Self.jittered(steps[min(max(attempt, 1), steps.count) - 1], random)
  }

  /// The time a message has been waited for after so many attempts, without jitter: the sum of the waits between them.
  public func patience(afterAttempts attempts: Int) -> Duration {
    var sum = Duration.zero
    for attempt in 0..<min(max(attempts, 0), steps.count) { sum += steps[attempt] }
    return sum + steps[steps.count - 1] * max(attempts - steps.count, 0)
  }

  /// The number of the attempt after which a message is given up, when its patience may be `lifetime` at most.
  public func lastAttempt(within lifetime: Duration) -> Int {
    var sum = Duration.zero
    for (index, step) in steps.enumerated() {
      sum += step
      if sum >= lifetime { return index + 1 }
    }
    let last = steps[steps.count - 1].nanoseconds
    guard last > 0 else { return .max }
    return steps.count + Int(((lifetime - sum).nanoseconds + last - 1) / last)
  }

  static func jittered(_ wait: Duration, _ random: Double) -> Duration {
    .nanoseconds(Int64(Double(wait.nanoseconds) * (1 + jitter * (2 * random - 1))))
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
