// The front door: listeners, the limits that hold for all clients together, and the sessions that are open.

import Filters
import Logging
import Network
import Passwords
import Primitives
import Routing
import SMTP
import Spool

import struct Synchronization.Atomic

/// What sessions are told by the configuration. A reload replaces it; sessions see it with their next transaction.
public struct ServerSettings: Sendable {
  public var hostname: String
  public var maximumMessageSize: Int
  public var maximumRecipients: Int
  public var maximumConnections: Int
  public var maximumConnectionsPerAddress: Int
  /// How long a client may be silent.
  public var clientTimeout: Duration
  public var router: Router
  /// nil does not offer STARTTLS.
  public var tls: TLSContext?
  /// How much guessing of passwords is borne.
  public var loginLimits = LoginLimits()
  /// Peers whose connections begin with a PROXY header.
  public var proxyNetworks: [IPNetwork] = []
  /// How long they may take to say for whom they connect. They send that with their first packet.
  public var proxyPatience = Duration.seconds(5)
  /// Asked in this order, by sessions that begin from now on.
  public var milters: [Milter] = []
  /// Asked about clients that are not trusted; nil asks nobody.
  public var dnsLists: DNSLists?
  /// Whether a client that is listed is refused, not only logged.
  public var refusesListed = true
  public var limits = ServerLimits()

  public init(
    hostname: String, maximumMessageSize: Int = 35_882_577, maximumRecipients: Int = 100,
    maximumConnections: Int = 1000, maximumConnectionsPerAddress: Int = 50, clientTimeout: Duration = .seconds(300),
    router: Router, tls: TLSContext? = nil
  ) {
    self.hostname = hostname
    self.maximumMessageSize = maximumMessageSize
    self.maximumRecipients = maximumRecipients
    self.maximumConnections = maximumConnections
    self.maximumConnectionsPerAddress = maximumConnectionsPerAddress
    self.clientTimeout = clientTimeout
    self.router = router
    self.tls = tls
  }
}

/// What the front door has seen since the daemon started.
public struct ServerCounters: Sendable, Hashable {
  public var connections = 0
  /// Turned away because there were too many.
  public var refusedConnections = 0
  public var accepted = 0
  /// Messages answered with 4xx or 5xx after their content.
  public var refused = 0
  /// Recipients refused because the client is on a list.
  public var listed = 0
  public var openSessions = 0
  /// How often clients have reached each limit.
  public var limits: [ServerLimit: Int] = [:]
  public var handshakes = HandshakeCounters()
}

/// How the TLS handshakes of clients ended.
public struct HandshakeCounters: Sendable, Hashable {
  public var done = 0
  public var resumed = 0
  public var failed = 0
  public var timedOut = 0
}

/// An SMTP server on some listeners.
public final class SMTPServer: Sendable {
  /// Called with each message once it is durable.
  public typealias Hand = @Sendable (QueueID, Envelope, Content) -> Void

  let store: any QueueStore
  let time: any Timekeeper
  let log: Logger
  let hand: Hand
  let passwords: PasswordChecker
  /// Who fails to log in too often.
  public let guardian: LoginGuard
  let contentBudget = ContentBudget()
  private let loops: [EventLoop]

  struct State {
    var settings: ServerSettings
    var sessions: [Int: Session] = [:]
    var admission = Admission()
    var rates = ClientRates()
    var limitLogs: [ServerLimit: LimitLog] = [:]
    var acceptors: [Acceptor] = []
    var nextSession = 0
    var isStopping = false
    var farewells = 0
    var proxyWaits = 0
    var whenEmpty: [CheckedContinuation<Void, Never>] = []
    var counters = ServerCounters()
  }
  let state: Mutex<State>

  public init(
    store: any QueueStore, loops: [EventLoop], time: any Timekeeper, settings: ServerSettings, log: Logger,
    hand: @escaping Hand
  ) {
    self.store = store
    self.loops = loops
    self.time = time
    self.log = log
    self.hand = hand
    guardian = LoginGuard(time: time)
    // One processor at least is left to the mail, if there are two.
    passwords = PasswordChecker(workers: loops.count - 1)
    state = Mutex(State(settings: settings))
  }

  public var settings: ServerSettings { state.withLock { $0.settings } }

