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
  nonisolated let loop: EventLoop
  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  private(set) var settings: UpstreamSettings
  private var delivery: DeliverySettings
  private let services: DeliveryServices
  private var time: any Timekeeper { services.time }
  private var context: TLSContext?

  // MARK: State

  private var due = Heap<Due>()
  /// Contents that are still in memory, so that most messages are never read back.
  private var fresh: [QueueID: FreshMessage] = [:]
  private var freshBytes = 0
  private static let freshLimit = 16 * 1024 * 1024
  /// Messages that a connection has, or is about to get.
  private var active: Set<QueueID> = []
  /// Messages that are being deleted, with the entries that were passed over meanwhile.
  private var cancelled: [QueueID: [Due]] = [:]

  private var bucket: TokenBucket?
  private var connections: [Int: Member] = [:]
  private var idle: [Int] = []
  private var nextNumber = 0
  private var isOpening = false

  /// While set, nothing is sent; when its time has come, one message is, as a canary.
  private var hold: Hold?
  private var holdBackOff = BackOff(first: .seconds(60), limit: .seconds(3600))
  /// While set, no connection is opened; those that live go on.
  private var loginHold: Hold?
  private var loginBackOff = BackOff(first: .seconds(1), limit: .seconds(300))
  private var refusalBackOff = BackOff(first: .seconds(60), limit: .seconds(3600))

  private var isStopping = false
  private var whenStopped: [CheckedContinuation<Void, Never>] = []
  private(set) var counters = AccountCounters()
  private var lastError: String?

  private struct Member {
    let connection: UpstreamConnection
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
  }

  init(settings: UpstreamSettings, delivery: DeliverySettings, services: DeliveryServices, loop: EventLoop) {
    name = settings.name
    self.settings = settings
    self.delivery = delivery
    self.services = services
    self.loop = loop
    bucket = settings.rate.map { TokenBucket(perMinute: $0.perMinute, burst: $0.burst, now: services.time.now) }
  }

  // MARK: Coming in

  private nonisolated let inbox = Mutex<[FreshMessage]>([])

  /// Takes a message that has just become durable. From any thread; only the first of a burst wakes the loop.
  nonisolated func submit(_ message: FreshMessage) {
    let isFirst = inbox.withLock { messages in
      messages.append(message)
      return messages.count == 1
    }
    if isFirst { loop.execute { self.assumeIsolated { $0.takeInbox() } } }
  }

  private func takeInbox() {
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
    pump()
  }

  private func takeFresh(_ id: QueueID) -> FreshMessage? {
    guard let message = fresh.removeValue(forKey: id) else { return nil }
    if case .bytes(let bytes) = message.content { freshBytes -= bytes.count }
    return message
  }

  /// Adds what the queue held when the daemon started.
  func recover(_ entries: [(id: QueueID, when: Timestamp)]) {
    for entry in entries { due.insert(Due(when: entry.when.microseconds, id: entry.id)) }
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
    }
    pump()
  }

  /// Keeps back a message that is about to be removed, until ``endCancel(_:isRemoved:)``: other accounts have to be
  /// asked first. Returns false when it is being delivered now.
  func cancel(_ id: QueueID) -> Bool {
    if active.contains(id) { return false }
    cancelled[id] = []
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
    self.delivery = delivery
    guard changed else { return }
    self.settings = settings
    let now = time.now
    if let rate = settings.rate {
      if bucket != nil {
        bucket?.change(perMinute: rate.perMinute, burst: rate.burst, now: now)
      } else {
        bucket = TokenBucket(perMinute: rate.perMinute, burst: rate.burst, now: now)
      }
    } else {
      bucket = nil
    }
    context = nil
    // A new password or server deserves a try at once; connections of the old settings finish what they have.
    hold = nil
    loginHold = nil
    for number in connections.keys { retire(number) }
    pump()
  }

  // MARK: Dispatch

  private var wakeAt: MonotonicInstant?
  private var waker: Task<Void, Never>?

  private func wake(at moment: MonotonicInstant) {
    if let wakeAt, wakeAt <= moment { return }
    wakeAt = moment
    waker?.cancel()
    waker = Task { [time] in
      guard (try? await time.sleep(until: moment)) != nil else { return }
      wakeAt = nil
      pump()
    }
  }

  /// Hands out what is due while there is a connection, a token and no reason to wait.
  private func pump() {
    guard !isStopping, settings.isEnabled, !due.isEmpty else { return }
    let now = time.now
    if let hold, now < hold.until { return wake(at: hold.until) }
    let wall = time.wallClock.microseconds
    while let first = due.min {
      if first.when > wall {
        // The wall clock may be set meanwhile: look again within a minute.
        return wake(at: now + min(.microseconds(first.when - wall), .seconds(60)))
      }
      // Behind a hold one message goes alone, to see whether it is over.
      if hold != nil, !active.isEmpty { return }
      if cancelled[first.id] != nil {
        cancelled[first.id]?.append(first)
        due.removeMin()
        continue
      }
      if active.contains(first.id) {
        due.removeMin()
        continue
      }
      guard let number = freeConnection() else { return open(now) }
      if let again = bucket?.reserve(now: now) {
        counters.throttled += 1
        return wake(at: again)
      }
      due.removeMin()
      dispatch(first, over: number)
    }
  }

  private func freeConnection() -> Int? {
    while let number = idle.last {
      if let member = connections[number], member.takes(0) { return number }
      idle.removeLast()
    }
    // On a slow line a message may follow before the last one is answered for; a new connection comes first.
    guard connections.count >= connectionLimit else { return nil }
    return connections.values.filter { $0.takes($0.depth - 1) }
      .min { $0.inFlight < $1.inFlight }?.connection.number
  }

  private var connectionLimit: Int { hold == nil ? settings.maximumConnections : 1 }

  private func dispatch(_ entry: Due, over number: Int) {
    guard var member = connections[number] else { return }
    member.inFlight += 1
    member.taken += 1
    if member.taken >= settings.messagesPerConnection { member.isRetiring = true }
    connections[number] = member
    if idle.last == number { idle.removeLast() }
    active.insert(entry.id)
    if let message = takeFresh(entry.id) {
      let job = Job(
        id: message.id, envelope: message.envelope, recipients: message.recipients, attempts: 0,
        content: message.content)
      member.connection.assumeIsolated { $0.start(job) }
    } else {
      Task { await load(entry, over: number) }
    }
  }

  /// Reads a message back from the queue and starts it, unless the queue has changed its mind meanwhile.
  private func load(_ entry: Due, over number: Int) async {
    let message: QueuedMessage?
    do { message = try await services.store.read(entry.id) } catch {
      services.log.error("\(entry.id): cannot read the message from the queue: \(error)")
      lastError = "\(error)"
      abandon(entry.id, on: number)
      due.insert(Due(when: (time.wallClock + .seconds(60)).microseconds, id: entry.id))
      return pump()
    }
    guard let message, let job = job(for: message, entry) else {
      abandon(entry.id, on: number)
      return pump()
    }
    guard let member = connections[number], member.isReady, !member.isDying else {
      abandon(entry.id, on: number)
      due.insert(entry)
      return pump()
    }
    start(job, over: member.connection)
  }

  /// Without a suspension between the look at the connection and its start: it could be gone then.
  private func start(_ job: Job, over connection: UpstreamConnection) {
    connection.assumeIsolated { $0.start(job) }
  }

  private func job(for message: QueuedMessage, _ entry: Due) -> Job? {
    let state = message.state
    // A message may be dead for some of its recipients and still have to reach the others.
    if state.isHeld { return nil }
    let lane = state.lanes[name]
    let planned = lane?.nextAttempt ?? message.envelope.arrival
    // Put off since: there is a later entry. (An entry may also be later than the plan: then reading it failed.)
    if entry.when != Due.forced, planned.microseconds > entry.when { return nil }
    let open = message.envelope.recipients.indices.filter {
      message.envelope.recipients[$0].account == name && state.recipients[$0] == nil
    }
    if open.isEmpty { return nil }
    return Job(
      id: message.id, envelope: message.envelope, recipients: open, attempts: lane?.attempts ?? 0,
      content: message.content)
  }

  /// Gives back the place and the token of a message that is not sent after all.
  private func abandon(_ id: QueueID, on number: Int) {
    active.remove(id)
    bucket?.refund()
    release(number)
    stopIfDone()
  }

  private func release(_ number: Int) {
    guard var member = connections[number] else { return }
    member.inFlight -= 1
    connections[number] = member
    guard member.inFlight == 0 else { return }
    if member.isDying { return }
    if member.isRetiring || isStopping {
      member.connection.assumeIsolated { $0.quit() }
    } else {
      idle.append(number)
    }
  }

  // MARK: The pool

  private func open(_ now: MonotonicInstant) {
    guard !isOpening, connections.count < connectionLimit else { return }
    if let loginHold, now < loginHold.until { return wake(at: loginHold.until) }
    let context: TLSContext?
    do { context = try tlsContext() } catch {
      return holdLogins(.certificate, "\(error)")
    }
    isOpening = true
    nextNumber += 1
    counters.connections += 1
    let connection = UpstreamConnection(
      number: nextNumber, settings: settings, account: self, loop: loop, time: time)
    connections[nextNumber] = Member(connection: connection)
    let resolver = services.resolver
    Task(executorPreference: loop) { await connection.run(resolver: resolver, context: context) }
  }

  private func tlsContext() throws(NetworkError) -> TLSContext? {
    if settings.security == .none { return nil }
    if let context { return context }
    let made = try TLSContext.client(caFile: settings.caFile, minimum: settings.minimumTLS)
    context = made
    return made
  }

  func opened(_ number: Int, peer: String, tls: TLSSummary?) {
    isOpening = false
    counters.logins += settings.credential == nil ? 0 : 1
    if tls?.isResumed == true { counters.resumed += 1 }
    // The back-off goes on until a message is judged: an upstream may let us in only to throw us out.
    if loginHold != nil { services.log.notice("account \(name): connected again") }
    loginHold = nil
    connections[number]?.peer = peer
    connections[number]?.isReady = true
    let security = tls.map { "\($0.version) \($0.cipher)\($0.isResumed ? " resumed" : "")" } ?? "in clear"
    let login = settings.credential.map { ", logged in as \($0.username) (\($0.mechanism.rawValue))" } ?? ""
    services.log.info("account \(name): connection \(number) to \(peer) is ready: \(security)\(login)")
    if connections[number]?.isRetiring == true {
      connections[number]?.connection.assumeIsolated { $0.quit() }
      return
    }
    idle.append(number)
    pump()
    stopIfDone()
  }

  func openingFailed(_ number: Int, _ failure: OpenFailure) {
    isOpening = false
    let isOutdated = connections.removeValue(forKey: number)?.isRetiring ?? true
    // What the settings of before were refused for says nothing about those of now.
    if !isOutdated { holdLogins(failure.fault, failure.description) }
    pump()
    stopIfDone()
  }

  /// No new connections for a while. With none alive this is what keeps the mail waiting; nobody's mail ages by it.
  private func holdLogins(_ fault: AccountFault, _ reason: String) {
    let wait: Duration
    switch fault {
    case .unreachable, .certificate, .insecure: wait = loginBackOff.fail(random: services.random())
    // Each refused login counts against the account: Gmail locks those who insist.
    default: wait = refusalBackOff.fail(random: services.random())
    }
    loginHold = Hold(fault: fault, reason: reason, until: time.now + wait, since: loginHold?.since ?? time.wallClock)
    lastError = reason
    services.log.error(
      "account \(name): no connection (\(fault.rawValue)): \(reason); \(mailWaits), next try in \(wait.rounded); \(fault.advice)"
    )
    if !due.isEmpty { wake(at: time.now + wait) }
  }

  private var mailWaits: String { "\(due.count + active.count) messages wait" }

  /// The account cannot send: everything waits, and one canary goes when the time has come.
  private func holdAll(_ fault: AccountFault, _ reason: String) {
    let wait = holdBackOff.fail(random: services.random())
    hold = Hold(fault: fault, reason: reason, until: time.now + wait, since: hold?.since ?? time.wallClock)
    lastError = reason
    services.log.error(
      "account \(name): on hold (\(fault.rawValue)): \(reason); \(mailWaits), a canary goes in \(wait.rounded); \(fault.advice)"
    )
    wake(at: time.now + wait)
  }

  private func endHold() {
    holdBackOff.succeed()
    guard let old = hold else { return }
    hold = nil
    services.log.notice("account \(name): sends again, after a hold for \(old.fault.rawValue)")
  }

  private func retire(_ number: Int) {
    connections[number]?.isRetiring = true
    guard let member = connections[number], member.isReady, member.inFlight == 0 else { return }
    member.connection.assumeIsolated { $0.quit() }
  }

  /// - Parameter isFault: the upstream left in the middle of something, or said why.
  func closed(_ number: Int, _ reason: String, peer: String, isFault: Bool) {
    guard let member = connections.removeValue(forKey: number) else { return }
    idle.removeAll { $0 == number }
    services.log.debug(
      "account \(name): connection \(number) to \(peer) closed after \(member.delivered) messages: \(reason)")
    if isFault, member.delivered == 0, !isStopping {
      // An upstream that lets us in and throws us out is not there for us.
      holdLogins(.unreachable, "\(peer): \(reason)")
    }
    pump()
    stopIfDone()
  }

  // MARK: Outcomes

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
  private func settle(_ job: Job, _ outcome: ClientTransaction.Outcome, peer: String) {
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

  private func judge(
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

  private func note(_ job: Job, _ index: Int, _ status: String, _ reply: Reply, _ peer: String) {
    let recipient = job.envelope.recipients[index]
    let rewritten = recipient.original == recipient.address ? "" : ", orig_to=<\(recipient.original)>"
    let delay = (time.wallClock - job.envelope.arrival).rounded
    services.log.info(
      "\(job.id): to=<\(recipient.address)>\(rewritten), account=\(name), relay=\(peer), delay=\(delay), status=\(status) (\(reply))"
    )
  }

  /// Writes down what became of a message that is not simply done.
  private func record(_ job: Job, _ verdict: Verdict) {
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

  private func waitBeforeRetry(_ verdict: Verdict, _ attempts: Int) -> Duration {
    if verdict.isSplit { return .zero }
    if verdict.counts { return delivery.retrySchedule.delay(afterAttempt: attempts, random: services.random()) }
    if verdict.isOurs { return .seconds(3600) }
    // A message that breaks every connection must not be the only one that ever goes.
    return verdict.isInterrupted ? .seconds(30) : .zero
  }

  /// Tells the sender first and writes the failure down then: a crash between the two repeats the notification and
  /// loses nothing.
  private func bounce(_ job: Job, _ delivered: [Int], _ failed: [(Int, Reply)], _ lane: Lane?, _ lastReply: String) {
    let failures = failed.map { BounceFailure(recipient: job.envelope.recipients[$0.0], reply: $0.1) }
    Task {
      let outcome = await services.bounce(job.id, job.envelope, job.content, failures)
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

  private func finishRecord(_ job: Job, _ next: Timestamp?) {
    active.remove(job.id)
    if let next { due.insert(Due(when: next.microseconds, id: job.id)) }
  }

  // MARK: The end

  /// Hands out nothing more, waits for what is under way, at most until `deadline`, and leaves.
  func stop(within grace: Duration) async {
    isStopping = true
    waker?.cancel()
    for number in connections.keys { retire(number) }
    let alarm = Task {
      try? await time.sleep(until: time.now + grace)
      if !Task.isCancelled { abortAll() }
    }
    if !isDone {
      await withCheckedContinuation { whenStopped.append($0) }
    }
    alarm.cancel()
  }

  /// A connection that is only being opened keeps nobody waiting.
  private var isDone: Bool { active.isEmpty && !connections.values.contains(where: \.isReady) }

  private func stopIfDone() {
    guard isStopping, isDone else { return }
    for waiter in whenStopped { waiter.resume() }
    whenStopped = []
  }

  private func abortAll() {
    for member in connections.values { member.connection.assumeIsolated { $0.abort() } }
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

/// What is to be done with the recipients of one attempt.
private struct Verdict {
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
