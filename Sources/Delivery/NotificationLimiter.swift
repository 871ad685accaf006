// Bounds what the relay sends of its own accord. A broken program that mails a thousand dead addresses, or a stranger
// who forges a sender, must not make it a source of a thousand reports.

import Primitives

/// Grants notifications: so many to one address, and so many in all. From any thread.
final class NotificationLimiter: Sendable {
  /// To one address: 20 at once, then 60 an hour.
  static let burst = 20
  static let perHour = 60
  /// To all addresses together: 100 at once, then 500 an hour.
  static let totalBurst = 100
  static let totalPerHour = 500

  enum Answer: Sendable, Equatable {
    /// `withheld` were refused in the storm that is over now.
    case granted(withheld: Int)
    /// - Parameter isFirst: with this one the storm begins for its kind: worth a line in the log, those that follow are
    ///   not.
    case refused(reason: String, isFirst: Bool)
  }

  /// A bucket, and what it has refused since it was last full: a storm lasts until then, so that the one message a
  /// minute that gets through in it does not end it.
  private struct Gauge {
    var bucket: TokenBucket
    let burst: Int
    private(set) var withheld = 0
    /// The kinds that the storm has reached.
    private var refused: Set<NotificationKind> = []

    init(perHour: Int, burst: Int, now: MonotonicInstant) {
      bucket = TokenBucket(perHour: perHour, burst: burst, now: now)
      self.burst = burst
    }

    mutating func grants(_ kind: NotificationKind, _ now: MonotonicInstant) -> Bool {
      kind == .failure || bucket.available(now: now) * 2 > burst
    }

    mutating func isFull(_ now: MonotonicInstant) -> Bool { bucket.available(now: now) >= burst }

    /// What the storm that has ended has held back; 0 when there was none, or it goes on.
    mutating func endOfStorm(_ now: MonotonicInstant) -> Int {
      guard !refused.isEmpty, isFull(now) else { return 0 }
      defer { (withheld, refused) = (0, []) }
      return withheld
    }

    /// - Returns: whether it is the first of its kind in this storm.
    mutating func refuse(_ kind: NotificationKind) -> Bool {
      // A warning of delay is only put off: it is asked for again.
      if kind != .delay { withheld += 1 }
      return refused.insert(kind).inserted
    }
  }

  private struct State {
    var total: Gauge
    var byAddress: [String: Gauge] = [:]
  }
  private let state: Mutex<State>
  private static let addressLimit = 2000

  init(now: MonotonicInstant) {
    state = Mutex(State(total: Gauge(perHour: Self.totalPerHour, burst: Self.totalBurst, now: now)))
  }

  /// Asks for a notification to `address`.
  /// - Parameter kind: what is no failure may take the first half of a limit only: somebody who asks to hear of each
  ///   delivery, or a backlog that is late, must not use up what those who lost mail are told with.
  func ask(_ address: String, _ kind: NotificationKind, now: MonotonicInstant) -> Answer {
    let address = address.lowercased()
    return state.withLock { state in
      var ended = state.total.endOfStorm(now)
      if !state.total.grants(kind, now) || state.total.bucket.reserve(now: now) != nil {
        return .refused(
          reason: Self.excess(kind, "\(Self.totalBurst) notifications at once and \(Self.totalPerHour) an hour"),
          isFirst: state.total.refuse(kind))
      }
      if state.byAddress.count >= Self.addressLimit {
        // What is full is as good as new. The limit for all keeps those that are not full below this number.
        state.byAddress = state.byAddress.filter {
          var gauge = $0.value
          return !gauge.isFull(now)
        }
      }
      var gauge = state.byAddress[address] ?? Gauge(perHour: Self.perHour, burst: Self.burst, now: now)
      defer { state.byAddress[address] = gauge }
      ended += gauge.endOfStorm(now)
      if !gauge.grants(kind, now) || gauge.bucket.reserve(now: now) != nil {
        state.total.bucket.refund()
        return .refused(
          reason: Self.excess(
            kind, "\(Self.burst) notifications to <\(address)> at once and \(Self.perHour) an hour"),
          isFirst: gauge.refuse(kind))
      }
      return .granted(withheld: ended)
    }
  }

  private static func excess(_ kind: NotificationKind, _ limit: String) -> String {
    kind == .failure ? "more than \(limit)" : "more than half of \(limit), of which the rest is for failures"
  }

  /// Gives back what was granted for a notification that could not be queued.
  func refund(_ address: String) {
    state.withLock { state in
      state.total.bucket.refund()
      state.byAddress[address.lowercased()]?.bucket.refund()
    }
  }
}
