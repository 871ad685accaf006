// What only shows when all sections are seen together.

import Primitives
import SMTP

struct CrossChecks {
  var files: any FileSource
  var global: SectionReader
  var domains: [(settings: DomainSettings, reader: SectionReader)] = []
  var users: [(settings: UserSettings, reader: SectionReader)] = []
  var mappings: [(settings: MappingSettings, reader: SectionReader)] = []

  init(files: any FileSource, global: SectionReader) {
    self.files = files
    self.global = global
  }

  var descriptions: [(section: String, key: String, value: String, origin: String)] {
    global.descriptions + domains.flatMap(\.reader.descriptions) + users.flatMap(\.reader.descriptions)
      + mappings.flatMap(\.reader.descriptions)
  }

  mutating func run(_ settings: inout Settings, _ findings: inout Findings) {
    checkDefaultDomain(&settings, &findings)
    for (domain, reader) in domains {
      check(domain, reader, &findings)
      checkFallbacks(of: domain, reader, settings, &findings)
      domain.checkSender(reader, settings.global, &findings)
    }
    for (user, reader) in users {
      if let domain = user.domain { checkExists(domain, "domain", reader, settings, &findings) }
    }
    checkLogins(settings, &findings)
    checkPatternsDiffer(users.map { ($0.settings.address, $0.settings.enabled, $0.reader, nil) }, &findings)
    checkPatternsDiffer(
      mappings.map { ($0.settings.from, $0.settings.enabled, $0.reader, "from_pattern") }, &findings)
    for (mapping, reader) in mappings where mapping.enabled { check(mapping, reader, settings, &findings) }
    checkAliases(settings, &findings)
  }

  // MARK: Domains

  private mutating func checkDefaultDomain(_ settings: inout Settings, _ findings: inout Findings) {
    if let name = settings.global.defaultDomain {
      checkExists(name, "default_domain", global, settings, &findings)
      if settings.domains[name]?.isLocal == true {
        findings.error(
          global.place("default_domain"), "default_domain \(quoted(name)) is this relay itself; name an upstream")
      }
      return
    }
    let upstreams = settings.domains.filter { $1.enabled && !$1.isLocal }
    guard upstreams.count == 1, let only = upstreams.first else { return }
    settings.global.defaultDomain = only.key
    global.describe("default_domain", only.key, origin: .default)
  }

  private func checkExists(
    _ name: String, _ key: String, _ reader: SectionReader, _ settings: Settings, _ findings: inout Findings
  ) {
    guard settings.domains[name] == nil else { return }
    let names = domains.map(\.settings.name)
    let written = reader.text(key) ?? name
    let hint = names.isEmpty ? "" : suggestion(for: name, among: names, noun: "domains")
    findings.error(reader.place(key), "\(key) \(quoted(written)) has no section [domain:\(written)]\(hint)")
  }

  private func check(_ domain: DomainSettings, _ reader: SectionReader, _ findings: inout Findings) {
    if let file = domain.tlsCAFile, !files.isReadable(file) {
      findings.error(reader.place("tls_ca_file"), "tls_ca_file \(quoted(file)) cannot be read")
    }
    guard domain.enabled, !domain.isLocal else { return }
    let title = reader.section.title
    let usesTLS = domain.useSSL || domain.useStartTLS
    let address = IPAddress(domain.host)
    let isLoopback = domain.host.lowercased() == "localhost" || address?.isLoopback == true
    if usesTLS, address != nil, domain.tlsServerName == nil {
      findings.error(
        reader.place("smtp_server"),
        "smtp_server \(quoted(domain.host)) is an address; TLS needs tls_server_name, the name of its certificate")
    }
    guard domain.authMethod != .none else { return }
    if !usesTLS, !isLoopback {
      findings.error(
        reader.place("auth_method"),
        "auth_method \(domain.authMethod.rawValue) would send the password in clear to \(domain.host); "
          + "set use_starttls = true or use_ssl = true")
    }
    if domain.username == nil {
      findings.error(
        reader.place("auth_method"), "auth_method \(domain.authMethod.rawValue) needs username in \(title)")
    }
    // Their own reader has looked whether they are complete.
    if OAuthReader.isUsed(in: reader) || PasswordReader.keys.contains(where: { reader.isSet($0) }) { return }
    let takesToken = domain.authMethod == .xoauth2 || domain.authMethod == .oauthBearer
    findings.error(
      reader.place("auth_method"),
      takesToken
        ? "auth_method \(domain.authMethod.rawValue) needs oauth_client_id and oauth_refresh_token_file, or "
          + "service_account_file, or an access token as password_command or the like, in \(title)"
        : "auth_method \(domain.authMethod.rawValue) needs password, password_file, password_command or "
          + "password_credential in \(title)")
  }

  private func checkFallbacks(
    of domain: DomainSettings, _ reader: SectionReader, _ settings: Settings, _ findings: inout Findings
  ) {
    let key = "fallback_account"
    let place = reader.place(key)
    let own = domain.name.lowercased()
    if domain.isLocal, !domain.fallbackAccounts.isEmpty {
      findings.error(place, "\(key) is for upstreams; \(reader.section.title) is this relay itself")
      return
    }
    var seen: Set<String> = []
    for name in domain.fallbackAccounts {
      if name == own {
        findings.error(place, "\(key) \(quoted(name)) is \(reader.section.title) itself; name another one")
        continue
      }
      if !seen.insert(name).inserted { findings.error(place, "\(key) names \(quoted(name)) twice") }
      guard let fallback = settings.domains[name] else {
        let hint = suggestion(for: name, among: domains.map(\.settings.name).filter { $0 != own }, noun: "domains")
        findings.error(place, "\(key) \(quoted(name)) has no section [domain:\(name)]\(hint)")
        continue
      }
      if fallback.isLocal {
        findings.error(place, "\(key) \(quoted(name)) is this relay itself; name an upstream")
      } else if !fallback.enabled {
        findings.warning(place, "[domain:\(fallback.name)] is disabled, so it carries nothing as a \(key)")
      }
    }
    if let loop = fallbackLoop([own], settings) {
      findings.error(
        place,
        "\(key) leads back to where it began: \(loop.map { "[domain:\($0)]" }.joined(separator: " → ")); "
          + "one of them has to be the last")
    }
  }

