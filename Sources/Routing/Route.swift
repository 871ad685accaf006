// What the router answers, and what it must know about the client.

import SMTP

/// Who the client is.
public enum ClientStanding: Sendable, Hashable {
  case untrusted
  /// Its address is in `trusted_networks`.
  case trusted
  /// The identity that AUTH has proved.
  case authenticated(String)

  /// Whether it may send to domains that are not ours.
  var mayRelay: Bool { self != .untrusted }
}

/// Where one recipient's mail goes, and who carries it.
public struct Route: Sendable, Hashable {
  /// Why a route was chosen.
  public enum Rule: Sendable, Hashable, CustomStringConvertible {
    /// The mapping of this name matches the recipient.
    case mapping(String)
    /// The recipient is a postmaster; the mapping of this name takes mail for `default_from`.
    case postmaster(String)
    /// The mapping of this name matches the sender.
    case senderMapping(String)
    case senderDomain
    case recipientDomain
    case defaultDomain

    /// The rule in words, as ``description``.
    public var rawValue: String { description }

    public var description: String {
      switch self {
      case .mapping(let name): "[mapping:\(name)] matches the recipient"
      case .postmaster(let name): "[mapping:\(name)] of default_from takes mail for the postmaster"
      case .senderMapping(let name): "[mapping:\(name)] matches the sender"
      case .senderDomain: "the [domain:] of the sender"
      case .recipientDomain: "the [domain:] of the recipient"
      case .defaultDomain: "default_domain"
      }
    }
  }

  /// The address for RCPT at the upstream.
  public var address: Mailbox
  /// The lowercased name of the `[domain:]` that carries the mail; never a local one.
  public var account: String
  public var rule: Rule

  public init(address: Mailbox, account: String, rule: Rule) {
    self.address = address
    self.account = account
    self.rule = rule
  }
}

/// The answer to one RCPT.
public enum Decision: Sendable, Hashable {
  /// One route at least.
  case accept([Route])
  case reject(Reply)
}

/// A decision with the steps that led to it, in words for people.
public struct Explanation: Sendable, Hashable {
  public var steps: [String]
  public var decision: Decision
}
