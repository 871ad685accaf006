// What the answers of the DNS mean for the relay: its own name, the mail that comes to it, the server it sends through.

import Network
import Primitives

/// What the answers mean. Pure: the same answers give the same findings.
public enum DNSJudge {
  /// Everything that can be said with the answers at hand; what is missing is wanted in `evidence`.
  public static func findings(_ plan: DNSPlan, _ evidence: inout DNSEvidence) -> [DNSFinding] {
    var findings = host(plan, &evidence)
    for domain in plan.receiving { findings += exchangers(of: domain, plan, &evidence) }
    for sender in plan.senders {
      if ["gmail.com", "googlemail.com"].contains(sender.domain) {
        findings.append(.init(sender.domain, "sender", .right, "is Google's own: there is nothing to publish"))
        continue
      }
      if sender.hasAccount, sender.isThroughGoogle, !plan.receiving.contains(sender.domain) {
        findings += workspace(sender.domain, &evidence)
      }
      findings += SPFJudge.findings(sender, &evidence)
      if sender.hasAccount, sender.isThroughGoogle || plan.selector != "google" {
        findings += DKIMJudge.findings(sender.domain, selector: plan.selector, sender.isThroughGoogle, &evidence)
      }
      findings += dmarc(sender.domain, &evidence)
      findings += shortcuts(of: sender, &evidence)
    }
    for upstream in plan.upstreams { findings += server(upstream.section, upstream.host, plan, &evidence) }
    return findings
  }

  // MARK: The relay's own name

  private static func host(_ plan: DNSPlan, _ evidence: inout DNSEvidence) -> [DNSFinding] {
    let host = plan.host
    guard host.contains("."), !host.hasSuffix(".local"), !host.hasSuffix(".localdomain") else {
      return [
        .init(
          host, "name", .wrong, "default_hostname \(host) is not a name of the public DNS",
          advice: "Gmail wants a full name in EHLO: set default_hostname = mailer.your-domain")
      ]
    }
    guard let known = evidence.addresses(of: host) else { return [] }
    var findings = failures(host, [.a, .aaaa], &evidence)
    if let alias = known.alias {
      findings.append(
        .init(
          host, "CNAME", .wrong,
          KnownNetworks.isGoogleName(alias)
            ? "is an alias of Google's \(alias): mail for this relay goes to Google"
            : "is an alias of \(alias): an MX must not name an alias (RFC 2181 10.3)",
          advice: "remove the CNAME and publish the address of this machine", record: "\(host). IN A <public address>"))
      if KnownNetworks.isGoogleName(alias) { return findings }
    }
    guard !known.addresses.isEmpty else {
      if known.failure == nil {
        findings.append(
          .init(
            host, "A", .wrong,
            (evidence.ask(host, .a)?.status == .noSuchName ? "does not exist" : "has no address")
              + ": nobody can send mail to this relay",
            advice: "publish the public address of this machine; with Cloudflare as \"DNS only\"",
            record: "\(host). IN A <public address>"))
      }
      return findings
    }
    for address in known.addresses { findings += judge(address, of: host, &evidence) }
    return findings
  }

  private static func judge(
    _ address: IPAddress, of host: String, _ evidence: inout DNSEvidence
  ) -> [DNSFinding] {
    let type: DNSType = address.isIPv4 ? .a : .aaaa
    func wrong(_ detail: String, _ advice: String) -> [DNSFinding] {
      [
        .init(
          host, type.rawValue, .wrong, "\(address) \(detail)", advice: advice,
          record: "\(host). IN \(type.rawValue) <public address>")
      ]
    }
    if KnownNetworks.contains(KnownNetworks.cloudflare, address) {
      return wrong(
        "belongs to Cloudflare's proxy, which carries HTTP only: port 25 ends there",
        "switch the record from \"Proxied\" to \"DNS only\" (the grey cloud), so that it shows this machine's address")
    }
    if KnownNetworks.contains(KnownNetworks.google, address) {
      return wrong("is Google's, not this machine's", "publish the public address of this machine")
    }
    if KnownNetworks.contains(KnownNetworks.local, address) {
      return wrong("cannot be reached from outside", "publish the public address of this machine or of its router")
    }
    let life = evidence.ask(host, type)?.timeToLive.map { " (TTL \($0) s)" } ?? ""
    return [.init(host, type.rawValue, .right, "\(address)\(life)")] + pointer(to: host, address, &evidence)
  }