  /// Replaces the settings; each session takes them over before its next transaction.
  public func configure(_ settings: ServerSettings) {
    change { old in
      var settings = settings
      settings.keepFilters(of: old)
      old = settings
    }
  }

  /// Changes a part of them, whoever else changes another one.
  func change(_ body: (inout ServerSettings) -> Void) {
    state.withLock { body(&$0.settings) }
    version.add(1, ordering: .releasing)
  }

  /// Counts the calls of ``configure(_:)``, so that sessions need not look at the settings for each command.
  private let version = Atomic<Int>(0)
  var settingsVersion: Int { version.load(ordering: .acquiring) }

  public var counters: ServerCounters {
    state.withLock { state in
      var counters = state.counters
      counters.openSessions = state.sessions.count
      return counters
    }
  }

  func count(_ change: (inout ServerCounters) -> Void) { state.withLock { change(&$0.counters) } }

  /// Begins to accept. Sessions are spread over the loops in turn.
  public func listen(on listener: Listener, role: ListenerRole = .smtp) {
    let acceptor = listener.accept(on: loops[0]) { [self] descriptor in admit(descriptor, role) }
    state.withLock { $0.acceptors.append(acceptor) }
  }

  private func admit(_ descriptor: CInt, _ role: ListenerRole) {
    let (number, loop) = state.withLock { state in
      state.nextSession += 1
      return (state.nextSession, loops[state.nextSession % loops.count])
    }
    let session = Session(number: number, role: role, server: self, loop: loop)
    Task(executorPreference: loop) { await session.run(descriptor) }
  }

  /// Counts a session in. Returns the refusal when there are too many.
  func enter(_ session: Session, from address: IPAddress) -> Reply? {
    state.withLock { state in
      state.counters.connections += 1
      let refusal: Reply? =
        if state.isStopping {
          Session.shuttingDown(state.settings.hostname)
        } else { state.refusal(of: address) }
      guard refusal == nil else {
        state.counters.refusedConnections += 1
        return refusal
      }
      state.sessions[session.number] = session
      return nil
    }
  }

  /// Whether one more client that was turned away may take its time to read why. They hold descriptors meanwhile, so
  /// their number is bounded.
  func beginFarewell() -> Bool {
    state.withLock { state in
      guard state.farewells < Self.maximumFarewells else { return false }
      state.farewells += 1
      return true
    }
  }

  func endFarewell() { state.withLock { $0.farewells -= 1 } }
  private static let maximumFarewells = 100

  /// Whether one more connection of a load balancer may wait for its PROXY header.
  func beginProxyWait() -> Bool {
    state.withLock { state in
      guard !state.isStopping, state.proxyWaits < state.settings.maximumConnections else { return false }
      state.proxyWaits += 1
      return true
    }
  }

  func endProxyWait() { state.withLock { $0.proxyWaits -= 1 } }
  var proxyWaits: Int { state.withLock { $0.proxyWaits } }

  func leave(_ session: Session, from address: IPAddress) {
    let waiters: [CheckedContinuation<Void, Never>] = state.withLock { state in
      guard state.sessions.removeValue(forKey: session.number) != nil else { return [] }
      state.admission.leave(address)
      guard state.sessions.isEmpty else { return [] }
      defer { state.whenEmpty = [] }
      return state.whenEmpty
    }
    for waiter in waiters { waiter.resume() }
  }

  /// Stops accepting and sends idle clients away; those in the middle of a message may finish it, within `grace`.
  public func stop(within grace: Duration) async {
    let (acceptors, sessions) = state.withLock { state in
      state.isStopping = true
      return (state.acceptors, Array(state.sessions.values))
    }
    for acceptor in acceptors { await acceptor.stop() }
    for session in sessions { await session.shutDown() }
    let alarm = Task { [time, self] in
      guard (try? await time.sleep(until: time.now + grace)) != nil else { return }
      for session in state.withLock({ Array($0.sessions.values) }) { await session.abort() }
    }
    await withCheckedContinuation { continuation in
      let isEmpty = state.withLock { state in
        if state.sessions.isEmpty { return true }
        state.whenEmpty.append(continuation)
        return false
      }
      if isEmpty { continuation.resume() }
    }
    alarm.cancel()
  }
}
