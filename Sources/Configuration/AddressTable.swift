// Values by address or pattern: one look into a dictionary for an address, and for patterns only those of its domain.

import SMTP

/// What an address matches: an exact address before a longer pattern before a shorter one.
public struct AddressTable<Value: Sendable>: Sendable {
  /// A hit, with what the pattern's `*` stands for and the tag that had to be set aside.
  public struct Match: Sendable {
    public var value: Value
    public var captured: String?
    /// `tag` of `user+tag@`, when only `user@` is known.
    public var tag: String?
  }
  private struct Entry: Sendable {
    var pattern: AddressPattern
    var value: Value
  }

  private var exact: [String: Value] = [:]
  private var byDomain: [String: [Entry]] = [:]
  /// Patterns whose `*` is in the domain.
  private var anywhere: [Entry] = []

  public init() {}

  /// The first value of a pattern stays.
  public mutating func insert(_ value: Value, for pattern: AddressPattern) {
    guard pattern.isWildcard else {
      if exact[pattern.canonical] == nil { exact[pattern.canonical] = value }
      return
    }
    func add(to list: inout [Entry]) {
      let place = list.firstIndex { $0.pattern.length < pattern.length } ?? list.endIndex
      list.insert(Entry(pattern: pattern, value: value), at: place)
    }
    if let domain = pattern.domain { add(to: &byDomain[domain, default: []]) } else { add(to: &anywhere) }
  }

  /// Looks for `mailbox`, and for `user@` when it is `user+tag@`.
  public func match(_ mailbox: Mailbox) -> Match? {
    if let value = exact[mailbox.canonical] { return Match(value: value) }
    guard let plus = mailbox.localPart.utf8.firstIndex(of: UInt8(ascii: "+")), plus != mailbox.localPart.startIndex,
      let untagged = try? Mailbox(localPart: String(mailbox.localPart[..<plus]), domain: mailbox.domain)
    else { return matchPattern(mailbox) }
    let tag = String(mailbox.localPart[mailbox.localPart.utf8.index(after: plus)...])
    if let value = exact[untagged.canonical] { return Match(value: value, tag: tag) }
    if let match = matchPattern(mailbox) { return match }
    guard var match = matchPattern(untagged) else { return nil }
    match.tag = tag
    return match
  }

  private func matchPattern(_ mailbox: Mailbox) -> Match? {
    if byDomain.isEmpty && anywhere.isEmpty { return nil }
    let canonical = mailbox.canonical
    var best: (length: Int, match: Match)?
    if !byDomain.isEmpty, let at = canonical.utf8.lastIndex(of: UInt8(ascii: "@")),
      let entries = byDomain[String(canonical[canonical.index(after: at)...])]
    {
      best = first(entries, mailbox)
    }
    if let other = first(anywhere, mailbox), other.length > best?.length ?? -1 { best = other }
    return best?.match
  }

  private func first(_ entries: [Entry], _ mailbox: Mailbox) -> (length: Int, match: Match)? {
    for entry in entries {
      if let captured = entry.pattern.capture(mailbox) {
        return (entry.pattern.length, Match(value: entry.value, captured: captured))
      }
    }
    return nil
  }
}

extension AddressTable<MappingSettings>.Match {
  /// The new addresses of this match: `*` filled in, the tag kept.
  public func targets() throws(AddressError) -> [Mailbox] {
    var targets: [Mailbox] = []
    for pattern in value.to {
      var target = try pattern.substituting(captured)
      if let tag { target = try Mailbox(localPart: "\(target.localPart)+\(tag)", domain: target.domain) }
      targets.append(target)
    }
    return targets
  }
}