  /// The name of the address, and whether that name has the address (FCrDNS), which Gmail wants.
  private static func pointer(
    to host: String, _ address: IPAddress, _ evidence: inout DNSEvidence
  ) -> [DNSFinding] {
    guard let answer = evidence.ask(address.reverseName, .ptr) else { return [] }
    let record = "\(address.reverseName). IN PTR \(host)."
    let owner = "the owner of the address (the hoster or provider) sets it, not the zone of \(host)"
    if case .failed(let failure) = answer.status {
      return [.init(host, "PTR", .unanswered, "\(address): \(failure)", advice: "try again later")]
    }
    guard !answer.pointers.isEmpty else {
      return [
        .init(host, "PTR", .wrong, "\(address) has no name: Gmail wants one", advice: owner, record: record)
      ]
    }
    var confirmed: [String] = []
    for name in answer.pointers {
      guard let forward = evidence.ask(name, address.isIPv4 ? .a : .aaaa) else { return [] }
      if forward.addresses.contains(address) { confirmed.append(name) }
    }
    let names = answer.pointers.joined(separator: ", ")
    if confirmed.contains(host) {
      return [.init(host, "PTR", .right, "\(address) is \(host), and back (forward-confirmed)")]
    }
    guard let other = confirmed.first else {
      return [
        .init(
          host, "PTR", .wrong, "\(address) is \(names), which does not have the address: not forward-confirmed",
          advice: owner, record: record)
      ]
    }
    return [
      .init(
        host, "PTR", .notice, "\(address) is \(other) (forward-confirmed), and the relay calls itself \(host)",
        advice: "\(owner); or set default_hostname = \(other)", record: record)
    ]
  }

  // MARK: MX

  /// Mail for the domain has to come to this relay.
  private static func exchangers(
    of domain: String, _ plan: DNSPlan, _ evidence: inout DNSEvidence
  ) -> [DNSFinding] {
    guard let answer = evidence.ask(domain, .mx) else { return [] }
    if case .failed(let failure) = answer.status { return [unanswered(domain, "MX", failure)] }
    let record = "\(domain). IN MX 10 \(plan.host)."
    if let alias = answer.alias, domain != plan.host {
      return [
        .init(
          domain, "CNAME", .wrong, "is an alias of \(alias): no other record can stand beside a CNAME",
          advice: "remove the CNAME", record: record)
      ]
    }
    guard let ours = evidence.addresses(of: plan.host) else { return [] }
    if answer.exchangers.isEmpty {
      guard let own = evidence.addresses(of: domain) else { return [] }
      let isOurs = !own.addresses.isEmpty && !Set(own.addresses).isDisjoint(with: ours.addresses)
      return [
        .init(
          domain, "MX", isOurs ? .notice : .wrong,
          isOurs
            ? "none: senders fall back to the address of \(domain), and not all of them do"
            : answer.status == .noSuchName ? "the name does not exist: no mail arrives" : "none: no mail arrives",
          advice: "publish one", record: record)
      ]
    }
    return answer.exchangers.flatMap { exchanger(domain, $0, ours.addresses, plan, &evidence) }
  }

  private static func exchanger(
    _ domain: String, _ mx: (preference: UInt16, host: String), _ ours: [IPAddress], _ plan: DNSPlan,
    _ evidence: inout DNSEvidence
  ) -> [DNSFinding] {
    let record = "\(domain). IN MX 10 \(plan.host)."
    func finding(_ level: DNSFinding.Level, _ detail: String, _ advice: String? = nil) -> [DNSFinding] {
      [
        .init(
          domain, "MX", level, "\(mx.preference) \(mx.host.isEmpty ? "." : mx.host)\(detail)", advice: advice,
          record: level == .wrong ? record : nil)
      ]
    }
    if mx.host.isEmpty { return finding(.wrong, ": says that the domain takes no mail (RFC 7505)", "replace it") }
    if mx.host == plan.host { return finding(.right, "") }
    if KnownNetworks.isGoogleName(mx.host) {
      if plan.senders.contains(where: { $0.domain == domain && $0.hasAccount && $0.isThroughGoogle }) {
        return finding(
          .notice, ": mail from outside goes to Google; the mappings only act on what is submitted to this relay",
          "give the aliases a domain of their own, such as \(plan.host), if mail for them shall come here")
      }
      return finding(.wrong, ": mail for the domain goes to Google, and the mappings never see it", "replace it")
    }
    guard let target = evidence.addresses(of: mx.host) else { return [] }
    if let failure = target.failure { return finding(.unanswered, ": \(failure)", "try again later") }
    if let alias = target.alias {
      return finding(
        .wrong, ": an alias of \(alias), which an MX must not name (RFC 2181 10.3)", "name the host itself")
    }
    if target.addresses.contains(where: { KnownNetworks.contains(KnownNetworks.cloudflare, $0) }) {
      return finding(.wrong, ": its address is Cloudflare's proxy, which does not carry mail", "name the relay itself")
    }
    if target.addresses.isEmpty { return finding(.wrong, ": has no address", "replace it") }
    if !Set(target.addresses).isDisjoint(with: ours) { return finding(.right, ", another name of this relay") }
    return finding(
      .wrong, ": not this relay (\(plan.host))", "remove it unless that host passes the mail on to this one")
  }

