// Writes down what an attempt came to, and tells the sender. The order is what matters: what was delivered is written
// first, so that no crash repeats it; a failure is told first and written down then, so that no crash hides it.

import Message
import Primitives
import SMTP
import Spool

extension Account {
  /// Writes down what became of a message that is not simply done.
  func record(_ job: Job, _ verdict: Verdict) {
    var verdict = verdict
    let extra = ahead(job)
    let counts = verdict.counts && !verdict.isSplit && extra == nil
    let attempts = job.attempts + (counts ? 1 : 0)
    // Nobody's mail ends by a fault of the account or of ours, not even when another recipient was put off.
    let isExpired =
      counts && verdict.fault == nil && !verdict.isOurs
      && delivery.retrySchedule.patience(atAttempt: attempts) >= delivery.queueLifetime
    if isExpired { giveUp(job, attempts, &verdict) }
    var record = AttemptRecord(account: job.lane, isInDoubt: verdict.isInDoubt)
    if let last = verdict.later.last {
      counters.deferred += verdict.later.count
      let wait = waitBeforeRetry(verdict, attempts)
      record.lane = Lane(
        nextAttempt: extra ?? (time.wallClock + wait), attempts: attempts, lastReply: "\(last.reply)")
      // What would go on at once goes on, and the plan stays for afterwards.
      record.isForced = extra != nil && wait == .zero
    }
    record.delivered = verdict.delivered.map(\.index)
    let number =
      extra != nil
      ? "ahead of its time, not counted"
      : counts
        ? "attempt \(attempts)"
        : verdict.isInContent ? "in its content, not counted the first time" : "not counted as an attempt"
    record.events = events(job, verdict, record.lane, number)
    let told = verdict.failed.filter { job.envelope.recipients[$0.index].wantsFailure }
    let silent = verdict.failed.filter { !job.envelope.recipients[$0.index].wantsFailure }
    record.failed = silent.map { ($0.index, $0.reply) }
    if !silent.isEmpty {
      let names = silent.map { job.envelope.recipients[$0.index].address }.listed
      services.log.notice("\(job.id): failed for \(names), of which its sender does not want to hear")
    }
    guard told.isEmpty, verdict.receipts.isEmpty else {
      let tries = job.attempts + 1
      Task(executorPreference: seat.loop) { [record, receipts = verdict.receipts] in
        await self.tell(job, told, receipts: receipts, record, tries: tries)
      }
      return
    }
    services.store.update(job.id) { [record] in record.apply(to: &$0) }
    finish(job, record.lane, isForced: record.isForced)
  }

  /// The time that is planned for the next attempt when this one came before it, because somebody asked for it. Such an
  /// attempt is an extra: it leaves the plan as it is, and costs the message none of its patience.
  private func ahead(_ job: Job) -> Timestamp? {
    guard let planned = job.before?.nextAttempt else { return nil }
    let left = (planned - time.wallClock).microseconds
    // A plan that is farther away was made by a clock that was ahead, and is none.
    return left > 0 && left <= longestWait ? planned : nil
  }

  /// The time of a message is over: who was put off once more has failed.
  private func giveUp(_ job: Job, _ attempts: Int, _ verdict: inout Verdict) {
    let doubts = (job.before?.inDoubt ?? 0) + (verdict.isInDoubt ? 1 : 0)
    for fate in verdict.later {
      var text = "gave up after \(attempts) attempts"
      if doubts > 0 {
        let times = doubts == 1 ? "once" : "\(doubts) times"
        text += "; \(DeliveryStatusNotification.doubt): the connection broke \(times) behind the end of the message"
      }
      if fate.peer != nil {
        text += "; the last answer was: \(fate.reply)"
      } else if fate.reply != LostReply.behindContent {
        text += "; the last attempt had no answer: \(fate.reply.text)"
      }
      // What we say ourselves of a lost connection is nothing that a server has said.
      let diagnostic = fate.peer == nil ? nil : fate.reply
      let final = Reply(550, "4.4.7", text)
      verdict.failed.append(
        .init(
          index: fate.index, reply: final, peer: fate.peer, diagnostic: diagnostic, isOfMessage: fate.isOfMessage))
      counters.failed += 1
      note(job, fate.index, "expired", final, "none")
    }
    verdict.later = []
  }

