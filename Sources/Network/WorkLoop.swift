// What actors that live on an event loop ask of it, so that a simulation can be their loop.

/// A serial executor that also runs plain work. ``EventLoop`` is the one that has sockets.
public protocol WorkLoop: SerialExecutor, TaskExecutor {
  /// Runs `body` on the loop, as soon as it gets there.
  func execute(_ body: @escaping @Sendable () -> Void)
}

extension EventLoop: WorkLoop {}