  /// The mailboxes of the domain are at Google.
  private static func workspace(_ domain: String, _ evidence: inout DNSEvidence) -> [DNSFinding] {
    guard let answer = evidence.ask(domain, .mx) else { return [] }
    if case .failed(let failure) = answer.status { return [unanswered(domain, "MX", failure)] }
    let record = "\(domain). IN MX 1 smtp.google.com."
    let all = answer.exchangers
    let shown = all.map { "\($0.preference) \($0.host)" }.joined(separator: ", ")
    if all.isEmpty {
      return [
        .init(
          domain, "MX", .wrong,
          (answer.status == .noSuchName ? "the domain does not exist" : "none")
            + ": replies to \(domain) do not arrive at Google", advice: "publish one",
          record: record)
      ]
    }
    let foreign = all.filter { !KnownNetworks.isGoogleExchanger($0.host) }
    if foreign.isEmpty { return [.init(domain, "MX", .right, shown)] }
    if foreign.count < all.count {
      return [
        .init(
          domain, "MX", .notice, "\(shown): not all of them are Google's",
          advice: "mail that takes the others does not reach the mailboxes by itself", record: record)
      ]
    }
    let isOwn = foreign.contains { $0.host == domain || $0.host.hasSuffix(".\(domain)") }
    return [
      .init(
        domain, "MX", isOwn ? .wrong : .notice, "\(shown): not Google's, where the account's mailbox is",
        advice: "for a Workspace domain it is one record, unless a filter stands in front of Google", record: record)
    ]
  }

  // MARK: Traps

  /// `smtp.` and `mail.` of the domain, which guides like to point at Google.
  private static func shortcuts(of sender: DNSPlan.Sender, _ evidence: inout DNSEvidence) -> [DNSFinding] {
    guard sender.hasAccount, sender.isThroughGoogle else { return [] }
    return ["smtp.\(sender.domain)", "mail.\(sender.domain)"].flatMap { name -> [DNSFinding] in
      guard let known = evidence.addresses(of: name) else { return [] }
      let advice = "use smtp.gmail.com itself, and remove this record"
      if let alias = known.alias {
        guard ["smtp.gmail.com", "smtp-relay.gmail.com"].contains(alias) else { return [] }
        return [
          .init(
            name, "CNAME", .notice, "is an alias of \(alias), whose certificate is not good for \(name)", advice: advice
          )
        ]
      }
      guard let address = known.addresses.first(where: { KnownNetworks.contains(KnownNetworks.google, $0) }) else {
        return []
      }
      return [
        .init(
          name, address.isIPv4 ? "A" : "AAAA", .notice,
          "\(address) is Google's, written down: such addresses change, and the certificate is not good for \(name)",
          advice: advice)
      ]
    }
  }

