// The client's side of one message: which commands go out, and what each recipient's fate is once the replies are in.

/// One transaction with an upstream, in as few round trips as its extensions allow (RFC 5321, 2920, 3030, 3461).
///
/// Write ``flight(into:)``, then hand each reply to ``receive(_:)`` and do what the ``Event`` says until it is
/// `finished`.
public struct ClientTransaction: Sendable {
  /// How the first flight was made up.
  public enum Style: Hashable, Sendable {
    /// All commands and BDAT are out; the content follows at once, as it is.
    case chunked
    /// All commands and DATA are out; the content waits for ``Event/sendContent(dotStuffed:)``.
    case pipelined
    /// Only MAIL is out; each reply brings the next command.
    case lockStep
  }

  public enum Event: Hashable, Sendable {
    /// More replies are due.
    case wait
    case send(commands: [UInt8])
    /// Send the content and, if `dotStuffed`, through a ``DataEncoder`` with its end.
    case sendContent(dotStuffed: Bool)
    case finished(Outcome)
  }

  /// Where in the transaction a recipient was refused.
  public enum Stage: Hashable, Sendable {
    case mail, rcpt, data, content
    /// The connection failed; the reply is ours and transient.
    case connection
  }

  public enum RecipientOutcome: Hashable, Sendable {
    /// The server took responsibility, with this reply to the content.
    case accepted(Reply)
    case refused(Reply, stage: Stage)

    public var reply: Reply {
      switch self {
      case .accepted(let reply), .refused(let reply, _): reply
      }
    }
    public var isAccepted: Bool { if case .accepted = self { true } else { false } }
  }

  public struct Outcome: Hashable, Sendable {
    /// In the order of the recipients given.
    public var recipients: [RecipientOutcome]
    /// The content may have been accepted although no reply says so; sending it again may duplicate it.
    public var isInDoubt: Bool
    /// The connection failed when the content was on its way, which may be the reason.
    public var isInContent = false
    /// The connection is of no further use.
    public var mustClose: Bool
    /// The server's transaction is still open: send RSET before the next MAIL.
    public var needsReset: Bool
    /// The server has taken over what the sender wants to be told: it was given NOTIFY and the like (RFC 3461 5.2.1).
    public var passedOnDSN = false
    /// Nothing was said to the server: the replies are our own.
    public var isNotBegun = false
  }

  /// What RFC 3461 lets a client ask for.
  public struct DSNOptions: Hashable, Sendable {
    public var ret: MailParameters.Return?
    public var envelopeID: String?
    /// As many as there are recipients.
    public var recipients: [RecipientParameters]

    public init(ret: MailParameters.Return?, envelopeID: String?, recipients: [RecipientParameters]) {
      self.ret = ret
      self.envelopeID = envelopeID
      self.recipients = recipients
    }
  }

  private enum Awaiting: Hashable {
    case mail
    case rcpt(Int)
    case data, chunk, content, loneDot, nothing
  }

  private let reversePath: String
  private let recipients: [String]
  private let size: Int
  private let is8Bit: Bool
  private let smtpUTF8: Bool
  private let capabilities: Capabilities
  private let dsn: DSNOptions?
  /// What ``flight(into:)`` will do.
  public let style: Style

  private var awaiting = Awaiting.mail
  private var mailReply: Reply?
  private var outcomes: [RecipientOutcome?]
  private var acceptedCount = 0

  /// - Parameters:
  ///   - reversePath: without `<>`; empty for the null reverse-path.
  ///   - recipients: forward-paths without `<>`, at least one.
  ///   - size: octets of the content, exactly.
  public init(
    reversePath: String, recipients: [String], size: Int, is8Bit: Bool, smtpUTF8: Bool, capabilities: Capabilities,
    dsn: DSNOptions? = nil
  ) {
    precondition(!recipients.isEmpty, "a transaction needs a recipient")
    self.reversePath = reversePath
    self.recipients = recipients
    self.size = size
    self.is8Bit = is8Bit
    self.smtpUTF8 = smtpUTF8
    self.capabilities = capabilities
    self.dsn = capabilities.dsn ? dsn : nil
    style = !capabilities.pipelining ? .lockStep : capabilities.chunking ? .chunked : .pipelined
    outcomes = Array(repeating: nil, count: recipients.count)
  }

