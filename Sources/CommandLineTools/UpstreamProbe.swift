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

/// What a probe has found; its JSON is the answer of `test --json`.
public struct ProbeReport: Codable, Sendable, Hashable {
  public enum Name: String, Codable, Sendable, Hashable {
    case dns, tcp, banner, ehlo, starttls, tls, certificate, auth
  }

  public struct Step: Codable, Sendable, Hashable {
    public var name: Name
    public var ok: Bool
    public var milliseconds: Double
    public var detail: String
    /// What to do, after a failure or a warning.
    public var advice: String?
  }

  public var domain: String
  public var account: String
  public var upstream: String
  public var ok = true
  /// Whether waiting may help, as against a change of the configuration or of the account.
  public var temporary = false
  public var steps: [Step] = []

  /// 0, 75 when waiting may help, 78 when something has to be changed.
  public var status: ExitStatus { ok ? .success : temporary ? .tryAgain : .configuration }

  /// The report for a terminal.
  public func lines() -> [String] {
    var result = ["\(domain)  \(account) → \(upstream)"]
    for step in steps {
      let name = step.name.rawValue
      let label = name + String(repeating: " ", count: max(11 - name.count, 0))
      let time = step.milliseconds < 10 ? Quantity.oneDecimal(step.milliseconds) : "\(Int(step.milliseconds.rounded()))"
      let column = String(repeating: " ", count: max(6 - time.count, 0)) + time
      result.append("  \(step.ok ? "✓" : "✗") \(label) \(column) ms  \(TerminalText.clean(step.detail))")
      if let advice = step.advice { result.append("    → \(advice)") }
    }
    return result
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
      let addresses = try await step(.dns, &report) { () throws(Failure) in try await lookUp() }
      let endpoint = try await step(.tcp, &report) { () throws(Failure) in try await connect(connection, addresses) }
      try await talk(connection, endpoint, &report)
      await connection.quit()
    } catch {
      await connection.close()
      report.ok = false
      report.temporary = error.isTemporary
    }
    return report
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

  private func lookUp() async throws(Failure) -> ([IPAddress], String) {
    if let address = IPAddress(target.host) { return ([address], "\(address) (an address: nothing to look up)") }
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
    return (answer.addresses, "A \(v4.isEmpty ? "none" : v4), AAAA \(v6.isEmpty ? "none" : v6) (\(origin))")
  }

  private func connect(
    _ connection: SMTPConnection, _ addresses: [IPAddress]
  ) async throws(Failure) -> (Endpoint, String) {
    var problems: [String] = []
    for (index, address) in addresses.enumerated() {
      let endpoint = Endpoint(address: address, port: target.port)
      do throws(NetworkError) {
        try await connection.connect(to: endpoint, within: target.timeout / (addresses.count - index))
        return (endpoint, problems.isEmpty ? "\(endpoint)" : "\(endpoint), after \(problems.joined(separator: "; "))")
      } catch { problems.append("\(error)") }
    }
    let advice =
      target.port == 25
      ? "many networks block port 25 outwards: use 587 with use_starttls"
      : "check smtp_port, the firewall and the route: nothing answered on port \(target.port)"
    throw Failure(detail: problems.joined(separator: "; "), advice: advice, isTemporary: true)
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
    try await step(.certificate, &report) { () throws(Failure) in
      (
        (),
        "good for \(target.serverName), issued by \(certificate.issuer), "
          + "\(Quantity.count(certificate.daysLeft, "day")) left (until \(certificate.notAfter))"
      )
    }
    if certificate.daysLeft < Self.expiryWarningDays, !report.steps.isEmpty {
      report.steps[report.steps.count - 1].advice = "the certificate expires soon: its operator has to renew it"
    }
  }

  private static func failure(ofTLS error: NetworkError) -> Failure {
    switch error {
    case .certificate(let text):
      Failure(detail: text, advice: AccountFault.certificate.advice, isTemporary: false, name: .certificate)
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
        guard isLast ? reply.isPositive : reply.isIntermediate else { throw Self.failure(of: reply, .authentication) }
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
    guard reply.isPositive else { throw Self.failure(of: reply, .authentication) }
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

  private static func failure(of reply: Reply, _ stage: Stage) -> Failure {
    guard case .accountHeld(let fault) = ReplyMeaning(of: reply, at: stage) else {
      return Failure(
        detail: "\(reply)", advice: "wait and try again", isTemporary: reply.isTransient || reply.code == 421)
    }
    let isTemporary =
      switch fault {
      case .tooManyLogins, .dailyLimit, .slowDown, .unreachable, .tokenUnavailable: true
      case .badCredentials, .loginRefused, .relayDenied, .insecure, .certificate, .tokenRevoked, .tokenRefused:
        reply.isTransient
      }
    return Failure(detail: "\(reply)", advice: fault.advice, isTemporary: isTemporary)
  }
}
