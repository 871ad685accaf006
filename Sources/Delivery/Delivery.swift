// The way out: which account carries what, and everybody's state. Accounts do the work; this is the door to them.

import Logging
import Network
import Primitives
import SMTP
import Spool

/// What the accounts share.
struct DeliveryServices: Sendable {
  let store: any QueueStore
  let resolver: Resolver
  let time: any Timekeeper
  let log: Logger
  /// In 0...1.
  let random: @Sendable () -> Double
  let bouncer: Bouncer
  /// nil keeps ledgers in memory.
  let ledgers: (any LedgerStore)?
  /// What an account changes about a message to recipients of a lane, its own or another's; nil for nothing.
  let departure: @Sendable (_ account: String, _ lane: String, Envelope) -> Departure?
  /// What became of the latest recipients, for those who ask right after.
  let verdicts = RecentVerdicts()
  /// Messages whose senders are being told of a delay at this moment: each is told once, whichever account is first.
  let warned = WarnedMessages()
}

/// Where a notification to a sender goes: the addresses it has upstream, and the `[domain:]` that carries each; none
/// when it cannot be sent. `lane` is the `[domain:]` of the message that it is about.
public typealias BounceRouting =
  @Sendable (_ sender: String, _ lane: String) -> [(address: String, account: String)]

/// The delivery of queued mail to its upstreams.
public final class Delivery: Sendable {
  let services: DeliveryServices
  private let seats: [Seat]
  private struct State {
    var accounts: [String: Account] = [:]
    var settings: DeliverySettings
    /// Messages that an operator takes out of the queue at this moment.
    var ordered: Set<QueueID> = []
  }
  private let state: Mutex<State>

  /// - Parameters:
  ///   - loops: each account lives on one of them.
  ///   - ledgers: where the recipients of the last 24 hours are counted; nil forgets them with the process.
  ///   - routeBounce: where a notification goes.
  ///   - departure: what the account of this name changes about a message; nil for nothing.
  public convenience init(
    store: any QueueStore, resolver: Resolver, loops: [EventLoop], time: any Timekeeper, settings: DeliverySettings,
    log: Logger, random: @escaping @Sendable () -> Double = { Double.random(in: 0...1) },
    ledgers: (any LedgerStore)? = nil,
    departure: @escaping @Sendable (String, String, Envelope) -> Departure? = { _, _, _ in nil },
    routeBounce: @escaping BounceRouting
  ) {
    self.init(
      store: store, resolver: resolver, seats: loops.map { Seat($0, time: time) }, time: time, settings: settings,
      log: log, random: random, ledgers: ledgers, departure: departure, routeBounce: routeBounce)
  }

  init(
    store: any QueueStore, resolver: Resolver, seats: [Seat], time: any Timekeeper, settings: DeliverySettings,
    log: Logger, random: @escaping @Sendable () -> Double, ledgers: (any LedgerStore)? = nil,
    departure: @escaping @Sendable (String, String, Envelope) -> Departure? = { _, _, _ in nil },
    routeBounce: @escaping BounceRouting
  ) {
    self.seats = seats
    state = Mutex(State(settings: settings))
    let submit = Mutex<(@Sendable (QueueID, Envelope, Content) -> Void)?>(nil)
    let bouncer = Bouncer(
      store: store, time: time, hostname: settings.hostname, log: log,
      limiter: NotificationLimiter(now: time.now), route: routeBounce,
      submit: { id, envelope, content in submit.withLock { $0 }?(id, envelope, content) })
    services = DeliveryServices(
      store: store, resolver: resolver, time: time, log: log, random: random, bouncer: bouncer,
      ledgers: ledgers, departure: departure)
    submit.withLock { slot in slot = { [weak self] in self?.submit($0, $1, $2) } }
  }

  /// Makes, changes and disables accounts. An account that is no longer named keeps its mail and sends nothing.
  public func configure(_ upstreams: [UpstreamSettings], _ settings: DeliverySettings) async {
    for upstream in upstreams {
      let (account, isNew) = state.withLock { state in
        state.settings = settings
        if let account = state.accounts[upstream.name] { return (account, false) }
        return (add(upstream, to: &state), true)
      }
      if !isNew { await account.configure(upstream, settings) }
      await account.openLedger()
    }
    let named = Set(upstreams.map(\.name))
    let gone = state.withLock { $0.accounts.filter { !named.contains($0.key) } }
    for (_, account) in gone {
      var last = await account.settings
      last.isEnabled = false
      await account.configure(last, settings)
    }
  }

  private func add(_ upstream: UpstreamSettings, to state: inout State) -> Account {
    let seat = seats[state.accounts.count % seats.count]
    let account = Account(settings: upstream, delivery: state.settings, services: services, seat: seat) {
      [weak self] name in self?.state.withLock { $0.accounts[name] }
    }
    state.accounts[upstream.name] = account
    return account
  }

