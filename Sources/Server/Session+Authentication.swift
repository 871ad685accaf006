// AUTH: the exchange with the client, the check of the password away from the loop, and what a failure costs.

import Logging
import Network
import Passwords
import Primitives
import Routing
import SMTP

extension Session {
  /// Who the client is, as far as relaying and the users' policy go.
  var standing: ClientStanding {
    if let identity = machine.identity { return .authenticated(identity) }
    return isTrustedClient ? .trusted : .untrusted
  }

  /// `, user=<…>` for log lines about mail of a user.
  var login: String { machine.identity.map { ", user=<\(Self.shown($0))>" } ?? "" }

  /// Why an address that has guessed too often gets no session where there is nothing to do but to log in.
  /// Mail for our aliases still comes in on port 25.
  func refusalOfBanned() -> Reply? {
    guard role.requiresAuthentication, server.guardian.isBanned(client), !isTrustedClient else {
      return nil
    }
    server.guardian.countTurnedAway()
    return Self.banned(settings.hostname)
  }

  private static func banned(_ hostname: String) -> Reply {
    Reply(421, "4.7.0", "\(hostname): too many failed logins from your address, try again later")
  }

  /// The refusal of a session whose user is no longer one: a reload must not wait for the connection to end.
  func refusalOfIdentity() -> Reply? {
    guard let identity = machine.identity, !settings.router.identities.isKnown(identity, as: loginHash) else {
      return nil
    }
    return Reply(550, "5.7.1", "\(identity) may not log in any more")
  }

  /// Returns false when the session is over.
  func authenticate(
    _ mechanism: String, _ initialResponse: String?, _ stream: ByteStream
  ) async throws(NetworkError) -> Bool {
    guard var exchange = ServerAuthentication(mechanism) else {
      send(Reply(504, "5.5.4", "Mechanism is not offered"))
      return true
    }
    var framer = LineFramer(maximumLength: ServerAuthentication.maximumLineLength)
    var step = exchange.begin(initialResponse)
    while case .challenge(let reply) = step {
      send(reply)
      switch try await response(&framer, stream) {
      case nil: return false
      case .failure(.reply(let reply)): step = .refuse(reply)
      case .success(let line): step = line.withUnsafeBytes { exchange.receive($0) }
      }
    }
    switch step {
    case .challenge: return true  // the loop has taken them all
    case .refuse(let reply): return fail(with: reply)
    case .claim(let claim): return await check(claim, exchange.mechanism, stream)
    }
  }

  /// The next line of the exchange, or the reply that says why it is none; nil when the session is over.
  private func response(
    _ framer: inout LineFramer, _ stream: ByteStream
  ) async throws(NetworkError) -> Result<[UInt8], ExchangeError>? {
    let deadline = commandDeadline
    while true {
      if stream.bufferedCount > 0 {
        let result: Result<[UInt8], ExchangeError>? = stream.consume { bytes in
          switch framer.next(bytes) {
          case .incomplete(let consumed): return (consumed, nil)
          case .malformed(.tooLong, let consumed): return (consumed, .failure(.reply(Replies.responseTooLong)))
          case .malformed(.bareLineBreak, let consumed): return (consumed, .failure(.reply(Replies.badResponse)))
          case .line(let range, let consumed): return (consumed, .success(Array(bytes[range])))
          }
        }
        if let result { return result }
      }
      try await flush(stream)
      if isStopping {
        await close(stream, with: Self.shuttingDown(settings.hostname))
        return nil
      }
      isWaitingForCommand = true
      defer { isWaitingForCommand = false }
      guard try await fill(stream, until: deadline, waitingFor: "a response to AUTH") else { return nil }
    }
  }

  /// A reply as an error.
  enum ExchangeError: Error { case reply(Reply) }

