// Work that is done one piece after the other, somewhere else: on a queue of Dispatch in the daemon, and in the order
// that a seed decides in a simulation.

import Dispatch

/// A serial queue: pieces of work run one at a time, in the order in which they were given.
public protocol WorkQueue: Sendable {
  /// Runs `work` behind everything given before.
  func async(_ work: @escaping @Sendable () -> Void)
  /// Runs `work` once `wait` has passed, behind what was given until then.
  func async(after wait: Duration, _ work: @escaping @Sendable () -> Void)
}

/// A serial queue of Dispatch.
public struct DispatchWorkQueue: WorkQueue {
  private let queue: DispatchQueue

  public init(_ label: String) { queue = DispatchQueue(label: label) }

  public func async(_ work: @escaping @Sendable () -> Void) { queue.async(execute: work) }

  public func async(after wait: Duration, _ work: @escaping @Sendable () -> Void) {
    queue.asyncAfter(deadline: .now() + .nanoseconds(Int(clamping: wait.nanoseconds)), execute: work)
  }
}

extension WorkQueue {
  /// Runs `work` behind everything given before, and returns what it returns.
  public func run<T: Sendable>(_ work: @escaping @Sendable () -> T) async -> T {
    await withCheckedContinuation { continuation in
      async { continuation.resume(returning: work()) }
    }
  }
}
