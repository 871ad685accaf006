// Reads the files of a configuration and makes settings of them. It goes on after each mistake, so that one run
// names them all.

import Primitives

extension Settings {
  /// Reads a configuration.
  /// - Parameters:
  ///   - path: the main file.
  ///   - overrides: values that win over the files: `global.KEY` or `domain:NAME.KEY`.
  ///   - environment: `CREDENTIALS_DIRECTORY` is looked up here.
  /// - Throws: ``ConfigurationError`` with everything that is wrong.
  public static func load(
    path: String, overrides: [(key: String, value: String)] = [], files: any FileSource = SystemFiles(),
    environment: [String: String] = [:]
  ) throws(ConfigurationError) -> (settings: Settings, warnings: [Diagnostic]) {
    let loader = Loader(files: files, environment: environment, overrides: overrides)
    var settings = Settings()
    loader.load(path, into: &settings)
    loader.check(&settings)
    settings.shown = loader.shown
    if loader.diagnostics.contains(where: { $0.severity == .error }) {
      throw ConfigurationError(diagnostics: loader.diagnostics)
    }
    return (settings, loader.diagnostics)
  }
}

final class Loader {
  let files: any FileSource
  let environment: [String: String]
  private let overrides: [(key: String, value: String)]
  private var usedOverrides: Set<Int> = []
  private(set) var diagnostics: [Diagnostic] = []
  private(set) var shown: [ShownValue] = []

  /// The text that stands for a password in the sample files.
  static let placeholder = "your_gmail_app_password_here"

  init(files: any FileSource, environment: [String: String], overrides: [(key: String, value: String)]) {
    self.files = files
    self.environment = environment
    self.overrides = overrides
  }

  func error(_ place: Place, _ message: String) { diagnostics.append(Diagnostic(.error, place, message)) }
  func warning(_ place: Place, _ message: String) { diagnostics.append(Diagnostic(.warning, place, message)) }
  func show(_ section: INISection, _ key: String, _ value: String, _ place: Place) {
    shown.append(ShownValue(section: section.title, key: key, value: value, origin: place.description))
  }

  func absolute(_ path: String, from file: String) -> String {
    if path.hasPrefix("/") || file == Self.commandLine { return path }
    guard let slash = file.lastIndex(of: "/") else { return path }
    return "\(file[..<slash])/\(path)"
  }

  // MARK: Files

  private static let commandLine = "command line"

  func load(_ path: String, into settings: inout Settings) {
    let main = sections(of: path)
    var global: INISection?
    for section in main {
      if section.kind != "global" {
        misplaced(section, in: path)
      } else if let first = global {
        error(section.place, "[global] stands twice: first at \(first.place)")
      } else {
        global = section
      }
    }
    let base = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
    if global == nil, diagnostics.isEmpty {
      error(Place(file: path, line: 0), "the section [global] is missing")
    }
    settings.global = readGlobal(
      overridden(global ?? INISection(kind: "global", label: "", place: Place(file: path, line: 0))), base)

    for section in folder(settings.global.domainsDir, holding: "domain") {
      let domain = readDomain(overridden(section))
      if let first = settings.domains[domain.name.lowercased()] {
        error(section.place, "\(section.title) stands twice: first at \(first.place)")
      } else {
        settings.domains[domain.name.lowercased()] = domain
      }
    }
    for section in folder(settings.global.usersDir, holding: "user") {
      let user = readUser(overridden(section))
      if let first = settings.users.first(where: { $0.address.lowercased() == user.address.lowercased() }) {
        error(section.place, "\(section.title) stands twice: first at \(first.place)")
      }
      settings.users.append(user)
    }
    for section in folder(settings.global.mappingsDir, holding: "mapping") {
      let mapping = readMapping(overridden(section))
      if let first = settings.mappings.first(where: { $0.name == mapping.name }) {
        error(section.place, "\(section.title) stands twice: first at \(first.place)")
      }
      settings.mappings.append(mapping)
    }
    for (index, override) in overrides.enumerated() where !usedOverrides.contains(index) {
      error(
        Place(file: Self.commandLine, line: 0),
        "--set \(override.key): there is no such section; write global.KEY or domain:NAME.KEY")
    }
  }

  private func sections(of path: String) -> [INISection] {
    do {
      return INI.parse(try files.read(path), file: path) { diagnostics.append($0) }
    } catch {
      self.error(Place(file: path, line: 0), "cannot be read: \(error)")
      return []
    }
  }

  private func folder(_ path: String, holding kind: String) -> [INISection] {
    // A folder that is not there is empty: a site without users needs no users/.
    guard files.mode(of: path) != nil else { return [] }
    let names: [String]
    do { names = try files.list(path) } catch {
      self.error(Place(file: path, line: 0), "cannot be read: \(error)")
      return []
    }
    var result: [INISection] = []
    for name in names.sorted() where name.hasSuffix(".conf") && !name.hasPrefix(".") {
      for section in sections(of: "\(path)/\(name)") {
        if section.kind == kind, !section.label.isEmpty {
          result.append(section)
        } else {
          misplaced(section, in: "\(path)/\(name)", wanted: kind)
        }
      }
    }
    return result
  }

  private func misplaced(_ section: INISection, in path: String, wanted: String? = nil) {
    let homes = ["global": "the main file", "domain": "domains_dir", "user": "users_dir", "mapping": "mappings_dir"]
    if let home = homes[section.kind], section.kind != wanted {
      error(section.place, "\(section.title) does not belong here but in \(home)")
    } else if section.kind == wanted {
      error(section.place, "\(section.title) needs a name: [\(section.kind):NAME]")
    } else {
      let hint = Nearest.to(section.kind, among: homes.keys.sorted()).map { ": did you mean '\($0)'?" } ?? ""
      error(section.place, "unknown section \(section.title)\(hint)")
    }
  }

  private func overridden(_ section: INISection) -> INISection {
    var section = section
    let prefix = section.label.isEmpty ? "\(section.kind)." : "\(section.kind):\(section.label)."
    for (index, override) in overrides.enumerated() where override.key.lowercased().hasPrefix(prefix.lowercased()) {
      usedOverrides.insert(index)
      let key = String(override.key.dropFirst(prefix.count))
      let place = Place(file: Self.commandLine, line: 0)
      section.entries.removeAll { $0.key == key }
      section.entries.append(.init(key: key, value: override.value, place: place))
    }
    return section
  }
}
