// What a reply of the upstream means: whose fault it is decides what happens to the mail. A fault of the account, or
// of ours, must never bounce anybody's message.

import OAuth
import SMTP

/// What the relay was doing when the reply came.
public enum Stage: String, Sendable {
  case greeting, hello, startTLS, authentication, mail, recipient, data, content
}

/// The meaning of a reply that refuses something.
public enum ReplyMeaning: Sendable, Hashable {
  /// This recipient cannot get this message: bounce.
  case recipientFailed
  /// This recipient cannot get it now.
  case recipientLater
  /// Nobody will get this message: bounce.
  case messageFailed
  /// Nobody gets this message now.
  case messageLater
  /// This recipient has to go in another transaction than those that were accepted.
  case nextTransaction
  /// The connection is at its end; the mail goes over another one.
  case connectionLost
  /// The account cannot send: hold all its mail, without ageing it. The advice is for the operator.
  case accountHeld(AccountFault)
  /// We said something the upstream does not understand: keep the mail, log loudly.
  case ourFault
}

/// Why an account cannot send.
public enum AccountFault: String, Sendable, Hashable, CaseIterable {
  case badCredentials, loginRefused, tooManyLogins, dailyLimit, relayDenied, slowDown, unreachable, insecure,
    certificate
  /// Faults of the access tokens of OAuth 2.
  case tokenRevoked, tokenRefused, tokenUnavailable

  /// What the operator can do about it.
  public var advice: String {
    switch self {
    case .badCredentials:
      "check username and password of the account; Gmail wants an app password, which dies with a password change"
    case .loginRefused: "sign in to the account in a browser, then check its security settings and the auth_method"
    case .tooManyLogins: "wait; lower max_connections if this returns"
    case .dailyLimit: "nothing: sending resumes by itself within 24 hours"
    case .relayDenied: "allow this relay's address or account in the SMTP relay settings of the Google Admin console"
    case .slowDown: "lower rate_limit_per_minute if this returns"
    case .unreachable: "check the name, the port and the network; `ssmtp-mailer test` tells where it ends"
    case .insecure: "the upstream does not offer what the configuration asks for; nothing secret was sent"
    case .certificate: "check smtp_server, tls_server_name and tls_ca_file; no credential was sent"
    case .tokenRevoked:
      "run `ssmtp-mailer oauth login` for the account, then reload; refresh tokens die after 7 days while the OAuth app "
        + "is in Testing (publish it), with a password change, when access is revoked, and unused for six months"
    case .tokenRefused:
      "check the oauth_ keys or service_account_file, and that username is the mailbox that granted access; "
        + "`ssmtp-mailer oauth status` asks again"
    case .tokenUnavailable:
      "check the way to oauth_token_url (port 443, proxy, oauth_ca_file); `ssmtp-mailer oauth status` asks again"
    }
  }

  /// What a failure to get an access token means for the account.
  public init(_ failure: TokenFailure) {
    switch failure.kind {
    case .revoked: self = .tokenRevoked
    case .refused: self = .tokenRefused
    case .unavailable: self = .tokenUnavailable
    }
  }
}

extension Stage {
  init(_ stage: ClientTransaction.Stage) {
    switch stage {
    case .mail: self = .mail
    case .rcpt: self = .recipient
    case .data: self = .data
    case .content, .connection: self = .content
    }
  }
}

extension ReplyMeaning {
  /// Judges a 4xx or 5xx reply by its codes, and by its words where Gmail uses one code for several things.
  public init(of reply: Reply, at stage: Stage) {
    let status = reply.enhanced?.description ?? ""
    let text = reply.lines.joined(separator: " ").lowercased()
    switch stage {
    case .greeting, .hello, .startTLS:
      self = reply.code == 421 || reply.isTransient ? .connectionLost : .accountHeld(.loginRefused)
    case .authentication: self = Self.atAuthentication(reply, status)
    case .mail, .recipient, .data, .content:
      self = Self.ofAccount(reply, status, text) ?? Self.ofMail(reply, status, text, stage)
    }
  }

  private static func atAuthentication(_ reply: Reply, _ status: String) -> Self {
    switch reply.code {
    case 421: .connectionLost
    case 454: .accountHeld(.tooManyLogins)
    case 535: .accountHeld(.badCredentials)
    default: .accountHeld(.loginRefused)
    }
  }

  /// The replies in a transaction that are about the account.
  private static func ofAccount(_ reply: Reply, _ status: String, _ text: String) -> Self? {
    switch (reply.code, status) {
    case (550, "5.4.5"): .accountHeld(.dailyLimit)
    case (550, "5.7.1") where text.contains("daily smtp relay"): .accountHeld(.dailyLimit)
    case (550, "5.7.0") where text.contains("relay denied"): .accountHeld(.relayDenied)
    case (550, "5.7.1") where text.contains("credentials for relay"): .accountHeld(.relayDenied)
    case (450, "4.2.1") where text.contains("peak smtp relay"): .accountHeld(.slowDown)
    case (421, "4.7.28"): .accountHeld(.slowDown)
    case (454, _): .accountHeld(.tooManyLogins)
    case (535, _): .accountHeld(.badCredentials)
    case (534, _), (530, _): .accountHeld(.loginRefused)
    default: nil
    }
  }

  private static func ofMail(_ reply: Reply, _ status: String, _ text: String, _ stage: Stage) -> Self {
    switch (reply.code, status) {
    case (421, _): return .connectionLost
    case (500...504, _) where status.isEmpty || status.hasPrefix("5.5."): return .ourFault
    case (554, "5.7.0") where text.contains("unauthenticated"): return .ourFault
    // Too many recipients; 552 is what old servers say (RFC 5321 4.5.3.1.10).
    case (452, "4.5.3") where stage == .recipient, (552, "5.5.3") where stage == .recipient: return .nextTransaction
    case (451, "4.3.0") where stage == .recipient && text.contains("multiple destination domains"):
      return .nextTransaction
    default: break
    }
    if stage == .recipient { return reply.isPermanent ? .recipientFailed : .recipientLater }
    return reply.isPermanent ? .messageFailed : .messageLater
  }
}