  /// The server that mail leaves through.
  private static func server(
    _ section: String, _ host: String, _ plan: DNSPlan, _ evidence: inout DNSEvidence
  ) -> [DNSFinding] {
    let subject = "smtp_server of [domain:\(section)]"
    func google(_ detail: String) -> DNSFinding {
      .init(
        subject, "address", .wrong, detail,
        advice: "set smtp_server = smtp.gmail.com: its addresses are looked up, and followed when they change")
    }
    if let address = IPAddress(host) {
      return KnownNetworks.contains(KnownNetworks.google, address)
        ? [google("\(address) is one of Gmail's addresses, written down: it changes without notice")] : []
    }
    if host == "localhost" || host.hasSuffix(".localhost") { return [] }
    if let pinned = plan.pinned[host], !pinned.isEmpty {
      let list = pinned.map(\.description).joined(separator: ", ")
      return [
        .init(
          subject, "hosts", KnownNetworks.isGoogleName(host) ? .wrong : .notice,
          "\(host) is \(list) by the hosts file of this machine, whatever the DNS says",
          advice: "remove it from /etc/hosts, so that changes of the address are followed")
      ]
    }
    guard let known = evidence.addresses(of: host) else { return [] }
    if let failure = known.failure {
      return [.init(subject, "address", .unanswered, "\(host): \(failure)", advice: "try again later")]
    }
    guard !known.addresses.isEmpty else {
      return [.init(subject, "address", .wrong, "\(host) has no address", advice: "check smtp_server")]
    }
    if !KnownNetworks.isGoogleName(host) {
      if let alias = known.alias, KnownNetworks.isGoogleName(alias) {
        return [google("\(host) is an alias of \(alias), whose certificate is not good for \(host)")]
      }
      if let address = known.addresses.first(where: { KnownNetworks.contains(KnownNetworks.google, $0) }) {
        return [google("\(host) is \(address), one of Gmail's addresses, written down: it changes without notice")]
      }
    }
    let life = evidence.ask(host, .a)?.timeToLive.map { " (TTL \($0) s)" } ?? ""
    let list = known.addresses.map(\.description).joined(separator: ", ")
    return [.init(subject, "address", .right, "\(host) is \(list)\(life)")]
  }

  // MARK: DMARC

  /// The policy for the domain, its own or that of a domain above it (RFC 7489 6.6.3).
  private static func dmarc(_ domain: String, _ evidence: inout DNSEvidence) -> [DNSFinding] {
    let record = "_dmarc.\(domain). IN TXT \"v=DMARC1; p=none; rua=mailto:postmaster@\(domain)\""
    var name = domain
    while true {
      guard let answer = evidence.ask("_dmarc.\(name)", .txt) else { return [] }
      if case .failed(let failure) = answer.status { return [unanswered(domain, "DMARC", failure)] }
      let policies = answer.texts.filter { $0.lowercased().hasPrefix("v=dmarc1") }
      if policies.count > 1 {
        return [
          .init(
            domain, "DMARC", .wrong, "\(policies.count) records at _dmarc.\(name): all of them are ignored",
            advice: "keep one", record: "_dmarc.\(name). IN TXT \"\(policies[0])\"")
        ]
      }
      if let policy = policies.first { return [judge(dmarc: policy, at: name, for: domain, record)] }
      guard let dot = name.firstIndex(of: "."), name[name.index(after: dot)...].contains(".") else { break }
      name = String(name[name.index(after: dot)...])
    }
    return [
      .init(
        domain, "DMARC", .wrong, "none: Gmail wants one from those who send much, and nobody tells of forged mail",
        advice: "begin with p=none, which only reports; postmaster@\(domain) gets the reports", record: record)
    ]
  }

  private static func judge(
    dmarc policy: String, at name: String, for domain: String, _ record: String
  ) -> DNSFinding {
    let tags = policy.split(separator: ";").map { $0.filter { !$0.isWhitespace }.lowercased() }
    let action = tags.first { $0.hasPrefix("p=") }?.dropFirst(2)
    guard let action, ["none", "quarantine", "reject"].contains(action) else {
      return DNSFinding(
        domain, "DMARC", .wrong, "\"\(policy)\" at _dmarc.\(name) has no valid p=: it is ignored",
        advice: "p is none, quarantine or reject", record: record)
    }
    let origin = name == domain ? "" : ", from _dmarc.\(name)"
    return DNSFinding(domain, "DMARC", .right, "\(policy)\(origin)")
  }

  // MARK: No answer

  static func unanswered(_ subject: String, _ check: String, _ failure: DNSFailure) -> DNSFinding {
    DNSFinding(
      subject, check, .unanswered, "\(failure)",
      advice: failure == .serverFailure
        ? "the servers of the zone do not answer, or its DNSSEC is broken: ask whoever runs the zone"
        : "nothing is known about the record: try again, or ask another server with --server")
  }

  private static func failures(
    _ name: String, _ types: [DNSType], _ evidence: inout DNSEvidence
  ) -> [DNSFinding] {
    types.compactMap { type in
      guard case .failed(let failure) = evidence.ask(name, type)?.status else { return nil }
      return unanswered(name, type.rawValue, failure)
    }
  }
}
