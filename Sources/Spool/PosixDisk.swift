// The disk of the machine.

import CLinux
import Glibc

/// A ``Disk`` of plain system calls.
public struct PosixDisk: Disk {
  public init() {}

  public func prepareDirectory(_ path: String) throws(DiskError) {
    if mkdir(path, 0o700) != 0, errno != EEXIST { throw DiskError(operation: "mkdir", path: path, code: errno) }
    var status = stat()
    guard stat(path, &status) == 0 else { throw DiskError(operation: "stat", path: path, code: errno) }
    guard status.st_mode & S_IFMT == S_IFDIR else {
      throw DiskError(operation: "open", path: path, code: ENOTDIR, detail: "it is not a directory")
    }
    let user = geteuid()
    guard status.st_uid == user || user == 0 else {
      throw DiskError(
        operation: "open", path: path, code: EPERM,
        detail: "it belongs to user \(status.st_uid), this process runs as user \(user)")
    }
    if access(path, R_OK | W_OK | X_OK) != 0 { throw DiskError(operation: "access", path: path, code: errno) }
  }

  public func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile {
    let flags =
      switch mode {
      case .reading: O_RDONLY
      case .existing: O_RDWR
      case .create: O_RDWR | O_CREAT | O_TRUNC
      case .createNew: O_RDWR | O_CREAT | O_EXCL
      }
    let descriptor = Glibc.open(path, flags | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw DiskError(operation: "open", path: path, code: errno) }
    return PosixFile(descriptor: descriptor, path: path)
  }

  public func list(_ directory: String) throws(DiskError) -> [String] {
    guard let stream = opendir(directory) else {
      throw DiskError(operation: "opendir", path: directory, code: errno)
    }
    defer { closedir(stream) }
    var names: [String] = []
    while true {
      errno = 0
      guard let item = readdir(stream) else {
        if errno != 0 { throw DiskError(operation: "readdir", path: directory, code: errno) }
        return names
      }
      let name = withUnsafeBytes(of: &item.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      if name != "." && name != ".." { names.append(name) }
    }
  }

  public func size(_ path: String) throws(DiskError) -> Int {
    var status = stat()
    guard stat(path, &status) == 0 else { throw DiskError(operation: "stat", path: path, code: errno) }
    return Int(status.st_size)
  }

  public func rename(_ old: String, to new: String) throws(DiskError) {
    if Glibc.rename(old, new) != 0 { throw DiskError(operation: "rename", path: old, code: errno) }
  }

  public func unlink(_ path: String) throws(DiskError) {
    if Glibc.unlink(path) != 0 { throw DiskError(operation: "unlink", path: path, code: errno) }
  }

  public func syncDirectory(_ path: String) throws(DiskError) {
    let descriptor = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw DiskError(operation: "open", path: path, code: errno) }
    defer { close(descriptor) }
    if fsync(descriptor) != 0 { throw DiskError(operation: "fsync", path: path, code: errno) }
  }

  public func space(_ path: String) throws(DiskError) -> DiskSpace? {
    var status = statvfs()
    guard statvfs(path, &status) == 0 else { throw DiskError(operation: "statvfs", path: path, code: errno) }
    let unit = Int(status.f_frsize)
    return DiskSpace(total: Int(status.f_blocks) * unit, free: Int(status.f_bavail) * unit)
  }

  public func lock(_ path: String) throws(DiskError) -> DiskLockResult {
    // Not emptied when opened: it still says who holds the lock.
    let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw DiskError(operation: "open", path: path, code: errno) }
    let file = PosixFile(descriptor: descriptor, path: path)
    if flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
      guard errno == EWOULDBLOCK else { throw DiskError(operation: "flock", path: path, code: errno) }
      var text = [UInt8](repeating: 0, count: 16)
      let count = pread(descriptor, &text, text.count, 0)
      let digits = String(decoding: text.prefix(max(count, 0)).prefix { $0 >= 0x30 && $0 <= 0x39 }, as: UTF8.self)
      return .heldBy(pid: Int32(digits) ?? 0)
    }
    // The number is for people. The lock is held without it, and a full disk is no reason not to serve the queue.
    let text = Array("\(getpid())\n".utf8)
    _ = ftruncate(descriptor, 0)
    _ = pwrite(descriptor, text, text.count, 0)
    return .acquired(file)
  }
}

/// A descriptor and its path; the descriptor is closed exactly once, when nobody uses it any more.
private final class PosixFile: DiskFile, DiskLock {
  let descriptor: Int32
  let path: String

  init(descriptor: Int32, path: String) {
    self.descriptor = descriptor
    self.path = path
  }

  deinit { close(descriptor) }

  func release() { _ = flock(descriptor, LOCK_UN) }

  func write(_ buffers: [UnsafeRawBufferPointer], at offset: Int) throws(DiskError) -> Int {
    // More than IOV_MAX buffers become a short write, which callers continue anyway.
    let count = min(buffers.count, 1024)
    let written = withUnsafeTemporaryAllocation(of: iovec.self, capacity: count) { vectors in
      for place in 0..<count {
        let buffer = buffers[place]
        vectors[place] = iovec(iov_base: UnsafeMutableRawPointer(mutating: buffer.baseAddress), iov_len: buffer.count)
      }
      while true {
        let written = pwritev(descriptor, vectors.baseAddress, Int32(count), offset)
        if written < 0 && errno == EINTR { continue }
        return written
      }
    }
    if written < 0 { throw DiskError(operation: "write", path: path, code: errno) }
    return written
  }

  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(DiskError) -> Int {
    var done = 0
    while done < buffer.count {
      let count = pread(descriptor, buffer.baseAddress?.advanced(by: done), buffer.count - done, offset + done)
      if count == 0 { break }
      if count < 0 {
        if errno == EINTR { continue }
        throw DiskError(operation: "read", path: path, code: errno)
      }
      done += count
    }
    return done
  }

  func sync() throws(DiskError) {
    if fdatasync(descriptor) != 0 { throw DiskError(operation: "fdatasync", path: path, code: errno) }
  }

  func truncate(to size: Int) throws(DiskError) {
    if ftruncate(descriptor, size) != 0 { throw DiskError(operation: "ftruncate", path: path, code: errno) }
  }

  func size() throws(DiskError) -> Int {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw DiskError(operation: "fstat", path: path, code: errno) }
    return Int(status.st_size)
  }
}
