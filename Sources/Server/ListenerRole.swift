// What a listening socket is for.

import SMTP

/// The kind of service behind a port.
public enum ListenerRole: String, Sendable, Hashable, CaseIterable, CustomStringConvertible {
  /// Mail from anywhere to us, port 25: STARTTLS when there is a certificate, AUTH when somebody has a password.
  case smtp
  /// Mail of users, port 587 (RFC 6409): nothing before STARTTLS and AUTH.
  case submission
  /// The same with TLS from the first byte, port 465 (RFC 8314 3.3).
  case smtps

  public var description: String { rawValue }

  /// Whether only users that have logged in may send.
  public var requiresAuthentication: Bool { self != .smtp }
}

extension ServerStateMachine.Settings {
  /// The dialogue of a listener.
  init(_ settings: ServerSettings, _ role: ListenerRole) {
    let offersAuthentication = role.requiresAuthentication || !settings.router.identities.isEmpty
    self.init(
      hostname: settings.hostname, maximumMessageSize: settings.maximumMessageSize,
      maximumRecipients: settings.maximumRecipients, offersStartTLS: settings.tls != nil && role != .smtps,
      offersDSN: true,
      authMechanisms: offersAuthentication ? ServerAuthentication.Mechanism.allCases.map(\.rawValue) : [],
      requiresTLS: role.requiresAuthentication, requiresAuthentication: role.requiresAuthentication,
      maximumErrors: settings.limits.errors)
  }
}
