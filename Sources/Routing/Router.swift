// Where mail goes: a pure function of the settings, an address, a sender and how far the client is trusted.

import Configuration
import Primitives
import SMTP

/// How far a client is trusted.
public enum ClientStanding: Sendable, Hashable {
  case untrusted
  /// Its address is in `trusted_networks`.
  case trusted
  /// It has proved to be this address by AUTH.
  case authenticated(String)

  var mayRelay: Bool { self != .untrusted }
}

/// One way of one message.
public struct Route: Sendable, Hashable {
  public enum Rule: String, Sendable {
    case mapping, senderMapping, senderDomain, recipientDomain, defaultDomain
  }
  /// The recipient as the upstream gets it.
  public var address: Mailbox
  /// The name of the `[domain:]` that carries it.
  public var account: String
  public var rule: Rule
}

/// What becomes of a recipient.
public enum Decision: Sendable, Hashable {
  case accept([Route])
  case reject(Reply)
}

/// A decision and the steps to it, in words.
public struct Explanation: Sendable {
  public var steps: [String]
  public var decision: Decision
}

/// The mapping table and the policies, ready to be asked.
public struct Router: Sendable {
  private let settings: Settings
  private let mappings: MappingTable
  private let users: UserTable
  private static let maximumHops = 10

  public init(_ settings: Settings) {
    self.settings = settings
    mappings = MappingTable(settings.mappings.filter(\.enabled))
    users = UserTable(settings.users.filter(\.enabled))
  }

  /// Whether a client at this address may relay without AUTH.
  public func isTrusted(_ address: IPAddress) -> Bool {
    settings.global.trustedNetworks.contains { $0.contains(address) }
  }

  /// The refusal of a sender whom the users' policy forbids to send, nil when it may.
  public func checkSender(_ path: ReversePath, client: ClientStanding) -> Reply? {
    guard case .mailbox(let sender) = path, client.mayRelay, let user = users.find(sender), !user.canSendFrom else {
      return nil
    }
    return Reply(550, "5.7.1", "\(sender) may not send (can_send_from is false)")
  }

  /// The routes of a recipient.
  public func route(recipient: ForwardPath, sender: ReversePath, client: ClientStanding) -> Decision {
    var steps: [String]?
    return decide(recipient, sender, client, &steps)
  }

  /// The same with its reasons.
  public func explain(recipient: ForwardPath, sender: ReversePath, client: ClientStanding) -> Explanation {
    var steps: [String]? = []
    let decision = decide(recipient, sender, client, &steps)
    return Explanation(steps: steps ?? [], decision: decision)
  }

  /// Where a notification of ours goes, nil when there is no way.
  public func routeBounce(to address: Mailbox) -> Route? {
    guard case .accept(let routes) = route(recipient: .mailbox(address), sender: .null, client: .trusted) else {
      return nil
    }
    return routes.first
  }

  // MARK: The rules

  private func decide(
    _ recipient: ForwardPath, _ sender: ReversePath, _ client: ClientStanding, _ steps: inout [String]?
  ) -> Decision {
    guard let mailbox = mailbox(of: recipient, &steps) else { return .reject(Self.unknownPostmaster) }
    if let refusal = policyRefusal(mailbox, sender, client, &steps) { return .reject(refusal) }
    if let routes = mapped(mailbox, &steps) {
      if let route = routes.first(where: { isForbidden($0, sender, client) }) {
        steps?.append("the sender's allowed_domains do not have \(route.address.domain)")
        return .reject(Reply(550, "5.7.1", "\(sender.text) may not send to \(route.address.domain)"))
      }
      return routes.isEmpty ? .reject(Self.unknown(mailbox)) : .accept(routes)
    }
    if settings.isLocalDomain(mailbox.domain) {
      steps?.append("\(mailbox.domain) is a local domain and no mapping names \(mailbox)")
      if mailbox.localPart.lowercased() == "postmaster", let routes = defaultPostmaster(&steps) { return .accept(routes) }
      return .reject(Self.unknown(mailbox))
    }
    guard client.mayRelay else {
      steps?.append("the client is neither trusted nor authenticated")
      return .reject(Reply(550, "5.7.1", "Relaying denied"))
    }
    guard let (account, rule) = carrier(for: mailbox, sender, &steps) else {
      return .reject(Reply(550, "5.1.2", "No route to \(mailbox.domain)"))
    }
    let route = Route(address: mailbox, account: account, rule: rule)
    if isForbidden(route, sender, client) {
      steps?.append("the sender's allowed_domains do not have \(mailbox.domain)")
      return .reject(Reply(550, "5.7.1", "\(sender.text) may not send to \(mailbox.domain)"))
    }
    return .accept([route])
  }

