// From the configuration's words to what each part wants to know.

import Configuration
import Delivery
import Logging
import Message
import Network
import OAuth
import Primitives
import Routing
import SMTP
import Server
import Spool
import Telemetry

extension Settings {
  var logDestination: LogDestination {
    switch global.logFile {
    case .journal: .journal
    case .stderr: .standardError
    case .path(let path): .file(path)
    }
  }

  var logLevel: Logger.Level {
    switch global.logLevel {
    case .debug: .debug
    case .info: .info
    case .notice: .notice
    case .warning: .warning
    case .error: .error
    case .critical: .critical
    }
  }
}

extension ServerSettings {
  init(_ settings: Settings, router: Router) throws(DaemonError) {
    let global = settings.global
    var tls: TLSContext?
    if let files = CertificateFiles(global) {
      do throws(NetworkError) { tls = try files.load() } catch {
        throw DaemonError("\(error)", exitStatus: 78)
      }
    }
    self.init(
      hostname: global.defaultHostname, maximumMessageSize: global.maxMessageSize,
      maximumRecipients: global.maxRecipients, maximumConnections: global.maxClientConnections,
      maximumConnectionsPerAddress: global.maxClientConnectionsPerIP, clientTimeout: global.clientTimeout,
      router: router, tls: tls)
    loginLimits = LoginLimits(maximumFailures: global.authMaxFailures, banTime: global.authBanTime)
    limits = ServerLimits(global)
  }
}

extension DeliverySettings {
  init(_ settings: Settings) {
    self.init(hostname: settings.global.defaultHostname)
    retrySchedule = RetrySchedule(settings.global.retrySchedule)
    queueLifetime = settings.global.queueLifetime
    delayWarning = settings.global.delayWarning
  }
}

extension UpstreamSettings {
  /// The upstreams that mail can leave through. A `[domain:]` that is this relay itself is never connected to.
  static func all(_ settings: Settings, _ log: Logger) -> [UpstreamSettings] {
    settings.domains.values.filter { !$0.isLocal }.map { domain in
      var upstream = UpstreamSettings(domain, settings.global, log)
      upstream.fallbacks = domain.fallbackAccounts.compactMap { settings.domains[$0]?.name }
      return upstream
    }
  }

  init(_ domain: DomainSettings, _ global: GlobalSettings, _ log: Logger) {
    self.init(
      name: domain.name, account: domain.relayAccount ?? domain.username ?? domain.name, host: domain.host,
      port: domain.port, security: domain.useSSL ? .implicitTLS : domain.useStartTLS ? .startTLS : .none,
      credential: Self.credential(domain, log), serverName: domain.tlsServerName, heloName: global.defaultHostname)
    caFile = domain.tlsCAFile
    minimumTLS = domain.tlsMinimum == .tls13 ? .tls13 : .tls12
    maximumConnections = domain.maxConnections ?? global.maxConnections
    messagesPerConnection = domain.messagesPerConnection
    connectionTimeout = global.connectionTimeout
    readTimeout = global.readTimeout
    writeTimeout = global.writeTimeout
    isEnabled = domain.enabled
    dailyLimit = domain.dailyLimit
    if global.enableRateLimiting {
      rate = RateLimit(
        perMinute: domain.rateLimitPerMinute ?? global.rateLimitPerMinute, burst: global.rateLimitBurst)
    }
  }

  private static func credential(_ domain: DomainSettings, _ log: Logger) -> Credential? {
    guard let username = domain.username else { return nil }
    if let grant = domain.tokenGrant {
      let name = domain.name
      let tokens = TokenCache(grant, time: SystemTime(), warn: { log.warning("account \(name): \($0)") })
      return Credential(
        mechanism: domain.authMethod == .oauthBearer ? .oauthBearer : .xoauth2, username: username, tokens: tokens)
    }
    guard let password = domain.password else { return nil }
    let mechanism: Credential.Mechanism
    switch domain.authMethod {
    case .none: return nil
    case .plain: mechanism = .plain
    case .login: mechanism = .login
    case .xoauth2: mechanism = .xoauth2
    case .oauthBearer: mechanism = .oauthBearer
    }
    return Credential(mechanism: mechanism, username: username, secret: password.reveal())
  }
}

extension OutboundSender {
  /// What an account changes about a message. All its recipients there decide, not those still open: a message that is
  /// sent again must not change its From.
  func departure(_ envelope: Envelope, of lane: String, by account: String, now: Timestamp) -> Departure? {
    guard changes(account: account) else { return nil }
    let name = account.lowercased()
    let lane = lane.lowercased()
    let recipients = envelope.recipients.filter { $0.account.lowercased() == lane }.map(\.original)
    let reversePath = reversePath(envelope.reversePath, account: name, now: now)
    guard let via = via(account: name, recipients: recipients) else {
      return reversePath == envelope.reversePath ? nil : Departure(reversePath: reversePath)
    }
    let from = FromRewriting(
      address: via.address, label: via.label, reversePath: try? Mailbox(parsing: envelope.reversePath),
      isOurs: { isOurs($0) })
    return Departure(reversePath: reversePath, from: from)
  }
}
