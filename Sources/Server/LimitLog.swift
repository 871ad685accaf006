// Lines about limits that clients reach: all of them while they are few, and how many were left out when they are not,
// so that whoever hammers at the door does not fill the disk with the log of it.

import Primitives

/// Decides which lines of one kind are written.
struct LimitLog {
  private var burst = Self.maximumBurst
  private var last: MonotonicInstant?
  private var suppressed = 0
  private static let maximumBurst = 20.0
  /// Lines a second that are written however many there are.
  private static let perSecond = 1.0

  /// Returns what to append to the line that is due now, or nil when it is not to be written.
  mutating func suffix(now: MonotonicInstant) -> String? {
    let passed = last.map { Double(max((now - $0).nanoseconds, 0)) / 1e9 } ?? 0
    last = now
    burst = min(burst + passed * Self.perSecond, Self.maximumBurst)
    guard burst >= 1 else {
      suppressed += 1
      return nil
    }
    burst -= 1
    defer { suppressed = 0 }
    return suppressed == 0 ? "" : " (and \(suppressed) more such lines that are left out)"
  }
}
