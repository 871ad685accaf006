// A disk in memory that forgets at a crash what was not synced, counts, and fails on request.

import Glibc
import Primitives

@testable import Spool

final class MemoryDisk: Disk {
  final class Node {
    var data: [UInt8] = []
    var durable: [UInt8] = []
  }
  struct State {
    /// By path.
    var files: [String: Node] = [:]
    var durableFiles: [String: Node] = [:]
    var locks: Set<String> = []
    var fileSyncs = 0
    var writes = 0
    var failSync = false
    var failTruncate = false
    var room: Int?
    var space: DiskSpace?
  }
  // `Node` is reached only under this lock.
  let state = Mutex(State())
  /// Called before each sync of a file, outside the lock.
  let beforeSync: Mutex<(@Sendable () -> Void)?> = Mutex(nil)

  /// What a power failure leaves: durable names with durable data.
  func crash() -> MemoryDisk {
    let files = state.withLock { s in s.durableFiles.mapValues(\.durable) }
    return MemoryDisk(files)
  }

  /// What `kill -9` leaves: everything that was written.
  func kill() -> MemoryDisk {
    MemoryDisk(snapshot())
  }

  func snapshot() -> [String: [UInt8]] { state.withLock { s in s.files.mapValues(\.data) } }

  init(_ files: [String: [UInt8]] = [:]) {
    state.withLock { s in
      for (path, data) in files where !path.hasSuffix("/lock") {
        let node = Node()
        node.data = data
        node.durable = data
        s.files[path] = node
        s.durableFiles[path] = node
      }
    }
  }

  var fileSyncs: Int { state.withLock { $0.fileSyncs } }

  func prepareDirectory(_ path: String) {}
  func space(_ path: String) -> DiskSpace? { state.withLock { $0.space } }

  func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile {
    let found = state.withLock { s in
      if mode == .create || mode == .createNew {
        if let node = s.files[path] { node.data = [] } else { s.files[path] = Node() }
      }
      return s.files[path] != nil
    }
    guard found else { throw DiskError(operation: "open", path: path, code: ENOENT) }
    return MemoryFile(disk: self, node: state.withLock { s in NodeBox(s.files[path] ?? Node()) }, path: path)
  }

  func list(_ directory: String) -> [String] {
    state.withLock { s in
      s.files.keys.filter { $0.hasPrefix(directory + "/") }.map { String($0.dropFirst(directory.utf8.count + 1)) }
    }
  }

  func size(_ path: String) throws(DiskError) -> Int {
    guard let size = state.withLock({ $0.files[path]?.data.count }) else {
      throw DiskError(operation: "stat", path: path, code: ENOENT)
    }
    return size
  }

  func rename(_ old: String, to new: String) { state.withLock { s in s.files[new] = s.files.removeValue(forKey: old) } }

  func unlink(_ path: String) throws(DiskError) {
    guard state.withLock({ $0.files.removeValue(forKey: path) != nil }) else {
      throw DiskError(operation: "unlink", path: path, code: ENOENT)
    }
  }

  func syncDirectory(_ path: String) {
    state.withLock { s in
      s.durableFiles = s.durableFiles.filter { !$0.key.hasPrefix(path + "/") }
      for (name, node) in s.files where name.hasPrefix(path + "/") { s.durableFiles[name] = node }
    }
  }

  func lock(_ path: String) -> DiskLockResult {
    state.withLock { s in
      s.locks.insert(path).inserted ? .acquired(MemoryLock(disk: self, path: path)) : .heldBy(pid: 4711)
    }
  }
}

/// Lets a node leave the lock; its contents are touched only under it.
final class NodeBox: @unchecked Sendable {
  let node: MemoryDisk.Node
  init(_ node: MemoryDisk.Node) { self.node = node }
}

struct MemoryLock: DiskLock {
  let disk: MemoryDisk
  let path: String
  func release() { disk.state.withLock { s in _ = s.locks.remove(path) } }
}

struct MemoryFile: DiskFile {
  let disk: MemoryDisk
  let node: NodeBox
  let path: String

  func write(_ buffers: [UnsafeRawBufferPointer], at offset: Int) throws(DiskError) -> Int {
    var bytes: [UInt8] = []
    for buffer in buffers { bytes += buffer }
    let given = bytes
    let written = disk.state.withLock { s in
      s.writes += 1
      let growth = max(0, offset + given.count - node.node.data.count)
      var count = given.count
      if let room = s.room {
        count = max(0, count - max(0, growth - room))
        s.room = max(0, room - growth)
      }
      if node.node.data.count < offset {
        node.node.data += [UInt8](repeating: 0, count: offset - node.node.data.count)
      }
      let end = min(offset + count, node.node.data.count)
      node.node.data.replaceSubrange(offset..<max(offset, end), with: given.prefix(count))
      return count
    }
    if written == 0 { throw DiskError(operation: "write", path: path, code: ENOSPC) }
    return written
  }

  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) -> Int {
    let bytes = disk.state.withLock { _ in Array(node.node.data.dropFirst(offset).prefix(buffer.count)) }
    buffer.copyBytes(from: bytes)
    return bytes.count
  }

  func sync() throws(DiskError) {
    disk.beforeSync.withLock { $0 }?()
    let fails = disk.state.withLock { s in
      if s.failSync { return true }
      s.fileSyncs += 1
      node.node.durable = node.node.data
      return false
    }
    if fails { throw DiskError(operation: "fdatasync", path: path, code: EIO) }
  }

  func truncate(to size: Int) throws(DiskError) {
    let fails = disk.state.withLock { s in
      if s.failTruncate { return true }
      if let room = s.room { s.room = room + max(0, node.node.data.count - size) }
      node.node.data = Array(node.node.data.prefix(size))
      return false
    }
    if fails { throw DiskError(operation: "ftruncate", path: path, code: EIO) }
  }

  func size() -> Int { disk.state.withLock { _ in node.node.data.count } }
}
