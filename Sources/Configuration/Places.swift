// The two places that an operator needs while the configuration is broken: where the daemon answers, and where its queue
// is. Whatever else is wrong does not matter for them.

import Primitives

extension Settings {
  /// The admin socket and the queue's directory as the main file has them, or else the defaults. Never complains.
  public static func places(
    path: String, overrides: [(key: String, value: String)] = [], files: any FileSource = POSIXFiles()
  ) -> (adminSocket: String, queueDir: String) {
    let values = globals(path, files)
    func place(_ key: String, _ fallback: String) -> String {
      if let value = overrides.last(where: { $0.key.lowercased() == "global.\(key)" })?.value, !value.isEmpty {
        return value
      }
      return values[key].flatMap { $0.isEmpty ? nil : resolve($0, in: folder(of: path)) } ?? fallback
    }
    let defaults = GlobalSettings()
    return (place("admin_socket", defaults.adminSocket), place("queue_dir", defaults.queueDir))
  }

  /// The folder of the users' files, as the main file has it, whatever else is wrong: a password must be settable when
  /// the one that is there is what is wrong.
  public static func usersFolder(
    path: String, overrides: [(key: String, value: String)] = [], files: any FileSource = POSIXFiles()
  ) -> String {
    let values = globals(path, files)
    func value(_ key: String) -> String? {
      let override = overrides.last { $0.key.lowercased() == "global.\(key)" }?.value
      return override ?? values[key].map { $0.isEmpty ? $0 : resolve($0, in: folder(of: path)) }
    }
    func set(_ key: String) -> String? { value(key).flatMap { $0.isEmpty ? nil : $0 } }
    return set("users_dir") ?? resolve("users", in: set("config_dir") ?? folder(of: path))
  }

  /// Where a program of this machine hands in mail, and the name it completes addresses with, for users who may not
  /// read the rest of the configuration. Never complains; nil is what the file does not say, or not to this user.
  public static func submissionPlace(
    path: String, files: any FileSource = POSIXFiles()
  ) -> (listen: Endpoint?, hostname: String?) {
    let values = globals(path, files)
    let listen = values["listen"].map { listItems($0).compactMap { Endpoint($0) } } ?? GlobalSettings().listen
    let hostname = values["default_hostname"].flatMap { ValueReader.isHostname($0) ? $0 : nil }
    return (listen.first, hostname)
  }

  private static func globals(_ path: String, _ files: any FileSource) -> [String: String] {
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
    return values
  }
}
