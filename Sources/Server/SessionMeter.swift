// What one session has cost so far, held against its limits: commands, messages, time.

import Primitives
import SMTP

/// The counts and clocks of a session. Belongs to it.
struct SessionMeter {
  private let begun: MonotonicInstant
  /// When MAIL was accepted, or a chunk began that is only read to its end.
  private var messageBegun: MonotonicInstant?
  private var contentBegun: MonotonicInstant?
  private var contentOctets = 0
  /// Commands since the last message that was taken.
  private var commands = 0
  private var excessRecipients = 0
  private(set) var transactions = 0
  private var longLine = 0
  /// The limit that the deadline of the latest wait stands for.
  private(set) var awaited = ServerLimit.commandTime

  init(_ now: MonotonicInstant) { begun = now }

  // MARK: Commands

  /// Octets of one line that are read and dropped before the session ends.
  private static let longestLine = 256 * 1024
  /// A chunk that is smaller is no progress.
  private static let smallestChunk = 512

  /// Counts a command. Returns false when it is one too many.
  mutating func take(_ action: ServerStateMachine.Action, limit: Int) -> Bool {
    longLine = 0
    switch action {
    // A recipient counts when it is refused.
    case .checkRecipient: return commands <= limit
    // Whoever has more recipients than we take at once says them all before it reads that (RFC 5321 4.5.3.1.10), and
    // must not fail with the whole message for it.
    case .reply(Replies.tooManyRecipients):
      excessRecipients += 1
      return excessRecipients <= limit * 10
    case .receiveData, .close: return true
    case .receiveChunk(let count, let last) where last || count >= Self.smallestChunk: return true
    case .discardChunk(let count, _) where count >= Self.smallestChunk: return true
    default:
      commands += 1
      return commands <= limit
    }
  }

  mutating func recipientRefused() { commands += 1 }

  /// Counts octets of a line that is too long already. Returns false when it goes on for too long.
  mutating func skip(_ count: Int) -> Bool {
    longLine += count
    return longLine <= Self.longestLine
  }

  mutating func messageTaken() {
    commands = 0
    excessRecipients = 0
  }

  // MARK: Time

  mutating func transactionBegins(_ now: MonotonicInstant) {
    messageBegun = now
    transactions += 1
  }

  mutating func transactionEnds() {
    messageBegun = nil
    contentEnds()
  }

  mutating func contentEnds() {
    contentBegun = nil
    contentOctets = 0
  }

  mutating func contentBegins(_ now: MonotonicInstant) {
    if messageBegun == nil { messageBegun = now }
    if contentBegun == nil { contentBegun = now }
  }

  mutating func contentCame(_ count: Int) { contentOctets += count }

  func sessionIsOver(_ limits: ServerLimits, _ now: MonotonicInstant) -> Bool { begun + limits.sessionTime <= now }

  /// Until when a command may take.
  mutating func commandDeadline(
    _ patience: MonotonicInstant, _ limits: ServerLimits, transactionIsOpen: Bool
  ) -> MonotonicInstant {
    if transactionIsOpen { return earliest(patience, messageEnd(limits), .messageTime) }
    return earliest(patience, begun + limits.sessionTime, .sessionTime)
  }

  /// Until when more of the content has to come. What comes slowly wins no more than what it weighs: the time of
  /// `patience` once, and then a second for each `dataRate` octets.
  mutating func contentDeadline(
    _ patience: MonotonicInstant, timeout: Duration, _ limits: ServerLimits
  ) -> MonotonicInstant {
    var end = messageEnd(limits)
    if limits.dataRate > 0, let contentBegun {
      end = min(end, contentBegun + timeout + .seconds(contentOctets / limits.dataRate))
    }
    return earliest(patience, end, .messageTime)
  }

  private func messageEnd(_ limits: ServerLimits) -> MonotonicInstant {
    messageBegun.map { $0 + limits.messageTime } ?? .distantFuture
  }

  private mutating func earliest(
    _ patience: MonotonicInstant, _ other: MonotonicInstant, _ limit: ServerLimit
  ) -> MonotonicInstant {
    awaited = other < patience ? limit : .commandTime
    return min(patience, other)
  }
}
