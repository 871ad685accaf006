// The operator's own files: written so that none is ever there by half, and read piece by piece.

import CChecksum
import CommandLineTools
import Glibc
import Primitives

/// A file that appears under its name only when all of it is on the disk.
final class FileOutput {
  let path: String
  private let temporary: String
  private var descriptor: CInt
  private(set) var count = 0
  private(set) var crc: UInt32 = 0
  private var error: CInt = 0

  /// Begins `directory/name`.
  init(_ directory: String, _ name: String) throws(CommandFailure) {
    path = "\(directory)/\(name)"
    temporary = "\(directory)/.\(name).partial"
    let (temporary, path) = (temporary, path)
    let (opened, code) = ServiceUser.asOperator {
      let descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0o600)
      return (descriptor, errno)
    }
    descriptor = opened
    if opened < 0 { throw Self.failure(path, code) }
  }

  deinit { if descriptor >= 0 { close(descriptor) } }

  /// - Returns: false when it failed; ``commit()`` says how.
  func write(_ bytes: UnsafeRawBufferPointer) -> Bool {
    crc = ssmtp_crc32c(crc, bytes.baseAddress, bytes.count)
    count += bytes.count
    var rest = bytes
    while !rest.isEmpty {
      let written = Glibc.write(descriptor, rest.baseAddress, rest.count)
      if written < 0 {
        if errno == EINTR { continue }
        error = errno
        return false
      }
      rest = UnsafeRawBufferPointer(rebasing: rest[written...])
    }
    return true
  }

  /// Syncs the file and gives it its name, which is durable once the directory is synced.
  func commit() throws(CommandFailure) {
    if error == 0, fsync(descriptor) != 0 { error = errno }
    if error == 0 {
      error = ServiceUser.asOperator { [temporary, path] in rename(temporary, path) == 0 ? 0 : errno }
    }
    if error != 0 {
      discard()
      throw Self.failure(path, error)
    }
  }

  /// What went wrong so far.
  var failure: CommandFailure? { error == 0 ? nil : Self.failure(path, error) }

  func discard() { _ = ServiceUser.asOperator { [temporary] in unlink(temporary) } }

  private static func failure(_ path: String, _ code: CInt) -> CommandFailure {
    // What is wrong with the disk is no better for the next file.
    let isOfDisk = [ENOSPC, EDQUOT, EROFS, EIO].contains(code)
    return CommandFailure(
      isOfDisk ? .inputOutput : .data, "\(path) cannot be written: \(String(cString: strerror(code)))")
  }
}

/// A file that is read from its beginning to its end.
final class ContentInput: Sendable {
  let path: String
  let size: Int
  private let descriptor: CInt

  init(_ path: String) throws(CommandFailure) {
    self.path = path
    let (descriptor, code) = ServiceUser.asOperator { (open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), errno) }
    var status = stat()
    guard descriptor >= 0, fstat(descriptor, &status) == 0 else {
      throw CommandFailure(.data, "\(path) cannot be read: \(String(cString: strerror(code)))")
    }
    guard status.st_mode & S_IFMT == S_IFREG else {
      close(descriptor)
      throw CommandFailure(.data, "\(path) is not a file")
    }
    self.descriptor = descriptor
    size = Int(status.st_size)
  }

  deinit { close(descriptor) }

  /// - Returns: how many octets were read, 0 at the end; nil when it cannot be read.
  func read(into buffer: UnsafeMutableRawBufferPointer) -> Int? {
    while true {
      let count = Glibc.read(descriptor, buffer.baseAddress, buffer.count)
      if count < 0, errno == EINTR { continue }
      return count < 0 ? nil : count
    }
  }

  var unreadable: CommandFailure { CommandFailure(.data, "\(path) cannot be read to its end") }

  func rewind() { lseek(descriptor, 0, SEEK_SET) }

  /// Gives all of the file to `body`, piece by piece.
  func eachPiece(_ body: (UnsafeRawBufferPointer) -> Void) throws(CommandFailure) {
    rewind()
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 16)
    defer { buffer.deallocate() }
    while true {
      guard let count = read(into: buffer) else { throw unreadable }
      if count == 0 { return rewind() }
      body(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
    }
  }

  func checksum() throws(CommandFailure) -> UInt32 {
    var crc: UInt32 = 0
    try eachPiece { crc = ssmtp_crc32c(crc, $0.baseAddress, $0.count) }
    return crc
  }
}

