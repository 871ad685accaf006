// What becomes of a message after an attempt: each recipient's fate is judged here; Account+Records.swift writes it
// down and tells it.

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
    bucket?.refund()
    refund(job, sent: 0)
    // As a forced entry: the queue knows nothing of this try.
    let next = Due(when: Due.forced, id: job.id)
    if let owner = job.owner {
      carrying.remove(Loan(id: job.id, owner: owner.name))
      Task(executorPreference: owner.seat.loop) { await owner.takeBack(job.id, next) }
    } else {
      active.remove(job.id)
      due.insert(next)
      wanted.remove(job.id)
    }
    stopIfDone()
  }

  /// Does with each recipient what the replies mean.
  func settle(_ job: Job, _ outcome: ClientTransaction.Outcome, peer: String) {
    var verdict = Verdict(peer: peer)
    verdict.isInDoubt = outcome.isInDoubt
    for (index, result) in zip(job.recipients, outcome.recipients) {
      switch result {
      case .accepted(let reply):
        verdict.delivered.append(.init(index: index, reply: reply, peer: peer))
        note(job, index, "sent", reply, peer)
      case .refused(_, .connection):
        let reply = LostReply.of(outcome)
        let isOfMessage = outcome.isInContent || outcome.isInDoubt
        verdict.retry(.init(index: index, reply: reply, isOfMessage: isOfMessage), counts: outcome.isInDoubt)
        verdict.isInterrupted = true
        if outcome.isInContent { verdict.isInContent = true }
        note(job, index, "deferred", reply, peer)
      case .refused(let reply, let stage): judge(job, index, reply, Stage(stage), peer, &verdict)
      }
    }
    if outcome.isNotBegun {
      // Our own words: no server has said them (RFC 3464 2.3.6).
      for place in verdict.failed.indices { verdict.failed[place].peer = nil }
    }
    if !verdict.rest.isEmpty {
      // Of no use when nobody was taken: the next transaction would be the same.
      for fate in verdict.rest { verdict.retry(fate, counts: verdict.delivered.isEmpty) }
      verdict.isSplit = !verdict.delivered.isEmpty
    }
    counters.delivered += verdict.delivered.count
    if job.owner != nil, !verdict.delivered.isEmpty { counters.carried += 1 }
    // In doubt they may have arrived, and count.
    if !outcome.isInDoubt { refund(job, sent: verdict.delivered.count) }
    // Whoever judges a message lets the account send.
    if !verdict.delivered.isEmpty || !verdict.failed.isEmpty || verdict.counts { endHold() }
    // A message that ends its connection again ages by it (RFC 5321 4.5.4.1): it would be tried for ever.
    if verdict.isInContent, job.wasInterrupted { verdict.counts = true }
    if let (fault, reply) = verdict.fault {
      holdAll(fault, "\(peer): \(reply)", hint: ReplyMeaning.hint(of: reply))
    }
    if let reply = verdict.complaint {
      slowDown(reply, peer: peer)
    } else if !verdict.delivered.isEmpty {
      speedUp(time.now)
    }
    verdict.receipts = receipts(job, verdict, passedOn: outcome.passedOnDSN)
    if verdict.delivered.count == job.envelope.recipients.count, verdict.receipts.isEmpty {
      // The common case, and the only one that needs no look at the message's state: all at once, all done.
      services.store.remove(job.id)
      finish(job, nil)
      return
    }
    record(job, verdict)
  }

  func judge(
    _ job: Job, _ index: Int, _ reply: Reply, _ stage: Stage, _ peer: String, _ verdict: inout Verdict
  ) {
    let fate = Verdict.Fate(index: index, reply: reply, peer: peer, isOfMessage: stage != .recipient)
    // Said to the content of one message again and again it is about that message, and slows nobody else down.
    if ReplyMeaning.isAboutRate(reply), stage != .content || !job.wasInterrupted { verdict.complaint = reply }
    switch ReplyMeaning(of: reply, at: stage) {
    case .recipientFailed, .messageFailed:
      verdict.failed.append(fate)
      counters.failed += 1
      note(job, index, "bounced", reply, peer)
    case .recipientLater, .messageLater:
      verdict.retry(fate, counts: true)
      note(job, index, "deferred", reply, peer)
    case .nextTransaction: verdict.rest.append(fate)
    case .connectionLost:
      verdict.retry(fate, counts: false)
      // Once it has the content, the message itself may be what ends the connection; earlier it hardly can be.
      if stage == .content {
        verdict.isInterrupted = true
        verdict.isInContent = true
      }
      note(job, index, "deferred", reply, peer)
    case .accountHeld(let fault):
      verdict.retry(fate, counts: false)
      verdict.fault = (fault, reply)
    case .ourFault:
      verdict.retry(fate, counts: false)
      verdict.isOurs = true
      services.log.critical(
        "\(job.id): \(peer) did not understand us at \(stage.rawValue): \(reply); the message is kept: please report this as a bug"
      )
    }
  }

  /// Who of those delivered to is owed a report of success by us (RFC 3461 5.2.2): an upstream that was given NOTIFY
  /// makes its own, but that an alias was expanded is known only here.
  func receipts(_ job: Job, _ verdict: Verdict, passedOn: Bool) -> [Verdict.Fate] {
    verdict.delivered.filter { fate in
      let recipient = job.envelope.recipients[fate.index]
      return recipient.wantsSuccess && (!passedOn || job.envelope.isExpanded(recipient))
    }
  }

  func note(_ job: Job, _ index: Int, _ status: String, _ reply: Reply, _ peer: String) {
    let recipient = job.envelope.recipients[index]
    services.verdicts.note(job.id, recipient, status, reply, peer: peer)
    let rewritten = recipient.original == recipient.address ? "" : ", orig_to=<\(recipient.original)>"
    let delay = (time.wallClock - job.envelope.arrival).rounded
    let carrier = job.owner == nil ? "" : ", carried_by=\(name)"
    let hint = ReplyMeaning.hint(of: reply).map { "; \($0)" } ?? ""
    services.log.info(
      "\(job.id): to=<\(recipient.address)>\(rewritten), account=\(job.lane)\(carrier), relay=\(peer), delay=\(delay), status=\(status) (\(reply))\(hint)"
    )
  }
}

