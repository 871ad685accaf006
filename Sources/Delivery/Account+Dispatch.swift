// How an account hands out what is due: whose turn it is, what must be there before a message may go, and how it is read
// back from the queue for that.

import Network
import Primitives
import Spool

extension Account {
  // MARK: Turns

  func wake(at moment: MonotonicInstant) {
    if let wakeAt, wakeAt <= moment { return }
    wakeAt = moment
    waker?.cancel()
    // With the loop as its preference as well as by the actor: a task without it goes through the global pool whenever
    // it resumes.
    waker = Task(executorPreference: seat.loop) { [time] in
      guard (try? await time.sleep(until: moment)) != nil else { return }
      await self.wakeUp()
    }
  }

  private func wakeUp() {
    wakeAt = nil
    pump()
  }

  /// Does what is due.
  func pump() {
    guard !isStopping, settings.isEnabled else { return }
    warnOfDelays()
    dispatchDue()
  }

  /// Hands out what is due: here, or by others while the account is on hold.
  private func dispatchDue() {
    let now = time.now
    // Also with nothing to send: others may have carried the mail, and who asks must not hear of a limit that is over.
    lookAtLimitAgain(now)
    guard !due.isEmpty || !guests.isEmpty else { return endCarriage() }
    if let hold, now < hold.until {
      wake(at: hold.until)
    } else if let limitHold {
      wake(at: limitHold.until)
    } else {
      dispatchHere(now)
    }
    if !guests.isEmpty, refusesGuests(now) { returnGuests() }
    if isHeldUp { lendDue() } else { endCarriage() }
  }

  /// Hands out while there is a connection, a token and no reason to wait; guests in their turn.
  private func dispatchHere(_ now: MonotonicInstant) {
    let wall = time.wallClock.microseconds
    while !due.isEmpty || !guests.isEmpty {
      let guest = guests.first
      var own = due.min
      if let first = own, first.when > wall, first.when - wall <= longestWait {
        // The wall clock may be set meanwhile: look again within a minute.
        if guest == nil { return wake(at: now + min(.microseconds(first.when - wall), .seconds(60))) }
        own = nil
      }
      // Behind a hold one message goes alone, to see whether it is over.
      if hold != nil, underWay > 0 { return }
      if let own, passesOver(own) { continue }
      // Neither waits for the other for longer than its age says.
      if let guest, own.map({ guest.entry < $0 }) ?? true {
        guard let number = place(for: guest.job.recipients.count, now) else { return }
        guests.removeFirst()
        dispatch(guest, over: number)
      } else if let own {
        guard let number = place(for: fresh[own.id]?.recipients.count ?? 1, now) else { return }
        removeDue()
        dispatch(own, over: number)
      }
    }
  }

  /// Drops an entry whose message is being deleted or is under way.
  func passesOver(_ entry: Due) -> Bool {
    if cancelled[entry.id] != nil {
      cancelled[entry.id]?.append(entry)
    } else if active.contains(entry.id) {
      surplus = max(0, surplus - 1)
    } else {
      return false
    }
    removeDue()
    return true
  }

  /// A connection with the right to send so many recipients over it; nil when something is missing, and then the account
  /// looks again by itself.
  private func place(for recipients: Int, _ now: MonotonicInstant) -> Int? {
    guard ledgerAdmits(recipients, now) else { return nil }
    // The token comes first: an account that may not send needs no further connection.
    if let again = bucket?.reserve(now: now) {
      counters.throttled += 1
      wake(at: again)
      return nil
    }
    var free = idleConnection()
    if free == nil {
      open(now)
      free = overlappingConnection()
    }
    if free == nil { bucket?.refund() }
    return free
  }

  /// A connection with nothing to do, the one used last first.
  func idleConnection() -> Int? {
    while let number = idle.last {
      if let member = connections[number], member.isReady, !member.isRetiring, member.inFlight == 0 { return number }
      idle.removeLast()
    }
    return nil
  }

  /// A connection over a slow line, which may take a message before the last one is answered for. New connections
  /// come first, but each takes many round trips to open, one after the other.
  func overlappingConnection() -> Int? {
    connections.values.filter { $0.isReady && !$0.isRetiring && $0.inFlight < $0.depth }
      .min { $0.inFlight < $1.inFlight }?.connection.number
  }

  /// In microseconds. Nothing is ever put off for longer: what seems to be was written while the clock was ahead.
  var longestWait: Int64 {
    let longest = delivery.retrySchedule.steps.max() ?? .zero
    return max(longest, .seconds(3600)).microseconds / 4 * 5
  }

  var connectionLimit: Int {
    hold == nil ? min(settings.maximumConnections, pace.limits?.connections ?? .max) : 1
  }

  /// Messages that our connections have, or are about to get.
  var underWay: Int { active.count - lent.count + carrying.count }

  // MARK: A message and its connection

  private func occupy(_ number: Int) {
    guard var member = connections[number] else { return }
    member.inFlight += 1
    member.taken += 1
    if member.taken >= settings.messagesPerConnection { member.isRetiring = true }
    connections[number] = member
    if idle.last == number { idle.removeLast() }
  }

