// From files to settings: which files are read, which sections belong where, and in what order all of it is checked.

import Primitives

extension Settings {
  /// Reads and checks a whole configuration.
  ///
  /// - Parameters:
  ///   - path: the main file.
  ///   - overrides: values of the command line, which win: `global.listen`, `domain:NAME.smtp_port`.
  /// - Throws: ``ConfigurationError`` with everything that is wrong, not just the first.
  public static func load(
    path: String, overrides: [(key: String, value: String)] = [], files: any FileSource = POSIXFiles(),
    environment: [String: String] = [:]
  ) throws(ConfigurationError) -> (settings: Settings, warnings: [Diagnostic]) {
    var loader = Loader(path: path, overrides: overrides, files: files, environment: environment)
    let settings = loader.load()
    let (errors, warnings) = (loader.findings.sortedErrors, loader.findings.sortedWarnings)
    guard errors.isEmpty else { throw ConfigurationError(diagnostics: errors, warnings: warnings) }
    return (settings, warnings)
  }
}

/// One run of ``Settings/load(path:overrides:files:environment:)``.
struct Loader {
  let path: String
  let files: any FileSource
  let environment: [String: String]
  var findings = Findings()
  /// By lowercased section name, then by key.
  private var overrides: [String: [String: String]] = [:]
  private var overridden: [String] = []

  init(path: String, overrides: [(key: String, value: String)], files: any FileSource, environment: [String: String]) {
    self.path = path
    self.files = files
    self.environment = environment
    for (name, value) in overrides {
      // The name of a section may have dots, a key never has.
      guard let dot = name.lastIndex(of: "."), dot != name.startIndex, dot != name.index(before: name.endIndex) else {
        findings.error(.commandLine, "\(quoted(name)) is not SECTION.KEY, such as global.listen")
        continue
      }
      let section = name[..<dot].lowercased()
      self.overrides[section, default: [:]][String(name[name.index(after: dot)...])] = value
      if !overridden.contains(section) { overridden.append(section) }
    }
  }

  mutating func load() -> Settings {
    var settings = Settings()
    guard let main = read(path, as: "the configuration") else { return settings }
    // Where other sections belong is only known once [global] is read.
    var global: INISection?
    for section in main where section.kind == "global" && section.label == nil {
      if let first = global {
        findings.error(section.origin, "section [global] appears twice; the first is at \(first.origin)")
      } else {
        global = section
      }
    }
    var reader = makeReader(global ?? INISection(kind: "global", label: nil, origin: .file(path, line: 0)))
    settings.global = GlobalSettings(&reader, folder: folder(of: path), files: files, &findings)
    _ = accept(main.filter { $0.kind != "global" || $0.label != nil }, in: "", settings.global)
    let domains = folderSections("domain", settings.global.domainsDir, reader, settings.global)
    let users = folderSections("user", settings.global.usersDir, reader, settings.global)
    let mappings = folderSections(
      "mapping", settings.global.mappingsDir, reader, settings.global)
    checkOverrides(known: ["global"] + (domains + users + mappings).map(Self.name))

    var checks = CrossChecks(files: files, global: reader)
    for section in domains { readDomain(section, &settings, &checks) }
    for section in users {
      var reader = makeReader(section)
      if let user = UserSettings(&reader, files: files, &findings) {
        settings.users.append(user)
        checks.users.append((user, reader))
      }
    }
    for section in mappings {
      var reader = makeReader(section)
      if let mapping = MappingSettings(&reader, &findings) {
        settings.mappings.append(mapping)
        checks.mappings.append((mapping, reader))
      }
    }
    checks.run(&settings, &findings)
    settings.descriptions = checks.descriptions
    return settings
  }

  private mutating func readDomain(_ section: INISection, _ settings: inout Settings, _ checks: inout CrossChecks) {
    var reader = makeReader(section)
    var domain = DomainSettings(&reader, &findings)
    domain.isLocal = domain.isThisRelay(settings.global)
    domain.password = PasswordReader(files: files, environment: environment).read(
      &reader, isWanted: domain.enabled && !domain.isLocal && domain.authMethod != .none, &findings)
    domain.tokenGrant = OAuthReader(files: files).read(
      &reader, of: domain, isWanted: domain.enabled && !domain.isLocal, &findings)
    reader.finish(&findings)
    settings.domains[domain.name.lowercased()] = domain
    checks.domains.append((domain, reader))
  }

