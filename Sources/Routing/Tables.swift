// Patterns in the order in which they win: an exact address, then the longer pattern before the shorter one.

import Configuration
import SMTP

/// An address with one `*`, split at the star.
struct Pattern: Sendable {
  let prefix: String
  let suffix: String
  var length: Int { prefix.utf8.count + suffix.utf8.count }

  /// nil when the text has no star.
  init?(_ text: String) {
    guard let star = text.firstIndex(of: "*") else { return nil }
    prefix = text[..<star].lowercased()
    suffix = text[text.index(after: star)...].lowercased()
  }

  /// What the star stands for in `canonical`, which is lowercased.
  func match(_ canonical: String) -> Range<String.Index>? {
    guard canonical.utf8.count > length, canonical.hasPrefix(prefix), canonical.hasSuffix(suffix) else { return nil }
    let start = canonical.utf8.index(canonical.startIndex, offsetBy: prefix.utf8.count)
    let end = canonical.utf8.index(canonical.endIndex, offsetBy: -suffix.utf8.count)
    return start..<end
  }
}

struct MappingTable: Sendable {
  struct Hit {
    var mapping: MappingSettings
    var targets: [Mailbox]
  }
  private var exact: [String: MappingSettings] = [:]
  private var patterns: [(pattern: Pattern, mapping: MappingSettings)] = []

  init(_ mappings: [MappingSettings]) {
    for mapping in mappings {
      if let pattern = Pattern(mapping.fromPattern) {
        patterns.append((pattern, mapping))
      } else {
        exact[mapping.fromPattern.lowercased()] = mapping
      }
    }
    patterns.sort { $0.pattern.length > $1.pattern.length }
  }

  /// The mapping of an address: its own, that of the address without its tag, the longest pattern.
  func find(_ mailbox: Mailbox) -> Hit? {
    let canonical = mailbox.canonical
    if let mapping = exact[canonical] { return hit(mapping, star: nil, tag: nil) }
    if let plus = mailbox.localPart.firstIndex(of: "+"), plus != mailbox.localPart.startIndex {
      let tag = String(mailbox.localPart[plus...])
      if let untagged = try? Mailbox(localPart: String(mailbox.localPart[..<plus]), domain: mailbox.domain),
        let mapping = exact[untagged.canonical]
      {
        return hit(mapping, star: nil, tag: tag)
      }
    }
    // The match keeps the case it was written in; a canonical form of other length has letters that change theirs.
    let written = mailbox.description
    for (pattern, mapping) in patterns {
      guard let range = pattern.match(canonical) else { continue }
      let isSameLength = written.utf8.count == canonical.utf8.count
      return hit(mapping, star: isSameLength ? String(written[range]) : String(canonical[range]), tag: nil)
    }
    return nil
  }

  private func hit(_ mapping: MappingSettings, star: String?, tag: String?) -> Hit {
    let targets = mapping.toPatterns.compactMap { target -> Mailbox? in
      let text = star.map { target.replacing("*", with: $0) } ?? target
      guard let mailbox = try? Mailbox(parsing: text) else { return nil }
      guard let tag else { return mailbox }
      return try? Mailbox(localPart: mailbox.localPart + tag, domain: mailbox.domain)
    }
    return Hit(mapping: mapping, targets: targets)
  }
}

struct UserTable: Sendable {
  private var exact: [String: UserSettings] = [:]
  private var patterns: [(pattern: Pattern, user: UserSettings)] = []

  init(_ users: [UserSettings]) {
    for user in users {
      if user.isTemplate, let pattern = Pattern(user.address.replacing("{type}", with: "*")) {
        patterns.append((pattern, user))
      } else {
        exact[user.address.lowercased()] = user
      }
    }
    patterns.sort { $0.pattern.length > $1.pattern.length }
  }

  func find(_ mailbox: Mailbox) -> UserSettings? {
    if let user = exact[mailbox.canonical] { return user }
    return patterns.first { $0.pattern.match(mailbox.canonical) != nil }?.user
  }
}
