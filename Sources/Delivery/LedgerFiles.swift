// Where the ledgers of the accounts are kept: a small file each, replaced as a whole.

import Glibc
import Primitives
import Spool

/// Keeps the ledgers of accounts. May be called from any thread; blocks none.
public protocol LedgerStore: Sendable {
  /// What was saved last under this name; nil when nothing ever was.
  func load(_ name: String) async throws(DiskError) -> [UInt8]?
  /// Returns once `bytes` are durable under this name, in the place of what was there.
  func save(_ name: String, _ bytes: [UInt8]) async throws(DiskError)
}

/// Ledgers in a directory of their own.
public struct LedgerFiles: LedgerStore {
  private let directory: String
  private let disk: any Disk
  private let queue: any WorkQueue

  public init(directory: String, disk: any Disk, queue: any WorkQueue = DispatchWorkQueue("ledger")) {
    self.directory = directory
    self.disk = disk
    self.queue = queue
  }

  public func load(_ name: String) async throws(DiskError) -> [UInt8]? {
    let path = path(name)
    let result: Result<[UInt8]?, DiskError> = await queue.run { [disk] in
      Result { () throws(DiskError) in
        let file: any DiskFile
        do throws(DiskError) { file = try disk.open(path, .reading) } catch {
          if error.code == ENOENT { return nil }
          throw error
        }
        let size = min(try file.size(), 1 << 20)
        var bytes = [UInt8](repeating: 0, count: size)
        let (count, failure): (Int, DiskError?) = bytes.withUnsafeMutableBytes { buffer in
          do throws(DiskError) { return (try file.read(into: buffer, at: 0), nil) } catch { return (0, error) }
        }
        if let failure { throw failure }
        return Array(bytes.prefix(count))
      }
    }
    return try result.get()
  }

  public func save(_ name: String, _ bytes: [UInt8]) async throws(DiskError) {
    let path = path(name)
    let result: Result<Void, DiskError> = await queue.run { [disk, directory] in
      Result { () throws(DiskError) in
        try disk.prepareDirectory(directory)
        let file = try disk.open(path + ".new", .create)
        var offset = 0
        while offset < bytes.count {
          let (count, failure): (Int, DiskError?) = bytes[offset...].withUnsafeBytes { buffer in
            do throws(DiskError) { return (try file.write([buffer], at: offset), nil) } catch { return (0, error) }
          }
          if let failure { throw failure }
          offset += count
        }
        try file.sync()
        try disk.rename(path + ".new", to: path)
        try disk.syncDirectory(directory)
      }
    }
    try result.get()
  }

  /// The names of accounts are host names; whatever else one may be, it stays in the directory.
  private func path(_ name: String) -> String {
    let safe = name.lowercased().utf8.map { byte in
      let isPlain = (0x30...0x39).contains(byte) || (0x61...0x7a).contains(byte) || byte == 0x2d || byte == 0x2e
      return isPlain ? String(UnicodeScalar(byte)) : "%\(String(byte, radix: 16))"
    }.joined()
    return "\(directory)/\(safe).ledger"
  }
}
