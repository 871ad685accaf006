// Time as the relay sees it: a wall clock for what is written to disk and shown to people, a monotonic one for
// deadlines, and one protocol that hands out both, so that tests decide what time it is.

#if canImport(Glibc)
  import Glibc
#endif

/// A moment of civil time, in microseconds since 1970-01-01T00:00:00Z (POSIX time: leap seconds do not count).
public struct Timestamp: Hashable, Comparable, Sendable {
  public var microseconds: Int64

  public init(microseconds: Int64) { self.microseconds = microseconds }
  public init(seconds: Int64) { self = .init(microseconds: 0) + .seconds(seconds) }

  /// Whole seconds, rounded towards the past.
  public var seconds: Int64 { microseconds >= 0 ? microseconds / 1_000_000 : (microseconds - 999_999) / 1_000_000 }

  public static func < (a: Self, b: Self) -> Bool { a.microseconds < b.microseconds }
  // They saturate at the ends of `Int64` (292,000 years): a wait that somebody has set absurdly long must not end the
  // process.
  public static func + (a: Self, b: Duration) -> Self {
    .init(microseconds: a.microseconds.addingSaturated(b.microseconds))
  }
  public static func - (a: Self, b: Duration) -> Self {
    .init(microseconds: a.microseconds.subtractingSaturated(b.microseconds))
  }
  public static func - (a: Self, b: Self) -> Duration {
    .microseconds(a.microseconds.subtractingSaturated(b.microseconds))
  }
}

/// A moment of the monotonic clock, in nanoseconds since some fixed moment of this process's life. Never persisted.
public struct MonotonicInstant: Hashable, Comparable, Sendable {
  public var nanoseconds: Int64

  public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }
  public static let distantFuture = MonotonicInstant(nanoseconds: .max)

  public static func < (a: Self, b: Self) -> Bool { a.nanoseconds < b.nanoseconds }
  public static func - (a: Self, b: Self) -> Duration {
    .nanoseconds(a.nanoseconds.subtractingSaturated(b.nanoseconds))
  }

  /// Saturates at ``distantFuture``.
  public static func + (a: Self, b: Duration) -> Self {
    .init(nanoseconds: a.nanoseconds.addingSaturated(b.nanoseconds))
  }
}

extension Int64 {
  fileprivate func addingSaturated(_ other: Int64) -> Int64 {
    let (sum, overflow) = addingReportingOverflow(other)
    return overflow ? (other < 0 ? .min : .max) : sum
  }

  fileprivate func subtractingSaturated(_ other: Int64) -> Int64 {
    let (difference, overflow) = subtractingReportingOverflow(other)
    return overflow ? (other < 0 ? .max : .min) : difference
  }
}

/// Where the time comes from.
public protocol Timekeeper: Sendable {
  var now: MonotonicInstant { get }
  var wallClock: Timestamp { get }

  /// Returns once `deadline` has passed.
  /// - Throws: `CancellationError` when the task is cancelled first.
  func sleep(until deadline: MonotonicInstant) async throws
}

/// The clocks of the machine: `CLOCK_BOOTTIME`, which also runs while the machine is suspended, and `CLOCK_REALTIME`.
public struct SystemTime: Timekeeper {
  public init() {}

  public var now: MonotonicInstant {
    var t = timespec()
    clock_gettime(CLOCK_BOOTTIME, &t)
    return .init(nanoseconds: Int64(t.tv_sec) * 1_000_000_000 + Int64(t.tv_nsec))
  }

  public var wallClock: Timestamp {
    var t = timespec()
    clock_gettime(CLOCK_REALTIME, &t)
    return .init(microseconds: Int64(t.tv_sec) * 1_000_000 + Int64(t.tv_nsec) / 1000)
  }

  public func sleep(until deadline: MonotonicInstant) async throws {
    while true {
      let left = deadline - now
      if left <= .zero { return }
      try await Task.sleep(for: min(left, .seconds(3600)))
    }
  }
}

extension Duration {
  /// The duration in nanoseconds; saturates at the ends of `Int64` (292 years).
  public var nanoseconds: Int64 {
    let (seconds, attoseconds) = components
    let (scaled, o1) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
    let (sum, o2) = scaled.addingReportingOverflow(attoseconds / 1_000_000_000)
    return o1 || o2 ? (seconds < 0 ? .min : .max) : sum
  }

  /// The duration in microseconds; saturates like ``nanoseconds``.
  public var microseconds: Int64 {
    let (seconds, attoseconds) = components
    let (scaled, o1) = seconds.multipliedReportingOverflow(by: 1_000_000)
    let (sum, o2) = scaled.addingReportingOverflow(attoseconds / 1_000_000_000_000)
    return o1 || o2 ? (seconds < 0 ? .min : .max) : sum
  }

  /// The duration in seconds, as a number to show or to compute with.
  public var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) / 1e18 }
}
