// What entitles an account to access tokens: a refresh token that its owner has granted, or the key of a service
// account. Values only; nothing here talks to anybody.

import Primitives

/// A text that is never shown: printing and dumping it gives `<redacted>`.
public struct HiddenText: Sendable, Equatable, CustomStringConvertible, CustomDebugStringConvertible,
  CustomReflectable
{
  let text: String

  public init(_ text: String) { self.text = text }

  public var description: String { "<redacted>" }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: [:]) }
}

/// The OAuth client (RFC 6749 2): which program asks for tokens.
public struct OAuthClient: Sendable, Equatable {
  public var id: String
  /// Google gives one to programs on a desktop as well, and wants to see it.
  public var secret: HiddenText?

  public init(id: String, secret: HiddenText?) {
    self.id = id
    self.secret = secret
  }
}

/// A refresh token in a file.
public struct RefreshTokenGrant: Sendable, Equatable {
  public var client: OAuthClient
  /// Its first line is the refresh token.
  public var file: String
  /// What the file held when the configuration was read; nil when it was not there. A request reads it anew: this is
  /// how a reload notices that somebody has logged in again.
  public var seen: HiddenText?

  public init(client: OAuthClient, file: String, seen: HiddenText?) {
    self.client = client
    self.file = file
    self.seen = seen
  }
}

/// Where and with what an account gets its access tokens.
public struct TokenGrant: Sendable, Equatable {
  public enum Kind: Sendable, Equatable {
    case refreshToken(RefreshTokenGrant)
    /// A service account that acts as `user`, by the delegation of the whole domain.
    case serviceAccount(ServiceAccount, user: String)
  }

  public var kind: Kind
  /// The token endpoint, `https` only.
  public var tokenURL: String
  /// Where a browser is sent to grant access.
  public var authorizationURL = Self.googleAuthorizationURL
  /// PEM file with the authorities that may vouch for the token endpoint; nil trusts the system's.
  public var caFile: String?

  public init(_ kind: Kind, tokenURL: String = Self.googleTokenURL) {
    self.kind = kind
    self.tokenURL = tokenURL
  }

  public static let googleTokenURL = "https://oauth2.googleapis.com/token"
  public static let googleAuthorizationURL = "https://accounts.google.com/o/oauth2/v2/auth"
  /// The scope of SMTP, which is that of all of a mailbox: Gmail has no smaller one.
  public static let mailScope = "https://mail.google.com/"
}

/// Why there is no access token.
public struct TokenFailure: Error, Sendable, Hashable, CustomStringConvertible {
  public enum Kind: Sendable, Hashable {
    /// The refresh token is not there or no longer good: its owner has to log in again.
    case revoked
    /// The token endpoint refuses this client or this key: the configuration has to be changed.
    case refused
    /// No proper answer: waiting may help.
    case unavailable
  }

  public var kind: Kind
  /// Says what happened; holds no secret.
  public var description: String

  public init(_ kind: Kind, _ description: String) {
    self.kind = kind
    self.description = description
  }
}

/// A token that opens the mailbox for about an hour.
public struct AccessToken: Sendable, Equatable, CustomStringConvertible, CustomReflectable {
  let secret: HiddenText
  /// From here on a new one is asked for, while this one still works.
  public var refreshAt: MonotonicInstant
  public var expiresAt: MonotonicInstant

  /// The token itself, for AUTH and nothing else.
  public func reveal() -> String { secret.text }
  public var description: String { "<redacted>" }
  public var customMirror: Mirror { Mirror(self, children: [:]) }
}
