// The two places that an operator needs while the configuration is broken: where the daemon answers, and where its queue
// is. Whatever else is wrong does not matter for them.

extension Settings {
  /// The admin socket and the queue's directory as the main file has them, or else the defaults. Never complains.
  public static func places(
    path: String, overrides: [(key: String, value: String)] = [], files: any FileSource = POSIXFiles()
  ) -> (adminSocket: String, queueDir: String) {
    var findings = Findings()
    var values: [String: String] = [:]
    do throws(FileError) {
      for section in INIReader.read(try files.read(path), path: path, findings: &findings)
      where section.kind == "global" && section.label == nil {
        for entry in section.entries { values[entry.key] = entry.value }
      }
    } catch {
      // Then it is the defaults that are left.
    }
    func place(_ key: String, _ fallback: String) -> String {
      if let value = overrides.last(where: { $0.key.lowercased() == "global.\(key)" })?.value, !value.isEmpty {
        return value
      }
      return values[key].flatMap { $0.isEmpty ? nil : resolve($0, in: folder(of: path)) } ?? fallback
    }
    let defaults = GlobalSettings()
    return (place("admin_socket", defaults.adminSocket), place("queue_dir", defaults.queueDir))
  }
}
