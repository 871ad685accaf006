// The route of a recipient: mapping, local domain, relaying, refusal, in this order and nowhere else.

import Configuration
import Primitives
import SMTP

/// Pure answers about addresses, made from one configuration; a reload makes another router.
public struct Router: Sendable {
  private let settings: Settings
  private let mappings: AddressTable<MappingSettings>
  private let policy: SenderPolicy
  /// The lowercased domains that are this relay itself.
  private let localDomains: Set<String>
  /// The lowercased names of the upstreams that are enabled.
  private let upstreams: Set<String>
  private var defaultDomain: String?
  /// Whose mapping also takes mail for a postmaster without one.
  private let defaultFrom: Mailbox?
  private let postmaster: Mailbox?
  /// Who mail is from on its way out.
  public let outbound: OutboundSender
  /// Who may log in.
  public let identities: Identities

  public init(_ settings: Settings) {
    self.settings = settings
    mappings = settings.mappingTable()
    policy = SenderPolicy(settings)
    outbound = OutboundSender(settings)
    identities = Identities(settings)
    let enabled = settings.domains.filter { $1.enabled }
    let hostname = settings.global.defaultHostname.lowercased()
    let local = Set(enabled.filter { $1.isLocal }.keys).union([hostname])
    localDomains = local
    let upstreams = Set(enabled.keys).subtracting(local)
    self.upstreams = upstreams
    defaultDomain = settings.global.defaultDomain.flatMap { upstreams.contains($0) ? $0 : nil }
    defaultFrom = try? Mailbox(parsing: settings.global.defaultFrom)
    postmaster = try? Mailbox(localPart: "postmaster", domain: settings.global.defaultHostname)
  }

  /// Whether a client at `address` may send to domains that are not ours.
  public func isTrusted(_ address: IPAddress) -> Bool {
    settings.global.trustedNetworks.contains { $0.contains(address) }
  }

  /// The refusal of MAIL, or nil when the sender may send.
  public func checkSender(_ path: ReversePath, client: ClientStanding) -> Reply? {
    if let refusal = checkOwnership(path, client) { return refusal }
    return policy.users(sender: path, client: client).allSatisfy(\.canSendFrom) ? nil : SenderPolicy.mayNotSend
  }

  /// Decides what becomes of one recipient.
  /// - Parameter now: how old an SRS address is, is seen from here.
  public func route(
    recipient: ForwardPath, sender: ReversePath, client: ClientStanding, now: Timestamp = SystemTime().wallClock
  ) -> Decision {
    var trace = Trace(isOn: false)
    return decide(recipient, sender, client, now, &trace)
  }

  /// Decides as ``route(recipient:sender:client:now:)`` does and says how, the sender's own right included.
  public func explain(
    recipient: ForwardPath, sender: ReversePath, client: ClientStanding, now: Timestamp = SystemTime().wallClock
  ) -> Explanation {
    var trace = Trace(isOn: true)
    if let refusal = checkSender(sender, client: client) {
      trace.note(
        checkOwnership(sender, client) == nil
          ? "can_send_from is false for the sender <\(sender.text)>"
          : "the sender <\(sender.text)> is no address of who has logged in")
      return Explanation(steps: trace.steps, decision: .reject(refusal))
    }
    let decision = decide(recipient, sender, client, now, &trace)
    return Explanation(steps: trace.steps, decision: decision)
  }

  /// The routes of a report that goes back to a sender, several when the sender is an alias of several; none when
  /// nobody has that address here.
  /// - Parameter lane: the `[domain:]` that could not deliver. It carries the report when no rule names another one: who
  ///   brought us mail must hear what became of it, `default_domain` or not.
  public func routeBounce(
    to mailbox: Mailbox, from lane: String, now: Timestamp = SystemTime().wallClock
  ) -> [Route] {
    var router = self
    // The `[domain:]` may be gone when an operator gives its mail up; then any other one has to do.
    router.defaultDomain = defaultDomain ?? (upstreams.contains(lane) ? lane : upstreams.min())
    var trace = Trace(isOn: false)
    guard case .accept(let routes) = router.decide(.mailbox(mailbox), .null, .trusted, now, &trace) else { return [] }
    return routes
  }

  // MARK: - The rules

