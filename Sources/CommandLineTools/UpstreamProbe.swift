// Looks at an upstream as delivery would use it, step by step, without sending mail: what works, how long it takes,
// and what to do about the first thing that does not.

import Delivery
import Network
import OAuth
import Primitives
import SMTP

/// The upstream to look at.
public struct ProbeTarget: Sendable {
  /// The name of the `[domain:]`.
  public var domain: String
  public var account: String
  public var host: String
  public var port: UInt16
  public var security: TransportSecurity
  /// nil tests no login.
  public var login: Login?
  /// PEM file; nil trusts the system's authorities.
  public var caFile: String?
  /// The name the certificate must be good for.
  public var serverName: String
  public var minimumTLS = TLSContext.MinimumVersion.tls12
  public var heloName: String
  /// What the relay accepts, in octets; nil does not compare.
  public var maximumMessageSize: Int?
  /// For each step.
  public var timeout = Duration.seconds(30)

  /// A user name with its secret, which never shows in a report.
  public struct Login: Sendable, CustomStringConvertible, CustomReflectable {
    public let mechanism: Credential.Mechanism
    public let username: String
    var secret: String
    private let tokens: TokenCache?

    /// - Parameter tokens: where the secret comes from instead, for OAuth 2.
    public init(mechanism: Credential.Mechanism, username: String, secret: String, tokens: TokenCache? = nil) {
      self.mechanism = mechanism
      self.username = username
      self.secret = secret
      self.tokens = tokens
    }

    /// The login with its access token, if it needs one.
    func withToken() async throws(TokenFailure) -> Self {
      guard let tokens else { return self }
      var login = self
      login.secret = try await tokens.token().reveal()
      return login
    }

    public var description: String { "\(mechanism.rawValue) \(username)" }
    public var customMirror: Mirror { Mirror(self, children: ["username": username]) }
  }

  public init(
    domain: String, account: String, host: String, port: UInt16, security: TransportSecurity, login: Login?,
    serverName: String? = nil, heloName: String
  ) {
    self.domain = domain
    self.account = account
    self.host = host
    self.port = port
    self.security = security
    self.login = login
    self.serverName = serverName ?? host
    self.heloName = heloName
  }
}

/// Runs the steps against one upstream.
public struct UpstreamProbe: Sendable {
  private let target: ProbeTarget
  private let names: any AddressSource
  /// Certificates that expire sooner are pointed out.
  private static let expiryWarningDays = 14

  public init(_ target: ProbeTarget, names: any AddressSource = SystemNames()) {
    self.target = target
    self.names = names
  }

  /// A step that failed; its fault, if any, is delivery's name for it.
  private struct Failure: Error {
    var detail: String
    var advice: String
    var isTemporary: Bool
    var name: ProbeReport.Name?
  }

  public func run(on loop: EventLoop) async -> ProbeReport {
    var report = ProbeReport(
      domain: target.domain, account: target.account, upstream: "\(target.host):\(target.port)")
    let connection = SMTPConnection(on: loop)
    do throws(Failure) {
      let answer = try await step(.dns, &report) { () throws(Failure) in try await lookUp() }
      if let pin = pinned(answer) { warn(pin, &report) }
      let addresses = answer.addresses
      let endpoint = try await connect(connection, addresses, loop, &report)
      try await talk(connection, endpoint, &report)
      await connection.quit()
    } catch {
      await connection.close()
      report.ok = false
      report.temporary = error.isTemporary
    }
    return report
  }

  private func warn(_ advice: String, _ report: inout ProbeReport) {
    guard !report.steps.isEmpty else { return }
    report.steps[report.steps.count - 1].warning = true
    report.steps[report.steps.count - 1].advice = advice
  }