/// What is to be done with the recipients of one attempt.
struct Verdict {
  /// What one recipient got.
  struct Fate: Sendable {
    /// Into the envelope's recipients.
    let index: Int
    var reply: Reply
    /// The upstream whose reply it is; nil when it is our own.
    var peer: String?
    /// The upstream's own last words, when `reply` is what we made of them.
    var diagnostic: Reply?
    /// The message was refused, not this recipient alone.
    var isOfMessage = false
  }

  /// The upstream of this attempt.
  let peer: String
  var delivered: [Fate] = []
  /// Those of `delivered` whose sender is to be told.
  var receipts: [Fate] = []
  var failed: [Fate] = []
  var later: [Fate] = []
  /// Whether the attempt counts against the message's patience.
  var counts = false
  var isOurs = false
  /// The connection broke in the middle of the message.
  var isInterrupted = false
  /// Its content had been begun by then.
  var isInContent = false
  /// It broke behind the end of the message, which may have arrived.
  var isInDoubt = false
  /// Recipients that the upstream wants in a transaction of their own.
  var rest: [Fate] = []
  /// Some were delivered and the rest follows at once.
  var isSplit = false
  var fault: (AccountFault, Reply)?
  /// A reply that finds the account too fast.
  var complaint: Reply?

  init(peer: String) { self.peer = peer }

  mutating func retry(_ fate: Fate, counts: Bool) {
    later.append(fate)
    if counts { self.counts = true }
  }
}