  private func decide(
    _ path: ForwardPath, _ sender: ReversePath, _ client: ClientStanding, _ now: Timestamp, _ trace: inout Trace
  ) -> Decision {
    let recipient: Mailbox
    switch path {
    case .mailbox(let mailbox): recipient = mailbox
    case .postmaster:
      guard let postmaster else { return .reject(Self.unknownUser) }
      recipient = postmaster
      trace.note("<postmaster> without a domain is <\(recipient)>")
    }
    let decision =
      if let srs = outbound.srs, srs.claims(recipient) {
        comeHome(recipient, srs, sender, now, &trace)
      } else {
        find(recipient, sender, client, &trace)
      }
    guard case .accept(let routes) = decision else { return decision }
    for user in policy.users(sender: sender, client: client)
    where !SenderPolicy.allows(user, recipient: recipient, targets: routes) {
      trace.note("[user:\(user.address)] may not send to <\(recipient)>")
      return .reject(SenderPolicy.mayNotSendTo)
    }
    return decision
  }

  /// A bounce to an address that we made for the sender of mail we had sent on: it goes to that sender, whoever the
  /// client is. The address is its own proof, so that nobody gains a way to others by it.
  private func comeHome(
    _ recipient: Mailbox, _ srs: SenderRewritingScheme, _ sender: ReversePath, _ now: Timestamp, _ trace: inout Trace
  ) -> Decision {
    let reporters: Set = ["postmaster", "mailer-daemon"]
    guard sender == .null || sender.mailbox.map({ reporters.contains($0.localPart.lowercased()) }) == true else {
      trace.note("<\(recipient)> is an SRS address of this relay, which takes bounces only")
      return .reject(Self.bouncesOnly)
    }
    do throws(SenderRewritingScheme.Fault) {
      let original = try srs.reverse(recipient, now: now)
      trace.note("<\(recipient)> is an SRS address of this relay for <\(original)>")
      // Nothing that is wrapped twice was made here.
      if srs.claims(original) { throw .malformed }
      return find(original, sender, .trusted, &trace)
    } catch {
      trace.note("<\(recipient)> is no valid SRS address of this relay: \(error)")
      return .reject(Self.invalidSRS)
    }
  }

  private func find(
    _ recipient: Mailbox, _ sender: ReversePath, _ client: ClientStanding, _ trace: inout Trace
  ) -> Decision {
    if let match = mappings.match(recipient) {
      trace.note("[mapping:\(match.value.name)] \(match.value.from) matches the recipient <\(recipient)>")
      return expand(match, rule: .mapping(match.value.name), &trace)
    }
    trace.note("no mapping matches the recipient <\(recipient)>")
    if localDomains.contains(recipient.domain.lowercased()) {
      trace.note("\(recipient.domain) is a domain of this relay")
      return local(recipient, &trace)
    }
    guard client.mayRelay else {
      trace.note(
        "\(recipient.domain) is not a domain of this relay, and the client is neither trusted nor authenticated")
      return .reject(Self.relayingDenied)
    }
    trace.note(client == .trusted ? "the client is trusted" : "the client is authenticated")
    guard let (account, rule) = carrier(recipient, sender, &trace) else {
      trace.note("no rule names a [domain:] that carries it")
      return .reject(Self.noRoute)
    }
    trace.note("[domain:\(account)] carries it: \(rule)")
    return .accept([Route(address: recipient, account: account, rule: rule)])
  }

  private func local(_ recipient: Mailbox, _ trace: inout Trace) -> Decision {
    guard recipient.localPart.lowercased() == "postmaster" else {
      trace.note("nobody of this name is there")
      return .reject(Self.unknownUser)
    }
    guard let defaultFrom, let match = mappings.match(defaultFrom) else {
      trace.note("neither the postmaster nor default_from has a mapping")
      return .reject(Self.unknownUser)
    }
    trace.note("mail for the postmaster goes where [mapping:\(match.value.name)] of default_from says")
    return expand(match, rule: .postmaster(match.value.name), &trace)
  }

  /// Who carries mail of a client that may relay.
  private func carrier(
    _ recipient: Mailbox, _ sender: ReversePath, _ trace: inout Trace
  ) -> (account: String, rule: Route.Rule)? {
    if let mailbox = sender.mailbox {
      if let mapping = mappings.match(mailbox)?.value, upstreams.contains(mapping.domain) {
        return (mapping.domain, .senderMapping(mapping.name))
      }
      trace.note("no mapping matches the sender <\(mailbox)>")
      let domain = mailbox.domain.lowercased()
      if upstreams.contains(domain) { return (domain, .senderDomain) }
      trace.note("no [domain:] that is enabled carries mail of the sender's domain \(domain)")
    }
    let domain = recipient.domain.lowercased()
    if upstreams.contains(domain) { return (domain, .recipientDomain) }
    trace.note("no [domain:] that is enabled is named after the recipient's domain \(domain)")
    return defaultDomain.map { ($0, .defaultDomain) }
  }

