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
  /// Messages with an entry that is tried at once.
  var forced: Set<QueueID> = []
  /// Messages that could not be read when an operator wanted them tried.
  var unread: Set<QueueID> = []
  /// How many entries are second ones of their messages, and will come to nothing.
  var surplus = 0
  /// When an operator's order has last ended a hold.
  var liftedAt: MonotonicInstant?
  static let liftInterval = Duration.seconds(10)
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

  /// When the account looks again by itself.
  var wakeAt: MonotonicInstant?
  var waker: Task<Void, Never>?

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
    /// The upstream had let us in, and threw us out.
    var isAfterLogin = false

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
      for id in ids where !active.contains(id) && force(id) { surplus += 1 }
      endHoldsEarly()
    } else {
      forced = Set(due.unordered.lazy.map(\.id))
      due = Heap(forced.map { Due(when: Due.forced, id: $0) })
      surplus = 0
      hold = nil
      loginHold = nil
      limitHold = nil
    }
    pump()
  }

  /// Has a message tried as soon as possible. One entry of the kind is enough, however often somebody asks.
  /// - Returns: whether there was none.
  @discardableResult func force(_ id: QueueID) -> Bool {
    guard forced.insert(id).inserted else { return false }
    due.insert(Due(when: Due.forced, id: id))
    return true
  }

  /// Takes the first entry off the heap.
  func removeDue() {
    guard !due.isEmpty else { return }
    let entry = due.removeMin()
    if entry.when == Due.forced { forced.remove(entry.id) }
  }

  /// Lets one message go as the canary now: one message is no reason to let all the others loose on an account that is
  /// blocked. An order on thousands of messages comes as thousands of these, and must not become as many logins.
  private func endHoldsEarly() {
    let now = time.now
    let moment = max(now, liftedAt.map { $0 + Self.liftInterval } ?? now)
    if hold != nil || loginHold != nil, moment == now { liftedAt = now }
    if let hold, moment < hold.until { self.hold?.until = moment }
    if let loginHold, moment < loginHold.until { self.loginHold?.until = moment }
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
      force(id)
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
}
