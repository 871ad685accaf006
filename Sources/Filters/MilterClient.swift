// One session's talk with one mail filter: a connection that is opened once and asked about every command and message.
// It belongs to the actor of the session and lives on its loop.

import Network
import Primitives
import SMTP

/// What a filter has decided.
public enum MilterVerdict: Hashable, Sendable {
  case proceed
  /// The rest needs not be asked: of the message, or of all messages when it was said at the connection.
  case accept
  case refuse(Reply)
  /// The client is told that all is well, and the message goes nowhere.
  case discard
  /// The filter cannot be asked; what happens then is its ``MilterSettings/Fallback``.
  case unavailable
}

/// What filters are told about a connection.
public struct MilterConnection: Sendable {
  public var hostname: String
  public var client: Endpoint
  public var local: Endpoint
  /// Of the listener: `smtp`, `submission`, `smtps`.
  public var daemon: String

  public init(hostname: String, client: Endpoint, local: Endpoint, daemon: String = "smtp") {
    self.hostname = hostname
    self.client = client
    self.local = local
    self.daemon = daemon
  }
}

/// What filters are told when the client has introduced itself, before or after STARTTLS.
public struct MilterHello: Sendable, Hashable {
  public var name: String
  public var tlsVersion: String?
  public var cipher: String?

  public init(name: String, tlsVersion: String? = nil, cipher: String? = nil) {
    self.name = name
    self.tlsVersion = tlsVersion
    self.cipher = cipher
  }
}

/// What filters are told about the sender of a message.
public struct MilterSender: Sendable {
  public var queueID: String
  /// Without angle brackets.
  public var path: String
  /// The parameters of MAIL as they are written.
  public var parameters: [String]
  /// Who has authenticated.
  public var identity: String?

  public init(queueID: String, path: String, parameters: [String] = [], identity: String? = nil) {
    self.queueID = queueID
    self.path = path
    self.parameters = parameters
    self.identity = identity
  }
}

/// Does to a message what a filter wants.
public protocol MilterEditor: AnyObject {
  /// - Throws: what the filter does wrong when it cannot be done.
  nonisolated(nonsending) func apply(_ reply: MilterReply) async throws(MilterFault)
}

/// Belongs to its session.
public final class MilterClient {
  public let milter: Milter
  private var stream: ByteStream?
  private var flags = MilterFlags.none
  private var version = MilterCodec.version
  private var isClosed = false
  /// What was said about the connection, and about the client's introduction.
  private var standing = MilterVerdict.proceed
  private var hello: MilterHello?
  private var helloVerdict = MilterVerdict.proceed
  private var queueID = ""
  /// It has been told of a message that has not ended.
  private var isInMessage = false
  /// What was decided about the message already.
  private var messageVerdict = MilterVerdict.proceed

  public init(_ milter: Milter) { self.milter = milter }

  private struct Trouble: Error {
    var text: String
    var isSilence = false
  }

  /// Whether the values of header fields keep the blank in front.
  public var wantsLeadingSpace: Bool { flags.contains(.leadingSpace) }

  // MARK: The connection

  /// Connects, negotiates, and tells of the client. What comes of it shows with the first message.
  public nonisolated(nonsending) func open(_ connection: MilterConnection, on loop: EventLoop) async {
    guard stream == nil, !isClosed else { return }
    (standing, hello, helloVerdict) = (.proceed, nil, .proceed)
    guard milter.isWorthAsking else {
      standing = .unavailable
      return
    }
    let deadline = SystemTime().now + milter.settings.connectTimeout
    do throws(Trouble) {
      let stream = try await connect(on: loop, until: deadline)
      if isClosed { return stream.close() }
      self.stream = stream
      try await negotiate(until: deadline)
      milter.isUp()
      standing = try await command(
        .connect, unless: .noConnect, silentIf: .silentConnect, macros: Self.macros(connection)
      ) {
        let client = connection.client
        MilterCodec.connect(hostname: "[\(client.address)]", address: client.address, port: client.port, into: &$0)
      }
      try await flush(until: deadline)
    } catch { standing = fail(error) }
  }

