// The server's side of a session: a line in, what to do about it out. Sockets, clocks and policy live elsewhere.

/// The dialogue of one connection (RFC 5321 4.1.4, 4.3.2).
///
/// The session feeds it lines, does what the returned ``Action`` says, and reports back through `…Answered`,
/// `contentFinished`, `chunkAccepted`, `tlsStarted` and `authenticated`.
public struct ServerStateMachine: Sendable {
  public struct Settings: Sendable {
    public var hostname: String
    /// Octets; announced as SIZE.
    public var maximumMessageSize: Int
    public var maximumRecipients: Int
    public var offersStartTLS: Bool
    public var offersDSN: Bool
    /// In capitals; AUTH is not offered when empty.
    public var authMechanisms: [String]
    /// Nothing but EHLO, NOOP, RSET, HELP, QUIT and STARTTLS before TLS (RFC 3207 4).
    public var requiresTLS: Bool
    public var requiresAuthentication: Bool
    /// Passwords may travel in the clear: for loopback and tests.
    public var allowsAuthenticationWithoutTLS: Bool
    /// Refused commands until the connection is closed with 421.
    public var maximumErrors: Int
    public var maximumTransactionsPerSession: Int

    public init(
      hostname: String, maximumMessageSize: Int = 35_882_577, maximumRecipients: Int = 100,
      offersStartTLS: Bool = false, offersDSN: Bool = false, authMechanisms: [String] = [], requiresTLS: Bool = false,
      requiresAuthentication: Bool = false, allowsAuthenticationWithoutTLS: Bool = false, maximumErrors: Int = 20,
      maximumTransactionsPerSession: Int = .max
    ) {
      self.hostname = hostname
      self.maximumMessageSize = maximumMessageSize
      self.maximumRecipients = maximumRecipients
      self.offersStartTLS = offersStartTLS
      self.offersDSN = offersDSN
      self.authMechanisms = authMechanisms
      self.requiresTLS = requiresTLS
      self.requiresAuthentication = requiresAuthentication
      self.allowsAuthenticationWithoutTLS = allowsAuthenticationWithoutTLS
      self.maximumErrors = maximumErrors
      self.maximumTransactionsPerSession = maximumTransactionsPerSession
    }
  }

  public enum Action: Hashable, Sendable {
    case reply(Reply)
    /// Decide, answer the client, call ``senderAnswered(accepted:)``.
    case checkSender(ReversePath, MailParameters)
    /// Decide, answer the client, call ``recipientAnswered(accepted:)``.
    case checkRecipient(ForwardPath, RecipientParameters)
    /// Send the reply, drop whatever input is buffered, shake hands, then call ``tlsStarted()`` (RFC 3207 4.2).
    case startTLS(Reply)
    /// Send the 354, read with a ``DataDecoder``, answer, call ``contentFinished()``.
    case receiveData(Reply)
    /// Read that many octets of content. Then, unless `last` or refused, answer and call ``chunkAccepted()``; else
    /// answer and call ``contentFinished()``.
    case receiveChunk(count: Int, last: Bool)
    /// Read and drop that many octets, then reply.
    case discardChunk(count: Int, thenReply: Reply)
    /// Run the SASL exchange, answer, then call ``authenticated(_:)`` or ``authenticationFailed()``.
    case authenticate(mechanism: String, initialResponse: String?)
    /// Send the reply and close the connection.
    case close(Reply)
  }

  private struct Transaction {
    var accepted = 0
    var refused = 0
    var smtpUTF8 = false
    var chunkOctets = 0
    var isChunked = false
    /// Content is being read; a command now is a mistake of the session, not of the client.
    var isReadingContent = false
  }

  public private(set) var settings: Settings
  public private(set) var isTLS: Bool
  /// The name of the last EHLO or HELO.
  public private(set) var heloName: String?
  /// Whether it was EHLO.
  public private(set) var isESMTP = false
  /// Who authenticated on this connection.
  public private(set) var identity: String?
  /// Commands refused so far.
  public private(set) var errorCount = 0
  private var transaction: Transaction?
  private var pendingParameters: MailParameters?
  private var transactionCount = 0
  /// A chunk was refused, and those behind it may be on their way already.
  private var isBehindRefusedChunk = false

  public init(settings: Settings, isTLS: Bool) {
    self.settings = settings
    self.isTLS = isTLS
  }

  /// Whether MAIL was accepted and the transaction has not ended.
  public var transactionIsOpen: Bool { transaction != nil }
  /// Whether the open transaction was begun with SMTPUTF8.
  public var transactionIsSMTPUTF8: Bool { transaction?.smtpUTF8 ?? false }

  /// Replaces the settings, between two transactions.
  public mutating func configure(_ settings: Settings) {
    precondition(transaction == nil, "a transaction sees one configuration")
    self.settings = settings
  }

