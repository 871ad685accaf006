// What an account needs to know about its upstream. The composition root makes it from the configuration.

import Network
import OAuth
import Primitives

/// How a connection is protected.
public enum TransportSecurity: String, Sendable, Hashable {
  /// In clear. Only without AUTH, or towards a loopback address.
  case none
  case startTLS
  /// TLS from the first byte (RFC 8314).
  case implicitTLS
}

/// A user name with its secret. Printing it shows the name alone.
public struct Credential: Sendable, Equatable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable
{
  public enum Mechanism: String, Sendable, Hashable, CaseIterable {
    case plain = "PLAIN"
    case login = "LOGIN"
    case xoauth2 = "XOAUTH2"
    case oauthBearer = "OAUTHBEARER"
  }
  public let mechanism: Mechanism
  public let username: String
  let secret: String
  /// Where access tokens come from; nil when ``secret`` is the password, or a token as it is.
  let tokens: TokenCache?

  public init(mechanism: Mechanism, username: String, secret: String) {
    self.mechanism = mechanism
    self.username = username
    self.secret = secret
    tokens = nil
  }

  /// For XOAUTH2 and OAUTHBEARER.
  public init(mechanism: Mechanism, username: String, tokens: TokenCache) {
    self.mechanism = mechanism
    self.username = username
    secret = ""
    self.tokens = tokens
  }

  /// Two caches of one grant are the same credential: a reload must not end connections for nothing.
  public static func == (a: Self, b: Self) -> Bool {
    a.mechanism == b.mechanism && a.username == b.username && a.secret == b.secret
      && a.tokens?.grant == b.tokens?.grant
  }

  public var description: String { "\(mechanism.rawValue) \(username)" }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: ["mechanism": mechanism, "username": username]) }
}

/// An upstream and the account that sends through it.
public struct UpstreamSettings: Sendable, Equatable {
  /// The name of the `[domain:]`.
  public var name: String
  /// The `relay_account`.
  public var account: String
  public var host: String
  public var port: UInt16
  public var security: TransportSecurity
  /// nil sends without AUTH.
  public var credential: Credential?
  /// PEM file; nil trusts the system's authorities.
  public var caFile: String?
  /// The name the certificate must be good for.
  public var serverName: String
  public var minimumTLS: TLSContext.MinimumVersion = .tls12
  public var maximumConnections = 10
  public var messagesPerConnection = 500
  /// Connect and TLS.
  public var connectionTimeout = Duration.seconds(30)
  public var readTimeout = Duration.seconds(60)
  public var writeTimeout = Duration.seconds(60)
  /// nil does not limit.
  public var rate: RateLimit?
  /// Recipients in any 24 hours; nil does not limit.
  public var dailyLimit: Int?
  /// Who carries the mail while this account is on hold: names of `[domain:]`, the first that can comes first.
  public var fallbacks: [String] = []
  /// What we say in EHLO.
  public var heloName: String
  /// A disabled account keeps its mail.
  public var isEnabled = true

  public struct RateLimit: Sendable, Equatable {
    public var perMinute: Int
    public var burst: Int
    public init(perMinute: Int, burst: Int) {
      self.perMinute = perMinute
      self.burst = burst
    }
  }

  public init(
    name: String, account: String, host: String, port: UInt16, security: TransportSecurity, credential: Credential?,
    serverName: String? = nil, heloName: String
  ) {
    self.name = name
    self.account = account
    self.host = host
    self.port = port
    self.security = security
    self.credential = credential
    self.serverName = serverName ?? host
    self.heloName = heloName
  }

  /// The reply to the message itself may take ten minutes (RFC 5321 4.5.3.2.6).
  var contentReplyTimeout: Duration { max(readTimeout, .seconds(600)) }
}

/// What holds for all accounts.
public struct DeliverySettings: Sendable, Equatable {
  public var retrySchedule = RetrySchedule.standard
  public var queueLifetime = Duration.seconds(5 * 86_400)
  /// After how long the sender of a message that is still deferred is told so; zero: never.
  public var delayWarning = Duration.seconds(4 * 3600)
  /// The name that reports non-delivery: `MAILER-DAEMON@` this.
  public var hostname: String

  public init(hostname: String) { self.hostname = hostname }
}
