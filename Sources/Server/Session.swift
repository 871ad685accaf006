// One client: reads its commands, lets the state machine judge them, the router decide, and the queue keep the mail.

import Filters
import Logging
import Message
import Network
import Passwords
import Primitives
import Routing
import SMTP
import Spool

actor Session {
  nonisolated let number: Int
  let role: ListenerRole
  let server: SMTPServer
  let loop: EventLoop
  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  var stream: ByteStream?
  var settings: ServerSettings
  private var settingsVersion: Int
  var machine: ServerStateMachine
  private var framer = LineFramer()
  var client = IPAddress.ipv4Any
  /// nil when the client has connected itself.
  var proxied: ProxiedConnection?
  private(set) var isStopping = false
  /// Whatever was under way is over: what others answer from now on is no verdict.
  private(set) var isAborted = false
  var isWaitingForCommand = false
  /// What the password of the login was held against: another one ends the session's right to send.
  var loginHash: PasswordHash?
  /// Keeps the reply to a login back.
  var penalty: Task<Void, Never>?
  private var isShakingHands = false
  var meter = SessionMeter(SystemTime().now)
  /// When the line that is awaited must be complete; nil between two lines.
  private var lineDeadline: MonotonicInstant?
  /// How long a client that did not ask for the end may take to read why it came.
  var farewell = Duration.zero
  static let longFarewell = Duration.seconds(2)
  /// Replies to pipelined commands wait for each other up to this many octets.
  private static let outputLimit = 16 * 1024

  // The transaction that is open.
  var sender = ReversePath.null
  var parameters = MailParameters()
  var recipients: [Recipient] = []
  var receiver: ContentReceiver?

  // Mail filters, in the order of the configuration.
  var milters: [MilterClient] = []
  var milterOpenings: [Task<Void, Never>] = []
  var filtered = FilteredTransaction()
  /// Whether the log has it that the client is listed.
  var isListingTold = false
  /// Which list in the DNS has the client; nil when nobody was asked.
  var listed: Task<DNSListing?, Never>?

  init(number: Int, role: ListenerRole, server: SMTPServer, loop: EventLoop) {
    self.number = number
    self.role = role
    self.server = server
    self.loop = loop
    settingsVersion = server.settingsVersion
    settings = server.settings
    machine = ServerStateMachine(settings: .init(settings, role), isTLS: false)
  }

  // MARK: Life

  func run(_ descriptor: CInt) async {
    guard let stream = try? ByteStream(adopting: descriptor, on: loop) else { return }
    self.stream = stream
    guard stream.hasPeer, await identifyClient(stream) else { return stream.close() }
    let banned = refusalOfBanned()
    if let refusal = banned ?? server.enter(self, from: client) {
      if banned == nil {
        server.turnAway(client, refusal)
      } else {
        server.log.info("\(client): turned away: \(refusal)")
      }
      await turnAway(stream, with: refusal)
      return
    }
    do throws(NetworkError) {
      if role == .smtps { try await startTLS(stream) }
      send(machine.greeting())
      askLists()
      openMilters()
      try await serve(stream)
    } catch {
      let place = receiver == nil ? "" : " in the middle of a message"
      if receiver != nil || (error != .endOfStream && error != .closed && !isHealthCheck) {
        server.log.info("\(client): session ended\(place): \(error)")
      }
    }
    await dropReceiver()
    closeMilters()
    await stream.closeGently(until: SystemTime().now + farewell)
    server.leave(self, from: client)
  }

  /// Says why there is no session. Those who expect TLS could not read it in clear; their handshakes are as few as
  /// the farewells.
  private func turnAway(_ stream: ByteStream, with refusal: Reply) async {
    defer { stream.close() }
    if role == .smtps {
      guard server.beginFarewell() else { return }
      defer { server.endFarewell() }
      guard let context = settings.tls,
        (try? await stream.startTLS(context, until: SystemTime().now + .seconds(5))) != nil
      else { return }
      send(refusal)
      guard (try? stream.tryFlush()) == true else { return }
      return await stream.closeGently(until: SystemTime().now + Self.longFarewell)
    }
    send(refusal)
    if (try? stream.tryFlush()) == true, server.beginFarewell() {
      await stream.closeGently(until: SystemTime().now + Self.longFarewell)
      server.endFarewell()
    }
  }

  /// Sends the client away as soon as it is not in the middle of a message.
  func shutDown() async {
    isStopping = true
    penalty?.cancel()
    // Nobody loses anything by it, and a client that says nothing would hold up the stop.
    if isShakingHands { stream?.close() }
    if isWaitingForCommand, !machine.transactionIsOpen { stream?.expireFill() }
  }

  /// Sends the client away whatever it is doing.
  func abort() {
    isAborted = true
    penalty?.cancel()
    guard let stream else { return }
    if !isShakingHands {
      send(Self.shuttingDown(settings.hostname))
      _ = try? stream.tryFlush()
    }
    stream.close()
    closeMilters()
  }

  static func shuttingDown(_ hostname: String) -> Reply {
    Reply(421, "4.3.2", "\(hostname) is shutting down, try again later")
  }

  // MARK: Commands

  private enum Input {
    case action(ServerStateMachine.Action)
    case more
  }

  private func serve(_ stream: ByteStream) async throws(NetworkError) {
    while true {
      takeOverSettings()
      switch nextInput(stream) {
      case .more:
        try await flush(stream)
        // The stop may have come while the client was slow to read.
        if isStopping, !machine.transactionIsOpen { return try await sendAway(stream) }
        stream.releaseOutputBuffer()
        // The whole line by then, not just another octet of it.
        let deadline = lineDeadline ?? commandDeadline
        lineDeadline = deadline
        isWaitingForCommand = true
        defer { isWaitingForCommand = false }
        guard try await fill(stream, until: deadline, waitingFor: "a command") else { return }
      case .action(let action):
        lineDeadline = nil
        guard try await perform(meter(action), stream) else { return try await flush(stream) }
        if !machine.transactionIsOpen { await forgetTransaction() }
        if stream.pendingOutput > Self.outputLimit { try await flush(stream) }
      }
    }
  }

  /// Waits for more from the client, and tells one that is silent for too long why it is sent away.
  /// Returns false when there is nothing to wait for any more.
  func fill(_ stream: ByteStream, until deadline: MonotonicInstant, waitingFor what: StaticString)
    async
    throws(NetworkError) -> Bool
  {
    do throws(NetworkError) {
      // Who sends without a pause is never waited for, and would never be too late.
      if deadline <= SystemTime().now { throw .timedOut("\(what)") }
      return try await stream.fill(until: deadline, waitingFor: what)
    } catch {
      guard case .timedOut = error else { throw error }
      if isStopping, isWaitingForCommand, !machine.transactionIsOpen {
        try await sendAway(stream)
        return false
      }
      await close(stream, with: tooLate(what))
      throw error
    }
  }

  private func sendAway(_ stream: ByteStream) async throws(NetworkError) {
    await close(stream, with: Self.shuttingDown(settings.hostname))
  }

  /// The last reply. Whether it can be sent is of no interest any more.
  func close(_ stream: ByteStream, with reply: Reply) async {
    send(reply)
    farewell = Self.longFarewell
    try? await stream.flush(until: SystemTime().now + farewell, waitingFor: "the client to read")
  }

  /// A transaction sees one configuration from its beginning to its end.
  private func takeOverSettings() {
    let version = server.settingsVersion
    guard version != settingsVersion, !machine.transactionIsOpen else { return }
    settingsVersion = version
    settings = server.settings
    machine.configure(.init(settings, role))
  }

  private func nextInput(_ stream: ByteStream) -> Input {
    guard stream.bufferedCount > 0 else { return .more }
    return stream.consume { bytes in
      switch framer.next(bytes) {
      case .incomplete(let consumed):
        (consumed, consumed == 0 || meter.skip(consumed) ? .more : .action(.close(LineError.tooLong.reply)))
      case .malformed(let error, let consumed): (consumed, .action(machine.receive(malformed: error)))
      case .line(let range, let consumed):
        (
          consumed,
          .action(
            machine.receive(line: UnsafeRawBufferPointer(rebasing: bytes[range]), isFollowed: consumed < bytes.count))
        )
      }
    }
  }

  func send(_ reply: Reply) { stream?.append { reply.encode(into: &$0) } }

  func flush(_ stream: ByteStream) async throws(NetworkError) {
    if try stream.tryFlush() { return }
    try await stream.flush(until: deadline, waitingFor: "the client to read")
  }

  /// Returns false when the session is over.
  private func perform(_ action: ServerStateMachine.Action, _ stream: ByteStream) async throws(NetworkError) -> Bool {
    switch action {
    case .reply(let reply): send(reply)
    case .close(let reply):
      send(reply)
      // Who says QUIT expects the end; to others it comes amid what they are saying.
      if reply.code != 221 { farewell = Self.longFarewell }
      return false
    case .checkSender(let path, let parameters):
      if isStopping {
        try await sendAway(stream)
        return false
      }
      await checkSender(path, parameters)
    case .checkRecipient(let path, let parameters): await checkRecipient(path, parameters)
    case .startTLS(let reply):
      send(reply)
      try await flush(stream)
      try await startTLS(stream)
    case .receiveData(let reply):
      send(reply)
      try await flush(stream)
      try await receiveData(stream)
    case .receiveChunk(let count, let last): try await receiveChunk(stream, count, isLast: last)
    case .discardChunk(let count, let reply):
      meter.contentBegins(SystemTime().now)
      try await read(stream, count) { _ in }
      await dropReceiver()
      meter.contentEnds()
      send(reply)
    case .authenticate(let mechanism, let response): return try await authenticate(mechanism, response, stream)
    }
    return true
  }

  private func startTLS(_ stream: ByteStream) async throws(NetworkError) {
    guard let context = settings.tls else { throw .tls("STARTTLS without a certificate") }
    isShakingHands = true
    defer { isShakingHands = false }
    farewell = Self.longFarewell  // for the alert, when the handshake fails
    try await shakeHands(stream, context)
    farewell = .zero
    machine.tlsStarted()
    framer = LineFramer()
    resetTransaction()
  }
}
