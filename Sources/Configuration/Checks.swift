// What only a look at several sections can tell.

import Primitives
import SMTP

extension Loader {
  func check(_ settings: inout Settings) {
    markLocalDomains(&settings)
    resolveDefaultDomain(&settings)
    var patterns: [String: MappingSettings] = [:]
    for mapping in settings.mappings {
      checkPatterns(mapping)
      checkCarrier(mapping, settings)
      let key = mapping.fromPattern.lowercased()
      if let first = patterns[key], !key.isEmpty {
        error(mapping.place, "from_pattern = \(mapping.fromPattern) stands twice: first in [mapping:\(first.name)] at \(first.place)")
      } else {
        patterns[key] = mapping
      }
    }
    for user in settings.users { checkUser(user) }
  }

  private func markLocalDomains(_ settings: inout Settings) {
    let own = settings.global.defaultHostname.lowercased()
    let ports = Set(settings.global.listen.map(\.port))
    for (key, domain) in settings.domains {
      let host = domain.host.lowercased()
      let isHere = host == "localhost" || host == own || IPAddress(host)?.isLoopback == true
      // Named like ourselves and served from here: that is this relay, whatever port `listen` was moved to.
      settings.domains[key]?.isLocal = isHere && (ports.contains(domain.port) || key == own)
    }
  }

  private func resolveDefaultDomain(_ settings: inout Settings) {
    if let name = settings.global.defaultDomain {
      guard let domain = settings.domains[name.lowercased()] else {
        let hint = Nearest.to(name, among: settings.domains.keys.sorted()).map { ": did you mean '\($0)'?" } ?? ""
        return error(origin("default_domain"), "default_domain = \(name): there is no [domain:\(name)]\(hint)")
      }
      if domain.isLocal {
        error(origin("default_domain"), "default_domain = \(name): this is the relay itself, which cannot carry mail")
      }
      return
    }
    let upstreams = settings.domains.values.filter { $0.enabled && !$0.isLocal }
    settings.global.defaultDomain = upstreams.count == 1 ? upstreams.first?.name : nil
  }

  private func origin(_ key: String) -> Place {
    guard let shown = shown.first(where: { $0.section == "[global]" && $0.key == key }) else { return .unset }
    guard let colon = shown.origin.lastIndex(of: ":"), let line = Int(shown.origin[shown.origin.index(after: colon)...])
    else { return Place(file: shown.origin, line: 0) }
    return Place(file: String(shown.origin[..<colon]), line: line)
  }

  private func checkPatterns(_ mapping: MappingSettings) {
    let stars = mapping.fromPattern.filter { $0 == "*" }.count
    if stars > 1 {
      error(mapping.place, "from_pattern = \(mapping.fromPattern): one '*' at most")
    } else if !mapping.fromPattern.isEmpty, !Self.isAddress(mapping.fromPattern) {
      error(mapping.place, "from_pattern = \(mapping.fromPattern): must be an address, or one with a '*' in it")
    }
    for target in mapping.toPatterns {
      let targetStars = target.filter { $0 == "*" }.count
      if targetStars > stars || targetStars > 1 {
        error(mapping.place, "to_pattern = \(target): a '*' needs its match: one '*' in from_pattern")
      } else if !Self.isAddress(target) {
        error(mapping.place, "to_pattern = \(target): must be an address, or one with a '*' in it")
      }
    }
  }

  private static func isAddress(_ pattern: String) -> Bool {
    // A star stands for at least part of a name: any letter will do to check the rest.
    (try? Mailbox(parsing: pattern.replacing("*", with: "x"))) != nil
  }

  private func checkCarrier(_ mapping: MappingSettings, _ settings: Settings) {
    guard !mapping.domain.isEmpty else { return }
    guard let domain = settings.domains[mapping.domain.lowercased()] else {
      let hint = Nearest.to(mapping.domain, among: settings.domains.keys.sorted()).map { ": did you mean '\($0)'?" } ?? ""
      return error(mapping.place, "[mapping:\(mapping.name)] domain = \(mapping.domain): there is no [domain:\(mapping.domain)]\(hint)")
    }
    if domain.isLocal {
      error(mapping.place, "[mapping:\(mapping.name)] domain = \(mapping.domain): this is the relay itself: name the [domain:] that carries the mail")
    }
    if let account = mapping.smtpAccount, account.lowercased() != domain.relayAccount?.lowercased() {
      error(
        mapping.place,
        "[mapping:\(mapping.name)] smtp_account = \(account): [domain:\(domain.name)] sends as relay_account = \(domain.relayAccount ?? "(none)")")
    }
    for target in mapping.toPatterns where loops(target, settings, from: mapping) {
      error(mapping.place, "[mapping:\(mapping.name)] to_pattern = \(target): the mappings lead back to \(mapping.fromPattern)")
    }
  }

  /// Whether a fixed target address comes back to the mapping it came from.
  private func loops(_ target: String, _ settings: Settings, from mapping: MappingSettings) -> Bool {
    var seen: Set<String> = []
    var open = [target.lowercased()]
    while let address = open.popLast() {
      if address == mapping.fromPattern.lowercased() { return true }
      guard seen.insert(address).inserted else { continue }
      for next in settings.mappings where next.enabled && next.fromPattern.lowercased() == address {
        open.append(contentsOf: next.toPatterns.map { $0.lowercased() })
      }
    }
    return false
  }

  private func checkUser(_ user: UserSettings) {
    let pattern = user.address.replacing("{type}", with: "*")
    let stars = pattern.filter { $0 == "*" }.count
    if stars > 0, !user.isTemplate {
      error(user.place, "[user:\(user.address)] is a pattern: set template_address = true, or name one address")
    }
    if stars > 1 || !Self.isAddress(pattern) {
      error(user.place, "[user:\(user.address)] must be an address\(user.isTemplate ? " with one '*' or {type}" : "")")
    }
  }
}
