// An account: everything that leaves through one login at one upstream. It owns the heap of due messages, the token
// bucket, the breaker and the pool, and lives with its connections on one event loop, so that none of it needs a lock.

import Collections
import Logging
import Network
import Primitives
import SMTP
import Spool

/// A message and when it may be tried. The time is the wall clock's, as the queue has it on disk: an entry that is
/// earlier than what is on disk is stale and is dropped.
struct Due: Comparable {
  var when: Int64
  var id: QueueID

  /// Tried at once, whatever the queue says.
  static let forced = Int64.min

  static func < (a: Self, b: Self) -> Bool { a.when != b.when ? a.when < b.when : a.id < b.id }
}

/// A message as it comes from the front door, still in memory.
struct FreshMessage: Sendable {
  let id: QueueID
  let envelope: Envelope
  let recipients: [Int]
  let content: Content
}

actor Account {
  nonisolated let name: String
  nonisolated let seat: Seat
  nonisolated var unownedExecutor: UnownedSerialExecutor { seat.loop.asUnownedSerialExecutor() }

  var settings: UpstreamSettings
  var delivery: DeliverySettings
  let services: DeliveryServices
  var time: any Timekeeper { services.time }
  var context: TLSContext?

  // MARK: State

  var due = Heap<Due>()
  /// Contents that are still in memory, so that most messages are never read back.
  var fresh: [QueueID: FreshMessage] = [:]
  var freshBytes = 0
  static let freshLimit = 16 * 1024 * 1024
  /// Messages that a connection has, or is about to get.
  var active: Set<QueueID> = []
  /// Messages that are being deleted, with the entries that were passed over meanwhile.
  var cancelled: [QueueID: [Due]] = [:]
  /// Messages that were released while they were active: tried again, should this attempt come to nothing.
  var wanted: Set<QueueID> = []
  /// When the senders of deferred messages are to be told that they are late.
  var warnings = Heap<Due>()
  var watched: Set<QueueID> = []
  var isWarning = false

  var ledgers = LedgerState()
  var pace = Pace()
  var meter = RateMeter()
  var bucket: TokenBucket?
  var connections: [Int: Member] = [:]
  var idle: [Int] = []
  var nextNumber = 0
  var isOpening = false

  /// While set, nothing is sent; when its time has come, one message is, as a canary.
  var hold: Hold?
  var holdBackOff = BackOff(first: .seconds(60), limit: .seconds(3600))
  /// While set, no connection is opened; those that live go on.
  var loginHold: Hold?
  var loginBackOff = BackOff(first: .seconds(1), limit: .seconds(300))
  var refusalBackOff = BackOff(first: .seconds(60), limit: .seconds(3600))
  /// While set, the ledger is full: nothing is sent.
  var limitHold: Hold?

  /// Finds another account by its name.
  let peers: @Sendable (String) -> Account?
  /// Messages of ours that another account carries; they count as active.
  var lent: [QueueID: Account] = [:]
  var isLending = false
  var lendsAgain = false
  /// Who has carried the last one, while the account is on hold.
  var carriedBy: String?
  /// Messages of other accounts that wait here, how many places are kept for more, and those that are under way.
  var guests: [Guest] = []
  var placesKept = 0
  var carrying: Set<Loan> = []

  var isStopping = false
  var whenStopped: [CheckedContinuation<Void, Never>] = []
  var counters = AccountCounters()
  var lastError: String?

  struct Member {
    let connection: any UpstreamLink
    var peer = ""
    var isReady = false
    var inFlight = 0
    var depth = 1
    var taken = 0
    var delivered = 0
    var isRetiring = false
    /// The upstream has said that it leaves: what is sent now would only be in doubt.
    var isDying = false

    func takes(_ others: Int) -> Bool { isReady && !isRetiring && !isDying && inFlight <= others }
  }

  struct Hold: Sendable {
    var fault: AccountFault
    var reason: String
    var until: MonotonicInstant
    var since: Timestamp
    /// What the reply says beyond the fault.
    var hint: String?

    var advice: String { hint.map { "\($0); \(fault.advice)" } ?? fault.advice }
  }

  init(
    settings: UpstreamSettings, delivery: DeliverySettings, services: DeliveryServices, seat: Seat,
    peers: @escaping @Sendable (String) -> Account? = { _ in nil }
  ) {
    name = settings.name
    self.peers = peers
    self.settings = settings
    self.delivery = delivery
    self.services = services
    self.seat = seat
    bucket = settings.rate.map { TokenBucket(perMinute: $0.perMinute, burst: $0.burst, now: services.time.now) }
  }

  // MARK: Coming in

  nonisolated let inbox = Mutex<[FreshMessage]>([])

  /// Takes a message that has just become durable. From any thread; only the first of a burst wakes the loop.
  nonisolated func submit(_ message: FreshMessage) {
    let isFirst = inbox.withLock { messages in
      messages.append(message)
      return messages.count == 1
    }
    if isFirst { seat.loop.execute { self.assumeIsolated { $0.takeInbox() } } }
  }

  func takeInbox() {
    drainInbox()
    pump()
  }

  private func drainInbox() {
    let messages = inbox.withLock { messages in
      let taken = messages
      messages = []
      return taken
    }
    for message in messages {
      due.insert(Due(when: message.envelope.arrival.microseconds, id: message.id))
      if case .bytes(let bytes) = message.content, freshBytes + bytes.count <= Self.freshLimit {
        freshBytes += bytes.count
        fresh[message.id] = message
      }
    }
  }

  func takeFresh(_ id: QueueID) -> FreshMessage? {
    guard let message = fresh.removeValue(forKey: id) else { return nil }
    if case .bytes(let bytes) = message.content { freshBytes -= bytes.count }
    return message
  }

  /// Adds what the queue held when the daemon started.
  func recover(_ messages: [RecoveredMessage]) {
    for message in messages {
      due.insert(Due(when: message.when.microseconds, id: message.id))
      if let arrival = message.deferredSince { watchDelay(message.id, arrival) }
    }
    pump()
  }

  /// Tries these messages now; with nil, all of them, and forgets what the account was held for.
  func retry(_ ids: [QueueID]?) {
    if let ids {
      for id in ids where !active.contains(id) { due.insert(Due(when: Due.forced, id: id)) }
      // It goes as the canary; one message is no reason to let all the others loose on an account that is blocked.
      hold?.until = time.now
      loginHold?.until = time.now
    } else {
      let all = due.unordered
      due = Heap(all.map { Due(when: Due.forced, id: $0.id) })
      hold = nil
      loginHold = nil
      limitHold = nil
    }
    pump()
  }

  /// A message that is on hold from now on is not sent from memory: what the queue says of it decides.
  func forget(_ id: QueueID) async {
    if lent[id] != nil { _ = await reclaim(id) }
    drainInbox()
    _ = takeFresh(id)
    pump()
  }

  /// Tries a message again that had been on hold; its entry may have been dropped meanwhile.
  func resume(_ id: QueueID) {
    if active.contains(id) {
      wanted.insert(id)
    } else {
      due.insert(Due(when: Due.forced, id: id))
      pump()
    }
  }

  /// Keeps back a message that is about to be removed, until ``endCancel(_:isRemoved:)``: other accounts have to be
  /// asked first. Returns false when it is being delivered now.
  func cancel(_ id: QueueID) async -> Bool {
    if lent[id] != nil { _ = await reclaim(id) }
    if active.contains(id) { return false }
    cancelled[id] = []
    // It may have come this moment: then it must be found here when it is removed, and not afterwards.
    takeInbox()
    return true
  }

  /// The message is gone, or stays because another account delivers it now.
  func endCancel(_ id: QueueID, isRemoved: Bool) {
    guard let passed = cancelled.removeValue(forKey: id) else { return }
    if isRemoved {
      _ = takeFresh(id)
    } else {
      for entry in passed { due.insert(entry) }
      pump()
    }
  }

  func configure(_ settings: UpstreamSettings, _ delivery: DeliverySettings) {
    let changed = settings != self.settings
    shiftWarnings(from: self.delivery.delayWarning, to: delivery.delayWarning)
    self.delivery = delivery
    // The file of the authority may have changed behind the same name.
    context = nil
    guard changed else { return }
    self.settings = settings
    applyRate(time.now)
    // Without a limit nothing is counted; the file stays for the day on which there is one again.
    if let limit = settings.dailyLimit { ledgers.ledger?.limit = limit } else { ledgers = LedgerState() }
    limitHold = nil
    // A new password or server deserves a try at once; connections of the old settings finish what they have.
    hold = nil
    loginHold = nil
    for number in connections.keys { retire(number) }
    pump()
    if !settings.isEnabled { returnGuests() }
  }

  // MARK: Dispatch

  var wakeAt: MonotonicInstant?
  var waker: Task<Void, Never>?

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
        due.removeMin()
        dispatch(own, over: number)
      }
    }
  }

  /// Drops an entry whose message is being deleted or is under way.
  private func passesOver(_ entry: Due) -> Bool {
    if cancelled[entry.id] != nil {
      cancelled[entry.id]?.append(entry)
    } else if !active.contains(entry.id) {
      return false
    }
    due.removeMin()
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
  private var longestWait: Int64 {
    let longest = delivery.retrySchedule.steps.max() ?? .zero
    return max(longest, .seconds(3600)).microseconds / 4 * 5
  }

  var connectionLimit: Int {
    hold == nil ? min(settings.maximumConnections, pace.limits?.connections ?? .max) : 1
  }

  /// Messages that our connections have, or are about to get.
  var underWay: Int { active.count - lent.count + carrying.count }

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
        id: message.id, envelope: message.envelope, recipients: message.recipients, attempts: 0,
        content: message.content, lane: name)
      if send(services.leavingNow(job, by: name), over: number) { return }
      abandon(entry.id, on: number)
      due.insert(entry)
    } else {
      Task(executorPreference: seat.loop) { await self.load(entry, over: number) }
    }
  }

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
      due.insert(Due(when: (time.wallClock + .seconds(60)).microseconds, id: entry.id))
      return pump()
    }
    guard let job else {
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
      state.isHeld = true
      state.note(LifeEvent(time: now, kind: .held, text: "damaged in the queue: \(error)"))
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
    if entry.when != Due.forced, (lane?.attempts ?? 0) > 0, planned.microseconds > entry.when { return nil }
    let open = message.envelope.recipients.indices.filter {
      message.envelope.recipients[$0].account == name && state.recipients[$0] == nil
    }
    if open.isEmpty { return nil }
    return Job(
      id: message.id, envelope: message.envelope, recipients: open, attempts: lane?.attempts ?? 0,
      content: message.content, lane: name, firstAttempt: state.firstAttempt, isDelayReported: state.isDelayReported)
  }

  /// Gives back the place and the token of a message that is not sent after all.
  func abandon(_ id: QueueID, on number: Int) {
    active.remove(id)
    if wanted.remove(id) != nil { due.insert(Due(when: Due.forced, id: id)) }
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
