// How the loader sees files: a few questions, so that tests answer them from memory.

import Glibc

/// A file that cannot be read.
public struct FileError: Error, Sendable, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}

public protocol FileSource: Sendable {
  /// The content of a file.
  func read(_ path: String) throws(FileError) -> [UInt8]
  /// The names in a folder, in any order.
  func list(_ path: String) throws(FileError) -> [String]
  /// The permission bits of a file, nil when there is none.
  func mode(of path: String) -> UInt32?
  /// The standard output of a shell command.
  func output(of command: String) throws(FileError) -> String
}

/// The files of the machine.
public struct SystemFiles: FileSource {
  public init() {}

  public func read(_ path: String) throws(FileError) -> [UInt8] {
    guard let file = fopen(path, "re") else { throw FileError(String(cString: strerror(errno))) }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = fread(&piece, 1, piece.count, file)
      if count == 0 { break }
      bytes.append(contentsOf: piece[..<count])
    }
    if ferror(file) != 0 { throw FileError(String(cString: strerror(errno))) }
    return bytes
  }

  public func list(_ path: String) throws(FileError) -> [String] {
    guard let folder = opendir(path) else { throw FileError(String(cString: strerror(errno))) }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      if name != ".", name != ".." { names.append(name) }
    }
    return names
  }

  public func mode(of path: String) -> UInt32? {
    var status = stat()
    return stat(path, &status) == 0 ? status.st_mode & 0o7777 : nil
  }

  public func output(of command: String) throws(FileError) -> String {
    guard let pipe = popen(command, "re") else { throw FileError(String(cString: strerror(errno))) }
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 4096)
    while true {
      let count = fread(&piece, 1, piece.count, pipe)
      if count == 0 { break }
      bytes.append(contentsOf: piece[..<count])
    }
    let status = pclose(pipe)
    guard status == 0 else { throw FileError("the command ended with status \(status >> 8)") }
    return String(decoding: bytes, as: UTF8.self)
  }
}
