// A file system of a few texts, for whoever tests a configuration without a disk.

/// Files that exist in memory only.
public struct MemoryFiles: FileSource {
  public struct File: Sendable {
    public var bytes: [UInt8]
    public var mode: UInt32
    public var isReadable: Bool
  }
  public var files: [String: File] = [:]
  /// What commands print.
  public var commands: [String: String] = [:]

  /// `texts` by path, all with the permission bits `mode`.
  public init(_ texts: [String: String] = [:], mode: UInt32 = 0o640) {
    for (path, text) in texts { add(path, text, mode: mode) }
  }

  public mutating func add(_ path: String, _ text: String, mode: UInt32 = 0o640, isReadable: Bool = true) {
    files[path] = File(bytes: Array(text.utf8), mode: mode, isReadable: isReadable)
  }

  public func read(_ path: String) throws(FileError) -> [UInt8] {
    guard let file = files[path] else { throw FileError("No such file or directory") }
    guard file.isReadable else { throw FileError("Permission denied") }
    return file.bytes
  }

  public func list(_ directory: String) -> [String]? {
    let names = files.keys.filter { folder(of: $0) == directory }.map { String($0.dropFirst(directory.count + 1)) }
    return names.isEmpty ? nil : names
  }

  public func mode(_ path: String) -> UInt32? { files[path]?.mode }
  public func isReadable(_ path: String) -> Bool { files[path]?.isReadable ?? false }

  public func output(of command: String) throws(FileError) -> [UInt8] {
    guard let text = commands[command] else { throw FileError("exit status 127") }
    return Array(text.utf8)
  }
}