  private static func unknown(_ mailbox: Mailbox) -> Reply { Reply(550, "5.1.1", "<\(mailbox)>: no such address here") }
  private static let unknownPostmaster = Reply(550, "5.1.1", "<postmaster>: no such address here")

  /// `<postmaster>` without a domain is the postmaster of this host (RFC 5321 4.5.1).
  private func mailbox(of path: ForwardPath, _ steps: inout [String]?) -> Mailbox? {
    switch path {
    case .mailbox(let mailbox): return mailbox
    case .postmaster:
      steps?.append("<postmaster> stands for postmaster@\(settings.global.defaultHostname)")
      return try? Mailbox(parsing: "postmaster@\(settings.global.defaultHostname)")
    }
  }

  private func defaultPostmaster(_ steps: inout [String]?) -> [Route]? {
    guard let text = settings.global.defaultFrom, let address = try? Mailbox(parsing: text),
      let routes = mapped(address, &steps), !routes.isEmpty
    else { return nil }
    steps?.append("postmaster goes where default_from goes")
    return routes
  }

  /// The routes a mapping gives, nil when none names the address. Targets in a local domain are mapped on.
  private func mapped(_ mailbox: Mailbox, _ steps: inout [String]?) -> [Route]? {
    guard mappings.find(mailbox) != nil else { return nil }
    var routes: [Route] = []
    var open = [(mailbox, 0)]
    while let (address, hops) = open.popLast() {
      guard hops < Self.maximumHops, let hit = mappings.find(address),
        let domain = settings.domains[hit.mapping.domain.lowercased()], !domain.isLocal
      else {
        steps?.append("\(address) leads nowhere")
        continue
      }
      for target in hit.targets {
        steps?.append("[mapping:\(hit.mapping.name)] \(hit.mapping.fromPattern): \(address) becomes \(target)")
        if settings.isLocalDomain(target.domain) {
          open.append((target, hops + 1))
        } else {
          steps?.append("[domain:\(domain.name)] carries it\(domain.enabled ? "" : ": it is disabled, so the mail waits")")
          let route = Route(address: target, account: domain.name, rule: .mapping)
          if !routes.contains(route) { routes.append(route) }
        }
      }
    }
    return routes
  }

  /// Rule 3: who carries mail to the outside.
  private func carrier(for mailbox: Mailbox, _ sender: ReversePath, _ steps: inout [String]?) -> (String, Route.Rule)? {
    if case .mailbox(let from) = sender {
      if let hit = mappings.find(from), let domain = upstream(hit.mapping.domain) {
        steps?.append("[mapping:\(hit.mapping.name)] names the sender \(from): its account sends")
        return (domain.name, .senderMapping)
      }
      if let domain = upstream(from.domain) {
        steps?.append("[domain:\(domain.name)] is the sender's domain")
        return (domain.name, .senderDomain)
      }
    }
    if let domain = upstream(mailbox.domain) {
      steps?.append("[domain:\(domain.name)] is the recipient's domain")
      return (domain.name, .recipientDomain)
    }
    if let name = settings.global.defaultDomain, let domain = upstream(name) {
      steps?.append("default_domain = \(domain.name)")
      return (domain.name, .defaultDomain)
    }
    steps?.append("neither sender nor recipient has a [domain:], and there is no default_domain")
    return nil
  }

  private func upstream(_ name: String) -> DomainSettings? {
    settings.domains[name.lowercased()].flatMap { $0.enabled && !$0.isLocal ? $0 : nil }
  }

  // MARK: Policy

  private func policyRefusal(
    _ mailbox: Mailbox, _ sender: ReversePath, _ client: ClientStanding, _ steps: inout [String]?
  ) -> Reply? {
    guard let user = users.find(mailbox), !user.canSendTo else { return nil }
    steps?.append("[user:\(user.address)] takes no mail (can_send_to is false)")
    return Reply(550, "5.7.1", "\(mailbox) takes no mail")
  }

  /// The policy of a sender limits clients that may relay; from anybody else the address proves nothing.
  private func isForbidden(_ route: Route, _ sender: ReversePath, _ client: ClientStanding) -> Bool {
    guard client.mayRelay, case .mailbox(let from) = sender, let user = users.find(from), !user.allowedDomains.isEmpty
    else { return false }
    return !user.allowedDomains.contains(route.address.domain.lowercased())
  }
}
