// The configuration as the rest of the program sees it: typed, checked, with the secrets wrapped.

import Primitives

/// A secret that prints as `<redacted>` wherever it is printed.
public struct Secret: Sendable, Equatable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
  private let value: String
  public init(_ value: String) { self.value = value }
  /// The secret itself, for the one place that needs it.
  public func reveal() -> String { value }
  public var description: String { "<redacted>" }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: []) }
}

public enum LogFile: Sendable, Equatable {
  case journal, stderr
  case path(String)
}

public enum LogLevel: String, Sendable, CaseIterable {
  case debug = "DEBUG"
  case info = "INFO"
  case notice = "NOTICE"
  case warning = "WARNING"
  case error = "ERROR"
  case critical = "CRITICAL"
}

public enum AuthMethod: String, Sendable, CaseIterable {
  case none = "NONE"
  case plain = "PLAIN"
  case login = "LOGIN"
  case xoauth2 = "XOAUTH2"
  case oauthBearer = "OAUTHBEARER"
}

public enum TLSVersion: String, Sendable, CaseIterable {
  case tls12 = "1.2"
  case tls13 = "1.3"
}

public enum EnvelopeSender: String, Sendable, CaseIterable { case keep, relayAccount = "relay_account", srs }
public enum FromHeader: String, Sendable, CaseIterable { case keep, via }

/// `[global]`.
public struct GlobalSettings: Sendable {
  public var defaultHostname = ""
  public var defaultFrom: String?
  public var configDir = ""
  public var domainsDir = ""
  public var usersDir = ""
  public var mappingsDir = ""
  public var sslDir = ""
  public var logFile = LogFile.journal
  public var logLevel = LogLevel.info
  public var maxConnections = 10
  public var connectionTimeout = Duration.seconds(30)
  public var readTimeout = Duration.seconds(60)
  public var writeTimeout = Duration.seconds(60)
  public var enableRateLimiting = true
  public var rateLimitPerMinute = 100
  public var rateLimitBurst = 10
  public var listen: [Endpoint] = []
  public var trustedNetworks: [IPNetwork] = []
  /// The `[domain:]` for recipients that nothing else routes; already resolved, so nil means none.
  public var defaultDomain: String?
  public var maxMessageSize = 35_882_577
  public var maxRecipients = 100
  public var maxClientConnections = 1000
  public var maxClientConnectionsPerIP = 50
  public var clientRateLimitPerMinute = 0
  public var clientTimeout = Duration.seconds(300)
  /// Both or none.
  public var tlsCertificate: String?
  public var tlsKey: String?
  public var queueDir = "/var/lib/ssmtp-mailer"
  public var queueLifetime = Duration.seconds(5 * 86_400)
  public var retrySchedule: [Duration] = []
  public var delayWarning = Duration.seconds(4 * 3600)
  public var adminSocket = "/run/ssmtp-mailer/admin.sock"
}

/// `[domain:NAME]`: an upstream, or this relay itself.
public struct DomainSettings: Sendable {
  /// As written in the section's title.
  public var name: String
  public var place: Place
  public var enabled = true
  public var host = ""
  public var port: UInt16 = 25
  public var authMethod = AuthMethod.none
  public var relayAccount: String?
  public var username: String?
  public var password: Secret?
  public var useSSL = false
  public var useStartTLS = false
  public var tlsCAFile: String?
  public var tlsServerName: String?
  public var tlsMinimum = TLSVersion.tls12
  public var maxConnections: Int?
  public var messagesPerConnection = 100
  public var rateLimitPerMinute: Int?
  public var dailyLimit: Int?
  public var envelopeSender = EnvelopeSender.keep
  public var fromHeader = FromHeader.keep
  /// This relay itself: mail for it must match a mapping, and it is never connected to.
  public var isLocal = false
}

/// `[user:ADDRESS]`.
public struct UserSettings: Sendable {
  /// An address, or a pattern when ``isTemplate``.
  public var address: String
  public var place: Place
  public var enabled = true
  public var domain: String?
  public var canSendFrom = true
  public var canSendTo = true
  public var isTemplate = false
  /// Lowercased; empty allows all.
  public var allowedDomains: [String] = []
  public var passwordHash: Secret?
}

/// `[mapping:NAME]`.
public struct MappingSettings: Sendable {
  public var name: String
  public var place: Place
  public var enabled = true
  public var fromPattern = ""
  public var toPatterns: [String] = []
  public var smtpAccount: String?
  public var domain = ""
}

/// A value and where it came from, for `config show`.
public struct ShownValue: Sendable {
  public var section: String
  public var key: String
  public var value: String
  public var origin: String
}

/// A whole configuration.
public struct Settings: Sendable {
  public var global = GlobalSettings()
  /// By lowercased name.
  public var domains: [String: DomainSettings] = [:]
  public var users: [UserSettings] = []
  public var mappings: [MappingSettings] = []
  var shown: [ShownValue] = []

  /// Every value with its origin; secrets redacted.
  public func describe() -> [ShownValue] { shown }

  /// Whether mail for this domain is ours to rewrite, and never to be sent there.
  public func isLocalDomain(_ name: String) -> Bool {
    let name = name.lowercased()
    return name == global.defaultHostname.lowercased() || domains[name].map { $0.isLocal && $0.enabled } == true
  }
}
