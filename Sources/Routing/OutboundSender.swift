// Who a message is from on its way out through an account: the envelope sender and what the From field says.

import Configuration
import Primitives
import SMTP

/// The sender rules of all `[domain:]` sections; pure answers, made from one configuration.
public struct OutboundSender: Sendable {
  private let domains: [String: DomainSettings]
  private let mappings: AddressTable<MappingSettings>
  /// The lowercased names of those that change anything.
  private let active: Set<String>
  private let ownDomains: Set<String>
  private let ownAddresses: Set<Mailbox>
  /// nil when no secret is configured.
  public let srs: SenderRewritingScheme?

  /// Everybody has an address there: an account in one of them makes that address ours, and nobody else's.
  private static let publicProviders: Set<String> = ["gmail.com", "googlemail.com"]

  public init(_ settings: Settings) {
    domains = settings.domains
    active = Set(settings.domains.filter { $1.envelopeSender != .keep || $1.fromHeader != .keep }.keys)
    mappings = settings.mappingTable()
    var own: Set<String> = [settings.global.defaultHostname.lowercased()]
    var addresses: Set<Mailbox> = []
    for (name, domain) in settings.domains {
      own.insert(name)
      guard let account = domain.accountAddress else { continue }
      addresses.insert(account)
      own.insert(account.domain.lowercased())
    }
    ownDomains = own.subtracting(Self.publicProviders)
    ownAddresses = addresses
    srs = SenderRewritingScheme(
      secrets: settings.global.srsSecrets.map { $0.reveal() }, domain: settings.global.effectiveSRSDomain)
  }

  /// Whether mail that leaves through this account is changed at all.
  public func changes(account: String) -> Bool { !active.isEmpty && active.contains(account.lowercased()) }

  /// Whether an address is of our own: in the domain of a relay account, of a `[domain:]`, or `default_hostname`.
  public func isOurs(_ mailbox: Mailbox) -> Bool {
    ownDomains.contains(mailbox.domain.lowercased()) || ownAddresses.contains(mailbox)
  }

  /// The reverse-path for the upstream. The null one stays null, and what cannot be rewritten stays as it is.
  public func reversePath(_ text: String, account: String, now: Timestamp) -> String {
    guard !text.isEmpty, let domain = domains[account.lowercased()] else { return text }
    switch domain.envelopeSender {
    case .keep: return text
    case .relayAccount: return domain.accountAddress?.description ?? text
    case .srs:
      guard let srs, let sender = try? Mailbox(parsing: text), !isOurs(sender), !srs.claims(sender) else { return text }
      return srs.forward(sender, now: now)?.description ?? text
    }
  }

  /// What From becomes for mail to these recipients, as the client named them; nil when it stays.
  public func via(account: String, recipients originals: [String]) -> (address: Mailbox, label: String)? {
    guard let domain = domains[account.lowercased()], domain.fromHeader == .via, let relay = domain.accountAddress
    else { return nil }
    let aliases = Set(originals.map { $0.lowercased() }).sorted()
    let labels = Set(aliases.compactMap { (try? Mailbox(parsing: $0)).flatMap(label) })
    // The recipients of one transaction share one header: with several aliases it names none of them.
    guard labels.count == 1, let label = labels.first else { return (relay, domain.name) }
    guard aliases.count == 1, let alias = originals.first.flatMap({ try? Mailbox(parsing: $0) }),
      domain.sendAs.contains(where: { $0.matches(alias) })
    else { return (relay, label) }
    return (alias, label)
  }

  /// The name of an alias for people: what the `*` of its mapping stands for, else its local part; nil for other
  /// addresses. `contact-customer-care@` is `Customer Care`: everybody who writes is in contact.
  private func label(_ alias: Mailbox) -> String? {
    guard let match = mappings.match(alias) else { return nil }
    var text = match.captured ?? alias.localPart
    if text.contains("@") || match.captured == nil { text = alias.localPart }
    if let plus = text.firstIndex(of: "+") { text = String(text[..<plus]) }
    let prefix = "contact-"
    if text.lowercased().hasPrefix(prefix), text.count > prefix.count { text = String(text.dropFirst(prefix.count)) }
    let words = text.split { "-_. ".contains($0) }.map { $0.prefix(1).uppercased() + $0.dropFirst() }
    return words.isEmpty ? nil : words.joined(separator: " ")
  }
}

extension AddressPattern {
  /// Whether `mailbox` is the address, with a tag or without, or matches the pattern.
  fileprivate func matches(_ mailbox: Mailbox) -> Bool {
    if isWildcard { return capture(mailbox) != nil }
    if canonical == mailbox.canonical { return true }
    guard let plus = mailbox.localPart.firstIndex(of: "+") else { return false }
    return (try? Mailbox(localPart: String(mailbox.localPart[..<plus]), domain: mailbox.domain))?.canonical == canonical
  }
}