  // MARK: Sections

  private func makeReader(_ section: INISection) -> SectionReader {
    SectionReader(section, overrides: overrides[Self.name(section)] ?? [:])
  }

  private static func name(_ section: INISection) -> String {
    (section.label.map { "\(section.kind):\($0)" } ?? section.kind).lowercased()
  }

  private mutating func read(_ path: String, as what: String) -> [INISection]? {
    findings.files.append(path)
    do throws(FileError) {
      var bytes = try files.read(path)
      defer { bytes.wipe() }
      return INIReader.read(bytes, path: path, findings: &findings)
    } catch {
      findings.error(.file(path, line: 0), "\(what) cannot be read: \(error)")
      return nil
    }
  }

  /// The sections of all `*.conf` files of a directory, in the order of their names.
  private mutating func folderSections(
    _ kind: String, _ folder: String, _ reader: SectionReader, _ global: GlobalSettings
  ) -> [INISection] {
    let origin = reader.place("\(kind)s_dir")
    guard let names = files.list(folder) else {
      // What exists and cannot be read would take its mappings away without a word.
      if files.mode(folder) != nil {
        findings.error(origin, "\(kind)s_dir \(quoted(folder)) cannot be listed")
      } else if reader.isSet("\(kind)s_dir") {
        findings.warning(origin, "\(kind)s_dir \(quoted(folder)) does not exist")
      }
      return []
    }
    var sections: [INISection] = []
    for name in names.filter({ $0.hasSuffix(".conf") && !$0.hasPrefix(".") }).sorted() {
      sections += accept(read(resolve(name, in: folder), as: "the file") ?? [], in: kind, global)
    }
    var first: [String: Origin] = [:]
    return sections.filter { section in
      if let earlier = first[Self.name(section)] {
        findings.error(section.origin, "section \(section.title) appears twice; the first is at \(earlier)")
        return false
      }
      first[Self.name(section)] = section.origin
      return true
    }
  }

  /// Reports what does not belong where it stands, and returns the rest.
  private mutating func accept(_ sections: [INISection], in kind: String, _ global: GlobalSettings) -> [INISection] {
    let homes = ["domain": global.domainsDir, "user": global.usersDir, "mapping": global.mappingsDir]
    return sections.filter { section in
      if section.kind == "global" {
        findings.error(
          section.origin,
          section.label == nil ? "section [global] belongs in \(path)" : "section [global] takes no name")
        return false
      }
      guard let home = homes[section.kind] else {
        let names = ["global", "domain", "user", "mapping"]
        let hint = suggestion(for: section.kind, among: names, noun: "sections")
        findings.error(section.origin, "unknown section \(section.title)\(hint)")
        return false
      }
      guard let label = section.label, !label.isEmpty else {
        findings.error(section.origin, "section [\(section.kind)] needs a name: [\(section.kind):NAME]")
        return false
      }
      guard section.kind == kind else {
        let file = section.kind == "mapping" ? "relay-mappings" : label.replacing("/", with: "_")
        findings.error(section.origin, "section \(section.title) belongs in \(resolve("\(file).conf", in: home))")
        return false
      }
      if kind == "domain", !ValueReader.isHostname(label) {
        findings.error(section.origin, "\(quoted(label)) is not a domain name")
        return false
      }
      return true
    }
  }

  private mutating func checkOverrides(known: [String]) {
    for section in overridden where !known.contains(section) {
      let hint = suggestion(for: section, among: known, noun: "sections")
      findings.error(.commandLine, "there is no section [\(section)]\(hint)")
    }
  }
}

extension DomainSettings {
  /// Whether this is the relay itself: one of its names at one of its ports, or the section that carries its name.
  func isThisRelay(_ global: GlobalSettings) -> Bool {
    let host = host.lowercased()
    let isOurs =
      host == "localhost" || IPAddress(host)?.isLoopback == true || host == global.defaultHostname.lowercased()
    guard isOurs else { return false }
    return name.lowercased() == global.defaultHostname.lowercased()
      || (global.listen + global.listenSubmission + global.listenSMTPS).contains { $0.port == port }
  }
}
