// Collects what is logged, so that tests can look for it and wait for it.

import Logging
import Primitives

public final class LogLines: Sendable {
  private struct State {
    var lines: [String] = []
    var waiters: [(text: String, wake: CheckedContinuation<String, Never>)] = []
  }
  private let state = Mutex(State())

  public init() {}

  public var all: [String] { state.withLock { $0.lines } }

  public var logger: Logger { Logger(label: "test") { _ in Handler(lines: self) } }

  /// The first line that holds `text`, now or later.
  public func line(containing text: String) async -> String {
    await withCheckedContinuation { continuation in
      let found = state.withLock { state in
        if let line = state.lines.first(where: { $0.contains(text) }) { return line as String? }
        state.waiters.append((text, continuation))
        return nil
      }
      if let found { continuation.resume(returning: found) }
    }
  }

  fileprivate func add(_ line: String) {
    let woken = state.withLock { state in
      state.lines.append(line)
      let woken = state.waiters.filter { line.contains($0.text) }
      state.waiters.removeAll { line.contains($0.text) }
      return woken
    }
    for waiter in woken { waiter.wake.resume(returning: line) }
  }

  private struct Handler: LogHandler {
    let lines: LogLines
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level = .trace
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }
    func log(event: LogEvent) { lines.add("\(event.level): \(event.message)") }
  }
}
