// Runs a relay as a service: signals, systemd, the watchdog, and the exit status.

import CLinux
import Configuration
import Dispatch
import Glibc
import Network
import Primitives

/// The life of the process around a ``Relay``.
public struct Supervisor: Sendable {
  /// Reads the configuration anew; called at the start and with each SIGHUP.
  public typealias Load = @Sendable () throws(ConfigurationError) -> (settings: Settings, warnings: [Diagnostic])

  private let load: Load

  public init(load: @escaping Load) { self.load = load }

  private enum Event: Sendable { case reload, stop, queueFailed, tick }

  /// What is done before there is a second thread: see ``begin()``.
  public struct Beginning: Sendable {
    fileprivate var settings: Settings
    fileprivate var warnings: [Diagnostic]
    fileprivate var listeners: [RoleListener]
  }

  /// Reads the configuration, binds the ports, and gives up every right that only this needs. To be called on the first
  /// thread of the process, before it has started another: see ``Privileges``.
  /// - Throws: ConfigurationError or ``DaemonError``.
  public func begin() throws -> Beginning {
    Privileges.hideMemory()
    var (settings, warnings) = try load()
    let plan = try Privileges.plan(settings.global)
    let listeners = try RoleListener.all(settings)
    if case .become(let account) = plan { try Privileges.prepare(settings.global, for: account) }
    try Privileges.settle(plan)
    if case .become(let account) = plan {
      // As a reload will: what only root can read is found out now, not then.
      do throws(ConfigurationError) { (settings, warnings) = try load() } catch {
        throw ConfigurationError(
          diagnostics: error.diagnostics.map {
            Diagnostic($0.severity, $0.origin, "\($0.message) (as user \(account.name), which the daemon runs as)")
          }, warnings: error.warnings)
      }
    }
    return Beginning(settings: settings, warnings: warnings, listeners: listeners)
  }

  /// Serves until SIGTERM or SIGINT.
  /// - Returns: the exit status: 0, or 75 when the queue has failed and a restart has to recover it.
  public func run(_ beginning: Beginning) async throws -> Int32 {
    Self.keepMemorySmall()
    // A file as large as RLIMIT_FSIZE allows is no reason to die: the write says EFBIG.
    signal(SIGXFSZ, SIG_IGN)
    // On a loop of its own, so that a signal is heeded however busy the tasks of the process are.
    let loop = try EventLoop(name: "supervisor")
    return try await withTaskExecutorPreference(loop) { try await supervise(beginning, on: loop) }
  }

  private func supervise(_ beginning: Beginning, on loop: EventLoop) async throws -> Int32 {
    let (events, post) = AsyncStream<Event>.makeStream()
    let sources = Self.watchSignals { post.yield($0) }
    defer { for source in sources { source.cancel() } }

    let relay = try await Relay(beginning.settings, listeners: beginning.listeners)
    relay.warn(beginning.warnings.map(\.description))
    await relay.start()
    relay.onQueueFailure { post.yield(.queueFailed) }
    // Whoever waits for READY may look into the log next.
    relay.flushLog()
    SystemdNotifier.ready(status: await relay.statusLine())

    let ticker = Task(executorPreference: loop) {
      // STATUS= every ten seconds; the watchdog at half its interval when that is shorter.
      let interval = min(SystemdNotifier.watchdogInterval.map { $0 / 2 } ?? .seconds(10), .seconds(10))
      while !Task.isCancelled {
        try await Task.sleep(for: interval)
        post.yield(.tick)
      }
    }
    defer { ticker.cancel() }

    for await event in events {
      switch event {
      case .tick:
        await relay.proveProgress()
        SystemdNotifier.watchdog()
        SystemdNotifier.status(await relay.statusLine())
      case .reload:
        SystemdNotifier.reloading()
        await reload(relay)
        relay.flushLog()
        SystemdNotifier.ready(status: await relay.statusLine())
      case .queueFailed:
        SystemdNotifier.stopping()
        await relay.breakOffDelivery()
        await relay.stop(within: .seconds(5))
        return 75
      case .stop:
        SystemdNotifier.stopping()
        await relay.stop()
        return 0
      }
    }
    return 0
  }

  /// Has glibc give large blocks back as soon as they are free.
  ///
  /// Left alone, it raises the threshold with each block that is freed, up to 32 MiB, and from then on pieces of large
  /// messages leave holes in the heaps of a dozen threads: a hundred messages of 35 MB at once took 158 MiB, most of
  /// which stayed; with a threshold that stays they take 81, and half of that afterwards.
  private static func keepMemorySmall() { mallopt(M_MMAP_THRESHOLD, 128 << 10) }

  private func reload(_ relay: Relay) async {
    do {
      let (settings, warnings) = try load()
      try await relay.reload(settings)
      relay.warn(warnings.map(\.description))
    } catch let error as ConfigurationError {
      relay.reloadFailed(error.diagnostics.map(\.description))
    } catch { relay.reloadFailed(["\(error)"]) }
  }

  private static func watchSignals(_ post: @escaping @Sendable (Event) -> Void) -> [any DispatchSourceSignal] {
    // Not the global queue: its threads are those that tasks run on.
    let queue = DispatchQueue(label: "signals")
    return [(SIGTERM, Event.stop), (SIGINT, .stop), (SIGHUP, .reload)].map { number, event in
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
      source.setEventHandler { post(event) }
      source.activate()
      return source
    }
  }
}
