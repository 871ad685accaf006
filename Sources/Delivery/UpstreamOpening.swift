// How a connection to an upstream comes to the point where mail can be sent: address, TCP, greeting, TLS, EHLO, AUTH.
// No credential leaves before the certificate and its name were verified.

import Network
import OAuth
import Primitives
import SMTP

/// Why a connection could not be brought to the point where mail can be sent.
struct OpenFailure: Error, Sendable, CustomStringConvertible {
  var fault: AccountFault
  var description: String
  /// What the upstream said, fit to be logged; nil when it was not a reply that ended it.
  var reply: Reply?
}

/// The opening of one connection. Belongs to the connection's actor.
final class UpstreamOpening {
  private let settings: UpstreamSettings
  private let number: Int
  private let loop: EventLoop
  private var parser = ReplyParser()
  private(set) var stream: ByteStream?
  private(set) var capabilities = Capabilities()
  /// Name, address and port, for log lines.
  private(set) var peer = ""
  private(set) var tls: TLSSummary?
  /// The shortest time from a command to its reply.
  private(set) var roundTrip = Duration.seconds(3600)
  /// Got before the connection is opened: an upstream is not kept waiting for the token endpoint.
  private var token: AccessToken?

  init(_ settings: UpstreamSettings, number: Int, loop: EventLoop) {
    self.settings = settings
    self.number = number
    self.loop = loop
  }

  /// Opens the connection; it is closed again when that fails.
  nonisolated(nonsending) func run(_ resolver: Resolver, _ context: TLSContext?) async throws(OpenFailure) -> ByteStream
  {
    if let tokens = settings.credential?.tokens { token = try await Self.token(from: tokens) }
    let stream = try await connect(resolver)
    self.stream = stream
    do throws(OpenFailure) { try await introduce(stream, context) } catch {
      stream.close()
      throw error
    }
    return stream
  }

  private nonisolated(nonsending) func connect(_ resolver: Resolver) async throws(OpenFailure) -> ByteStream {
    let addresses: [IPAddress]
    do { addresses = try await resolver.addresses(of: settings.host) } catch {
      throw OpenFailure(fault: .unreachable, description: "\(error)")
    }
    let deadline = SystemTime().now + settings.connectionTimeout
    var problems: [String] = []
    for (i, address) in addresses.enumerated() {
      // The connections of a pool begin at different addresses, and each goes on to the next when one is dead.
      let address = addresses.count > 1 ? addresses[(i + number) % addresses.count] : address
      let share = (deadline - SystemTime().now) / (addresses.count - i)
      do throws(NetworkError) {
        let stream = try await ByteStream.connect(
          to: Endpoint(address: address, port: settings.port), on: loop, until: SystemTime().now + share)
        peer = "\(settings.host)[\(address)]:\(settings.port)"
        return stream
      } catch { problems.append("\(error)") }
    }
    throw OpenFailure(fault: .unreachable, description: problems.joined(separator: "; "))
  }

  private nonisolated(nonsending) func introduce(_ stream: ByteStream, _ context: TLSContext?) async throws(OpenFailure)
  {
    if settings.security == .implicitTLS { try await secure(stream, context) }
    try await expect(stream, nil, .greeting)
    try await hello(stream)
    if settings.security == .startTLS {
      guard capabilities.startTLS else {
        throw OpenFailure(
          fault: .insecure,
          description: "\(peer) does not offer STARTTLS, which use_starttls asks for: nothing was sent in clear")
      }
      try await expect(stream, "STARTTLS", .startTLS)
      try await secure(stream, context)
      // What was learnt in clear is forgotten (RFC 3207 4.2).
      parser = ReplyParser()
      try await hello(stream)
    }
    guard let credential = settings.credential else { return }
    guard let tokens = credential.tokens, let token else {
      return try await authenticate(stream, credential, credential.secret)
    }
    do throws(OpenFailure) { return try await authenticate(stream, credential, token.reveal()) } catch {
      guard error.fault == .badCredentials else { throw error }
    }
    // A token may end before its time: one more try with a fresh one, before the account is held for it.
    await tokens.invalidate(token)
    let fresh = try await Self.token(from: tokens)
    do throws(OpenFailure) { try await authenticate(stream, credential, fresh.reveal()) } catch {
      guard error.fault == .badCredentials else { throw error }
      await tokens.invalidate(fresh)
      throw OpenFailure(fault: .tokenRefused, description: error.description + " (with a fresh token)")
    }
  }

  private nonisolated(nonsending) static func token(from tokens: TokenCache) async throws(OpenFailure) -> AccessToken {
    do throws(TokenFailure) { return try await tokens.token() } catch {
      throw OpenFailure(fault: AccountFault(error), description: error.description)
    }
  }

  private nonisolated(nonsending) func secure(_ stream: ByteStream, _ context: TLSContext?) async throws(OpenFailure) {
    guard let context else { throw OpenFailure(fault: .insecure, description: "TLS is not set up") }
    do {
      try await stream.startTLS(
        context, serverName: settings.serverName, until: SystemTime().now + settings.connectionTimeout)
      tls = stream.tls
    } catch {
      let fault: AccountFault = if case .certificate = error { .certificate } else { .unreachable }
      throw OpenFailure(fault: fault, description: "\(peer): \(error)")
    }
  }

