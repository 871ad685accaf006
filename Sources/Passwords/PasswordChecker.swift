// Where passwords are checked: on threads of their own, a few at a time, with a bound on those that wait.

import Primitives

/// Holds passwords against hashes away from whoever asks.
///
/// A check costs a tenth of a second of a processor and 16 MiB: without bounds, a handful of clients that guess would
/// take the machine away from the mail.
public final class PasswordChecker: Sendable {
  private let queues: [any WorkQueue]
  private let limit: Int
  private let state = Mutex((waiting: 0, next: 0))

  /// - Parameters:
  ///   - queues: each checks one password at a time.
  ///   - limit: checks that are under way or wait; more are refused.
  public init(queues: [any WorkQueue], limit: Int = 64) {
    precondition(!queues.isEmpty, "somebody has to check")
    self.queues = queues
    self.limit = limit
  }

  /// Checks on `workers` threads.
  public convenience init(workers: Int, limit: Int = 64) {
    self.init(queues: (0..<max(1, workers)).map { DispatchWorkQueue("passwords-\($0)") }, limit: limit)
  }

  /// Whether `password` belongs to `hash`; nil when too many wait.
  public func check(_ password: [UInt8], against hash: PasswordHash) async -> Bool? {
    let place: Int? = state.withLock { state in
      guard state.waiting < limit else { return nil }
      state.waiting += 1
      state.next = (state.next + 1) % queues.count
      return state.next
    }
    guard let place else { return nil }
    defer { state.withLock { $0.waiting -= 1 } }
    return await queues[place].run { hash.matches(password) }
  }
}
