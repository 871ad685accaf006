// The two places that an operator needs while the configuration is broken: where the daemon answers, and where its queue
// is. Whatever else is wrong does not matter for them.

import Primitives

/// Where a daemon answers and where its queue is, and how sure that is.
public struct Places: Sendable, Hashable {
  public var adminSocket: String
  public var queueDir: String
  /// Why the main file cannot be read; nil when it can.
  public var unreadable: String?
  /// The keys of those places that nobody has set, so that they are the defaults.
  public var missing: [String] = []
  /// Mistakes of the main file behind which such a key may be hidden: one that is misspelt, a line that cannot be read,
  /// a section that is not known.
  public var hiding: [Diagnostic] = []

  public init(adminSocket: String, queueDir: String) {
    self.adminSocket = adminSocket
    self.queueDir = queueDir
  }
}

extension Settings {
  /// The admin socket and the queue's directory as the main file has them, or else the defaults. Never complains.
  public static func places(
    path: String, overrides: [(key: String, value: String)] = [], files: any FileSource = POSIXFiles()
  ) -> Places {
    let values = globals(path, files)
    func place(_ key: String) -> String? {
      if let value = overrides.last(where: { $0.key.lowercased() == "global.\(key)" })?.value, !value.isEmpty {
        return value
      }
      return values[key].flatMap { $0.isEmpty ? nil : resolve($0, in: folder(of: path)) }
    }
    let (socket, queue) = (place("admin_socket"), place("queue_dir"))
    let defaults = GlobalSettings()
    var places = Places(adminSocket: socket ?? defaults.adminSocket, queueDir: queue ?? defaults.queueDir)
    if socket == nil { places.missing.append("admin_socket") }
    if queue == nil { places.missing.append("queue_dir") }
    do throws(FileError) { places.hiding = hiding(try files.read(path), path, files) } catch {
      places.unreadable = error.description
    }
    return places
  }

  private static func hiding(_ bytes: [UInt8], _ path: String, _ files: any FileSource) -> [Diagnostic] {
    var findings = Findings()
    for section in INIReader.read(bytes, path: path, findings: &findings) {
      guard section.kind == "global", section.label == nil else {
        findings.error(section.origin, "section \(section.title) does not belong here")
        continue
      }
      // Read for the names of its keys alone: what else is wrong hides nothing.
      var reader = SectionReader(section)
      var others = Findings()
      _ = GlobalSettings(&reader, folder: folder(of: path), files: files, &others)
      reader.finish(&findings)
    }
    return findings.sortedErrors
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