  // MARK: - Mappings

  /// All that a matching mapping leads to; a refusal when one of the ways ends nowhere, for mail must not shrink silently.
  private func expand(
    _ match: AddressTable<MappingSettings>.Match, rule: Route.Rule, _ trace: inout Trace
  ) -> Decision {
    var routes: [Route] = []
    var budget = Self.maximumTargets
    if let refusal = follow(match, rule, depth: 1, &budget, &routes, &trace) { return .reject(refusal) }
    return routes.isEmpty ? .reject(Self.unknownUser) : .accept(routes)
  }

  private func follow(
    _ match: AddressTable<MappingSettings>.Match, _ rule: Route.Rule, depth: Int, _ budget: inout Int,
    _ routes: inout [Route], _ trace: inout Trace
  ) -> Reply? {
    budget -= match.value.to.count
    guard depth <= Settings.maximumAliasDepth, budget >= 0 else {
      trace.note("too many mappings follow each other")
      return Self.tooManyMappings
    }
    guard let targets = try? match.targets() else {
      trace.note("the new address is not valid")
      return Self.invalidTarget
    }
    for target in targets {
      if localDomains.contains(target.domain.lowercased()) {
        guard let next = mappings.match(target) ?? postmasterMatch(target) else {
          trace.note("<\(target)> is in a domain of this relay, but no mapping takes it")
          return Self.unknownUser
        }
        trace.note("<\(target)> is in a domain of this relay; [mapping:\(next.value.name)] takes it")
        if let refusal = follow(next, rule, depth: depth + 1, &budget, &routes, &trace) { return refusal }
        continue
      }
      guard upstreams.contains(match.value.domain) else {
        trace.note("[domain:\(match.value.domain)] is this relay itself and carries nothing to <\(target)>")
        return Self.noRoute
      }
      trace.note("the new address is <\(target)>, carried by [domain:\(match.value.domain)]")
      let account = match.value.domain
      if !routes.contains(where: { $0.address == target && $0.account == account }) {
        routes.append(Route(address: target, account: account, rule: rule))
      }
    }
    return nil
  }

  private func postmasterMatch(_ target: Mailbox) -> AddressTable<MappingSettings>.Match? {
    guard target.localPart.lowercased() == "postmaster", let defaultFrom else { return nil }
    return mappings.match(defaultFrom)
  }

  /// Whether mail for `alias` reaches `mailbox` by the mappings: then it is an alias of that user.
  func isAlias(_ alias: Mailbox, of mailbox: Mailbox) -> Bool {
    var budget = Self.maximumTargets
    func leads(_ address: Mailbox, _ depth: Int) -> Bool {
      guard depth <= Settings.maximumAliasDepth, let match = mappings.match(address),
        let targets = try? match.targets()
      else { return false }
      budget -= targets.count
      guard budget >= 0 else { return false }
      return targets.contains { target in
        target == mailbox || target.withoutTag == mailbox
          || localDomains.contains(target.domain.lowercased()) && leads(target, depth + 1)
      }
    }
    return leads(alias, 1)
  }

  // MARK: - Refusals

  /// More targets than this from one recipient are a mistake in the configuration, and a way to multiply mail.
  private static let maximumTargets = 1000
  private static let unknownUser = Reply(550, "5.1.1", "No such user here")
  private static let noRoute = Reply(550, "5.1.2", "No route to this domain")
  private static let relayingDenied = Reply(550, "5.7.1", "Relaying denied")
  private static let bouncesOnly = Reply(550, "5.7.1", "This address takes delivery reports only")
  private static let invalidSRS = Reply(550, "5.7.1", "This return address is not valid, or no longer")
  private static let invalidTarget = Reply(550, "5.1.3", "The address this recipient stands for is not valid")
  private static let tooManyMappings = Reply(550, "5.4.6", "Too many mappings follow each other")
}

/// The steps of a decision; costs nothing while nobody reads them.
private struct Trace {
  let isOn: Bool
  private(set) var steps: [String] = []

  init(isOn: Bool) { self.isOn = isOn }

  mutating func note(_ step: @autoclosure () -> String) {
    if isOn { steps.append(step()) }
  }
}
