// A disk that is a dictionary.

import Glibc
import Primitives
import Spool

final class FuzzDisk: Disk {
  private let files: Mutex<[String: [UInt8]]>

  init(_ files: [String: [UInt8]]) { self.files = Mutex(files) }

  var contents: [String: [UInt8]] { files.withLock { $0 } }

  func prepareDirectory(_ path: String) {}
  func space(_ path: String) -> DiskSpace? { nil }
  func syncDirectory(_ path: String) {}
  func lock(_ path: String) -> DiskLockResult { .acquired(Lock()) }
  private struct Lock: DiskLock { func release() {} }

  func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile {
    let exists = files.withLock { files in
      if mode == .create || mode == .createNew { files[path] = [] }
      return files[path] != nil
    }
    guard exists else { throw DiskError(operation: "open", path: path, code: ENOENT) }
    return File(disk: self, path: path)
  }

  func list(_ directory: String) -> [String] {
    files.withLock { files in
      files.keys.filter { $0.hasPrefix(directory + "/") }.map { String($0.dropFirst(directory.utf8.count + 1)) }
    }
  }

  func size(_ path: String) throws(DiskError) -> Int {
    guard let size = files.withLock({ $0[path]?.count }) else {
      throw DiskError(operation: "stat", path: path, code: ENOENT)
    }
    return size
  }

  func rename(_ old: String, to new: String) { files.withLock { $0[new] = $0.removeValue(forKey: old) } }

  func unlink(_ path: String) throws(DiskError) {
    guard files.withLock({ $0.removeValue(forKey: path) != nil }) else {
      throw DiskError(operation: "unlink", path: path, code: ENOENT)
    }
  }

  private struct File: DiskFile {
    let disk: FuzzDisk
    let path: String

    func write(_ buffers: [UnsafeRawBufferPointer], at offset: Int) -> Int {
      var given: [UInt8] = []
      for buffer in buffers { given += buffer }
      let bytes = given
      disk.files.withLock { files in
        var data = files.removeValue(forKey: path) ?? []
        if data.count < offset { data += [UInt8](repeating: 0, count: offset - data.count) }
        data.replaceSubrange(offset..<max(offset, min(offset + bytes.count, data.count)), with: bytes)
        files[path] = data
      }
      return bytes.count
    }

    func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) -> Int {
      let bytes = disk.files.withLock { Array(($0[path] ?? []).dropFirst(offset).prefix(buffer.count)) }
      buffer.copyBytes(from: bytes)
      return bytes.count
    }

    func sync() {}
    func truncate(to size: Int) { disk.files.withLock { $0[path] = Array(($0[path] ?? []).prefix(size)) } }
    func size() -> Int { disk.files.withLock { $0[path]?.count ?? 0 } }
  }
}
