// Failover: while an account is on hold, others carry its mail.
//
// The account stays the owner of its messages: of their times, their state in the queue, and what operators ask. It
// lends a message, one at a time, to the first of its fallbacks that has room. The carrier sends it under its own
// limits and its own holds, writes down what became of it under the owner's name, and gives it back. As long as it is
// lent the owner counts it as under way, so that nobody else touches it; as long as the carrier has not begun with it,
// the owner can have it back. Nothing of this is on disk: after a restart everything is with its owner.

import Logging
import Primitives
import Spool

/// A message that another account carries for its owner.
struct Guest: Sendable {
  let job: Job
  /// Its place in the owner's heap.
  let entry: Due
  let owner: Account

  var loan: Loan { Loan(id: job.id, owner: owner.name) }
}

/// Names a guest: one message may come from two owners, for different recipients.
struct Loan: Sendable, Hashable {
  let id: QueueID
  let owner: String
}

extension Account {
  // MARK: The owner

  /// Whether the account sends nothing, or one canary at most.
  var isHeldUp: Bool { hold != nil || limitHold != nil || (loginHold != nil && !hasLivingConnection) }

  var hasLivingConnection: Bool { connections.values.contains { $0.isReady && !$0.isDying } }

  private static let lendingRetry = Duration.seconds(10)

  /// Has others carry what is due.
  func lendDue() {
    guard !settings.fallbacks.isEmpty, let first = due.min else { return }
    guard first.when <= time.wallClock.microseconds else { return wakeToLend(first) }
    // Somebody may have made room behind the question that is under way.
    lendsAgain = isLending
    if isLending { return }
    isLending = true
    Task(executorPreference: seat.loop) { await self.lendAll() }
  }

  private func lendAll() async {
    repeat {
      lendsAgain = false
      await lendWhatIsDue()
    } while lendsAgain
    isLending = false
    if isHeldUp, let first = due.min { wakeToLend(first) }
    stopIfDone()
  }

  private func wakeToLend(_ first: Due) {
    let wall = time.wallClock.microseconds
    // Nobody tells when a carrier has room again; a guest that comes back asks anew as well. The wall clock may be set
    // meanwhile: look again within a minute.
    let wait = first.when <= wall ? Self.lendingRetry : min(.microseconds(first.when - wall), .seconds(60))
    wake(at: time.now + wait)
  }

  private func lendWhatIsDue() async {
    while let carrier = await carrierWithRoom() {
      guard let entry = takeForLending() else { return await carrier.withdrawGuest() }
      active.insert(entry.id)
      lent[entry.id] = carrier
      guard let job = await jobToLend(entry, to: carrier) else {
        await carrier.withdrawGuest()
        continue
      }
      if carriedBy != carrier.name {
        carriedBy = carrier.name
        let fault = (hold ?? limitHold ?? loginHold)?.fault.rawValue ?? "on hold"
        services.log.notice("account \(name): carried by \(carrier.name) while it is on hold (\(fault))")
      }
      await carrier.carry(Guest(job: job, entry: entry, owner: self))
    }
  }

  /// The first fallback that takes a message now; it keeps a place for it.
  private func carrierWithRoom() async -> Account? {
    for fallback in settings.fallbacks {
      guard isHeldUp, !isStopping else { return nil }
      if let carrier = peers(fallback), carrier !== self, await carrier.admitGuest() { return carrier }
    }
    return nil
  }

  private func takeForLending() -> Due? {
    while isHeldUp, !isStopping, settings.isEnabled, let first = due.min, first.when <= time.wallClock.microseconds {
      if passesOver(first) { continue }
      removeDue()
      return first
    }
    return nil
  }

