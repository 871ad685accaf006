// The limits of an account beside its token bucket: the ledger of 24 hours, and the pace that it has set itself.

import Primitives
import SMTP
import Spool

/// The ledger of an account and what is being done with its file.
struct LedgerState {
  var ledger: DailyLedger?
  var isLoading = false
  var isWriting = false
  /// A message waits for the write: nothing overtakes it, lest it be read from the queue again and again.
  var isAwaited = false
  /// The disk cannot be written: until then nobody tries again, and the count goes on in memory.
  var brokenUntil: MonotonicInstant?
  /// When the log has last said that the limit is reached.
  var lastNotice: MonotonicInstant?
}

extension Account {
  // MARK: The ledger

  /// Whether so many recipients may be sent to now. If not, the account looks again by itself.
  func ledgerAdmits(_ count: Int, _ now: MonotonicInstant) -> Bool {
    guard let limit = settings.dailyLimit else { return true }
    guard ledgers.ledger != nil else {
      loadLedger(limit)
      return false
    }
    if ledgers.isAwaited { return false }
    guard let answer = ledgers.ledger?.check(count, wall: time.wallClock, now: now) else { return true }
    return follow(answer, count, now)
  }

  /// Enters the recipients of a job that is about to be sent.
  func enter(_ job: inout Job, _ now: MonotonicInstant) -> Bool {
    let (count, isBroken) = (job.recipients.count, ledgers.brokenUntil != nil)
    guard
      let answer = ledgers.ledger?.reserve(count, wall: time.wallClock, now: now, isForced: isBroken)
    else { return true }
    if case .granted(let reservation) = answer { job.reservation = reservation }
    if follow(answer, count, now) { return true }
    ledgers.isAwaited = ledgers.isWriting
    return false
  }

  private func follow(_ answer: DailyLedger.Answer, _ count: Int, _ now: MonotonicInstant) -> Bool {
    switch answer {
    case .granted:
      if ledgers.ledger?.isLow == true { writeLedger(for: count, now) }
      return true
    case .unwritten:
      writeLedger(for: count, now)
      return ledgers.brokenUntil != nil
    case .full(let wait):
      reachLimit(wait, now)
      return false
    }
  }

  private func reachLimit(_ wait: Duration, _ now: MonotonicInstant) {
    guard let ledger = ledgers.ledger else { return }
    let reason = "daily_limit of \(ledger.limit) recipients in 24 hours is reached (\(ledger.used) sent)"
    limitHold = Hold(
      fault: .dailyLimit, reason: reason, until: now + wait, since: limitHold?.since ?? time.wallClock)
    wake(at: now + wait)
    // Slots come back every few minutes, and are gone at once.
    if let last = ledgers.lastNotice, now - last < .seconds(3600) { return }
    ledgers.lastNotice = now
    services.log.warning(
      "account \(name): \(reason): \(mailWaits), the next slot comes in \(wait.rounded); nobody's mail ages or is returned by it"
    )
  }

  /// Time has passed, or recipients were taken out: the limit may not be reached any more.
  func lookAtLimitAgain(_ now: MonotonicInstant) {
    if let held = limitHold, now >= held.until { limitHold = nil }
  }

  /// Takes out the recipients of a job that were not sent to.
  func refund(_ job: Job, sent: Int) {
    guard let reservation = job.reservation, reservation.count > sent else { return }
    ledgers.ledger?.refund(reservation, reservation.count - sent)
    limitHold = nil
  }

  /// Reads the ledger before the first message needs it: `status` says after a restart how much of the day is left.
  func openLedger() {
    if let limit = settings.dailyLimit, settings.isEnabled, ledgers.ledger == nil { loadLedger(limit) }
  }

  private func loadLedger(_ limit: Int) {
    if ledgers.isLoading { return }
    ledgers.isLoading = true
    Task(executorPreference: seat.loop) { await self.readLedger(limit) }
  }

  private func readLedger(_ limit: Int) async {
    var ledger = DailyLedger(limit: limit, wall: time.wallClock, now: time.now)
    do throws(DiskError) {
      if let bytes = try await services.ledgers?.load(name),
        !ledger.restore(bytes, wall: time.wallClock, now: time.now)
      {
        services.log.error(
          "account \(name): its file in ledger/ is damaged: the recipients of the last 24 hours are counted from 0")
      }
    } catch {
      services.log.error(
        "account \(name): its file in ledger/ cannot be read (\(error)): the recipients of the last 24 hours are counted from 0"
      )
    }
    ledgers.isLoading = false
    // A reload may have taken the limit away meanwhile.
    if let limit = settings.dailyLimit {
      ledger.limit = limit
      ledgers.ledger = ledger
    }
    pump()
  }