  /// The reply that opens a session.
  public func greeting() -> Reply { Reply(220, nil, "\(settings.hostname) ESMTP ready") }

  // MARK: - Input

  /// Takes a line without its CRLF.
  /// - Parameter isFollowed: whether more input is there already.
  public mutating func receive(line: UnsafeRawBufferPointer, isFollowed: Bool = false) -> Action {
    let command: Command
    do throws(CommandError) {
      command = try Command(parsing: line)
    } catch {
      return error.losesFraming ? .close(error.reply) : refuse(error.reply)
    }
    let action = receive(command)
    // DATA ends what may be sent together (RFC 2920 3.1). What follows one that is refused is content, of a client that
    // did not wait, and must not be run as commands.
    if command == .data, isFollowed, case .reply(let reply) = action { return .close(reply) }
    return action
  }

  /// Answers a line that the ``LineFramer`` would not pass.
  public mutating func receive(malformed error: LineError) -> Action { refuse(error.reply) }

  /// Takes a command that has been parsed already.
  public mutating func receive(_ command: Command) -> Action {
    if case .bdat = command {} else { isBehindRefusedChunk = false }
    switch command {
    case .ehlo(let name): return hello(name, isESMTP: true)
    case .helo(let name): return hello(name, isESMTP: false)
    case .noop: return .reply(Replies.ok)
    case .rset:
      transaction = nil
      pendingParameters = nil
      return .reply(Replies.reset)
    case .help: return .reply(Replies.help)
    case .quit: return .close(Reply(221, "2.0.0", "\(settings.hostname) closing"))
    case .startTLS: return startTLS()
    case .bdat(let count, let last): return chunk(count: count, last: last)
    default: break
    }
    if settings.requiresTLS, !isTLS { return refuse(Replies.mustStartTLS) }
    switch command {
    case .mail(let path, let parameters): return mail(path, parameters)
    case .rcpt(let path, let parameters): return recipient(path, parameters)
    case .data: return data()
    case .auth(let mechanism, let response): return authenticate(mechanism, response)
    case .expn: return refuse(Replies.noExpansion)
    case .vrfy:
      // It reveals nothing, but asking forever is not a use of it either.
      return refuse(Replies.cannotVerify)
    default: return refuse(Replies.outOfOrder)
    }
  }

  private mutating func refuse(_ reply: Reply) -> Action {
    isBehindRefusedChunk = false
    errorCount += 1
    guard errorCount <= settings.maximumErrors else { return .close(Replies.tooManyErrors) }
    return .reply(reply)
  }

  private mutating func hello(_ name: String, isESMTP: Bool) -> Action {
    heloName = name
    self.isESMTP = isESMTP
    transaction = nil
    pendingParameters = nil
    guard isESMTP else { return .reply(Reply(250, nil, settings.hostname)) }
    var lines = [
      settings.hostname, "SIZE \(settings.maximumMessageSize)", "8BITMIME", "SMTPUTF8", "PIPELINING", "CHUNKING",
      "ENHANCEDSTATUSCODES",
    ]
    if settings.offersStartTLS, !isTLS { lines.append("STARTTLS") }
    if offersAuthentication { lines.append("AUTH " + settings.authMechanisms.joined(separator: " ")) }
    if settings.offersDSN { lines.append("DSN") }
    return .reply(Reply(code: 250, enhanced: nil, lines: lines))
  }

  private var offersAuthentication: Bool {
    !settings.authMechanisms.isEmpty && (isTLS || settings.allowsAuthenticationWithoutTLS)
  }

  private mutating func startTLS() -> Action {
    guard !isTLS else { return refuse(Replies.alreadyTLS) }
    guard settings.offersStartTLS else { return refuse(Replies.noStartTLS) }
    guard transaction == nil else { return refuse(Replies.transactionIsOpen) }
    return .startTLS(Replies.startTLS)
  }

  private mutating func authenticate(_ mechanism: String, _ response: String?) -> Action {
    guard !settings.authMechanisms.isEmpty else { return refuse(Replies.noAuthentication) }
    guard isESMTP else { return refuse(Replies.helloFirst) }
    guard identity == nil else { return refuse(Replies.alreadyAuthenticated) }
    guard transaction == nil else { return refuse(Replies.transactionIsOpen) }
    guard offersAuthentication else { return refuse(Replies.authenticationNeedsTLS) }
    guard settings.authMechanisms.contains(mechanism) else { return refuse(Replies.unknownMechanism) }
    return .authenticate(mechanism: mechanism, initialResponse: response)
  }

