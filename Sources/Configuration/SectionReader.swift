// One section while its values are read: types, defaults, origins, and what was never asked for.

import Primitives

/// Reads the keys of one section. A key that is asked for is a known key; ``finish(_:)`` reports the others.
struct SectionReader {
  let section: INISection
  private let overrides: [String: String]
  private var known: [String] = []
  private(set) var descriptions: [(section: String, key: String, value: String, origin: String)] = []

  /// `overrides` by key, from the command line; they win over the file.
  init(_ section: INISection, overrides: [String: String] = [:]) {
    self.section = section
    self.overrides = overrides
  }

  var kind: String { section.kind }

  /// Where `key` was set, or the section's own place when it was not.
  func place(_ key: String) -> Origin {
    let origin = origin(key)
    return origin == .default ? section.origin : origin
  }

  func origin(_ key: String) -> Origin {
    if overrides[key] != nil { return .commandLine }
    return section.entries.first { $0.key == key }?.origin ?? .default
  }

  func isSet(_ key: String) -> Bool { text(key).map { !$0.isEmpty } ?? false }

  func text(_ key: String) -> String? {
    overrides[key] ?? section.entries.first { $0.key == key }?.value
  }

  /// Paths are seen from the file that names them, those of the command line from where the command was given.
  func resolved(_ path: String, _ key: String) -> String {
    guard case .file(let file, _) = origin(key) else { return path }
    return resolve(path, in: folder(of: file))
  }

  // MARK: Values

  /// Reads `key` with `parse`, which returns nil for a text it does not know; `wanted` then says what it takes.
  mutating func value<T>(
    _ key: String, default fallback: T, wanted: String, show: (T) -> String, _ findings: inout Findings,
    parse: (String) -> T?
  ) -> T {
    known.append(key)
    var result = fallback
    if let text = text(key) {
      if let value = parse(text) {
        result = value
      } else if text.isEmpty {
        findings.error(place(key), "\(key) has no value; it takes \(wanted)")
      } else {
        findings.error(place(key), "\(quoted(text)) is not a value of \(key), which takes \(wanted)")
      }
    }
    describe(key, show(result))
    return result
  }

  mutating func string(_ key: String, default fallback: String, _ findings: inout Findings) -> String {
    optionalString(key, &findings, shown: fallback) ?? fallback
  }

  mutating func optionalString(_ key: String, _ findings: inout Findings, shown fallback: String = "") -> String? {
    known.append(key)
    let text = text(key).flatMap { $0.isEmpty ? nil : $0 }
    describe(key, text ?? fallback, origin: text == nil ? .default : nil)
    return text
  }

  mutating func secret(_ key: String) -> Secret? {
    known.append(key)
    guard let text = text(key), !text.isEmpty else { return nil }
    describe(key, Secret(text).description)
    return Secret(text)
  }

  mutating func path(_ key: String, default fallback: String, _ findings: inout Findings) -> String {
    optionalPath(key, shown: fallback) ?? fallback
  }

  mutating func optionalPath(_ key: String, shown fallback: String = "") -> String? {
    known.append(key)
    let path = text(key).flatMap { $0.isEmpty ? nil : resolved($0, key) }
    describe(key, path ?? fallback, origin: path == nil ? .default : nil)
    return path
  }

  mutating func boolean(_ key: String, default fallback: Bool, _ findings: inout Findings) -> Bool {
    value(
      key, default: fallback, wanted: "true, false, yes, no, on or off", show: \.description, &findings,
      parse: ValueReader.boolean)
  }

  mutating func count(
    _ key: String, default fallback: Int, in range: ClosedRange<Int> = 1...1_000_000, _ findings: inout Findings
  ) -> Int {
    value(
      key, default: fallback, wanted: "a number from \(range.lowerBound) to \(range.upperBound)", show: String.init,
      &findings
    ) {
      ValueReader.count($0).flatMap { range.contains($0) ? $0 : nil }
    }
  }