  /// A way along `fallback_account` from the first name of the trail back to it.
  private func fallbackLoop(_ trail: [String], _ settings: Settings) -> [String]? {
    guard let last = trail.last, let domain = settings.domains[last] else { return nil }
    for name in domain.fallbackAccounts where name != last {
      if name == trail.first { return trail + [name] }
      if trail.contains(name) { continue }
      if let loop = fallbackLoop(trail + [name], settings) { return loop }
    }
    return nil
  }

  // MARK: Mappings and users

  private func checkPatternsDiffer(
    _ patterns: [(pattern: AddressPattern, enabled: Bool, reader: SectionReader, key: String?)],
    _ findings: inout Findings
  ) {
    var first: [String: Origin] = [:]
    for (pattern, enabled, reader, key) in patterns where enabled {
      let place = key.map { reader.place($0) } ?? reader.section.origin
      if let earlier = first[pattern.canonical] {
        findings.error(
          place, "\(quoted(pattern.description)) is the pattern of two sections; the other is at \(earlier)")
      } else {
        first[pattern.canonical] = place
      }
    }
  }

  private func check(
    _ mapping: MappingSettings, _ reader: SectionReader, _ settings: Settings, _ findings: inout Findings
  ) {
    checkExists(mapping.domain, "domain", reader, settings, &findings)
    guard let domain = settings.domains[mapping.domain] else { return }
    if let account = reader.text("smtp_account"), !account.isEmpty, let relay = domain.relayAccount,
      account.lowercased() != relay.lowercased()
    {
      findings.error(
        reader.place("smtp_account"),
        "smtp_account \(quoted(account)) is not the relay_account of [domain:\(domain.name)], "
          + "which is \(quoted(relay))")
    }
    if !domain.enabled {
      findings.warning(
        reader.place("domain"), "[domain:\(domain.name)] is disabled, so \(reader.section.title) has no effect")
    }
    if domain.isLocal, let target = mapping.to.first(where: { !settings.isLocal($0) }) {
      findings.error(
        reader.place("domain"),
        "domain \(quoted(domain.name)) is this relay itself and cannot carry mail to \(target); name an upstream")
    }
  }

  /// A target in a local domain is mapped again, until it leaves; one that never does is found here and not in traffic.
  private func checkAliases(_ settings: Settings, _ findings: inout Findings) {
    let table = settings.mappingTable()
    // Each mapping may lead to many, so the ways through them can outgrow any machine.
    var budget = 100_000
    for (mapping, reader) in mappings where settings.isUsable(mapping) {
      // Any text will do in the place of `*`: what it matches then is what most addresses match.
      let sample = mapping.from.isWildcard ? "someone-else" : nil
      for pattern in mapping.to {
        guard let target = try? pattern.substituting(sample) else { continue }
        follow(target, [mapping.name], table, settings, reader, isSample: pattern.isWildcard, &budget, &findings)
      }
    }
  }

  private func follow(
    _ target: Mailbox, _ trail: [String], _ table: AddressTable<MappingSettings>, _ settings: Settings,
    _ reader: SectionReader, isSample: Bool, _ budget: inout Int, _ findings: inout Findings
  ) {
    budget -= 1
    guard budget > 0, settings.isLocal(domain: target.domain) else { return }
    let place = reader.place("to_pattern")
    guard let match = table.match(target), let next = try? match.targets() else {
      if !isSample, target.localPart.lowercased() != "postmaster" {
        findings.error(place, "\(quoted(target.description)) is in a domain of this relay, but no mapping takes it")
      }
      return
    }
    if trail.contains(match.value.name) {
      // Only the mappings of the loop itself report it, not those that lead into it.
      if trail.first == match.value.name {
        let names = (trail + [match.value.name]).map { "[mapping:\($0)]" }
        findings.error(place, "the mapping leads back to itself: \(names.joined(separator: " → "))")
      }
      return
    }
    if trail.count >= Settings.maximumAliasDepth {
      findings.error(place, "\(quoted(target.description)) takes more than \(Settings.maximumAliasDepth) mappings")
      return
    }
    for target in next {
      follow(target, trail + [match.value.name], table, settings, reader, isSample: isSample, &budget, &findings)
    }
  }
}

extension Settings {
  /// How many mappings may follow each other.
  public static let maximumAliasDepth = 10

  /// Whether mail for `domain` (of any case) is for this relay itself.
  public func isLocal(domain: String) -> Bool {
    let domain = domain.lowercased()
    if domain == global.defaultHostname.lowercased() { return true }
    return domains[domain].map { $0.isLocal && $0.enabled } ?? false
  }

  func isLocal(_ pattern: AddressPattern) -> Bool { pattern.domain.map { isLocal(domain: $0) } ?? false }

  /// Whether `mapping` can route anything: it is enabled, and so is the `[domain:]` that it names.
  public func isUsable(_ mapping: MappingSettings) -> Bool {
    mapping.enabled && domains[mapping.domain]?.enabled == true
  }

  /// The mappings that can route, by pattern.
  public func mappingTable() -> AddressTable<MappingSettings> {
    var table = AddressTable<MappingSettings>()
    for mapping in mappings where isUsable(mapping) { table.insert(mapping, for: mapping.from) }
    return table
  }
}
