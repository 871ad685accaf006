// What notifications there are, and how many of each there were.

import Message
import Primitives

/// What a sender is told.
public enum NotificationKind: String, Sendable, Hashable, CaseIterable {
  case failure, delay, delivery

  init(_ action: DeliveryStatusNotification.Action) {
    switch action {
    case .failed: self = .failure
    case .delayed: self = .delay
    case .delivered, .relayed, .expanded: self = .delivery
    }
  }
}

/// Notifications since the start of the process.
public struct NotificationCounts: Sendable, Equatable {
  /// Those that were queued.
  public var sent: [NotificationKind: Int] = [:]
  /// Those that the limits held back: failures, whose messages are dead now, and reports of delivery. A warning of
  /// delay is asked for again, and not among them.
  public var withheld = 0

  public init() {}
}

/// Counts them, from any thread.
final class NotificationCounter: Sendable {
  private let counts = Mutex(NotificationCounts())

  var value: NotificationCounts { counts.withLock { $0 } }
  func sent(_ kind: NotificationKind) { counts.withLock { $0.sent[kind, default: 0] += 1 } }
  func withheld(_ kind: NotificationKind) { counts.withLock { $0.withheld += kind == .delay ? 0 : 1 } }
}
