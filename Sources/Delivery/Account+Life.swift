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
    returnGuests()
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
    await closeLedger()
  }

  /// A connection that is only being opened keeps nobody waiting.
  var isDone: Bool { active.isEmpty && carrying.isEmpty && !connections.values.contains(where: \.isReady) }

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
    let isConnected = connections.values.contains(where: \.isReady)
    ledgers.ledger?.advance(wall: time.wallClock, now: now)
    var snapshot = AccountSnapshot(
      name: name, account: settings.account, upstream: "\(settings.host):\(settings.port)",
      isEnabled: settings.isEnabled, queued: max(0, due.count - surplus) + lent.count, active: underWay,
      connections: connections.count, maximumConnections: settings.maximumConnections,
      ratePerMinute: settings.rate?.perMinute, tokens: bucket?.available(now: now),
      hold: shown(hold ?? limitHold ?? (isConnected ? nil : loginHold)), lastError: lastError, counters: counters)
    snapshot.loginHold = isConnected ? shown(loginHold) : nil
    snapshot.slowed = pace.limits.map { .init(ratePerMinute: $0.perMinute, connections: $0.connections) }
    if let ledger = ledgers.ledger {
      snapshot.ledger = .init(
        limit: ledger.limit, used: ledger.used, nextSlot: ledger.nextSlot().map { time.wallClock + $0 })
    }
    snapshot.carriedBy = isHeldUp ? carriedBy : nil
    snapshot.carriesFor = Set(carrying.map(\.owner) + guests.map(\.owner.name)).sorted()
    return snapshot
  }

  private func shown(_ hold: Hold?) -> AccountSnapshot.Hold? {
    hold.map {
      .init(
        fault: $0.fault, reason: $0.reason, since: $0.since,
        nextTry: time.wallClock + max($0.until - time.now, .zero), advice: $0.advice)
    }
  }
}