  /// What forbids to offer this message to this server at all, as the permanent reply it would have given.
  public static func obstacle(size: Int, smtpUTF8: Bool, capabilities: Capabilities) -> Reply? {
    if smtpUTF8, !capabilities.smtpUTF8 {
      return Reply(550, "5.6.7", "The next server cannot take addresses outside ASCII (no SMTPUTF8)")
    }
    if let limit = capabilities.size, size > limit {
      return Reply(552, "5.3.4", "The message has \(size) octets, the next server takes \(limit) at most")
    }
    return nil
  }

  /// The outcome of a transaction that was not begun because of ``obstacle(size:smtpUTF8:capabilities:)``.
  public static func notBegun(recipients count: Int, _ obstacle: Reply) -> Outcome {
    Outcome(
      recipients: Array(repeating: .refused(obstacle, stage: .mail), count: count), isInDoubt: false, mustClose: false,
      needsReset: false, isNotBegun: true)
  }

  // MARK: - Commands

  /// Appends what can be sent before any reply; to be called once.
  public mutating func flight(into output: inout [UInt8]) -> Style {
    appendMail(to: &output)
    guard style != .lockStep else { return style }
    for index in recipients.indices { appendRecipient(index, to: &output) }
    appendContentCommand(to: &output)
    return style
  }

  private func appendMail(to output: inout [UInt8]) {
    Self.append("MAIL FROM:<", reversePath, to: &output)
    output.append(.greaterThan)
    if capabilities.size != nil {
      output.append(contentsOf: " SIZE=".utf8)
      output.append(decimal: size)
    }
    if is8Bit, capabilities.eightBitMIME { output.append(contentsOf: " BODY=8BITMIME".utf8) }
    if smtpUTF8, capabilities.smtpUTF8 { output.append(contentsOf: " SMTPUTF8".utf8) }
    if let ret = dsn?.ret { output.append(contentsOf: " RET=\(ret.rawValue)".utf8) }
    if let envelopeID = dsn?.envelopeID { output.append(contentsOf: " ENVID=\(XText.encode(envelopeID))".utf8) }
    output.append(contentsOf: [.carriageReturn, .lineFeed])
  }

  private func appendRecipient(_ index: Int, to output: inout [UInt8]) {
    Self.append("RCPT TO:<", recipients[index], to: &output)
    output.append(.greaterThan)
    if let dsn, index < dsn.recipients.count {
      let parameters = dsn.recipients[index]
      if let notify = parameters.notify { output.append(contentsOf: " NOTIFY=\(notify.text)".utf8) }
      // A type that is no atom would be a parameter of its own, or end the command.
      if let original = parameters.originalRecipient,
        RecipientParameters.OriginalRecipient.isAddressType(original.addressType)
      {
        Self.append(" ORCPT=", original.addressType, to: &output)
        output.append(contentsOf: ";\(XText.encode(original.address))".utf8)
      }
    }
    output.append(contentsOf: [.carriageReturn, .lineFeed])
  }

  private func appendContentCommand(to output: inout [UInt8]) {
    guard style == .chunked else {
      output.append(contentsOf: "DATA\r\n".utf8)
      return
    }
    output.append(contentsOf: "BDAT ".utf8)
    output.append(decimal: size)
    output.append(contentsOf: " LAST\r\n".utf8)
  }

  /// Whatever a caller passes, it cannot begin another command.
  private static func append(_ prefix: StaticString, _ text: String, to output: inout [UInt8]) {
    prefix.withUTF8Buffer { output.append(contentsOf: $0) }
    let start = output.count
    output.append(contentsOf: text.utf8)
    if output[start...].contains(where: \.isControl) {
      let clean = output[start...].filter { !$0.isControl }
      output.replaceSubrange(start..., with: clean)
    }
  }

  private static func command(_ build: (inout [UInt8]) -> Void) -> Event {
    var output: [UInt8] = []
    build(&output)
    return .send(commands: output)
  }

  // MARK: - Replies

  /// Takes the next reply of the server.
  public mutating func receive(_ reply: Reply) -> Event {
    // 421 may come in place of any reply and ends the connection (RFC 5321 3.8).
    if reply.code == 421, awaiting != .nothing { return give(reply, stage: stage, mustClose: true) }
    switch awaiting {
    case .mail:
      mailReply = reply
      guard reply.isPositive else {
        refuseUndecided(checked(reply), stage: .mail)
        if style == .lockStep { return finish() }
        awaiting = .rcpt(0)
        return .wait
      }
      awaiting = .rcpt(0)
      return style == .lockStep ? Self.command { appendRecipient(0, to: &$0) } : .wait
    case .rcpt(let index): return receiveRecipient(index, reply)
    case .data: return receiveData(reply)
    case .chunk, .content: return receiveFinal(reply)
    case .loneDot: return finish()
    case .nothing: return .finished(outcome(needsReset: false, mustClose: true))
    }
  }