  private func writeLedger(for count: Int, _ now: MonotonicInstant) {
    if let broken = ledgers.brokenUntil, now < broken { return }
    guard !ledgers.isWriting, let plan = ledgers.ledger?.plan(for: count) else { return }
    ledgers.isWriting = true
    Task(executorPreference: seat.loop) { await self.saveAhead(plan) }
  }

  private func saveAhead(_ plan: DailyLedger.Plan) async {
    await save(plan)
    ledgers.isWriting = false
    ledgers.isAwaited = false
    pump()
  }

  private func save(_ plan: DailyLedger.Plan) async {
    do throws(DiskError) {
      try await services.ledgers?.save(name, plan.bytes)
      ledgers.ledger?.confirm(plan)
      if ledgers.brokenUntil != nil { services.log.notice("account \(name): its ledger can be written again") }
      ledgers.brokenUntil = nil
    } catch {
      // Mail that cannot be counted is better than mail that stands still for want of a count.
      if ledgers.brokenUntil == nil {
        services.log.error(
          "account \(name): its file in ledger/ cannot be written (\(error)): it sends all the same, but a restart forgets what it has sent meanwhile"
        )
      }
      ledgers.brokenUntil = time.now + .seconds(60)
    }
  }

  /// Writes what there is, without what was written ahead.
  func closeLedger() async {
    guard let plan = ledgers.ledger?.plan(for: nil), !ledgers.isWriting else { return }
    await save(plan)
  }

  /// When to ask an upstream again that says its daily limit is reached. If our own count explains it, when the first
  /// of its recipients stop counting; else somebody else sends through the account, or its limit is another one.
  func waitForWindow(_ backOff: Duration) -> Duration {
    guard var ledger = ledgers.ledger else { return backOff }
    ledger.advance(wall: time.wallClock, now: time.now)
    guard ledger.used >= (ledger.limit + 1) / 2, let slot = ledger.nextSlot() else { return backOff }
    return max(slot, backOff)
  }

  // MARK: The pace

  /// The upstream says that we are too fast.
  func slowDown(_ reply: Reply, peer: String) {
    let now = time.now
    let changed = pace.slowDown(
      configured: settings.rate?.perMinute, observed: meter.perMinute(now), connections: settings.maximumConnections,
      now: now)
    guard changed, let limits = pace.limits else { return }
    applyRate(now)
    var surplus = connections.count - limits.connections
    for number in connections.keys.sorted().reversed() where surplus > 0 {
      retire(number)
      surplus -= 1
    }
    services.log.warning(
      "account \(name): \(peer) finds it too fast (\(reply)): now at most \(limits.perMinute) messages a minute over \(limits.connections) connections; that grows again while no such reply comes"
    )
  }

  func speedUp(_ now: MonotonicInstant) {
    let changed = pace.succeed(
      configured: settings.rate?.perMinute, connections: settings.maximumConnections, now: now)
    guard changed else { return }
    applyRate(now)
    if let limits = pace.limits {
      services.log.info(
        "account \(name): now at most \(limits.perMinute) messages a minute over \(limits.connections) connections")
    } else {
      services.log.notice("account \(name): as fast as it is configured again")
    }
  }

  /// Sets the bucket to what is configured, or to the pace where that is slower.
  func applyRate(_ now: MonotonicInstant) {
    var rate = settings.rate
    if let limits = pace.limits {
      let perMinute = min(limits.perMinute, rate?.perMinute ?? .max)
      let burst = rate.map { max(1, $0.burst * perMinute / max($0.perMinute, 1)) } ?? max(1, perMinute / 10)
      rate = .init(perMinute: perMinute, burst: burst)
    }
    guard let rate else {
      bucket = nil
      return
    }
    if bucket != nil {
      bucket?.change(perMinute: rate.perMinute, burst: rate.burst, now: now)
    } else {
      bucket = TokenBucket(perMinute: rate.perMinute, burst: rate.burst, now: now)
    }
  }
}