  /// Hands a job to a connection. Returns false when the ledger does not let it go.
  private func send(_ job: Job, over number: Int) -> Bool {
    var job = job
    guard enter(&job, time.now) else { return false }
    meter.count(time.now)
    connections[number]?.connection.hand(job)
    return true
  }

  func dispatch(_ guest: Guest, over number: Int) {
    occupy(number)
    carrying.insert(guest.loan)
    var job = guest.job
    job.owner = guest.owner
    if send(job, over: number) { return }
    carrying.remove(guest.loan)
    bucket?.refund()
    release(number)
    guests.insert(guest, at: 0)
  }

  func dispatch(_ entry: Due, over number: Int) {
    occupy(number)
    active.insert(entry.id)
    if let message = takeFresh(entry.id) {
      let job = Job(
        id: message.id, envelope: message.envelope, recipients: message.recipients,
        content: message.content, lane: name)
      if send(services.leavingNow(job, by: name), over: number) { return }
      abandon(entry.id, on: number)
      due.insert(entry)
    } else {
      Task(executorPreference: seat.loop) { await self.load(entry, over: number) }
    }
  }

  // MARK: Reading back

  /// Reads a message back from the queue and starts it, unless the queue has changed its mind meanwhile.
  func load(_ entry: Due, over number: Int) async {
    var job: Job?
    do {
      job = try await services.store.read(entry.id).flatMap { self.job(for: $0, entry) }
      if let wanted = job { job = try await services.leaving(wanted, by: name) }
    } catch {
      services.log.error("\(entry.id): cannot read the message from the queue: \(error)")
      lastError = "\(error)"
      abandon(entry.id, on: number)
      if case .corrupt = error { return damaged(entry.id, error) }
      // What was to be tried whatever its time is that still.
      if entry.when == Due.forced { unread.insert(entry.id) }
      due.insert(Due(when: (time.wallClock + .seconds(60)).microseconds, id: entry.id))
      return pump()
    }
    guard let job else {
      surplus = max(0, surplus - 1)
      abandon(entry.id, on: number)
      return pump()
    }
    guard let member = connections[number], member.isReady, !member.isDying else {
      abandon(entry.id, on: number)
      due.insert(entry)
      return pump()
    }
    // No suspension since the look at the connection: it could be gone by then.
    if send(job, over: number) { return }
    abandon(entry.id, on: number)
    due.insert(entry)
    pump()
  }

  /// Nobody is to get a message that is not what was accepted: it stays, and the operator decides.
  func damaged(_ id: QueueID, _ error: QueueError) {
    services.log.critical("\(id): damaged in the queue, and held: \(error)")
    services.store.update(id) { [now = time.wallClock] state in
      state.keepBack(damagedBy: "\(error)", at: now)
    }
    pump()
  }

  func job(for message: QueuedMessage, _ entry: Due) -> Job? {
    let state = message.state
    // A message may be dead for some of its recipients and still have to reach the others.
    if state.isHeld { return nil }
    let lane = state.lanes[name]
    let planned = lane?.nextAttempt ?? message.envelope.arrival
    // Put off since: there is a later entry. (An entry may also be later than the plan: then reading it failed.)
    let isForced = entry.when == Due.forced || unread.remove(entry.id) != nil
    if !isForced, (lane?.attempts ?? 0) > 0, planned.microseconds > entry.when { return nil }
    let open = message.envelope.recipients.indices.filter {
      message.envelope.recipients[$0].account == name && state.recipients[$0] == nil
    }
    if open.isEmpty { return nil }
    return Job(
      id: message.id, envelope: message.envelope, recipients: open, before: lane.map { asPlanned($0, state) },
      content: message.content, lane: name, firstAttempt: state.firstAttempt, isDelayReported: state.isDelayReported)
  }

  /// The lane with the time that was planned for its next attempt. The release of a hold sets it to its own time, so that
  /// a restart does not delay what was released; then only the life of the message tells, and the wait is reckoned anew.
  private func asPlanned(_ lane: Lane, _ state: MessageState) -> Lane {
    guard lane.attempts > 0, let last = state.lastAttempt(of: name),
      state.life.contains(where: { $0.kind == .released && $0.time == lane.nextAttempt })
    else { return lane }
    var lane = lane
    lane.nextAttempt =
      last
      + delivery.retrySchedule.delay(afterAttempt: lane.attempts, within: delivery.queueLifetime, random: 0.5)
    return lane
  }

  // MARK: Giving back

  /// Gives back the place and the token of a message that is not sent after all.
  func abandon(_ id: QueueID, on number: Int) {
    active.remove(id)
    if wanted.remove(id) != nil { force(id) }
    bucket?.refund()
    release(number)
    stopIfDone()
  }

  func release(_ number: Int) {
    guard var member = connections[number] else { return }
    member.inFlight -= 1
    connections[number] = member
    guard member.inFlight == 0 else { return }
    if member.isDying { return }
    if member.isRetiring || isStopping {
      member.connection.leave()
    } else {
      idle.append(number)
    }
  }
}