  private nonisolated(nonsending) func connect(
    on loop: EventLoop, until deadline: MonotonicInstant
  ) async throws(Trouble) -> ByteStream {
    do throws(NetworkError) {
      if case .socket(let path) = milter.settings.address {
        return try await ByteStream.connect(toSocketAt: path, on: loop, until: deadline)
      }
      var last = NetworkError.resolution("\(milter.settings.name) has no address")
      for endpoint in try await milter.addresses() {
        do throws(NetworkError) { return try await ByteStream.connect(to: endpoint, on: loop, until: deadline) } catch {
          last = error
        }
      }
      throw last
    } catch { throw Self.trouble(error) }
  }

  private nonisolated(nonsending) func negotiate(until deadline: MonotonicInstant) async throws(Trouble) {
    stream?.append { MilterCodec.negotiate(into: &$0) }
    guard case .negotiation(let version, _, let flags) = try await reply(until: deadline) else {
      throw Trouble(text: "it did not answer the negotiation of the milter protocol")
    }
    guard (2...MilterCodec.version).contains(version) else { throw Trouble(text: "\(MilterFault.version(version))") }
    self.version = version
    self.flags = version < 6 ? flags.intersection(.old) : flags.intersection(.all)
    if version < 4 { self.flags.insert(.noData) }
  }

  private static func macros(_ connection: MilterConnection) -> [(name: String, value: String)] {
    let (client, local) = (connection.client, connection.local)
    return [
      ("j", connection.hostname), ("v", "ssmtp-mailer"), ("_", "[\(client.address)]"),
      ("daemon_name", connection.daemon), ("daemon_addr", "\(local.address)"), ("daemon_port", "\(local.port)"),
      ("if_name", connection.hostname), ("if_addr", "\(local.address)"), ("if_port", "\(local.port)"),
      ("client_addr", "\(client.address)"), ("client_port", "\(client.port)"),
      ("client_name", "[\(client.address)]"), ("client_ptr", "unknown"),
    ]
  }

  /// Says goodbye, if there is still a connection, and closes it. Whoever waits for an answer gets none.
  public func close() {
    isClosed = true
    guard let stream else { return }
    stream.append { MilterCodec.frame(.quit, into: &$0) }
    _ = try? stream.tryFlush()
    stream.close()
    self.stream = nil
  }

  // MARK: The envelope

  /// Tells of the client's introduction if that is news, and of the sender.
  public nonisolated(nonsending) func mail(
    _ sender: MilterSender, hello: MilterHello, _ connection: MilterConnection, on loop: EventLoop
  ) async -> MilterVerdict {
    // After a failure the next message is another chance.
    let isFresh = stream == nil
    if isFresh { await open(connection, on: loop) }
    let verdict = await tell(sender, hello)
    // A connection that has waited for a while may be gone, because the filter was restarted: no reason to put mail off.
    guard verdict == .unavailable, !isFresh, !isClosed else { return verdict }
    await open(connection, on: loop)
    return await tell(sender, hello)
  }

  private nonisolated(nonsending) func tell(_ sender: MilterSender, _ hello: MilterHello) async -> MilterVerdict {
    guard standing == .proceed else { return settle(standing) }
    do throws(Trouble) {
      if self.hello != hello {
        var macros: [(name: String, value: String)] = []
        if let version = hello.tlsVersion { macros.append(("tls_version", version)) }
        if let cipher = hello.cipher { macros.append(("cipher", cipher)) }
        helloVerdict = try await command(.helo, unless: .noHelo, silentIf: .silentHelo, macros: macros) {
          MilterCodec.words(.helo, [hello.name], into: &$0)
        }
        self.hello = hello
      }
      guard helloVerdict == .proceed else { return settle(helloVerdict) }
      queueID = sender.queueID
      isInMessage = true
      var macros = [("i", sender.queueID), ("mail_addr", sender.path), ("mail_mailer", "smtp")]
      if let host = Self.host(of: sender.path) { macros.append(("mail_host", host)) }
      if let identity = sender.identity {
        macros += [("auth_authen", identity), ("auth_type", "PLAIN"), ("auth_author", identity)]
      }
      return settle(
        try await command(.mail, unless: .noMail, silentIf: .silentMail, macros: macros) {
          MilterCodec.words(.mail, ["<\(sender.path)>"] + sender.parameters, into: &$0)
        })
    } catch { return settle(fail(error)) }
  }

