// A local stand-in for smtp.gmail.com: the same extensions, the same replies, a script of faults on demand, and a
// memory of all that it was sent.

import Network
import Primitives

/// How an ``Upstream`` is set up.
public struct UpstreamOptions: Sendable {
  /// Where STARTTLS is offered; port 0 takes a free one.
  public var endpoint: Endpoint? = Endpoint(address: .ipv4Loopback, port: 0)
  /// Where TLS begins with the first byte (RFC 8314); nil: nowhere.
  public var implicitTLSEndpoint: Endpoint?
  public var hostName = "smtp.gmail.com"
  /// PEM files of the certificate that is shown.
  public var certificateFile: String
  public var keyFile: String
  /// Passwords by user.
  public var passwords: [String: String] = [:]
  /// OAuth access tokens by user.
  public var accessTokens: [String: String] = [:]
  public var maximumMessageSize = 35_882_577
  public var maximumRecipients = 100
  /// How long a client may say nothing.
  public var idleTimeout = Duration.seconds(600)
  /// Where messages are kept as `.eml` files with a `.json` beside each; nil: nowhere. The directory must exist.
  public var directory: String?
  /// Whether ``Upstream/messages`` grows; a benchmark does without.
  public var keepsMessages = true
  public var script: [Rule] = []
  /// The loops that connections are spread over; empty: one of its own.
  public var loops: [EventLoop] = []
  public var time: any Timekeeper = SystemTime()
  /// Gets a line for each thing that happens.
  public var log: (@Sendable (String) -> Void)?
  /// Gets each accepted message, on an event loop.
  public var received: (@Sendable (ReceivedMessage) -> Void)?

  public init(certificateFile: String, keyFile: String) {
    self.certificateFile = certificateFile
    self.keyFile = keyFile
  }
}

extension IPAddress {
  fileprivate static let ipv4Loopback = IPAddress(bytes: [127, 0, 0, 1]) ?? .ipv4Any
}

/// An SMTP server that answers as Gmail does.
public final class Upstream: Sendable {
  let options: UpstreamOptions
  private let loops: [EventLoop]
  private let archive: Archive?
  private let state: Mutex<State>

  private struct State {
    var script: Script
    var tls: TLSContext
    var statistics = Statistics()
    var messages: [ReceivedMessage] = []
    var waiters: [(condition: @Sendable (Statistics) -> Bool, wake: CheckedContinuation<Statistics, Never>)] = []
    var sessions: [Int: UpstreamSession] = [:]
    var acceptors: [Endpoint: Acceptor] = [:]
    var endpoint: Endpoint?
    var implicitTLSEndpoint: Endpoint?
    var isStopped = false
    var lastID: UInt64 = 0
  }

  private init(_ options: UpstreamOptions) throws {
    self.options = options
    loops = options.loops.isEmpty ? [try EventLoop(name: "sandbox")] : options.loops
    let log = options.log ?? { _ in }
    archive = options.directory.map { Archive(directory: $0, report: log) }
    let tls = try TLSContext.server(certificateFile: options.certificateFile, keyFile: options.keyFile)
    state = Mutex(State(script: Script(options.script, now: options.time.now), tls: tls))
  }

  /// Binds and begins to accept connections.
  /// - Throws: ``NetworkError`` when an endpoint is taken or the certificate cannot be used.
  public static func start(_ options: UpstreamOptions) async throws -> Upstream {
    let upstream = try Upstream(options)
    var listeners: [(Listener, Bool)] = []
    do {
      for (endpoint, isImplicit) in [(options.endpoint, false), (options.implicitTLSEndpoint, true)] {
        if let endpoint { listeners.append((try Listener(bindingTo: endpoint), isImplicit)) }
      }
    } catch {
      for (listener, _) in listeners { listener.close() }
      throw error
    }
    for (listener, isImplicit) in listeners {
      upstream.accept(on: listener, isImplicit)
      upstream.state.withLock { s in
        if isImplicit { s.implicitTLSEndpoint = listener.endpoint } else { s.endpoint = listener.endpoint }
      }
    }
    return upstream
  }

  private func accept(on listener: Listener, _ isImplicit: Bool) {
    let acceptor = listener.accept(on: loops[0]) { [weak self] descriptor in
      UpstreamSession.begin(descriptor, isImplicitTLS: isImplicit, with: self)
    }
    state.withLock { $0.acceptors[listener.endpoint] = acceptor }
    log("listening on \(listener.endpoint)\(isImplicit ? " (TLS from the first byte)" : "")")
  }

  /// Offers STARTTLS at a further endpoint, or again at one that was left. Returns the bound endpoint.
  /// - Throws: ``NetworkError`` when it is taken.
  @discardableResult
  public func listen(on endpoint: Endpoint) throws(NetworkError) -> Endpoint {
    let listener = try Listener(bindingTo: endpoint)
    accept(on: listener, false)
    return listener.endpoint
  }

  /// Stops listening at an endpoint and cuts its connections, as if the machine behind it had died.
  public func leave(_ endpoint: Endpoint) async {
    let (acceptor, sessions) = state.withLock { s in
      (s.acceptors.removeValue(forKey: endpoint), Array(s.sessions.values))
    }
    await acceptor?.stop()
    for session in sessions { await session.stop(ifAt: endpoint) }
    log("left \(endpoint)")
  }

