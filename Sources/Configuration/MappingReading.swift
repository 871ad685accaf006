// The keys of a mapping, and what a pattern may hold.

extension MappingSettings {
  init?(_ reader: inout SectionReader, _ findings: inout Findings) {
    let title = reader.section.title
    let enabled = reader.boolean("enabled", default: true, &findings)
    let from = reader.optionalString("from_pattern", &findings)
    let to = reader.optionalString("to_pattern", &findings)
    _ = reader.optionalString("smtp_account", &findings)
    let domain = reader.optionalString("domain", &findings)
    reader.finish(&findings)
    for (key, value) in [("from_pattern", from), ("to_pattern", to), ("domain", domain)] where value == nil {
      findings.error(reader.section.origin, "\(title) needs \(key)")
    }
    guard let from, let to, let domain else { return nil }
    guard let pattern = Self.pattern(from, "from_pattern", reader, &findings) else { return nil }
    let items = listItems(to)
    if items.isEmpty { findings.error(reader.place("to_pattern"), "to_pattern names no address") }
    let targets = items.compactMap { Self.pattern($0, "to_pattern", reader, &findings) }
    if !pattern.isWildcard, let target = targets.first(where: \.isWildcard) {
      findings.error(
        reader.place("to_pattern"), "\(quoted(target.description)) in to_pattern has a *, but from_pattern has none")
    }
    self.init(
      name: reader.section.label ?? "", from: pattern, to: targets, domain: domain.lowercased())
    self.enabled = enabled
  }

  private static func pattern(
    _ text: String, _ key: String, _ reader: SectionReader, _ findings: inout Findings
  ) -> AddressPattern? {
    do throws(AddressPattern.Fault) {
      return try AddressPattern(text)
    } catch {
      findings.error(reader.place(key), "\(quoted(text)) in \(key) is not an address: \(error.reason)")
      return nil
    }
  }
}
