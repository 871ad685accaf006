// The INI dialect of the configuration: sections `[kind]` and `[kind:label]`, `key = value`, comments at the
// beginning of a line. A value may hold `;` and `#`, so that a password need not be quoted.

/// A section as it was written.
struct INISection {
  struct Entry {
    var key: String
    var value: String
    var place: Place
  }
  var kind: String
  /// Empty for `[kind]`.
  var label: String
  var place: Place
  var entries: [Entry] = []

  var title: String { label.isEmpty ? "[\(kind)]" : "[\(kind):\(label)]" }
}

enum INI {
  /// Reads a whole file; everything that is wrong goes to `report`, and reading goes on.
  static func parse(_ bytes: [UInt8], file: String, report: (Diagnostic) -> Void) -> [INISection] {
    var sections: [INISection] = []
    var isSkipping = false
    var content = bytes[...]
    if content.starts(with: [0xef, 0xbb, 0xbf]) { content = content.dropFirst(3) }
    for (index, raw) in content.split(separator: 0x0a, omittingEmptySubsequences: false).enumerated() {
      let place = Place(file: file, line: index + 1)
      func wrong(_ message: String) { report(Diagnostic(.error, place, message)) }
      guard let text = String(validating: raw, as: UTF8.self) else {
        wrong("the line is not valid UTF-8")
        continue
      }
      if raw.contains(0) {
        wrong("the line holds a NUL byte")
        continue
      }
      let line = trim(text)
      if line.isEmpty || line.hasPrefix("#") || line.hasPrefix(";") { continue }
      if line.hasPrefix("[") {
        guard let section = header(line, place) else {
          wrong("'\(line)' is not a section: write [kind] or [kind:name]")
          isSkipping = true
          continue
        }
        isSkipping = false
        sections.append(section)
        continue
      }
      guard let equals = line.firstIndex(of: "=") else {
        wrong("'\(line)' is neither a section nor `key = value`")
        continue
      }
      let key = trim(String(line[..<equals]))
      let value = trim(String(line[line.index(after: equals)...]))
      if key.isEmpty {
        wrong("a key is missing before '='")
      } else if isSkipping {
        continue
      } else if sections.isEmpty {
        wrong("'\(key)' stands before the first section: put it below [global] or another section")
      } else if let first = sections[sections.count - 1].entries.first(where: { $0.key == key }) {
        wrong("'\(key)' is set twice in \(sections[sections.count - 1].title): first at \(first.place)")
      } else {
        sections[sections.count - 1].entries.append(.init(key: key, value: value, place: place))
      }
    }
    return sections
  }

  private static func header(_ line: String, _ place: Place) -> INISection? {
    guard line.hasSuffix("]") else { return nil }
    let inside = line.dropFirst().dropLast()
    let parts = inside.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map { trim(String($0)) }
    guard let kind = parts.first, !kind.isEmpty, parts.count == 1 || !parts[1].isEmpty else { return nil }
    return INISection(kind: kind.lowercased(), label: parts.count == 2 ? parts[1] : "", place: place)
  }

  static func trim(_ text: String) -> String {
    let isBlank = { (c: Character) in c == " " || c == "\t" || c == "\r" || c == "\r\n" }
    return String(text.drop(while: isBlank).reversed().drop(while: isBlank).reversed())
  }
}
