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
  /// Judges a 4xx or 5xx reply by its codes, and by its words where Gmail uses one code for several things or where an
  /// upstream gives no enhanced code.
  public init(of reply: Reply, at stage: Stage) {
    let status = reply.enhanced?.description ?? ""
    let text = reply.words
    switch stage {
    case .greeting, .hello, .startTLS: self = Self.beforeLogin(reply, status, text)
    case .authentication: self = Self.atAuthentication(reply)
    case .mail, .recipient, .data, .content:
      self = Self.ofAccount(reply, status, text) ?? Self.ofMail(reply, status, text, stage)
    }
  }

  /// Whether a reply says that the account sends too much at a time, whatever else it means.
  public static func isAboutRate(_ reply: Reply) -> Bool {
    let status = reply.enhanced?.description ?? ""
    let text = reply.words
    switch (reply.code, status) {
    case (421, "4.7.0"), (421, "4.7.28"): return true
    case (421, ""): return text.contains("try again later") || text.contains("unusual rate")
    case (450, "4.2.1"), (450, ""): return text.contains("peak smtp relay")
    default: return false
    }
  }

  /// What a reply tells the operator beyond its meaning; nil when that is all.
  ///
  /// Gmail signs with `gsmtp`, and with `gcdp` when it was not Gmail but a rule of the domain's own administrator.
  public static func hint(of reply: Reply) -> String? {
    guard reply.words.split(separator: " ").contains("gcdp") else { return nil }
    return
      "a rule of the domain's own administrator did this (gcdp): see Apps, Google Workspace, Gmail, Compliance and "
      + "Routing in the Google Admin console"
  }

  private static func beforeLogin(_ reply: Reply, _ status: String, _ text: String) -> Self {
    if text.contains("login attempts") { return .accountHeld(.tooManyLogins) }
    if reply.code == 421 || reply.isTransient { return .connectionLost }
    return ofAccount(reply, status, text) ?? .accountHeld(.loginRefused)
  }

  private static func atAuthentication(_ reply: Reply) -> Self {
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
    case (550, "5.4.5"): return .accountHeld(.dailyLimit)
    case (550, "5.7.1"), (550, "5.7.0"), (550, ""):
      let isLimit = text.contains("limit") || text.contains("quota")
      if text.contains("daily"), isLimit, text.contains("sending") || text.contains("smtp relay") {
        return .accountHeld(.dailyLimit)
      }
      if text.contains("mail relay denied") || text.contains("credentials for relay") {
        return .accountHeld(.relayDenied)
      }
      return nil
    case (450, "4.2.1") where text.contains("peak smtp relay"), (450, "") where text.contains("peak smtp relay"):
      return .accountHeld(.slowDown)
    case (421, "4.7.28"): return .accountHeld(.slowDown)
    case (421, "") where text.contains("unusual rate"): return .accountHeld(.slowDown)
    case (454, _): return .accountHeld(.tooManyLogins)
    case (535, _): return .accountHeld(.badCredentials)
    case (534, _), (530, _): return .accountHeld(.loginRefused)
    default: return nil
    }
  }

  private static func ofMail(_ reply: Reply, _ status: String, _ text: String, _ stage: Stage) -> Self {
    let isBare = status.isEmpty
    switch (reply.code, status) {
    case (421, _): return .connectionLost
    // Servers without enhanced codes say so of an address that they cannot read; what we send is well-formed.
    case (501, "") where stage == .recipient: return .recipientFailed
    case (500...504, _) where isBare || status.hasPrefix("5.5."), (555, _) where isBare || status.hasPrefix("5.5."):
      return .ourFault
    case (504, "5.7.4"): return .ourFault
    case (554, _) where (isBare || status == "5.7.0") && text.contains("unauthenticated commands"): return .ourFault
    // Too many recipients; 552 is what old servers say (RFC 5321 4.5.3.1.10).
    case (452, "4.5.3") where stage == .recipient, (552, "5.5.3") where stage == .recipient: return .nextTransaction
    case (452, "") where stage == .recipient && text.contains("too many recipients"),
      (552, "") where stage == .recipient && text.contains("too many recipients"):
      return .nextTransaction
    case (451, _) where (isBare || status == "4.3.0") && text.contains("multiple destination domains"):
      return stage == .recipient ? .nextTransaction : .messageLater
    default: break
    }
    if stage == .recipient { return reply.isPermanent ? .recipientFailed : .recipientLater }
    return reply.isPermanent ? .messageFailed : .messageLater
  }
}

/// What stands in for the reply that a lost connection has kept from us: in the queue it says how the attempt ended.
enum LostReply {
  static let inContent = Reply(451, "4.4.2", "The connection to the next server was lost in the middle of the message")
  static let behindContent = Reply(
    451, "4.4.2", "The connection to the next server was lost behind the end of the message, which may have arrived")

  static func of(_ outcome: ClientTransaction.Outcome) -> Reply {
    outcome.isInDoubt ? behindContent : outcome.isInContent ? inContent : ClientTransaction.connectionLost
  }

  /// Whether nobody but this relay has said so.
  static func isOurs(_ reply: Reply) -> Bool {
    [inContent, behindContent, ClientTransaction.connectionLost].contains(reply)
  }
}

extension Reply {
  /// The text of all lines in lower case, with one blank between words: servers break their sentences anywhere.
  fileprivate var words: String {
    lines.joined(separator: " ").lowercased().split(whereSeparator: \.isWhitespace).joined(separator: " ")
  }
}
