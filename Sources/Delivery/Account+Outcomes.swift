// What becomes of a message after an attempt: each recipient's fate is judged, written down, and told.

import Primitives
import SMTP
import Spool

extension Account {
  /// All replies to a message are in.
  func finished(_ job: Job, _ outcome: ClientTransaction.Outcome, on number: Int, peer: String, depth: Int) {
    connections[number]?.depth = depth
    if outcome.recipients.contains(where: \.isAccepted) { connections[number]?.delivered += 1 }
    if outcome.mustClose {
      connections[number]?.isDying = true
    } else {
      loginBackOff.succeed()
      refusalBackOff.succeed()
    }
    release(number)
    settle(job, outcome, peer: peer)
    // Of a connection that goes, ``closed(_:_:peer:isFault:)`` comes next, and says whether another one may be opened.
    if !outcome.mustClose { pump() }
    stopIfDone()
  }

  /// The connection broke while a message was under way.
  func lost(_ job: Job, _ outcome: ClientTransaction.Outcome, _ reason: String, peer: String) {
    if outcome.isInDoubt {
      counters.inDoubt += 1
      services.log.warning(
        "\(job.id): in doubt: the connection to \(peer) broke behind the end of the message (\(reason)); it will be sent again unchanged"
      )
    }
    settle(job, outcome, peer: peer)
    stopIfDone()
  }

  /// A message that its connection never began.
  func unsent(_ job: Job) {
    active.remove(job.id)
    bucket?.refund()
    // As a forced entry: the queue knows nothing of this try.
    due.insert(Due(when: Due.forced, id: job.id))
    stopIfDone()
  }

  /// Does with each recipient what the replies mean.
  func settle(_ job: Job, _ outcome: ClientTransaction.Outcome, peer: String) {
    var verdict = Verdict()
    for (index, result) in zip(job.recipients, outcome.recipients) {
      switch result {
      case .accepted(let reply):
        verdict.delivered.append(index)
        note(job, index, "sent", reply, peer)
      case .refused(let reply, .connection):
        verdict.retry(index, reply, isInDoubt: outcome.isInDoubt)
        verdict.isInterrupted = true
      case .refused(let reply, let stage): judge(job, index, reply, Stage(stage), peer, &verdict)
      }
    }
    if !verdict.rest.isEmpty {
      // Of no use when nobody was taken: the next transaction would be the same.
      for (index, reply) in verdict.rest { verdict.retry(index, reply, isInDoubt: verdict.delivered.isEmpty) }
      verdict.isSplit = !verdict.delivered.isEmpty
    }
    counters.delivered += verdict.delivered.count
    // Whoever judges a message lets the account send.
    if !verdict.delivered.isEmpty || !verdict.failed.isEmpty || verdict.counts { endHold() }
    if let (fault, reply) = verdict.fault { holdAll(fault, "\(peer): \(reply)") }
    if verdict.delivered.count == job.envelope.recipients.count {
      // The common case, and the only one that needs no look at the message's state: all at once, all done.
      services.store.remove(job.id)
      active.remove(job.id)
      return
    }
    record(job, verdict)
  }

  func judge(
    _ job: Job, _ index: Int, _ reply: Reply, _ stage: Stage, _ peer: String, _ verdict: inout Verdict
  ) {
    switch ReplyMeaning(of: reply, at: stage) {
    case .recipientFailed, .messageFailed:
      verdict.failed.append((index, reply))
      counters.failed += 1
      note(job, index, "bounced", reply, peer)
    case .recipientLater, .messageLater:
      verdict.retry(index, reply, isInDoubt: true)
      note(job, index, "deferred", reply, peer)
    case .nextTransaction: verdict.rest.append((index, reply))
    case .connectionLost: verdict.retry(index, reply, isInDoubt: false)
    case .accountHeld(let fault):
      verdict.keep(index, reply)
      verdict.fault = (fault, reply)
    case .ourFault:
      verdict.keep(index, reply)
      verdict.isOurs = true
      services.log.critical(
        "\(job.id): \(peer) did not understand us at \(stage.rawValue): \(reply); the message is kept: please report this as a bug"
      )
    }
  }

  func note(_ job: Job, _ index: Int, _ status: String, _ reply: Reply, _ peer: String) {
    let recipient = job.envelope.recipients[index]
    let rewritten = recipient.original == recipient.address ? "" : ", orig_to=<\(recipient.original)>"
    let delay = (time.wallClock - job.envelope.arrival).rounded
    services.log.info(
      "\(job.id): to=<\(recipient.address)>\(rewritten), account=\(name), relay=\(peer), delay=\(delay), status=\(status) (\(reply))"
    )
  }