  private func check(
    _ claim: ServerAuthentication.Claim, _ mechanism: ServerAuthentication.Mechanism, _ stream: ByteStream
  ) async -> Bool {
    let (guardian, router, limits) = (server.guardian, settings.router, settings.loginLimits)
    let isTrusted = isTrustedClient
    var admission = guardian.begin(client, limits: limits, isTrusted: isTrusted)
    // A program that sends with many connections at once has them log in one after the other.
    for _ in 0..<Self.turns where admission == .tooManyAtOnce && !isStopping {
      await pause(for: .milliseconds(100))
      admission = guardian.begin(client, limits: limits, isTrusted: isTrusted)
    }
    switch admission {
    case .go: break
    case .tooManyAtOnce:
      guardian.countBusy()
      return fail(with: Replies.authenticationBusy)
    case .banned: return failBanned()
    }
    let (identity, hash) = router.identities.login(claim.username)
    guard let hash, let isRight = await server.passwords.check(claim.password, against: hash) else {
      guardian.abandoned(client)
      server.log.warning("\(client): login put off, user=<\(Self.shown(claim.username))>: too many at once")
      return fail(with: Replies.authenticationBusy)
    }
    if let identity, isRight, Self.acts(claim.authorizationIdentity, as: identity) {
      guardian.succeeded(client)
      machine.authenticated(identity)
      loginHash = hash
      server.log.info("\(client): logged in, user=<\(Self.shown(identity))>, method=\(mechanism.rawValue)")
      send(Replies.authenticated)
      return true
    }
    let penalty = guardian.failed(
      client, name: claim.username.lowercased(), password: claim.password, limits: limits, isTrusted: isTrusted)
    // fail2ban reads this line (etc/fail2ban): the address comes first, and nothing a client says before it.
    server.log.warning(
      "\(client): login failed, user=<\(Self.shown(claim.username))>, method=\(mechanism.rawValue), listener=\(role)")
    if let failures = penalty.notableFailures {
      server.log.warning(
        "user=<\(Self.shown(claim.username))>: \(failures) failed logins within an hour, the last from \(client)")
    }
    if penalty.isBan {
      let seconds = limits.banTime.components.seconds
      server.log.warning("\(client): banned from logging in for \(seconds) s after too many failed logins")
      return failBanned()
    }
    await pause(for: penalty.delay)
    return fail(with: Replies.wrongCredentials)
  }

  /// How often a client of many looks whether it is its turn.
  private static let turns = 100

  /// RFC 4616 2: who logs in may only act as itself.
  private static func acts(_ authorization: String, as identity: String) -> Bool {
    if authorization.isEmpty { return true }
    guard let wanted = try? Mailbox(parsing: authorization) else { return false }
    return wanted == (try? Mailbox(parsing: identity))
  }

  private func failBanned() -> Bool {
    guard role.requiresAuthentication else { return fail(with: Replies.authenticationBanned) }
    send(Self.banned(settings.hostname))
    farewell = Self.longFarewell
    return false
  }

  /// Counts the error. Returns false when it was one too many and the session is over.
  private func fail(with reply: Reply) -> Bool {
    send(reply)
    guard let last = machine.authenticationFailed() else { return true }
    server.reached(.errors, client, "sent away: \(last)")
    send(last)
    farewell = Self.longFarewell
    return false
  }

  /// Keeps a reply back: the session sleeps, no thread does. A stop ends it early.
  private func pause(for delay: Duration) async {
    guard delay > .zero, !isStopping else { return }
    let end = server.time.now + delay
    let task = Task(executorPreference: loop) { [time = server.time] in
      // A stop ends it early: the session then looks whether it goes on.
      _ = try? await time.sleep(until: end)
    }
    penalty = task
    await task.value
    penalty = nil
  }

  /// A name as a log line has it: what cannot stand in an address becomes `?`, so that nobody writes lines of his own.
  static func shown(_ name: String) -> String {
    let allowed = Set("@.+-_=".utf8)
    let bytes = name.utf8.prefix(100).map { byte -> UInt8 in
      let isWord = (0x30...0x39).contains(byte) || (0x41...0x5a).contains(byte) || (0x61...0x7a).contains(byte)
      return isWord || allowed.contains(byte) ? byte : UInt8(ascii: "?")
    }
    return String(decoding: bytes, as: UTF8.self) + (name.utf8.count > 100 ? "..." : "")
  }
}