  private mutating func receiveRecipient(_ index: Int, _ reply: Reply) -> Event {
    if outcomes[index] == nil {
      if reply.isPositive {
        acceptedCount += 1
      } else {
        outcomes[index] = .refused(checked(reply), stage: .rcpt)
      }
    }
    let next = index + 1
    guard next == recipients.count else {
      awaiting = .rcpt(next)
      return style == .lockStep ? Self.command { appendRecipient(next, to: &$0) } : .wait
    }
    awaiting = style == .chunked ? .chunk : .data
    guard style == .lockStep else { return .wait }
    return acceptedCount > 0 ? Self.command { appendContentCommand(to: &$0) } : finish(needsReset: true)
  }

  private mutating func receiveData(_ reply: Reply) -> Event {
    if reply.code == 354 {
      guard acceptedCount > 0 else {
        // The server waits for content nobody is to get: an empty message ends that (RFC 2920 3.1).
        awaiting = .loneDot
        return .send(commands: [.dot, .carriageReturn, .lineFeed])
      }
      awaiting = .content
      return .sendContent(dotStuffed: true)
    }
    refuseUndecided(checked(reply), stage: .data)
    return finish(needsReset: mailReply?.isPositive == true, mustClose: reply.isPositive || reply.isIntermediate)
  }

  private mutating func receiveFinal(_ reply: Reply) -> Event {
    let isChunk = awaiting == .chunk
    guard reply.isPositive else {
      refuseUndecided(checked(reply), stage: .content)
      return finish(needsReset: isChunk && mailReply?.isPositive == true, mustClose: reply.isIntermediate)
    }
    for index in outcomes.indices where outcomes[index] == nil { outcomes[index] = .accepted(reply) }
    return finish()
  }

  private var stage: Stage {
    switch awaiting {
    case .mail: .mail
    case .rcpt: .rcpt
    case .data: .data
    case .chunk, .content, .loneDot, .nothing: .content
    }
  }

  /// A reply that makes no sense where it stands must not read as success, nor bounce anything.
  private func checked(_ reply: Reply) -> Reply {
    if reply.isTransient || reply.isPermanent { return reply }
    return Reply(451, "4.5.0", "The next server gave an unexpected reply: \(reply)")
  }

  private mutating func refuseUndecided(_ reply: Reply, stage: Stage) {
    for index in outcomes.indices where outcomes[index] == nil { outcomes[index] = .refused(reply, stage: stage) }
  }

  private mutating func give(_ reply: Reply, stage: Stage, mustClose: Bool) -> Event {
    refuseUndecided(reply, stage: stage)
    return finish(mustClose: mustClose)
  }

  private mutating func finish(needsReset: Bool = false, mustClose: Bool = false) -> Event {
    awaiting = .nothing
    return .finished(outcome(needsReset: needsReset, mustClose: mustClose))
  }

  private func outcome(needsReset: Bool, mustClose: Bool, isInDoubt: Bool = false) -> Outcome {
    let lost = RecipientOutcome.refused(Self.connectionLost, stage: .connection)
    return Outcome(
      recipients: outcomes.map { $0 ?? lost }, isInDoubt: isInDoubt, mustClose: mustClose, needsReset: needsReset,
      passedOnDSN: dsn != nil)
  }

  // MARK: - The end of the connection

  /// The reply that stands in for the one that never came.
  public static let connectionLost = Reply(451, "4.4.2", "The connection to the next server was lost")

  /// Whether the content is with the server (or on its way) and no reply has decided about it.
  public var awaitsFinalReply: Bool { awaiting == .content || awaiting == .chunk }

  /// Whether ``receive(_:)`` has returned `finished`.
  public var isFinished: Bool { awaiting == .nothing }

  /// What is known when the connection fails.
  /// - Parameter contentFullySent: all content, and for DATA the final dot, was handed to the socket.
  public func connectionFailed(contentFullySent: Bool, reply: Reply = Self.connectionLost) -> Outcome {
    let undecided = outcomes.contains { $0 == nil }
    let mayBeAccepted = style == .chunked ? awaiting != .nothing : awaiting == .content
    return Outcome(
      recipients: outcomes.map { $0 ?? .refused(reply, stage: .connection) },
      isInDoubt: contentFullySent && undecided && mayBeAccepted, isInContent: undecided && mayBeAccepted,
      mustClose: true, needsReset: false, passedOnDSN: dsn != nil)
  }
}