  mutating func optionalCount(
    _ key: String, in range: ClosedRange<Int> = 1...1_000_000, _ findings: inout Findings
  ) -> Int? {
    value(
      key, default: nil, wanted: "a number from \(range.lowerBound) to \(range.upperBound)",
      show: { $0.map { String($0) } ?? "" }, &findings,
      parse: { ValueReader.count($0).flatMap { range.contains($0) ? .some(.some($0)) : nil } })
  }

  /// A size, or nil for `auto`, which is the default.
  mutating func sizeOrAuto(_ key: String, _ findings: inout Findings) -> Int? {
    func show(_ size: Int?) -> String { size.map(String.init) ?? "auto" }
    return value(key, default: Int?.none, wanted: "a size such as 256M, 0, or auto", show: show, &findings) {
      $0.lowercased() == "auto" ? .some(nil) : ValueReader.size($0).map { .some($0) }
    }
  }

  mutating func duration(
    _ key: String, default fallback: Duration, allowsZero: Bool = false, _ findings: inout Findings
  ) -> Duration {
    value(
      key, default: fallback,
      wanted: "a duration such as 30s, 5m, 4h or 5d, of \(ValueReader.longestDuration.configurationText) at most",
      show: \.configurationText, &findings
    ) {
      ValueReader.duration($0).flatMap { $0 > .zero || allowsZero ? $0 : nil }
    }
  }

  mutating func choice<T: CaseIterable & RawRepresentable<String>>(
    _ key: String, default fallback: T, _ findings: inout Findings
  ) -> T {
    let names = T.allCases.map(\.rawValue)
    known.append(key)
    var result = fallback
    if let text = text(key) {
      if let value = T.allCases.first(where: { $0.rawValue.lowercased() == text.lowercased() }) {
        result = value
      } else {
        findings.error(
          place(key),
          "\(quoted(text)) is not a value of \(key)\(suggestion(for: text, among: names, noun: "values"))")
      }
    }
    describe(key, result.rawValue)
    return result
  }

  /// A list of which every item is checked for itself; `off` alone is the empty list when `allowsOff`.
  mutating func list<T>(
    _ key: String, default fallback: [T], wanted: String, allowsOff: Bool = false, show: (T) -> String,
    _ findings: inout Findings, parse: (String) -> T?
  ) -> [T] {
    known.append(key)
    var result = fallback
    if let text = text(key) {
      result = []
      if !(allowsOff && text.lowercased() == "off") {
        for item in listItems(text) {
          if let value = parse(item) {
            result.append(value)
          } else {
            findings.error(place(key), "\(quoted(item)) is not a value of \(key), which takes \(wanted)")
          }
        }
      }
    }
    describe(key, result.isEmpty && allowsOff ? "off" : result.map(show).joined(separator: ", "))
    return result
  }

  mutating func endpoints(_ key: String, default fallback: [Endpoint], _ findings: inout Findings) -> [Endpoint] {
    list(
      key, default: fallback, wanted: "addresses with ports such as 127.0.0.1:25 or [::1]:25, or off",
      allowsOff: true, show: \.description, &findings
    ) { Endpoint($0) }
  }

  // MARK: Afterwards

  /// Sets what `config show` prints for `key`, when it is only known later.
  mutating func describe(_ key: String, _ value: String, origin given: Origin? = nil) {
    let origin = (given ?? origin(key)).description
    let title = String(section.title.dropFirst().dropLast())
    if let index = descriptions.firstIndex(where: { $0.key == key }) {
      descriptions[index] = (title, key, value, origin)
    } else {
      descriptions.append((title, key, value, origin))
    }
  }

  /// Reports keys that nobody asked for.
  func finish(_ findings: inout Findings) {
    for entry in section.entries where !known.contains(entry.key) { unknown(entry.key, entry.origin, &findings) }
    for key in overrides.keys.sorted() where !known.contains(key) { unknown(key, .commandLine, &findings) }
  }

  private func unknown(_ key: String, _ origin: Origin, _ findings: inout Findings) {
    findings.error(
      origin, "unknown key \(quoted(key)) in \(section.title)\(suggestion(for: key, among: known, noun: "keys"))")
  }
}