  /// Tells of a recipient. A refusal is of this recipient alone.
  public nonisolated(nonsending) func recipient(_ path: String, parameters: [String]) async -> MilterVerdict {
    guard messageVerdict == .proceed else { return messageVerdict }
    do throws(Trouble) {
      var macros = [("i", queueID), ("rcpt_addr", path), ("rcpt_mailer", "smtp")]
      if let host = Self.host(of: path) { macros.append(("rcpt_host", host)) }
      let verdict = try await command(.recipient, unless: .noRecipients, silentIf: .silentRecipients, macros: macros) {
        MilterCodec.words(.recipient, ["<\(path)>"] + parameters, into: &$0)
      }
      if case .refuse = verdict { return verdict }
      return settle(verdict)
    } catch { return settle(fail(error)) }
  }

  private static func host(of path: String) -> String? {
    path.lastIndex(of: "@").map { String(path[path.index(after: $0)...]) }
  }

  /// Remembers what was said about the message, so that no more is asked.
  private func settle(_ verdict: MilterVerdict) -> MilterVerdict {
    messageVerdict = verdict
    return verdict
  }

  /// Ends the message without a verdict.
  public func abort() {
    defer { (isInMessage, messageVerdict, hasSeenEnough) = (false, .proceed, false) }
    guard isInMessage, let stream else { return }
    stream.append { MilterCodec.frame(.abort, into: &$0) }
    _ = try? stream.tryFlush()
  }

  // MARK: The content

  /// Tells that the content begins.
  public nonisolated(nonsending) func data() async -> MilterVerdict {
    await inMessage(.data, unless: .noData, silentIf: .silentData, macros: [("i", queueID)]) {
      MilterCodec.frame(.data, into: &$0)
    }
  }

  public nonisolated(nonsending) func header(name: [UInt8], value: [UInt8]) async -> MilterVerdict {
    await inMessage(.header, unless: .noHeaders, silentIf: .silentHeaders) {
      MilterCodec.header(name: name, value: value, into: &$0)
    }
  }

  public nonisolated(nonsending) func endOfHeaders() async -> MilterVerdict {
    await inMessage(.endOfHeaders, unless: .noEndOfHeaders, silentIf: .silentEndOfHeaders, macros: [("i", queueID)]) {
      MilterCodec.frame(.endOfHeaders, into: &$0)
    }
  }

  public var wantsBody: Bool { messageVerdict == .proceed && !flags.contains(.noBody) && !hasSeenEnough }
  private var hasSeenEnough = false

  /// Sends a piece of the body, ``MilterCodec/chunkSize`` octets at most.
  public nonisolated(nonsending) func body(_ piece: ArraySlice<UInt8>) async -> MilterVerdict {
    guard wantsBody else { return messageVerdict }
    return await inMessage(.body, unless: .noBody, silentIf: .silentBody) { out in
      MilterCodec.frame(.body, into: &out) { $0 += piece }
    }
  }

  private nonisolated(nonsending) func inMessage(
    _ code: MilterCommand, unless no: MilterFlags, silentIf silent: MilterFlags,
    macros: [(name: String, value: String)] = [], _ packet: (inout [UInt8]) -> Void
  ) async -> MilterVerdict {
    guard messageVerdict == .proceed else { return messageVerdict }
    do throws(Trouble) {
      return settle(try await command(code, unless: no, silentIf: silent, macros: macros, packet))
    } catch { return settle(fail(error)) }
  }

  /// Ends the content and takes what the filter wants changed, until its verdict.
  public nonisolated(nonsending) func endOfBody(_ editor: some MilterEditor) async -> MilterVerdict {
    defer { (isInMessage, messageVerdict, hasSeenEnough) = (false, .proceed, false) }
    guard messageVerdict == .proceed else { return messageVerdict }
    do throws(Trouble) {
      stream?.append { out in
        MilterCodec.macros(for: .endOfBody, [("i", queueID)], into: &out)
        MilterCodec.frame(.endOfBody, into: &out)
      }
      let patience = milter.settings.contentTimeout
      while true {
        let reply = try await reply(until: SystemTime().now + patience, patience: patience)
        if let verdict = Self.verdict(reply) {
          milter.count { $0.messages += 1 }
          return count(verdict)
        }
        do throws(MilterFault) { try await editor.apply(reply) } catch { throw Trouble(text: "\(error)") }
      }
    } catch { return fail(error) }
  }

  // MARK: Packets