  private func waitBeforeRetry(_ verdict: Verdict, _ attempts: Int) -> Duration {
    if verdict.isSplit { return .zero }
    if verdict.counts {
      return delivery.retrySchedule.delay(
        afterAttempt: attempts, within: delivery.queueLifetime, random: services.random())
    }
    if verdict.isOurs { return .seconds(3600) }
    // A message that breaks every connection must not be the only one that ever goes.
    return verdict.isInterrupted ? .seconds(30) : .zero
  }

  /// Tells the sender, and writes down.
  private func tell(
    _ job: Job, _ failed: [Verdict.Fate], receipts: [Verdict.Fate], _ record: AttemptRecord, tries: Int
  ) async {
    var record = record
    // With no failure to tell this is all there is, and the message may go by it.
    let first = Mutex(record.takeDeliveries(isLast: failed.isEmpty))
    let store = services.store
    let writeFirst = { @Sendable in
      let record = first.withLock { record in
        defer { record = nil }
        return record
      }
      if let record { store.update(job.id) { record.apply(to: &$0) } }
    }
    if !receipts.isEmpty {
      switch await report(job, receipts, tries: tries, beforeQueueing: writeFirst) {
      case .told(let report): record.events.append(notified(job, receipts, "delivery", report))
      // The log has said so once for all of them.
      case .tooMany: break
      case .impossible(let reason): notTold(job, receipts, reason)
      case .later: notTold(job, receipts, "the queue does not take the notification")
      }
    }
    // Delivered it is, whether anybody was told or not.
    writeFirst()
    if !failed.isEmpty { await tellFailure(job, failed, &record, tries: tries) }
    store.update(job.id) { [record] in record.apply(to: &$0) }
    finish(job, record.lane, isForced: record.isForced)
    pump()
    stopIfDone()
  }

  private func notTold(_ job: Job, _ receipts: [Verdict.Fate], _ reason: String) {
    services.log.notice("\(job.id): its sender is not told of the delivery to \(names(job, receipts)): \(reason)")
  }

  private func tellFailure(
    _ job: Job, _ failed: [Verdict.Fate], _ record: inout AttemptRecord, tries: Int
  ) async {
    let names = names(job, failed)
    let outcome = await report(job, failed, tries: tries)
    let now = time.wallClock
    switch outcome {
    case .later:
      // Neither told nor written down: the next attempt finds the failure again.
      record.lane = Lane(
        nextAttempt: now + .seconds(60), attempts: job.attempts, lastReply: failed.last.map { "\($0.reply)" } ?? "")
      record.isForced = false
      record.events.append(
        LifeEvent(
          time: now, kind: .deferred, account: job.lane, text: "\(names): the notification cannot be queued now"))
      return
    case .told(let report): record.events.append(notified(job, failed, "failure", report))
    case .impossible(let reason):
      services.log.error("\(job.id): failed for \(names), and \(reason): kept as dead")
      record.die(of: failed, reason, now)
    // The log has said so once for all of them.
    case .tooMany(let reason): record.die(of: failed, reason, now)
    }
    record.failed += failed.map { ($0.index, $0.reply) }
  }

  private func report(
    _ job: Job, _ fates: [Verdict.Fate], tries: Int, beforeQueueing: @Sendable () -> Void = {}
  ) async -> NoticeOutcome {
    let now = time.wallClock
    var notice = Notice(id: job.id, envelope: job.envelope, fates: [], attempts: tries)
    notice.firstAttempt = job.firstAttempt
    notice.fates = fates.map { fate in
      let recipient = job.envelope.recipients[fate.index]
      return .init(
        recipient: recipient,
        action: !fate.reply.isPositive ? .failed : job.envelope.isExpanded(recipient) ? .expanded : .relayed,
        reply: fate.reply, peer: fate.peer, diagnostic: fate.diagnostic, lastAttempt: now,
        isOfMessage: fate.isOfMessage || (fate.diagnostic ?? fate.reply).speaksOfMessage)
    }
    return await services.bouncer.notify(notice, job.content, beforeQueueing: beforeQueueing)
  }

  private func names(_ job: Job, _ fates: [Verdict.Fate]) -> String {
    fates.map { job.envelope.recipients[$0.index].address }.listed
  }

  private func notified(_ job: Job, _ fates: [Verdict.Fate], _ what: String, _ report: QueueID) -> LifeEvent {
    LifeEvent(
      time: time.wallClock, kind: .notified, account: job.lane,
      text: "<\(job.envelope.reversePath)> of the \(what) for \(names(job, fates)), by \(report)")
  }