  /// Closes all connections and stops listening. Returns once the files are written.
  public func stop() async {
    let (acceptors, sessions) = state.withLock { s in
      s.isStopped = true
      return (Array(s.acceptors.values), Array(s.sessions.values))
    }
    for acceptor in acceptors { await acceptor.stop() }
    for session in sessions { await session.stop() }
    await archive?.finish()
  }

  // MARK: What tests look at

  /// The bound endpoint that offers STARTTLS. Traps when there is none.
  public var endpoint: Endpoint {
    guard let endpoint = state.withLock({ $0.endpoint }) else { preconditionFailure("no STARTTLS endpoint was wanted") }
    return endpoint
  }
  /// The bound endpoint that begins with TLS. Traps when there is none.
  public var implicitTLSEndpoint: Endpoint {
    guard let endpoint = state.withLock({ $0.implicitTLSEndpoint }) else {
      preconditionFailure("no endpoint with implicit TLS was wanted")
    }
    return endpoint
  }

  public var statistics: Statistics { state.withLock { $0.statistics } }
  /// The accepted messages, in the order in which they were accepted.
  public var messages: [ReceivedMessage] { state.withLock { $0.messages } }

  /// Replaces the rules; their counts begin anew.
  public func follow(_ rules: [Rule]) { state.withLock { $0.script = Script(rules, now: options.time.now) } }

  /// Shows another certificate from the next handshake on.
  /// - Throws: ``NetworkError/tls(_:)`` when it cannot be used.
  public func show(certificateFile: String, keyFile: String) throws {
    let tls = try TLSContext.server(certificateFile: certificateFile, keyFile: keyFile)
    state.withLock { $0.tls = tls }
  }

  /// Waits, without a clock, until the statistics satisfy `condition`.
  @discardableResult
  public func wait(until condition: @escaping @Sendable (Statistics) -> Bool) async -> Statistics {
    await withCheckedContinuation { wake in
      let now: Statistics? = state.withLock { s in
        if condition(s.statistics) { return s.statistics }
        s.waiters.append((condition, wake))
        return nil
      }
      if let now { wake.resume(returning: now) }
    }
  }

  /// Waits until that many messages were accepted, and returns all of them.
  public func messages(atLeast count: Int) async -> [ReceivedMessage] {
    await wait { $0.messages >= count }
    return messages
  }

  // MARK: For the sessions

  func count(_ change: (inout Statistics) -> Void) {
    let (due, now) = state.withLock { s in
      change(&s.statistics)
      return Self.due(&s)
    }
    for wake in due { wake.resume(returning: now) }
  }

  private static func due(_ s: inout State) -> ([CheckedContinuation<Statistics, Never>], Statistics) {
    if s.waiters.isEmpty { return ([], s.statistics) }
    let due = s.waiters.filter { $0.condition(s.statistics) }.map(\.wake)
    let now = s.statistics
    s.waiters.removeAll { $0.condition(now) }
    return (due, now)
  }

  func accept(_ message: ReceivedMessage) {
    let (numbered, due, now) = state.withLock { s in
      var message = message
      s.statistics.messages += 1
      s.statistics.contentBytes += message.content.count
      s.script.countMessage()
      message.number = s.statistics.messages
      if options.keepsMessages { s.messages.append(message) }
      let (due, now) = Self.due(&s)
      return (message, due, now)
    }
    archive?.keep(numbered)
    options.received?(numbered)
    for wake in due { wake.resume(returning: now) }
  }

  func withScript<Result: Sendable>(_ body: (inout Script) -> Result) -> Result {
    state.withLock { s in
      if !s.script.isEmpty { s.script.now = options.time.now }
      return body(&s.script)
    }
  }

  /// In octets; a rule may take less than SIZE promises.
  var maximumMessageSize: Int {
    withScript { $0.isEmpty ? nil : $0.maximumSize } ?? options.maximumMessageSize
  }

  var tls: TLSContext { state.withLock { $0.tls } }

  /// An id for the end of a reply, as `5b1f17b1804b1-2a.7`.
  func nextID() -> String {
    let serial = state.withLock { s in
      s.lastID += 1
      return s.lastID
    }
    return "sandbox-\(String(UInt64(options.time.wallClock.seconds), radix: 16)).\(serial)"
  }

  /// Registers a session; returns its number and its loop, or nil once the upstream has stopped.
  func admit(_ make: (Int, EventLoop) -> UpstreamSession) -> UpstreamSession? {
    let session: UpstreamSession? = state.withLock { s in
      if s.isStopped { return nil }
      s.statistics.connections += 1
      s.statistics.openConnections += 1
      s.statistics.mostOpenConnections = max(s.statistics.mostOpenConnections, s.statistics.openConnections)
      let number = s.statistics.connections
      let session = make(number, loops[number % loops.count])
      s.sessions[number] = session
      return session
    }
    count { _ in }
    return session
  }

  func dismiss(_ number: Int) {
    state.withLock { _ = $0.sessions.removeValue(forKey: number) }
    count { $0.openConnections -= 1 }
  }

  func log(_ line: @autoclosure () -> String) { options.log?(line()) }
}