  /// Writes down what became of a message that is not simply done.
  func record(_ job: Job, _ verdict: Verdict) {
    let counts = verdict.counts && !verdict.isSplit
    let attempts = job.attempts + (counts ? 1 : 0)
    // Nobody's mail ends by a fault of the account or of ours, not even when another recipient was put off.
    let isExpired =
      counts && verdict.fault == nil && !verdict.isOurs
      && delivery.retrySchedule.patience(afterAttempts: attempts) >= delivery.queueLifetime
    var failed = verdict.failed
    if isExpired {
      for (index, reply) in verdict.later {
        let final = Reply(550, "4.4.7", "gave up after \(attempts) attempts; the last answer was: \(reply)")
        failed.append((index, final))
        counters.failed += 1
        note(job, index, "expired", final, "none")
      }
    }
    var next: Timestamp?
    if !isExpired, !verdict.later.isEmpty {
      counters.deferred += verdict.later.count
      next = time.wallClock + waitBeforeRetry(verdict, attempts)
    }
    let lastReply = (verdict.later.last?.1 ?? failed.last?.1).map { "\($0)" } ?? ""
    let lane = next.map { Lane(nextAttempt: $0, attempts: attempts, lastReply: lastReply) }
    guard failed.isEmpty else { return bounce(job, verdict.delivered, failed, lane, lastReply) }
    services.store.update(job.id) { [name, delivered = verdict.delivered] state in
      for index in delivered { state.recipients[index] = .delivered }
      if let lane { state.lanes[name] = lane }
    }
    finishRecord(job, next)
  }

  func waitBeforeRetry(_ verdict: Verdict, _ attempts: Int) -> Duration {
    if verdict.isSplit { return .zero }
    if verdict.counts { return delivery.retrySchedule.delay(afterAttempt: attempts, random: services.random()) }
    if verdict.isOurs { return .seconds(3600) }
    // A message that breaks every connection must not be the only one that ever goes.
    return verdict.isInterrupted ? .seconds(30) : .zero
  }

  /// Tells the sender first and writes the failure down then: a crash between the two repeats the notification and
  /// loses nothing.
  func bounce(_ job: Job, _ delivered: [Int], _ failed: [(Int, Reply)], _ lane: Lane?, _ lastReply: String) {
    let failures = failed.map { BounceFailure(recipient: job.envelope.recipients[$0.0], reply: $0.1) }
    Task {
      let outcome = await services.bouncer.bounce(job.id, job.envelope, job.content, failures)
      if case .later = outcome {
        // Neither told nor written down: the next attempt finds the failure again. What was delivered is written.
        let next = time.wallClock + .seconds(60)
        services.store.update(job.id) { [name] state in
          for index in delivered { state.recipients[index] = .delivered }
          state.lanes[name] = Lane(nextAttempt: next, attempts: job.attempts, lastReply: lastReply)
        }
        finishRecord(job, next)
      } else {
        services.store.update(job.id) { [name] state in
          for index in delivered { state.recipients[index] = .delivered }
          for (index, reply) in failed { state.recipients[index] = .failed("\(reply)") }
          if let lane { state.lanes[name] = lane }
          if case .impossible = outcome { state.deadReason = lastReply }
        }
        finishRecord(job, lane?.nextAttempt)
      }
      pump()
      stopIfDone()
    }
  }

  func finishRecord(_ job: Job, _ next: Timestamp?) {
    active.remove(job.id)
    wanted.remove(job.id)
    if let next { due.insert(Due(when: next.microseconds, id: job.id)) }
  }
}

/// What is to be done with the recipients of one attempt.
struct Verdict {
  var delivered: [Int] = []
  var failed: [(Int, Reply)] = []
  var later: [(Int, Reply)] = []
  /// Whether the attempt counts against the message's patience.
  var counts = false
  var isOurs = false
  /// The connection broke in the middle of the message.
  var isInterrupted = false
  /// Recipients that the upstream wants in a transaction of their own.
  var rest: [(Int, Reply)] = []
  /// Some were delivered and the rest follows at once.
  var isSplit = false
  var fault: (AccountFault, Reply)?

  mutating func retry(_ index: Int, _ reply: Reply, isInDoubt: Bool) {
    later.append((index, reply))
    if isInDoubt { counts = true }
  }

  mutating func keep(_ index: Int, _ reply: Reply) { later.append((index, reply)) }
}