  /// The account of a `[domain:]`. Mail whose `[domain:]` the configuration no longer has waits in one that is off.
  func account(_ name: String) -> Account {
    state.withLock { state in
      if let account = state.accounts[name] { return account }
      var missing = UpstreamSettings(
        name: name, account: "", host: "", port: 0, security: .none, credential: nil, heloName: "")
      missing.isEnabled = false
      return add(missing, to: &state)
    }
  }

  /// Takes a message that is durable in the queue. From any thread.
  public func submit(_ id: QueueID, _ envelope: Envelope, _ content: Content) {
    if let first = envelope.recipients.first, envelope.recipients.allSatisfy({ $0.account == first.account }) {
      let all = Array(envelope.recipients.indices)
      account(first.account).submit(FreshMessage(id: id, envelope: envelope, recipients: all, content: content))
      return
    }
    let lanes = Dictionary(grouping: envelope.recipients.indices) { envelope.recipients[$0].account }
    for (name, indices) in lanes {
      account(name).submit(FreshMessage(id: id, envelope: envelope, recipients: indices, content: content))
    }
  }

  /// Takes what the queue held when the daemon started.
  public func recover(_ entries: [QueueEntry]) async {
    var lanes: [String: [RecoveredMessage]] = [:]
    // One that is dead for some of its recipients has lanes for those it still has to reach.
    let now = services.time.wallClock
    for entry in entries where !entry.isHeld {
      for lane in entry.lanes {
        // What was never tried is due, also when it arrived by a clock that was ahead.
        let when = lane.attempts > 0 ? lane.nextAttempt : min(lane.nextAttempt, now)
        // Also by what is not counted as an attempt.
        let isPutOff = lane.attempts > 0 || lane.nextAttempt > entry.arrival
        let isLate = isPutOff && !entry.isDelayReported
        lanes[lane.account, default: []].append(
          RecoveredMessage(id: entry.id, when: when, deferredSince: isLate ? entry.arrival : nil))
      }
    }
    for (name, entries) in lanes { await account(name).recover(entries) }
  }

  /// Tries a message now, whatever its schedule says; nil tries all, and accounts on hold with them.
  /// - Returns: false when the message is gone, or when all who can try it are delivering it at this moment.
  @discardableResult public func retry(_ id: QueueID?) async throws(QueueError) -> Bool {
    guard let id else {
      for account in all { await account.retry(nil) }
      return true
    }
    guard let (envelope, state) = try await services.store.readEnvelope(id) else { return false }
    var isTried = false
    let open = envelope.recipients.indices.filter { state.recipients[$0] == nil }
    for name in Set(open.map { envelope.recipients[$0].account }) {
      let account = account(name)
      if await !account.messagesUnderWay.contains(id) { isTried = true }
      await account.retry([id])
    }
    return isTried
  }

  /// Takes a message out of the queue, unless it is being delivered at this moment.
  public func delete(_ id: QueueID) async throws(QueueError) -> OperatorDeletion {
    guard beginOrder(id) else { return .isUnderWay }
    defer { endOrder(id) }
    let accounts = all
    var isFree = true
    for account in accounts where await !account.cancel(id) { isFree = false }
    let outcome: Result<OperatorDeletion, QueueError>
    do throws(QueueError) {
      // Asked once it is kept back: it may have been delivered since somebody looked.
      if !isFree {
        outcome = .success(.isUnderWay)
      } else if try await services.store.readEnvelope(id) == nil {
        outcome = .success(.noSuchMessage)
      } else {
        services.store.remove(id)
        outcome = .success(.deleted)
      }
    } catch { outcome = .failure(error) }
    let isRemoved = outcome == .success(.deleted) || outcome == .success(.noSuchMessage)
    for account in accounts { await account.endCancel(id, isRemoved: isRemoved) }
    return try outcome.get()
  }

  /// Whether nobody else takes this message out of the queue now: two orders at once would lose each other's entries.
  func beginOrder(_ id: QueueID) -> Bool { state.withLock { $0.ordered.insert(id).inserted } }
  func endOrder(_ id: QueueID) { state.withLock { _ = $0.ordered.remove(id) } }

  var all: [Account] { state.withLock { Array($0.accounts.values) } }

  /// How many senders were told of what, since the start.
  public var notificationCounts: NotificationCounts { services.bouncer.counter.value }

  /// The messages that are under way now.
  public func messagesUnderWay() async -> Set<QueueID> {
    var result: Set<QueueID> = []
    for account in all { result.formUnion(await account.messagesUnderWay) }
    return result
  }

  public func snapshots() async -> [AccountSnapshot] {
    var result: [AccountSnapshot] = []
    for account in all { result.append(await account.snapshot()) }
    return result.sorted { $0.name < $1.name }
  }

  /// Stops handing out mail; returns when nothing is under way any more, or after `grace`.
  public func stop(within grace: Duration) async {
    await withTaskGroup(of: Void.self) { group in
      for account in all { group.addTask { await account.stop(within: grace) } }
    }
  }
}
