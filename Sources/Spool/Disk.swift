// All that the spool asks of a disk. Small, so that a simulated disk can stand in for the real one and lose power,
// tear writes or run full at every single call.

import Glibc

/// A failed operation on a ``Disk``.
public struct DiskError: Error, Sendable, Equatable {
  public var operation: String
  public var path: String
  /// The `errno` of the system call.
  public var code: Int32
  /// What the code alone does not tell.
  public var detail: String?

  public init(operation: String, path: String, code: Int32, detail: String? = nil) {
    self.operation = operation
    self.path = path
    self.code = code
    self.detail = detail
  }

  var isFull: Bool { code == ENOSPC || code == EDQUOT || code == EFBIG }
  /// The process or the system has too many files open: that passes.
  var isOfDescriptors: Bool { code == EMFILE || code == ENFILE }

  /// The same as an error of the queue.
  var asQueueError: QueueError {
    if isFull { return .full }
    // A directory that cannot be made for want of its parent is a slip in the configuration, not a sick disk.
    let hasNoParent = operation == "mkdir" && code == ENOENT
    if code == EACCES || code == EPERM || code == EROFS || code == ENOTDIR || hasNoParent {
      return .notWritable(path: path, detail: detail ?? "\(operation): \(Self.message(code))")
    }
    return .io(operation: operation, path: path, errno: code)
  }

  /// The same as the end of the queue, as behind a sync that failed.
  var asFailure: QueueError { .failed("\(operation) \(path): \(Self.message(code))") }

  static func message(_ code: Int32) -> String {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { buffer in
      guard let base = buffer.baseAddress, strerror_r(code, base, 256) == 0 else { return "error \(code)" }
      return String(cString: base)
    }
  }
}

/// How a file is opened.
public enum OpenMode: Sendable {
  /// For reading only; must exist.
  case reading
  /// For reading and writing; must exist.
  case existing
  /// For reading and writing; is created, or emptied when it exists. Mode 0600.
  case create
  /// For reading and writing; is created, and must not exist. Mode 0600.
  case createNew
}

/// Synchronous disk access; every call may be made from any thread.
///
/// What was written is durable only after ``DiskFile/sync()``; what was created, renamed or unlinked only after
/// ``syncDirectory(_:)`` of its directory.
public protocol Disk: Sendable {
  /// Creates a directory of mode 0700 unless it exists, and checks that it belongs to us and can be written to.
  func prepareDirectory(_ path: String) throws(DiskError)
  func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile
  /// The names in a directory, in no particular order, without `.` and `..`.
  func list(_ directory: String) throws(DiskError) -> [String]
  /// The size in bytes of the file at `path`.
  func size(_ path: String) throws(DiskError) -> Int
  func rename(_ old: String, to new: String) throws(DiskError)
  func unlink(_ path: String) throws(DiskError)
  func syncDirectory(_ path: String) throws(DiskError)
  /// The space of the file system that `path` is on; nil when there is nothing to be known.
  func space(_ path: String) throws(DiskError) -> DiskSpace?
  /// Takes an exclusive lock on the file at `path`, which is created and says our process id.
  /// - Returns: the lock, held until it is released; `.failure` with the holder's process id (0 when unknown).
  func lock(_ path: String) throws(DiskError) -> DiskLockResult
}

/// Outcome of ``Disk/lock(_:)``.
public enum DiskLockResult: Sendable {
  case acquired(any DiskLock)
  case heldBy(pid: Int32)
}

/// A lock that ends when it is released or deallocated.
public protocol DiskLock: Sendable {
  func release()
}

/// An open file; closed when deallocated.
public protocol DiskFile: Sendable {
  /// Writes the buffers one behind the other at `offset`.
  /// - Returns: how many bytes were written, which may be fewer than given.
  func write(_ buffers: [UnsafeRawBufferPointer], at offset: Int) throws(DiskError) -> Int
  /// Fills `buffer` from `offset`.
  /// - Returns: how many bytes were read; fewer than asked only at the end of the file.
  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(DiskError) -> Int
  /// Makes data and size durable (`fdatasync`).
  func sync() throws(DiskError)
  func truncate(to size: Int) throws(DiskError)
  func size() throws(DiskError) -> Int
}
