// The INI syntax: sections, keys and values with their places. What they mean is not known here.

struct INIEntry {
  var key: String
  var value: String
  var origin: Origin
}

/// `[kind]` or `[kind:label]`.
struct INISection {
  var kind: String
  var label: String?
  var origin: Origin
  var entries: [INIEntry] = []

  var title: String { label.map { "[\(kind):\($0)]" } ?? "[\(kind)]" }
}

enum INIReader {
  /// Reads one file; what cannot be read is reported and left out.
  static func read(_ bytes: [UInt8], path: String, findings: inout Findings) -> [INISection] {
    var bytes = bytes[...]
    if bytes.starts(with: [0xef, 0xbb, 0xbf]) { bytes = bytes.dropFirst(3) }
    var sections: [INISection] = []
    // A header that was refused swallows its keys: reporting each of them would bury the one real mistake.
    var isSkipping = false
    var number = 0
    for var line in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
      number += 1
      let origin = Origin.file(path, line: number)
      if line.last == UInt8(ascii: "\r") { line = line.dropLast() }
      guard let whole = String(validating: line, as: UTF8.self) else {
        findings.error(origin, "the line is not valid UTF-8: \(shown(String(decoding: line, as: UTF8.self)))")
        continue
      }
      guard !line.contains(0) else {
        findings.error(origin, "the line holds a NUL character: \(shown(whole))")
        continue
      }
      let text = trimmed(whole)
      if text.isEmpty || text.hasPrefix("#") || text.hasPrefix(";") { continue }
      if text.hasPrefix("[") {
        if let section = header(text, origin, &findings) {
          sections.append(section)
          isSkipping = false
        } else {
          isSkipping = true
        }
        continue
      }
      guard let equals = text.firstIndex(of: "=") else {
        findings.error(origin, "\(shown(text)) has no \"=\"; write key = value")
        continue
      }
      let key = trimmed(text[..<equals])
      guard !key.isEmpty else {
        findings.error(origin, "\(shown(text)) has no key before \"=\"")
        continue
      }
      if isSkipping { continue }
      guard let last = sections.indices.last else {
        findings.error(origin, "\(shown(text)) stands before the first [section]")
        continue
      }
      if let first = sections[last].entries.first(where: { $0.key == key }) {
        findings.error(
          origin, "key \(quoted(key)) is set twice in \(sections[last].title); the first is at \(first.origin)")
        continue
      }
      let value = String(trimmed(text[text.index(after: equals)...]))
      sections[last].entries.append(INIEntry(key: String(key), value: value, origin: origin))
    }
    return sections
  }

  /// A line that cannot be read, in quotes. One that looks like a password loses all but its first word.
  private static func shown(_ text: some StringProtocol) -> String {
    let line = trimmed(text)
    guard line.lowercased().contains("pass") else { return quoted(line) }
    let word = line.prefix { $0.isLetter || $0 == "_" }
    return word.count == line.count ? quoted(line) : quoted(word + "…")
  }

  private static func header(_ text: Substring, _ origin: Origin, _ findings: inout Findings) -> INISection? {
    guard text.hasSuffix("]") else {
      findings.error(origin, "section \(shown(text)) does not end in \"]\"")
      return nil
    }
    let inner = text.dropFirst().dropLast()
    guard let colon = inner.firstIndex(of: ":") else {
      return INISection(kind: String(trimmed(inner)), label: nil, origin: origin)
    }
    let label = String(trimmed(inner[inner.index(after: colon)...]))
    return INISection(kind: String(trimmed(inner[..<colon])), label: label, origin: origin)
  }
}

/// Without the blanks and tabs at both ends.
func trimmed(_ text: some StringProtocol) -> Substring {
  var text = Substring(text)
  while let first = text.first, first == " " || first == "\t" { text.removeFirst() }
  while let last = text.last, last == " " || last == "\t" { text.removeLast() }
  return text
}

/// The parts of a comma-separated list, without blanks around them and without empty ones.
func listItems(_ text: String) -> [String] {
  text.split(separator: ",").map { String(trimmed($0)) }.filter { !$0.isEmpty }
}