  private func talk(
    _ connection: SMTPConnection, _ endpoint: Endpoint, _ report: inout ProbeReport
  ) async throws(Failure) {
    if target.security == .implicitTLS { try await secure(connection, .tls, &report) }
    _ = try await step(.banner, &report) { () throws(Failure) in
      let reply = try await expect(connection, nil, .greeting)
      return (reply, reply.text)
    }
    var capabilities = try await hello(connection, &report)
    if target.security == .startTLS {
      guard capabilities.startTLS else {
        let failure = Failure(
          detail: "the server does not offer STARTTLS: nothing more was sent",
          advice: "set smtp_port = 465 and use_ssl = true if it has TLS from the first byte, else ask its operator",
          isTemporary: false)
        try await step(.starttls, &report) { () throws(Failure) -> (Void, String) in throw failure }
        return
      }
      try await secure(connection, .starttls, &report)
      capabilities = try await hello(connection, &report)
    }
    try await step(.features, &report) { () throws(Failure) in ((), features(capabilities)) }
    if let shortcomings = shortcomings(capabilities) { warn(shortcomings, &report) }
    guard let login = target.login else { return }
    try await step(.auth, &report) { () throws(Failure) in
      // The same rule as delivery's: a secret leaves only under verified TLS, or for this machine itself.
      guard target.security != .none || endpoint.address.isLoopback else {
        throw Failure(
          detail: "not tried: a password must not travel in clear", advice: "set use_starttls or use_ssl",
          isTemporary: false)
      }
      let ready: ProbeTarget.Login
      do throws(TokenFailure) { ready = try await login.withToken() } catch {
        throw Failure(
          detail: error.description, advice: AccountFault(error).advice, isTemporary: error.kind == .unavailable)
      }
      try await authenticate(connection, ready, capabilities)
      return ((), "\(login.mechanism.rawValue) as \(login.username)")
    }
  }

  /// Runs `body`, which returns its result and what to say about it, and writes the step down.
  @discardableResult
  private func step<Result>(
    _ name: ProbeReport.Name, _ report: inout ProbeReport, _ body: () async throws(Failure) -> (Result, String)
  ) async throws(Failure) -> Result {
    let start = SystemTime().now
    func record(_ name: ProbeReport.Name, _ ok: Bool, _ detail: String, _ advice: String?) {
      let milliseconds = (Double((SystemTime().now - start).microseconds) / 100).rounded() / 10
      report.steps.append(.init(name: name, ok: ok, milliseconds: milliseconds, detail: detail, advice: advice))
    }
    do {
      let (result, detail) = try await body()
      record(name, true, detail, nil)
      return result
    } catch {
      record(error.name ?? name, false, error.detail, error.advice)
      throw error
    }
  }

  // MARK: DNS and TCP

  /// Addresses that do not follow the server when it moves; nil when they do, or are this machine's.
  private func pinned(_ answer: AddressAnswer) -> String? {
    guard !answer.isFromDNS, !answer.addresses.allSatisfy(\.isLoopback) else { return nil }
    return IPAddress(target.host) == nil
      ? "the hosts file decides, and does not follow when the server moves: remove the name from /etc/hosts"
      : "an address does not follow when the server moves: set smtp_server to its name"
  }

  private func lookUp() async throws(Failure) -> (AddressAnswer, String) {
    if let address = IPAddress(target.host) {
      var answer = AddressAnswer(addresses: [address], timeToLive: .seconds(0))
      answer.isFromDNS = false
      return (answer, "\(address) (an address: nothing to look up)")
    }
    let answer: AddressAnswer
    do throws(NetworkError) { answer = try await names.addresses(of: target.host) } catch {
      let text = "\(error)"
      let isUnanswered = text.contains("no name server answered")
      throw Failure(
        detail: text,
        advice: isUnanswered
          ? "check /etc/resolv.conf and whether this machine can reach its name servers" : "check smtp_server",
        isTemporary: isUnanswered)
    }
    let v4 = answer.addresses.filter(\.isIPv4).map(\.description).joined(separator: " ")
    let v6 = answer.addresses.filter { !$0.isIPv4 }.map(\.description).joined(separator: " ")
    let origin = answer.isFromDNS ? "TTL \(answer.timeToLive.components.seconds) s" : "from a file"
    return (answer, "A \(v4.isEmpty ? "none" : v4), AAAA \(v6.isEmpty ? "none" : v6) (\(origin))")
  }

  /// Tries every address, because delivery may meet any of them, and stays on the first that answers.
  private func connect(
    _ connection: SMTPConnection, _ addresses: [IPAddress], _ loop: EventLoop, _ report: inout ProbeReport
  ) async throws(Failure) -> Endpoint {
    var chosen: Endpoint?
    var dead: [Int] = []
    for address in addresses {
      let endpoint = Endpoint(address: address, port: target.port)
      let trial = chosen == nil ? connection : SMTPConnection(on: loop)
      do throws(Failure) {
        try await step(.tcp, &report) { () throws(Failure) in
          do throws(NetworkError) {
            try await trial.connect(to: endpoint, within: target.timeout / addresses.count)
          } catch { throw Failure(detail: "\(error)", advice: "", isTemporary: true) }
          return ((), "\(endpoint)")
        }
        if chosen == nil { chosen = endpoint } else { await trial.close() }
      } catch { dead.append(report.steps.count - 1) }
    }
    guard let chosen else {
      let advice =
        target.port == 25
        ? "many networks block port 25 outwards: use 587 with use_starttls"
        : "check smtp_port, the firewall and the route: nothing answered on port \(target.port)"
      for index in dead { report.steps[index].advice = index == dead.last ? advice : nil }
      throw Failure(detail: "", advice: advice, isTemporary: true)
    }
    // Mail goes by the others, so this is no failure.
    for index in dead {
      report.steps[index].ok = true
      report.steps[index].warning = true
      report.steps[index].advice = "mail goes by the other addresses; each try of this one costs time"
    }
    return chosen
  }

