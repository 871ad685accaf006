// What the tests of the spool share.

import Glibc
import Primitives

@testable import Spool

let arrival = Timestamp(seconds: 1_795_000_000)

func envelope(_ accounts: [String] = ["example.com"], from: String = "a@example.org") -> Envelope {
  Envelope(
    reversePath: from,
    recipients: accounts.enumerated().map {
      Recipient(address: "r\($0.offset)@\($0.element)", original: "x\($0.offset)@local", account: $0.element)
    },
    arrival: arrival)
}

func body(_ count: Int, _ seed: Int = 0) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ seed) } }

func open(
  _ disk: any Disk, _ options: SpoolOptions = quiet, time: any Timekeeper = ManualTime(),
  onFailure: @escaping @Sendable (QueueError) -> Void = { _ in }
) throws -> Spool {
  try Spool.open(directory: "/q", disk: disk, time: time, options: options, onFailure: onFailure)
}

/// Nothing happens by the timer.
let quiet = SpoolOptions(syncInterval: .seconds(3600))
/// Small segments, for compaction.
let small = SpoolOptions(segmentSize: 8192, syncInterval: .seconds(3600))

extension Content {
  var inMemory: [UInt8]? { if case .bytes(let bytes) = self { bytes } else { nil } }
}

extension Spool {
  @discardableResult
  func queue(_ count: Int, accounts: [String] = ["example.com"], seed: Int = 0) async throws -> QueueID {
    let id = nextID()
    try await append(id, envelope(accounts), .bytes(body(count, seed)))
    return id
  }

  func ids() async -> [QueueID] { await entries(startingAfter: nil, limit: .max).map(\.id) }
}

/// A disk that is another one but for what it does differently.
protocol AlteredDisk: Disk { var disk: MemoryDisk { get } }

extension AlteredDisk {
  func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile { try disk.open(path, mode) }
  func prepareDirectory(_ path: String) {}
  func list(_ directory: String) -> [String] { disk.list(directory) }
  func size(_ path: String) throws(DiskError) -> Int { try disk.size(path) }
  func rename(_ old: String, to new: String) { disk.rename(old, to: new) }
  func unlink(_ path: String) throws(DiskError) { try disk.unlink(path) }
  func syncDirectory(_ path: String) throws(DiskError) { disk.syncDirectory(path) }
  func space(_ path: String) -> DiskSpace? { nil }
  func lock(_ path: String) -> DiskLockResult { disk.lock(path) }
}

/// A file some reads of which fail.
struct FailingFile: DiskFile {
  let file: any DiskFile
  /// Whether the disk does not give these octets now.
  let fails: @Sendable (Range<Int>) -> Bool

  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(DiskError) -> Int {
    if fails(offset..<offset + buffer.count) { throw DiskError(operation: "read", path: "segment", code: EIO) }
    return try file.read(into: buffer, at: offset)
  }
  func write(_ buffers: [UnsafeRawBufferPointer], at offset: Int) throws(DiskError) -> Int {
    try file.write(buffers, at: offset)
  }
  func sync() throws(DiskError) { try file.sync() }
  func truncate(to size: Int) throws(DiskError) { try file.truncate(to: size) }
  func size() throws(DiskError) -> Int { try file.size() }
}
