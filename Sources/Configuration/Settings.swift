// The configuration as typed values: what every other room reads.

import OAuth
import Passwords
import Primitives

/// The whole configuration, checked.
public struct Settings: Sendable {
  public var global = GlobalSettings()
  /// By lowercased name.
  public var domains: [String: DomainSettings] = [:]
  public var users: [UserSettings] = []
  public var mappings: [MappingSettings] = []
  var descriptions: [(section: String, key: String, value: String, origin: String)] = []

  public init() {}

  /// Every key with its effective value and where that came from, in the order of the files; secrets are redacted.
  public func describe() -> [(section: String, key: String, value: String, origin: String)] { descriptions }
}

/// The `[global]` section.
public struct GlobalSettings: Sendable {
  /// The name of this relay: banner, EHLO, Received, Message-ID.
  public var defaultHostname = "localhost"
  public var defaultFrom = ""
  /// The account that the daemon becomes once its ports are bound, when root starts it.
  public var user: String?
  public var configDir = ""
  public var domainsDir = ""
  public var usersDir = ""
  public var mappingsDir = ""
  public var sslDir = ""
  public var logFile = LogFile.journal
  public var logLevel = LogLevel.info
  /// Upstream connections per relay account, at most.
  public var maxConnections = 10
  public var connectionTimeout = Duration.seconds(30)
  public var readTimeout = Duration.seconds(60)
  public var writeTimeout = Duration.seconds(60)
  public var enableRateLimiting = true
  /// Messages that an account may start per minute.
  public var rateLimitPerMinute = 100
  public var rateLimitBurst = 10
  public var listen = ["0.0.0.0:25", "[::]:25"].compactMap { Endpoint($0) }
  public var listenSubmission: [Endpoint] = []
  public var listenSMTPS: [Endpoint] = []
  public var trustedNetworks = ["127.0.0.0/8", "::1"].compactMap { IPNetwork($0) }
  /// The `[domain:]` of recipients that nothing else names, lowercased.
  public var defaultDomain: String?
  /// In octets.
  public var maxMessageSize = 35_882_577
  public var maxRecipients = 100
  public var maxClientConnections = 1000
  public var maxClientConnectionsPerIP = 50
  /// Messages per client address; 0 does not limit.
  public var clientRateLimitPerMinute = 0
  public var clientTimeout = Duration.seconds(300)
  public var clientLimits = ClientLimitSettings()
  /// A PEM file; nil offers no STARTTLS. Set together with ``tlsKey``.
  public var tlsCertificate: String?
  public var tlsKey: String?
  public var queueDir = "/var/lib/ssmtp-mailer"
  /// Octets that new mail must leave free in the queue's file system; nil for a tenth of it, 256 MiB at most.
  public var queueMinimumFree: Int?
  public var queueLifetime = Duration.seconds(5 * 86_400)
  /// The waits between attempts; the last repeats.
  public var retrySchedule = [60, 300, 900, 1800, 3600, 7200, 14400].map { Duration.seconds($0) }
  /// Zero never reports a delay.
  public var delayWarning = Duration.seconds(4 * 3600)
  public var adminSocket = "/run/ssmtp-mailer/admin.sock"
  public var metricsListen: [Endpoint] = []
  /// The first signs, all verify; empty without SRS.
  public var srsSecrets: [Secret] = []
  /// nil: ``defaultHostname``.
  public var srsDomain: String?
  /// Failed logins of one address until it is banned; 0 never bans.
  public var authMaxFailures = 10
  public var authBanTime = Duration.seconds(900)
  /// Load balancers, DNS lists and mail filters between clients and the queue.
  public var filters = FilterSettings()

  public init() {}
}

/// A `[domain:NAME]` section: an upstream and the account that sends through it, or this relay itself.
public struct DomainSettings: Sendable {
  /// As it was written.
  public var name: String
  public var enabled = true
  public var host = ""
  public var port: UInt16 = 25
  public var authMethod = AuthMethod.none
  /// As it was set, else ``username``, else ``name``.
  public var relayAccount: String?
  public var username: String?
  /// From whichever source gave it; nil without AUTH.
  public var password: Secret?
  /// How access tokens are obtained; nil when ``password`` is what AUTH takes, a token included.
  public var tokenGrant: TokenGrant?
  /// TLS from the first byte.
  public var useSSL = false
  public var useStartTLS = false
  /// A PEM file; nil trusts the authorities of the system.
  public var tlsCAFile: String?
  /// The name the certificate must be good for; nil: ``host``.
  public var tlsServerName: String?
  public var tlsMinimum = TLSVersion.tls12
  /// nil: as `[global]` says.
  public var maxConnections: Int?
  public var messagesPerConnection = 100
  /// nil: as `[global]` says.
  public var rateLimitPerMinute: Int?
  /// Recipients in any 24 hours; nil does not limit.
  public var dailyLimit: Int?
  /// The `[domain:]` sections, lowercased, that carry the mail while this account is on hold, in their order.
  public var fallbackAccounts: [String] = []
  public var envelopeSender = EnvelopeSenderMode.keep
  public var fromHeader = FromHeaderMode.keep
  /// Aliases whose own address may stand in From.
  public var sendAs: [AddressPattern] = []
  /// Whether this is this relay itself, which is never connected to.
  public var isLocal = false

  public init(name: String) { self.name = name }
}

/// A `[user:ADDRESS]` section: what a sender may do.
public struct UserSettings: Sendable {
  /// An address, or with ``templateAddress`` a pattern; `{type}` reads as `*`.
  public var address: AddressPattern
  public var enabled = true
  public var domain: String?
  public var canSendFrom = true
  public var canSendTo = true
  public var templateAddress = false
  /// Recipient domains, lowercased; empty allows all.
  public var allowedDomains: [String] = []
  /// nil: nobody can log in as this user.
  public var passwordHash: PasswordHash?
  /// Further addresses, and patterns, that the user may send from once logged in.
  public var sendAs: [AddressPattern] = []

  public init(address: AddressPattern) { self.address = address }
}

/// A `[mapping:NAME]` section: new addresses for a recipient.
public struct MappingSettings: Sendable {
  public var name: String
  public var enabled = true
  public var from: AddressPattern
  public var to: [AddressPattern]
  /// The `[domain:]` that carries the mail, lowercased.
  public var domain: String

  public init(name: String, from: AddressPattern, to: [AddressPattern], domain: String) {
    self.name = name
    self.from = from
    self.to = to
    self.domain = domain
  }
}