  private mutating func mail(_ path: ReversePath, _ parameters: MailParameters) -> Action {
    guard heloName != nil else { return refuse(Replies.helloFirst) }
    guard identity != nil || !settings.requiresAuthentication else { return refuse(Replies.mustAuthenticate) }
    guard transaction == nil else { return refuse(Replies.transactionIsOpen) }
    guard isESMTP || !parameters.usesExtensions else { return refuse(Replies.extensionsNeedEHLO) }
    guard settings.offersDSN || !parameters.usesDSN else { return refuse(Replies.noDSN) }
    guard parameters.auth == nil || !settings.authMechanisms.isEmpty else { return refuse(Replies.noAuthParameter) }
    guard (parameters.size ?? 0) <= settings.maximumMessageSize else {
      return refuse(Replies.tooLarge(limit: settings.maximumMessageSize))
    }
    guard transactionCount < settings.maximumTransactionsPerSession else {
      return .close(Replies.tooManyTransactions)
    }
    pendingParameters = parameters
    return .checkSender(path, parameters)
  }

  private mutating func recipient(_ path: ForwardPath, _ parameters: RecipientParameters) -> Action {
    guard let transaction, !transaction.isChunked else { return refuse(Replies.mailFirst) }
    guard settings.offersDSN || !parameters.usesDSN else { return refuse(Replies.noDSN) }
    guard isESMTP || !parameters.usesDSN else { return refuse(Replies.extensionsNeedEHLO) }
    if case .mailbox(let mailbox) = path, mailbox.needsSMTPUTF8, !transaction.smtpUTF8 {
      return refuse(Command.needsSMTPUTF8.reply)
    }
    // Not an error of the client: it comes again with the rest (RFC 5321 4.5.3.1.10).
    guard transaction.accepted < settings.maximumRecipients else { return .reply(Replies.tooManyRecipients) }
    return .checkRecipient(path, parameters)
  }

  private mutating func data() -> Action {
    guard let current = transaction else { return refuse(Replies.mailFirst) }
    guard !current.isChunked else { return refuse(Replies.mixedDataAndChunks) }
    guard current.accepted > 0 else { return refuse(current.refused > 0 ? Replies.noRecipients : Replies.rcptFirst) }
    transaction?.isReadingContent = true
    return .receiveData(Replies.sendData)
  }

  /// Whatever is wrong, the octets of the chunk are on their way and must not be read as commands (RFC 3030 2).
  private mutating func chunk(count: Int, last: Bool) -> Action {
    func discard(_ reply: Reply) -> Action {
      // A pipelining client cannot know yet that its chunks are in vain: they are one error together.
      if !isBehindRefusedChunk { errorCount += 1 }
      isBehindRefusedChunk = true
      return errorCount <= settings.maximumErrors
        ? .discardChunk(count: count, thenReply: reply) : .close(Replies.tooManyErrors)
    }
    if settings.requiresTLS, !isTLS { return discard(Replies.mustStartTLS) }
    guard let current = transaction else { return discard(Replies.mailFirst) }
    guard isESMTP else { return discard(Replies.extensionsNeedEHLO) }
    guard current.accepted > 0 else { return discard(current.refused > 0 ? Replies.noRecipients : Replies.rcptFirst) }
    guard count <= settings.maximumMessageSize - current.chunkOctets else {
      transaction = nil
      return discard(Replies.tooLarge(limit: settings.maximumMessageSize))
    }
    transaction?.isChunked = true
    transaction?.isReadingContent = true
    transaction?.chunkOctets += count
    return .receiveChunk(count: count, last: last)
  }

  // MARK: - What the session found

  public mutating func senderAnswered(accepted: Bool) {
    guard let parameters = pendingParameters else { return }
    pendingParameters = nil
    guard accepted else { return }
    transactionCount += 1
    transaction = Transaction(smtpUTF8: parameters.smtpUTF8)
  }

  public mutating func recipientAnswered(accepted: Bool) {
    if accepted { transaction?.accepted += 1 } else { transaction?.refused += 1 }
  }

  /// The content was answered for, well or ill: the transaction is over.
  public mutating func contentFinished() { transaction = nil }

  /// A chunk that is not the last was taken and answered.
  public mutating func chunkAccepted() { transaction?.isReadingContent = false }

  /// Forgets all that was said before the handshake (RFC 3207 4.2).
  public mutating func tlsStarted() {
    let errors = errorCount
    self = ServerStateMachine(settings: settings, isTLS: true)
    errorCount = errors
  }

  public mutating func authenticated(_ identity: String) { self.identity = identity }

  /// Counts towards ``Settings/maximumErrors``.
  /// - Returns: the reply to close with when the client has failed too often.
  public mutating func authenticationFailed() -> Reply? {
    errorCount += 1
    return errorCount > settings.maximumErrors ? Replies.tooManyErrors : nil
  }
}