  private nonisolated(nonsending) func hello(_ stream: ByteStream) async throws(OpenFailure) {
    capabilities = Capabilities(ehlo: try await expect(stream, "EHLO \(settings.heloName)", .hello))
  }

  private nonisolated(nonsending) func authenticate(
    _ stream: ByteStream, _ credential: Credential, _ password: String
  ) async throws(OpenFailure) {
    defer { stream.wipeOutputBuffer() }
    let mechanism = credential.mechanism
    guard capabilities.authMechanisms.contains(mechanism.rawValue) else {
      let offered = capabilities.authMechanisms.sorted().joined(separator: " ")
      throw OpenFailure(
        fault: .insecure,
        description:
          "\(peer) does not offer AUTH \(mechanism.rawValue) (it offers: \(offered.isEmpty ? "none" : offered))")
    }
    let initial: String
    switch mechanism {
    case .login:
      try await expect(stream, "AUTH LOGIN", .authentication, intermediate: true)
      try await expect(stream, SASL.login(credential.username), .authentication, intermediate: true)
      let secret = SASL.login(password)
      let reply = try await exchange(stream, secret, .authentication)
      guard reply.isPositive else { throw refused(reply, .authentication, hiding: [secret, password]) }
      return
    case .plain: initial = SASL.plain(username: credential.username, password: password)
    case .xoauth2: initial = SASL.xoauth2(username: credential.username, token: password)
    case .oauthBearer:
      initial = SASL.oauthBearer(
        username: credential.username, host: settings.host, port: Int(settings.port), token: password)
    }
    let reply = try await exchange(stream, "AUTH \(mechanism.rawValue) \(initial)", .authentication)
    if reply.isPositive { return }
    guard reply.isIntermediate else {
      throw refused(reply, .authentication, hiding: [initial, password])
    }
    // The challenge explains an error; the verdict comes after an answer to it: empty for XOAUTH2 (Google), a single
    // ^A for OAUTHBEARER (RFC 7628 3.2.3).
    let verdict = try await exchange(stream, mechanism == .oauthBearer ? "AQ==" : "", .authentication)
    guard verdict.isPositive else { throw refused(verdict, .authentication, hiding: [initial, password]) }
  }

  /// - Parameter secrets: servers exist that repeat what they refuse, and this text is logged.
  private func refused(_ reply: Reply, _ stage: Stage, hiding secrets: [String] = []) -> OpenFailure {
    let fault: AccountFault =
      if case .accountHeld(let fault) = ReplyMeaning(of: reply, at: stage) { fault } else { .unreachable }
    let repeats = secrets.contains { secret in
      !secret.isEmpty && reply.lines.contains { $0.lowercased().contains(secret.lowercased()) }
    }
    let shown = repeats ? "\(reply.code) (the text repeats the credentials and is not shown)" : "\(reply)"
    return OpenFailure(
      fault: fault, description: "\(peer) answered at \(stage.rawValue): \(shown)",
      reply: repeats ? nil : reply)
  }

  @discardableResult
  private nonisolated(nonsending) func expect(
    _ stream: ByteStream, _ command: String?, _ stage: Stage, intermediate: Bool = false
  )
    async
    throws(OpenFailure) -> Reply
  {
    let reply = try await exchange(stream, command, stage)
    guard intermediate ? reply.isIntermediate : reply.isPositive else { throw refused(reply, stage) }
    return reply
  }

  private nonisolated(nonsending) func exchange(_ stream: ByteStream, _ command: String?, _ stage: Stage)
    async throws(OpenFailure) -> Reply
  {
    do {
      let sent = SystemTime().now
      if let command {
        stream.append {
          $0.append(contentsOf: command.utf8)
          $0.append(contentsOf: [13, 10])
        }
        try await stream.flush(until: SystemTime().now + settings.writeTimeout, waitingFor: "the upstream to read")
      }
      let deadline = SystemTime().now + settings.readTimeout
      while true {
        if let reply = try stream.nextReply(&parser) {
          if command != nil { roundTrip = min(roundTrip, SystemTime().now - sent) }
          return reply
        }
        guard try await stream.fill(until: deadline, waitingFor: "the upstream's reply") else {
          throw NetworkError.endOfStream
        }
      }
    } catch {
      throw OpenFailure(
        fault: .unreachable, description: "\(peer.isEmpty ? settings.host : peer) at \(stage.rawValue): \(error)")
    }
  }
}

extension ByteStream {
  /// The next whole reply among the bytes that were received, nil when there is none yet.
  func nextReply(_ parser: inout ReplyParser) throws -> Reply? {
    guard bufferedCount > 0 else { return nil }
    return try consume { bytes in
      var consumed = 0
      let result = Result { try parser.next(bytes, consumed: &consumed) }
      return (consumed, result)
    }.get()
  }
}