/// Keeps other runs out of a directory: two imports of the same files would queue them twice.
final class DirectoryLock {
  private let descriptor: CInt

  /// - Throws: ``CommandFailure`` with status 75 when another run has it.
  init(_ directory: String) throws(CommandFailure) {
    let (opened, code) = ServiceUser.asOperator { (open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), errno) }
    guard opened >= 0 else {
      throw CommandFailure(.data, "\(directory) cannot be read: \(String(cString: strerror(code)))")
    }
    descriptor = opened
    while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
      switch errno {
      case EINTR: continue
      case EWOULDBLOCK:
        throw CommandFailure(
          .tryAgain, "another import or export works in \(directory): wait until it has ended, and try again")
      case let code:
        // Some file systems of a network cannot.
        Terminal.complain(
          "warning: \(directory) cannot be locked (\(String(cString: strerror(code)))): start no other import or export "
            + "with it meanwhile")
        return
      }
    }
  }

  deinit { close(descriptor) }
}

enum OperatorFiles {
  static func exists(_ path: String) -> Bool { ServiceUser.asOperator { access(path, F_OK) == 0 } }

  /// Makes a directory of mode 0700 unless it is there.
  static func makeDirectory(_ path: String) throws(CommandFailure) {
    let code = ServiceUser.asOperator { mkdir(path, 0o700) == 0 ? 0 : errno }
    var status = stat()
    let isDirectory = ServiceUser.asOperator { stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR }
    if code != 0, !(code == EEXIST && isDirectory) {
      let why = code == EEXIST ? "it is not a directory" : String(cString: strerror(code))
      throw CommandFailure(.data, "\(path) cannot be used: \(why)")
    }
  }

  /// Makes the names in a directory durable.
  static func sync(_ directory: String) throws(CommandFailure) {
    let code: CInt = ServiceUser.asOperator {
      let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
      guard descriptor >= 0 else { return errno }
      defer { close(descriptor) }
      return fsync(descriptor) == 0 ? 0 : errno
    }
    if code != 0 { throw CommandFailure(.data, "\(directory) cannot be synced: \(String(cString: strerror(code)))") }
  }

  static func rename(_ old: String, _ new: String) throws(CommandFailure) {
    let code = ServiceUser.asOperator { Glibc.rename(old, new) == 0 ? 0 : errno }
    if code != 0 { throw CommandFailure(.data, "\(old) cannot be moved: \(String(cString: strerror(code)))") }
  }

  static func remove(_ path: String) { _ = ServiceUser.asOperator { unlink(path) } }

  /// The names in a directory, sorted.
  static func names(_ directory: String) throws(CommandFailure) -> [String] {
    let (names, code): ([String], CInt) = ServiceUser.asOperator {
      guard let stream = opendir(directory) else { return ([], errno) }
      defer { closedir(stream) }
      var names: [String] = []
      while let entry = readdir(stream) {
        names.append(
          withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) })
      }
      return (names.sorted(), 0)
    }
    if code != 0 { throw CommandFailure(.data, "\(directory) cannot be read: \(String(cString: strerror(code)))") }
    return names
  }

  /// A small file whole.
  static func read(_ path: String) throws(CommandFailure) -> [UInt8] {
    let file = try ContentInput(path)
    if file.size > 8 << 20 { throw CommandFailure(.data, "\(path) is too large") }
    var bytes: [UInt8] = []
    try file.eachPiece { bytes += $0 }
    return bytes
  }
}
