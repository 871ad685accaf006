// A clock that moves when a test says so.

/// A ``Timekeeper`` that stands still until ``advance(by:)`` is called.
public final class ManualTime: Timekeeper {
  private struct State {
    var now: MonotonicInstant
    var wall: Timestamp
    var sleepers: [(id: Int, deadline: MonotonicInstant, wake: CheckedContinuation<Void, any Error>)] = []
    var nextSleeper = 0
  }
  private let state: Mutex<State>

  public init(wallClock: Timestamp = Timestamp(seconds: 1_795_000_000)) {
    state = Mutex(State(now: .init(nanoseconds: 1_000_000_000), wall: wallClock))
  }

  public var now: MonotonicInstant { state.withLock { $0.now } }
  public var wallClock: Timestamp { state.withLock { $0.wall } }

  /// The earliest moment somebody sleeps until.
  public var nextDeadline: MonotonicInstant? { state.withLock { $0.sleepers.map(\.deadline).min() } }

  /// Moves both clocks and wakes whoever slept until then, earliest first.
  public func advance(by step: Duration) {
    let due = state.withLock { s in
      s.now = s.now + step
      s.wall = s.wall + step
      let due = s.sleepers.filter { $0.deadline <= s.now }.sorted { $0.deadline < $1.deadline }
      s.sleepers.removeAll { $0.deadline <= s.now }
      return due
    }
    for sleeper in due { sleeper.wake.resume() }
  }

  public func sleep(until deadline: MonotonicInstant) async throws {
    let id = state.withLock { s in
      s.nextSleeper += 1
      return s.nextSleeper
    }
    try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { continuation in
        let outcome: Result<Void, any Error>? = state.withLock { s in
          if Task.isCancelled { return .failure(CancellationError()) }
          if deadline <= s.now { return .success(()) }
          s.sleepers.append((id, deadline, continuation))
          return nil
        }
        if let outcome { continuation.resume(with: outcome) }
      }
    } onCancel: {
      let sleeper = state.withLock { s in
        s.sleepers.firstIndex { $0.id == id }.map { s.sleepers.remove(at: $0) }
      }
      sleeper?.wake.resume(throwing: CancellationError())
    }
  }
}
