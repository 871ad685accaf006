// Takes the values of one section, key by key: what is asked for is known, what is left over was misspelt.

final class SectionReader {
  let section: INISection
  private let loader: Loader
  private var known: Set<String> = []

  init(_ section: INISection, _ loader: Loader) {
    self.section = section
    self.loader = loader
  }

  func entry(_ key: String) -> INISection.Entry? { section.entries.first { $0.key == key } }
  func place(of key: String) -> Place { entry(key)?.place ?? section.place }

  /// The value of a key, nil when it is not set or wrong. `hidden` values are secrets.
  func value<Value: Sendable>(_ key: String, _ kind: ValueKind<Value>, default text: String? = nil, hidden: Bool = false) -> Value? {
    known.insert(key)
    guard let entry = entry(key) else {
      if let text { loader.show(section, key, text, .unset) }
      return text.flatMap { kind.read($0) }
    }
    loader.show(section, key, hidden ? "<redacted>" : entry.value, entry.place)
    if let value = kind.read(entry.value) { return value }
    loader.error(entry.place, "\(key) = \(hidden ? "<redacted>" : entry.value): must be \(kind.wanted)")
    return nil
  }

  /// A path, relative to the folder of the file that names it.
  func path(_ key: String, default text: String? = nil) -> String? {
    guard let path: String = value(key, Values.text, default: text) else { return nil }
    return loader.absolute(path, from: place(of: key).file)
  }

  func set<Value: Sendable>(_ target: inout Value, _ key: String, _ kind: ValueKind<Value>, default text: String? = nil) {
    if let value = value(key, kind, default: text) { target = value }
  }

  /// Reports the keys nobody asked for.
  func finish() {
    for entry in section.entries where !known.contains(entry.key) {
      let hint = Nearest.to(entry.key, among: known.sorted()).map { ": did you mean '\($0)'?" } ?? ""
      loader.error(entry.place, "unknown key '\(entry.key)' in \(section.title)\(hint)")
    }
  }
}