  /// As it leaves through the carrier, whose rules about senders count.
  private func jobToLend(_ entry: Due, to carrier: Account) async -> Job? {
    if let message = takeFresh(entry.id) {
      let job = Job(
        id: message.id, envelope: message.envelope, recipients: message.recipients,
        content: message.content, lane: name)
      return services.leavingNow(job, by: carrier.name)
    }
    let job: Job?
    do {
      let read = try await services.store.read(entry.id).flatMap { self.job(for: $0, entry) }
      if let read { job = try await services.leaving(read, by: carrier.name) } else { job = nil }
    } catch {
      services.log.error("\(entry.id): cannot read the message from the queue: \(error)")
      if case .corrupt = error {
        damaged(entry.id, error)
        takeBack(entry.id, nil)
        return nil
      }
      takeBack(entry.id, Due(when: (time.wallClock + .seconds(60)).microseconds, id: entry.id))
      return nil
    }
    if let job { return job }
    takeBack(entry.id, nil)
    return nil
  }

  /// The message is with its owner again.
  /// - Parameter next: when to try it; nil when there is nothing left to try.
  func takeBack(_ id: QueueID, _ next: Due?) {
    active.remove(id)
    lent[id] = nil
    if wanted.remove(id) != nil {
      force(id)
    } else if let next {
      due.insert(next)
    }
    pump()
    stopIfDone()
  }

  /// The carrier cannot go on: it is on hold itself.
  func takeReturned(_ guest: Guest) {
    carriedBy = nil
    takeBack(guest.job.id, guest.entry)
  }

  /// As ``takeBack(_:_:)``, after an attempt.
  func takeBack(_ job: Job, after lane: Lane?, isForced: Bool) {
    lent[job.id] = nil
    finish(job, lane, isForced: isForced)
    pump()
    stopIfDone()
  }

  /// Has a message back that its carrier has not begun with. Returns false when it is on its way.
  func reclaim(_ id: QueueID) async -> Bool {
    guard let carrier = lent[id] else { return !active.contains(id) }
    guard await carrier.giveBack(Loan(id: id, owner: name)) else { return false }
    active.remove(id)
    lent[id] = nil
    force(id)
    return true
  }

  /// Says that the mail goes its own way again.
  func endCarriage() {
    guard let carrier = carriedBy, !isHeldUp else { return }
    carriedBy = nil
    services.log.notice("account \(name): carries its own mail again, after \(carrier) has carried it")
  }

  // MARK: The carrier

  /// Keeps a place for a guest, if there is one.
  func admitGuest() -> Bool {
    let now = time.now
    guard !isStopping, settings.isEnabled else { return false }
    lookAtLimitAgain(now)
    guard limitHold == nil else { return false }
    // Behind a hold whose time has come a guest may be the canary, when there is no mail of our own.
    let isFree = underWay == 0 && guests.isEmpty && placesKept == 0 && due.isEmpty
    if let hold, now < hold.until || !isFree { return false }
    if let loginHold, !hasLivingConnection, now < loginHold.until || !isFree { return false }
    guard guests.count + placesKept < connectionLimit else { return false }
    placesKept += 1
    return true
  }

  /// The place is not needed.
  func withdrawGuest() { placesKept -= 1 }

  /// Takes the guest that has its place.
  func carry(_ guest: Guest) {
    placesKept -= 1
    guests.append(guest)
    pump()
    if isStopping || !settings.isEnabled { returnGuests() }
  }

  func giveBack(_ loan: Loan) -> Bool {
    guard let place = guests.firstIndex(where: { $0.loan == loan }) else { return false }
    guests.remove(at: place)
    return true
  }

  /// Gives back all that was not begun with: it may go by somebody else.
  func returnGuests() {
    let all = guests
    guests = []
    for guest in all {
      Task(executorPreference: guest.owner.seat.loop) { await guest.owner.takeReturned(guest) }
    }
  }

  /// Whether guests had better look for another carrier.
  func refusesGuests(_ now: MonotonicInstant) -> Bool {
    if let hold, now < hold.until { return true }
    if limitHold != nil { return true }
    return loginHold.map { now < $0.until && !hasLivingConnection } ?? false
  }
}