  /// The lines that this attempt adds to the life of the message, with recipients that got the same reply together.
  /// - Parameter number: which attempt it was, or why it is none.
  private func events(_ job: Job, _ verdict: Verdict, _ lane: Lane?, _ number: String) -> [LifeEvent] {
    let now = time.wallClock
    var events: [LifeEvent] = []
    let carrier = job.owner == nil ? "" : "; carried by \(name) while \(job.lane) is on hold"
    func add(_ kind: LifeEvent.Kind, _ fates: [Verdict.Fate], _ rest: String = "") {
      var replies: [Reply] = []
      for fate in fates where !replies.contains(fate.reply) { replies.append(fate.reply) }
      for reply in replies {
        let names = names(job, fates.filter { $0.reply == reply })
        events.append(
          LifeEvent(
            time: now, kind: kind, account: job.lane, text: "\(names): \("\(reply)".prefix(300))\(rest)\(carrier)"))
      }
    }
    add(.delivered, verdict.delivered)
    if verdict.isInDoubt {
      let text = "the connection to \(verdict.peer) broke behind the end of the message: it may have arrived\(carrier)"
      events.append(LifeEvent(time: now, kind: .inDoubt, account: job.lane, text: text))
    }
    add(.failed, verdict.failed)
    if let lane { add(.deferred, verdict.later, "; \(number), next try \(RFC5322Date.format(lane.nextAttempt))") }
    return events
  }

  /// The attempt is written down: the message waits for the next one, or there is none.
  /// - Parameter isForced: the next one does not wait for its time.
  func finish(_ job: Job, _ lane: Lane?, isForced: Bool = false) {
    if let owner = job.owner, owner !== self {
      carrying.remove(Loan(id: job.id, owner: owner.name))
      Task(executorPreference: owner.seat.loop) { await owner.takeBack(job, after: lane, isForced: isForced) }
      return
    }
    active.remove(job.id)
    wanted.remove(job.id)
    guard let lane else { return }
    if isForced { force(job.id) } else { due.insert(Due(when: lane.nextAttempt.microseconds, id: job.id)) }
    // Also when it was not counted: nobody's mail ends by a fault of ours, but its sender is to know.
    if isPutOff(lane), !job.isDelayReported, !job.envelope.reversePath.isEmpty {
      watchDelay(job.id, job.envelope.arrival)
    }
  }
}

/// What an attempt changes about the state of a message.
struct AttemptRecord: Sendable {
  let account: String
  var isInDoubt: Bool
  var delivered: [Int] = []
  var failed: [(index: Int, reply: Reply)] = []
  var lane: Lane?
  /// The next attempt does not wait for the time of `lane`.
  var isForced = false
  var deadReason: String?
  var events: [LifeEvent] = []

  init(account: String, isInDoubt: Bool) {
    self.account = account
    self.isInDoubt = isInDoubt
  }

  func apply(to state: inout MessageState) {
    for index in delivered { state.recipients[index] = .delivered }
    for (index, reply) in failed { state.recipients[index] = .failed("\(reply)") }
    if var lane {
      lane.inDoubt = (state.lanes[account]?.inDoubt ?? 0) + (isInDoubt ? 1 : 0)
      state.lanes[account] = lane
    }
    if let deadReason { state.deadReason = deadReason }
    for event in events { state.note(event) }
  }

  /// Splits off what is to be written before anybody is told of anything: the deliveries; everything, when there is no
  /// failure to be told.
  mutating func takeDeliveries(isLast: Bool) -> AttemptRecord? {
    if isLast {
      defer {
        (delivered, failed, events) = ([], [], [])
        isInDoubt = false
      }
      return self
    }
    guard !delivered.isEmpty else { return nil }
    var first = AttemptRecord(account: account, isInDoubt: false)
    first.delivered = delivered
    first.events = events.filter { $0.kind == .delivered }
    delivered = []
    events.removeAll { $0.kind == .delivered }
    return first
  }

  mutating func die(of failed: [Verdict.Fate], _ reason: String, _ now: Timestamp) {
    let last = failed.last.map { "\($0.reply)" } ?? "failed"
    deadReason = "\(last); nobody was told: \(reason)"
    events.append(
      LifeEvent(time: now, kind: .dead, account: account, text: "nobody was told of the failure: \(reason)"))
  }
}