  // MARK: TLS

  private func secure(
    _ connection: SMTPConnection, _ name: ProbeReport.Name, _ report: inout ProbeReport
  ) async throws(Failure) {
    let summary = try await step(name, &report) { () throws(Failure) -> (TLSSummary?, String) in
      if name == .starttls { _ = try await expect(connection, "STARTTLS", .startTLS) }
      do throws(NetworkError) {
        let context = try TLSContext.client(caFile: target.caFile, minimum: target.minimumTLS)
        let summary = try await connection.startTLS(context, serverName: target.serverName, within: target.timeout)
        return (summary, summary.map { "\($0.version) \($0.cipher)" } ?? "")
      } catch { throw Self.failure(ofTLS: error) }
    }
    guard let certificate = summary?.certificate else { return }
    let chain = summary?.chain ?? []
    let trust = target.caFile ?? "the authorities of this system"
    try await step(.chain, &report) { () throws(Failure) in
      ((), "\(chain.joined(separator: " ← ")), issued by \(certificate.issuer), verified with \(trust)")
    }
    try await step(.name, &report) { () throws(Failure) in
      ((), "good for \(target.serverName) (\(TerminalText.cut(certificate.names.joined(separator: ", "), to: 100)))")
    }
    try await step(.expiry, &report) { () throws(Failure) in
      ((), "\(Quantity.count(certificate.daysLeft, "day")) left, until \(certificate.notAfter)")
    }
    if certificate.daysLeft < Self.expiryWarningDays {
      warn("the certificate expires soon: its operator has to renew it", &report)
    }
  }

  private static func failure(ofTLS error: NetworkError) -> Failure {
    switch error {
    case .certificate(let text):
      Failure(
        detail: text, advice: AccountFault.certificate.advice, isTemporary: false,
        name: text.contains("mismatch") ? .name : text.contains("expired") ? .expiry : .chain)
    case .tls(let text) where text.contains("wrong version number") || text.contains("packet length"):
      Failure(
        detail: text,
        advice: "the port does not begin with TLS: use_ssl belongs to port 465, use_starttls to port 587",
        isTemporary: false)
    case .tls(let text):
      Failure(detail: text, advice: "check tls_minimum and tls_ca_file", isTemporary: false)
    case .timedOut, .endOfStream, .closed, .system, .resolution:
      Failure(
        detail: "\(error)", advice: "something between here and the server may not let TLS through",
        isTemporary: true)
    }
  }

  // MARK: SMTP

  private func hello(
    _ connection: SMTPConnection, _ report: inout ProbeReport
  ) async throws(Failure) -> Capabilities {
    try await step(.ehlo, &report) { () throws(Failure) in
      let reply = try await expect(connection, "EHLO \(target.heloName)", .hello)
      return (Capabilities(ehlo: reply), reply.lines.dropFirst().joined(separator: ", "))
    }
  }

  /// The extensions that matter to a relay, those that are there.
  private func features(_ offered: Capabilities) -> String {
    var list: [String] = []
    list.append(offered.size.map { "SIZE \(Quantity.size($0))" } ?? "no SIZE")
    list.append(offered.pipelining ? "PIPELINING" : "no PIPELINING")
    list.append(offered.chunking ? "CHUNKING" : "no CHUNKING")
    list.append(offered.eightBitMIME ? "8BITMIME" : "no 8BITMIME")
    list.append(offered.smtpUTF8 ? "SMTPUTF8" : "no SMTPUTF8")
    if !offered.authMechanisms.isEmpty { list.append("AUTH \(offered.authMechanisms.sorted().joined(separator: " "))") }
    return list.joined(separator: ", ")
  }