  private nonisolated(nonsending) func command(
    _ code: MilterCommand, unless no: MilterFlags, silentIf silent: MilterFlags,
    macros: [(name: String, value: String)] = [], _ packet: (inout [UInt8]) -> Void
  ) async throws(Trouble) -> MilterVerdict {
    guard let stream else { throw Trouble(text: "there is no connection") }
    if flags.contains(no) { return .proceed }
    stream.append { out in
      MilterCodec.macros(for: code, macros, into: &out)
      packet(&out)
    }
    let deadline = SystemTime().now + milter.settings.commandTimeout
    if flags.contains(silent) {
      if stream.pendingOutput > Self.outputLimit { try await flush(until: deadline) }
      return .proceed
    }
    let reply = try await reply(until: deadline, patience: milter.settings.commandTimeout)
    if reply == .skip, code == .body {
      hasSeenEnough = true
      return .proceed
    }
    guard let verdict = Self.verdict(reply) else {
      throw Trouble(text: "\(MilterFault.unexpected("a change of the message"))")
    }
    return count(verdict)
  }

  private static let outputLimit = 128 * 1024

  private func count(_ verdict: MilterVerdict) -> MilterVerdict {
    switch verdict {
    case .refuse(let reply) where reply.isPermanent: milter.count { $0.rejected += 1 }
    case .refuse: milter.count { $0.deferred += 1 }
    case .discard: milter.count { $0.discarded += 1 }
    case .proceed, .accept, .unavailable: break
    }
    return verdict
  }

  /// nil for what is no verdict but a change.
  private static func verdict(_ reply: MilterReply) -> MilterVerdict? {
    switch reply {
    case .proceed: .proceed
    case .accept: .accept
    case .discard: .discard
    case .reject: .refuse(Reply(550, "5.7.1", "Refused by a filter of this server"))
    case .temporaryFailure, .connectionFailure, .shutdown: .refuse(unavailable)
    // 421 would close the connection, which a filter has no say in.
    case .reply(let reply):
      .refuse(reply.code == 421 ? Reply(code: 451, enhanced: reply.enhanced, lines: reply.lines) : reply)
    default: nil
    }
  }

  /// What a client hears while a filter cannot be asked.
  public static let unavailable = Reply(451, "4.7.1", "A filter of this server does not answer now, try again later")
  public static let refused = Reply(550, "5.7.1", "A filter of this server does not answer")

  private nonisolated(nonsending) func flush(until deadline: MonotonicInstant) async throws(Trouble) {
    do throws(NetworkError) { try await stream?.flush(until: deadline, waitingFor: "the filter to read") } catch {
      throw Self.trouble(error)
    }
  }

  /// The next packet that is more than a sign of life.
  /// - Parameter patience: how much longer it may take after each sign of life; nil for no longer.
  private nonisolated(nonsending) func reply(
    until deadline: MonotonicInstant, patience: Duration? = nil
  ) async throws(Trouble) -> MilterReply {
    guard let stream else { throw Trouble(text: "there is no connection") }
    try await flush(until: deadline)
    var deadline = deadline
    while true {
      let parsed = stream.consume { bytes -> (consumed: Int, Result<MilterReply?, MilterFault>) in
        do throws(MilterFault) {
          guard let (reply, length) = try MilterCodec.parse(bytes) else { return (0, .success(nil)) }
          return (length, .success(reply))
        } catch { return (0, .failure(error)) }
      }
      switch parsed {
      case .success(.progress):
        if let patience { deadline = SystemTime().now + patience }
      case .success(.some(let reply)): return reply
      case .success(nil):
        do throws(NetworkError) {
          if try await stream.fill(until: deadline, waitingFor: "the filter's answer") { continue }
        } catch { throw Self.trouble(error) }
        throw Trouble(text: "it closed the connection")
      case .failure(let fault): throw Trouble(text: "\(fault)")
      }
    }
  }

  private static func trouble(_ error: NetworkError) -> Trouble {
    if case .timedOut = error { return Trouble(text: "\(error)", isSilence: true) }
    return Trouble(text: "\(error)")
  }

  private func fail(_ trouble: Trouble) -> MilterVerdict {
    stream?.close()
    stream = nil
    isInMessage = false
    // Not its fault when this side ends the session.
    if !isClosed { milter.failed(trouble.text, isSilence: trouble.isSilence) }
    return .unavailable
  }
}
