// The end of an account, and what people ask it.

import Primitives
import Spool

extension Account {
  // MARK: The end

  /// Hands out nothing more, waits for what is under way, at most until `deadline`, and leaves.
  func stop(within grace: Duration) async {
    isStopping = true
    waker?.cancel()
    for number in connections.keys { retire(number) }
    let alarm = Task {
      guard (try? await time.sleep(until: time.now + grace)) != nil else { return }
      abortAll()
      // Whoever still waits now waits for a disk: what is not written down will be sent again after the restart.
      guard (try? await time.sleep(until: time.now + .seconds(5))) != nil else { return }
      services.log.error("account \(name): stopped with \(active.count) messages whose outcome could not be written")
      releaseStoppers()
    }
    if !isDone {
      await withCheckedContinuation { whenStopped.append($0) }
    }
    alarm.cancel()
  }

  /// A connection that is only being opened keeps nobody waiting.
  var isDone: Bool { active.isEmpty && !connections.values.contains(where: \.isReady) }

  func stopIfDone() {
    if isStopping, isDone { releaseStoppers() }
  }

  func releaseStoppers() {
    for waiter in whenStopped { waiter.resume() }
    whenStopped = []
  }

  func abortAll() {
    for member in connections.values { member.connection.breakOff() }
  }

  // MARK: What people ask

  /// The messages that are under way now.
  var messagesUnderWay: Set<QueueID> { active }

  func snapshot() -> AccountSnapshot {
    let now = time.now
    let held = hold ?? (connections.values.contains(where: \.isReady) ? nil : loginHold)
    return AccountSnapshot(
      name: name, account: settings.account, upstream: "\(settings.host):\(settings.port)",
      isEnabled: settings.isEnabled, queued: due.count, active: active.count, connections: connections.count,
      maximumConnections: settings.maximumConnections, ratePerMinute: settings.rate?.perMinute,
      tokens: bucket?.available(now: now),
      hold: held.map {
        .init(
          fault: $0.fault, reason: $0.reason, since: $0.since,
          nextTry: time.wallClock + max($0.until - now, .zero), advice: $0.fault.advice)
      },
      lastError: lastError, counters: counters)
  }
}