  /// What the missing ones cost; nil when nothing does.
  private func shortcomings(_ offered: Capabilities) -> String? {
    var list: [String] = []
    if let size = offered.size, let own = target.maximumMessageSize, size < own {
      list.append("larger messages are accepted here and refused there: set max_message_size = \(size)")
    }
    if offered.size == nil { list.append("without SIZE a message that is too large is refused only after it was sent") }
    if !offered.pipelining { list.append("without PIPELINING every command costs a round trip") }
    if !offered.chunking { list.append("without CHUNKING messages are sent with DATA, one after the other") }
    if !offered.eightBitMIME { list.append("without 8BITMIME the server may refuse text that is not ASCII") }
    return list.isEmpty ? nil : list.joined(separator: "; ")
  }

  private func authenticate(
    _ connection: SMTPConnection, _ login: ProbeTarget.Login, _ capabilities: Capabilities
  ) async throws(Failure) {
    let mechanism = login.mechanism
    guard capabilities.authMechanisms.contains(mechanism.rawValue) else {
      let offered = capabilities.authMechanisms.sorted().joined(separator: ", ")
      throw Failure(
        detail: "the server does not offer AUTH \(mechanism.rawValue)",
        advice: offered.isEmpty
          ? "it offers no AUTH here: set use_starttls, or auth_method = NONE" : "set auth_method to one of \(offered)",
        isTemporary: false)
    }
    let initial: String
    switch mechanism {
    case .login:
      for (text, isLast) in [
        ("AUTH LOGIN", false), (SASL.login(login.username), false), (SASL.login(login.secret), true),
      ] {
        let reply = try await exchange(connection, text)
        guard isLast ? reply.isPositive : reply.isIntermediate else {
          throw Self.failure(of: reply, .authentication, hiding: [login.secret, text])
        }
      }
      return
    case .plain: initial = SASL.plain(username: login.username, password: login.secret)
    case .xoauth2: initial = SASL.xoauth2(username: login.username, token: login.secret)
    case .oauthBearer:
      initial = SASL.oauthBearer(
        username: login.username, host: target.host, port: Int(target.port), token: login.secret)
    }
    var reply = try await exchange(connection, "AUTH \(mechanism.rawValue) \(initial)")
    // The challenge explains an error; the verdict comes after an answer to it.
    if reply.isIntermediate { reply = try await exchange(connection, mechanism == .oauthBearer ? "AQ==" : "") }
    guard reply.isPositive else { throw Self.failure(of: reply, .authentication, hiding: [login.secret, initial]) }
  }

  private func expect(
    _ connection: SMTPConnection, _ command: String?, _ stage: Stage
  ) async throws(Failure) -> Reply {
    let reply = try await exchange(connection, command)
    guard reply.isPositive else { throw Self.failure(of: reply, stage) }
    return reply
  }

  private func exchange(_ connection: SMTPConnection, _ command: String?) async throws(Failure) -> Reply {
    do { return try await connection.exchange(command, within: target.timeout) } catch let error as ReplyError {
      throw Failure(detail: "\(error)", advice: "this is not an SMTP server: check smtp_port", isTemporary: false)
    } catch {
      let advice =
        target.security == .implicitTLS
        ? "wait and try again" : "wait and try again; a port that begins with TLS (465) needs use_ssl"
      throw Failure(detail: "\(error)", advice: advice, isTemporary: true)
    }
  }

  /// - Parameter secrets: servers exist that repeat what they refuse, and a report gets pasted into tickets.
  private static func failure(of reply: Reply, _ stage: Stage, hiding secrets: [String] = []) -> Failure {
    let repeats = secrets.contains { secret in
      !secret.isEmpty && reply.lines.contains { $0.lowercased().contains(secret.lowercased()) }
    }
    let shown = repeats ? "\(reply.code) (the text repeats the credentials and is not shown)" : "\(reply)"
    guard case .accountHeld(let fault) = ReplyMeaning(of: reply, at: stage) else {
      return Failure(
        detail: shown, advice: "wait and try again", isTemporary: reply.isTransient || reply.code == 421)
    }
    let isTemporary =
      switch fault {
      case .tooManyLogins, .dailyLimit, .slowDown, .unreachable, .tokenUnavailable: true
      case .badCredentials, .loginRefused, .relayDenied, .insecure, .certificate, .tokenRevoked, .tokenRefused:
        reply.isTransient
      }
    return Failure(detail: shown, advice: fault.advice, isTemporary: isTemporary)
  }
}
