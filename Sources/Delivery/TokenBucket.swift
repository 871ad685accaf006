// The rate limit of an account: a token bucket that is asked before a message is dispatched, so that the limit holds
// for the whole pool and not for each connection.

import Primitives

/// A token bucket: in any window of `t` minutes at most `perMinute · t + burst` tokens are handed out.
public struct TokenBucket: Sendable {
  public private(set) var perMinute: Double
  public private(set) var burst: Double
  private var tokens: Double
  private var updated: MonotonicInstant

  /// A full bucket.
  public init(perMinute: Int, burst: Int, now: MonotonicInstant) {
    self.perMinute = Double(max(perMinute, 1))
    self.burst = Double(max(burst, 1))
    tokens = self.burst
    updated = now
  }

  /// A full bucket that refills more slowly than once a minute.
  init(perHour: Int, burst: Int, now: MonotonicInstant) {
    self.init(perMinute: 1, burst: burst, now: now)
    perMinute = Double(max(perHour, 1)) / 60
  }

  /// Changes the limit and keeps what is in the bucket, so that a reload is no way around it.
  public mutating func change(perMinute: Int, burst: Int, now: MonotonicInstant) {
    refill(now)
    self.perMinute = Double(max(perMinute, 1))
    self.burst = Double(max(burst, 1))
    tokens = min(tokens, self.burst)
  }

  /// Takes a token. Returns nil when it got one, else when to ask again.
  public mutating func reserve(now: MonotonicInstant) -> MonotonicInstant? {
    refill(now)
    if tokens >= 1 {
      tokens -= 1
      return nil
    }
    // A nanosecond more, so that rounding cannot wake anyone too early for ever.
    return now + .nanoseconds(Int64((1 - tokens) / perMinute * 60e9) + 1)
  }

  /// Gives back a token that was reserved and not used.
  public mutating func refund() { tokens = min(tokens + 1, burst) }

  /// Whole tokens that could be taken now.
  public mutating func available(now: MonotonicInstant) -> Int {
    refill(now)
    return Int(tokens)
  }

  private mutating func refill(_ now: MonotonicInstant) {
    guard now > updated else { return }
    tokens = min(burst, tokens + (now - updated).inSeconds * perMinute / 60)
    updated = now
  }
}
