// How fast an account may go after its upstream has said that it is too fast: half as fast at once, and a little faster
// again with time. Never faster than what is configured.

import Primitives

/// The limits that an account has set itself.
struct Pace: Sendable, Equatable {
  struct Limits: Sendable, Equatable {
    /// Messages a minute, 1 at least.
    var perMinute: Int
    /// 1 at least.
    var connections: Int
    /// The rate at which there is nothing to be held back any more.
    fileprivate var ceiling: Int
    fileprivate var changed: MonotonicInstant
  }

  /// nil while nothing is held back.
  private(set) var limits: Limits?

  /// Replies within this time speak of the same thing: several connections hear it at once.
  static let settling = Duration.seconds(30)
  /// After each such time without a complaint a tenth of the ceiling and one connection come back.
  static let step = Duration.seconds(300)

  /// The upstream complains: half the rate and half the connections.
  /// - Parameters:
  ///   - configured: messages a minute; nil does not limit, and then what was `observed` is halved.
  /// - Returns: whether anything has changed.
  mutating func slowDown(configured: Int?, observed: Int, connections: Int, now: MonotonicInstant) -> Bool {
    if var old = limits {
      guard now - old.changed >= Self.settling else { return false }
      old.perMinute = max(1, old.perMinute / 2)
      old.connections = max(1, min(old.connections, connections) / 2)
      old.changed = now
      limits = old
      return true
    }
    let ceiling = configured ?? max(observed, 1)
    limits = Limits(
      perMinute: max(1, ceiling / 2), connections: max(1, connections / 2), ceiling: ceiling, changed: now)
    return true
  }

  /// The upstream has taken something.
  /// - Returns: whether anything has changed.
  mutating func succeed(configured: Int?, connections: Int, now: MonotonicInstant) -> Bool {
    guard var old = limits, now - old.changed >= Self.step else { return false }
    let steps = Int((now - old.changed).components.seconds / Self.step.components.seconds)
    let ceiling = configured ?? old.ceiling
    old.perMinute = min(ceiling, old.perMinute + steps * max(1, ceiling / 10))
    old.connections = min(connections, old.connections + steps)
    old.changed = now
    limits = old.perMinute >= ceiling && old.connections >= connections ? nil : old
    return true
  }
}

/// How many messages were begun in about a minute.
struct RateMeter: Sendable {
  private var minute: Int64 = 0
  private var current = 0
  private var previous = 0

  mutating func count(_ now: MonotonicInstant) {
    advance(now)
    current += 1
  }

  mutating func perMinute(_ now: MonotonicInstant) -> Int {
    advance(now)
    return max(current, previous)
  }

  private mutating func advance(_ now: MonotonicInstant) {
    let this = now.nanoseconds / 60_000_000_000
    if this == minute { return }
    previous = this == minute + 1 ? current : 0
    current = 0
    minute = this
  }
}
