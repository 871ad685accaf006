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
  private var parameters = MailParameters()
  var recipients: [Recipient] = []
  private var receiver: ContentReceiver?

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

  // MARK: The envelope

  private func checkSender(_ path: ReversePath, _ parameters: MailParameters) async {
    resetTransaction()
    if let refusal = refusalOfIdentity() ?? settings.router.checkSender(path, client: standing) {
      server.log.notice("\(client): refused from=<\(path.text)>\(login): \(refusal)")
      machine.senderAnswered(accepted: false)
      return send(refusal)
    }
    let announced = min(parameters.size ?? 0, settings.maximumMessageSize)
    guard server.store.admits(announced) else {
      server.log.warning("\(client): refused from=<\(path.text)>, size=\(announced): the disk is short of space")
      machine.senderAnswered(accepted: false)
      return send(Replies.insufficientStorage)
    }
    if let refusal = rateRefusal() {
      machine.senderAnswered(accepted: false)
      return send(refusal)
    }
    if let refusal = await askMilters(sender: path, parameters) {
      server.log.notice("\(client): refused from=<\(path.text)> by a milter: \(refusal)")
      machine.senderAnswered(accepted: false)
      return send(refusal)
    }
    sender = path
    self.parameters = parameters
    meter.transactionBegins(SystemTime().now)
    machine.senderAnswered(accepted: true)
    send(Replies.senderOK)
  }

  private func checkRecipient(_ path: ForwardPath, _ parameters: RecipientParameters) async {
    let now = server.time.wallClock
    switch settings.router.route(recipient: path, sender: sender, client: standing, now: now) {
    case .reject(let reply):
      server.log.notice("\(client): refused from=<\(sender.text)> to=<\(path.text)>: \(reply)")
      machine.recipientAnswered(accepted: false)
      send(reply)
      meter.recipientRefused()
    case .accept(let routes):
      if let refusal = await refusalByLists(of: path) {
        machine.recipientAnswered(accepted: false)
        meter.recipientRefused()
        return send(refusal)
      }
      if let refusal = await askMilters(recipient: path) {
        server.log.notice("\(client): refused from=<\(sender.text)> to=<\(path.text)> by a milter: \(refusal)")
        machine.recipientAnswered(accepted: false)
        meter.recipientRefused()
        return send(refusal)
      }
      accept(
        path.text,
        routes.map { route in
          Recipient(
            address: route.address.description, original: path.text, account: route.account,
            notify: parameters.notify?.rawValue,
            originalRecipient: parameters.originalRecipient.map { "\($0.addressType);\($0.address)" })
        })
      machine.recipientAnswered(accepted: true)
      send(Replies.recipientOK)
    }
  }

  /// Whoever is named twice gets one copy, and the sender every report that either asked for.
  func addRecipient(_ recipient: Recipient) {
    let known = recipients.firstIndex { $0.address == recipient.address && $0.account == recipient.account }
    guard let known else { return recipients.append(recipient) }
    if recipients[known].notify == recipient.notify { return }
    func asked(_ notify: UInt8?) -> UInt8 {
      notify ?? RecipientParameters.Notify([.failure, .delay]).rawValue
    }
    recipients[known].notify = asked(recipients[known].notify) | asked(recipient.notify)
  }

  private func resetTransaction() {
    recipients = []
    sender = .null
  }

  /// What RSET, EHLO or a refused chunk has ended must neither cost memory nor reach the next message.
  private func forgetTransaction() async {
    meter.transactionEnds()
    if receiver != nil { await dropReceiver() }
    if filtered.id != nil { abortMilters() }
    if !recipients.isEmpty { resetTransaction() }
  }

  // MARK: The content

  private func makeReceiver(_ stream: ByteStream) -> ContentReceiver {
    let id = filtered.id ?? server.store.nextID()
    let origin = ReceivedField.Origin(
      helo: machine.heloName, clientAddress: client, isESMTP: machine.isESMTP, isSMTPUTF8: parameters.smtpUTF8,
      tls: stream.tls.map { "\($0.version) \($0.cipher)" }, isAuthenticated: machine.identity != nil)
    let originals = recipients.map(\.original)
    return ContentReceiver(
      id: id, store: server.store, limit: settings.maximumMessageSize, headerLimit: settings.limits.headerSize,
      budget: server.contentBudget, hostname: settings.hostname, recipients: originals,
      completion: role.requiresAuthentication ? server.time.wallClock : nil
    ) {
      ReceivedField.render(
        into: &$0, origin: origin, by: settings.hostname, queueID: id.description,
        for: Set(originals).count == 1 ? originals.first : nil, date: server.time.wallClock)
    }
  }

  private func dropReceiver() async {
    await receiver?.discard()
    receiver = nil
  }

  private func receiveData(_ stream: ByteStream) async throws(NetworkError) {
    let receiver = makeReceiver(stream)
    self.receiver = receiver
    meter.contentBegins(SystemTime().now)
    while true {
      if stream.bufferedCount > 0 {
        meter.contentCame(stream.bufferedCount)
        let isFinished = stream.consume { receiver.decode($0) }
        await receiver.spill()
        if isFinished { break }
      }
      guard try await fill(stream, until: contentDeadline, waitingFor: "the message") else { throw .endOfStream }
    }
    await finish(receiver)
  }

  private func receiveChunk(_ stream: ByteStream, _ count: Int, isLast: Bool) async throws(NetworkError) {
    let receiver = self.receiver ?? makeReceiver(stream)
    self.receiver = receiver
    meter.contentBegins(SystemTime().now)
    try await read(stream, count) { receiver.take($0) }
    guard isLast else {
      machine.chunkAccepted()
      return send(Reply(250, "2.0.0", "\(count) octets received"))
    }
    await finish(receiver)
  }

  private func read(_ stream: ByteStream, _ count: Int, _ body: (UnsafeRawBufferPointer) -> Void)
    async
    throws(NetworkError)
  {
    var left = count
    while left > 0 {
      if stream.bufferedCount == 0 {
        // The client may wait for the replies to MAIL and RCPT before it sends the chunk (RFC 2920 3.2).
        try await flush(stream)
        guard try await fill(stream, until: contentDeadline, waitingFor: "the message") else { throw .endOfStream }
      }
      let taken = stream.consume { bytes in
        let taken = min(left, bytes.count)
        body(UnsafeRawBufferPointer(rebasing: bytes[..<taken]))
        return (taken, taken)
      }
      meter.contentCame(taken)
      left -= taken
      await receiver?.spill()
    }
  }

  /// The end of the message: on disk, or refused; then the reply.
  private func finish(_ receiver: ContentReceiver) async {
    self.receiver = nil
    await askMilters(content: receiver)
    let state = initialState
    let envelope = Envelope(
      reversePath: sender.text, recipients: recipients, arrival: server.time.wallClock,
      clientAddress: client.description, helo: machine.heloName ?? "", is8Bit: parameters.body == .eightBitMIME,
      smtpUTF8: parameters.smtpUTF8, envelopeID: parameters.envelopeID,
      returnFull: parameters.ret.map { $0 == .full })
    let reply: Reply
    if let reason = filtered.discarded, !receiver.isRefused {
      await receiver.discard()
      meter.messageTaken()
      server.log.notice("\(receiver.id): discarded, from=<\(envelope.reversePath)>, client=\(client): \(reason)")
      machine.contentFinished()
      resetTransaction()
      return send(Reply(250, "2.0.0", "Queued as \(receiver.id)"))
    }
    switch await receiver.commit(envelope, state) {
    case .success(let content):
      server.count { $0.accepted += 1 }
      meter.messageTaken()
      server.log.info(
        "\(receiver.id): from=<\(envelope.reversePath)>, size=\(receiver.size), nrcpt=\(recipients.count), client=\(client), helo=\(envelope.helo)\(login)"
      )
      if let reason = filtered.quarantine {
        server.log.notice("\(receiver.id): on hold: \(reason)")
      } else {
        server.hand(receiver.id, envelope, content)
      }
      reply = Reply(250, "2.0.0", "Queued as \(receiver.id)")
    case .failure(let refusal):
      server.count { $0.refused += 1 }
      let text = "\(client): refused from=<\(envelope.reversePath)> after the content: \(refusal.reply)"
      if let cause = refusal.cause { server.log.error("\(text): \(cause)") } else { server.log.warning("\(text)") }
      reply = refusal.reply
    }
    machine.contentFinished()
    resetTransaction()
    if let limit = ServerLimit(reply) { server.reached(limit) }
    send(reply)
  }
}
