// A disk that does everything a disk is allowed to do. What was written is in a cache until it is synced; a power
// failure keeps of the unsynced rest what it likes, sector by sector and name by name, in any order; a failed sync
// leaves pages that look clean and are not on the disk; every operation can fail, and writes can be short.

import Glibc
import Primitives

@testable import Spool

/// What is under the read head, whoever runs on the machine. Belongs to its simulator's thread.
final class Platter {
  static let sector = 512

  final class Inode {
    /// What a process reads: the cache.
    var cached: [UInt8] = []
    /// What a power failure leaves for certain.
    var durable: [UInt8] = []
    /// What a sync would make durable, in order.
    var unsynced: [Change] = []
  }
  enum Change {
    case write(offset: Int, [UInt8])
    case truncate(Int)
  }

  /// By path: what a process sees, what is durable, and what would become durable with a sync of its directory.
  var names: [String: Inode] = [:]
  var durableNames: [String: Inode] = [:]
  /// Each change as a whole: after a rename there are both names in their new state, or none.
  var unsyncedNames: [[(path: String, inode: Inode?)]] = []
  /// An operation on a ledger has failed, or the clock was set: what it says of the day is not to be relied on any more.
  var isLedgerVoid = false
  static let ledger = "/q/ledger"
  /// Octets that files may take together; nil for as many as they like.
  var capacity: Int?

  var used: Int { names.values.reduce(0) { $0 + $1.cached.count } }

  static func apply(_ change: Change, to bytes: inout [UInt8]) {
    switch change {
    case .truncate(let size):
      if bytes.count > size { bytes.removeSubrange(size...) } else { pad(&bytes, to: size) }
    case .write(let offset, let piece):
      pad(&bytes, to: offset)
      let overlap = min(piece.count, bytes.count - offset)
      bytes.replaceSubrange(offset..<offset + overlap, with: piece)
    }
  }

  private static func pad(_ bytes: inout [UInt8], to size: Int) {
    if bytes.count < size { bytes += [UInt8](repeating: 0, count: size - bytes.count) }
  }

  func put(_ changes: (path: String, inode: Inode?)...) {
    for (path, inode) in changes { names[path] = inode }
    unsyncedNames.append(changes)
  }

  func syncNames(in directory: String) {
    unsyncedNames.removeAll { changes in
      guard changes.allSatisfy({ $0.path.hasPrefix(directory + "/") }) else { return false }
      for (path, inode) in changes { durableNames[path] = inode }
      return true
    }
  }

  func sync(_ inode: Inode) {
    for change in inode.unsynced { Self.apply(change, to: &inode.durable) }
    inode.unsynced = []
  }

  /// The sync fails: of each sector the disk has the old or the new contents, and the cache takes all for clean.
  func failToSync(_ inode: Inode, _ random: inout SeededRandom) {
    keepSome(of: inode, chance: random.pick([0, 0.5, 1]), &random)
  }

  private func keepSome(of inode: Inode, chance: Double, _ random: inout SeededRandom) {
    for change in inode.unsynced {
      guard case .write(let offset, let piece) = change else {
        if random.chance(chance) { Self.apply(change, to: &inode.durable) }
        continue
      }
      var place = 0
      while place < piece.count {
        // Up to the end of the sector that it falls into.
        let end = min(piece.count, place + Self.sector - (offset + place) % Self.sector)
        if random.chance(chance) {
          Self.apply(.write(offset: offset + place, Array(piece[place..<end])), to: &inode.durable)
        }
        place = end
      }
    }
    inode.unsynced = []
  }

  /// The power is gone and comes back.
  func losePower(_ random: inout SeededRandom) {
    let chance = random.pick([0, 0.1, 0.5, 0.9, 1])
    for changes in unsyncedNames where random.chance(chance) {
      for (path, inode) in changes { durableNames[path] = inode }
    }
    unsyncedNames = []
    names = durableNames
    for path in names.keys.sorted() {
      guard let inode = names[path] else { continue }
      keepSome(of: inode, chance: chance, &random)
      inode.cached = inode.durable
    }
  }
}

/// How a disk misbehaves for one process.
struct DiskFaults {
  /// Of each operation.
  var error = 0.0
  var full = 0.0
  var shortWrite = 0.0
  /// Of a sync.
  var failedSync = 0.0
  /// The operation in which the power fails.
  var powerLossAt: Int?
  /// Syncs of ledgers are forgotten: a fault on purpose of the program, not of the disk.
  var forgetsToSyncLedgers = false
}

/// The disk as one process sees it. Once the process has ended or the power is gone, every operation fails.
final class SimulatedDisk: Disk, @unchecked Sendable {
  let platter: Platter
  let simulator: Simulator
  var faults: DiskFaults
  private(set) var operations = 0
  private(set) var hasLostPower = false
  private(set) var isOff = false
  /// What the disk did, for the report on a failing seed.
  private(set) var journal: [String] = []
  static let journalLimit = 200

  init(_ platter: Platter, _ simulator: Simulator, _ faults: DiskFaults) {
    self.platter = platter
    self.simulator = simulator
    self.faults = faults
  }

  func turnOff() { isOff = true }

  private func note(_ line: String) {
    journal.append(line)
    if journal.count > Self.journalLimit { journal.removeFirst() }
  }

  enum Kind { case read, write, sync, other }

  /// Every operation begins here. A power failure may come before or after `effect`; either way nobody hears of it.
  func perform<T>(
    _ operation: String, _ path: String, _ kind: Kind, _ effect: () throws(DiskError) -> T
  ) throws(DiskError) -> T {
    do throws(DiskError) { return try attempt(operation, path, kind, effect) } catch {
      // A ledger that is not there yet is none that has failed.
      if path.hasPrefix(Platter.ledger), !isOff, error.code != ENOENT { platter.isLedgerVoid = true }
      throw error
    }
  }

  private func attempt<T>(
    _ operation: String, _ path: String, _ kind: Kind, _ effect: () throws(DiskError) -> T
  ) throws(DiskError) -> T {
    if isOff { throw DiskError(operation: operation, path: path, code: EIO) }
    operations += 1
    if let moment = faults.powerLossAt, operations >= moment {
      if simulator.random.chance(0.5) { _ = try effect() }
      hasLostPower = true
      isOff = true
      note("\(operation) \(path): power lost")
      platter.losePower(&simulator.random)
      throw DiskError(operation: operation, path: path, code: EIO)
    }
    if simulator.random.chance(faults.error) {
      note("\(operation) \(path): EIO")
      throw DiskError(operation: operation, path: path, code: EIO)
    }
    if kind == .write, simulator.random.chance(faults.full) {
      note("\(operation) \(path): ENOSPC")
      throw DiskError(operation: operation, path: path, code: ENOSPC)
    }
    let result = try effect()
    if kind != .read { note("\(operation) \(path)") }
    return result
  }

  func prepareDirectory(_ path: String) throws(DiskError) {
    try perform("mkdir", path, .other) { () throws(DiskError) in }
  }

  func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile {
    try perform("open", path, mode == .existing || mode == .reading ? .read : .write) {
      () throws(DiskError) -> any DiskFile in
      if let inode = platter.names[path] {
        if mode == .createNew { throw DiskError(operation: "open", path: path, code: EEXIST) }
        if mode == .create {
          inode.cached = []
          inode.unsynced.append(.truncate(0))
        }
        return SimulatedFile(disk: self, inode: inode, path: path)
      }
      guard mode == .create || mode == .createNew else { throw DiskError(operation: "open", path: path, code: ENOENT) }
      let inode = Platter.Inode()
      platter.put((path, inode))
      return SimulatedFile(disk: self, inode: inode, path: path)
    }
  }

  func list(_ directory: String) throws(DiskError) -> [String] {
    try perform("list", directory, .read) { () throws(DiskError) in
      let prefix = directory + "/"
      return platter.names.keys.filter { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }.sorted()
    }
  }

  func size(_ path: String) throws(DiskError) -> Int {
    try perform("stat", path, .read) { () throws(DiskError) in
      guard let inode = platter.names[path] else { throw DiskError(operation: "stat", path: path, code: ENOENT) }
      return inode.cached.count
    }
  }

  func rename(_ old: String, to new: String) throws(DiskError) {
    try perform("rename", old, .other) { () throws(DiskError) in
      guard let inode = platter.names[old] else { throw DiskError(operation: "rename", path: old, code: ENOENT) }
      platter.put((new, inode), (old, nil))
    }
  }

  func unlink(_ path: String) throws(DiskError) {
    try perform("unlink", path, .other) { () throws(DiskError) in
      guard platter.names[path] != nil else { throw DiskError(operation: "unlink", path: path, code: ENOENT) }
      platter.put((path, nil))
    }
  }

  func syncDirectory(_ path: String) throws(DiskError) {
    try perform("fsync", path, .sync) { () throws(DiskError) in
      if simulator.random.chance(faults.failedSync) {
        note("fsync \(path): failed")
        throw DiskError(operation: "fsync", path: path, code: EIO)
      }
      platter.syncNames(in: path)
    }
  }

  func space(_ path: String) throws(DiskError) -> DiskSpace? {
    platter.capacity.map { DiskSpace(total: $0, free: max($0 - platter.used, 0)) }
  }

  private struct Lock: DiskLock { func release() {} }
  func lock(_ path: String) throws(DiskError) -> DiskLockResult {
    try perform("flock", path, .other) { () throws(DiskError) in .acquired(Lock()) }
  }

  fileprivate func write(_ inode: Platter.Inode, _ path: String, _ bytes: [UInt8], _ offset: Int)
    throws(DiskError) -> Int
  {
    try perform("write \(bytes.count) at \(offset)", path, .write) { () throws(DiskError) in
      var count = bytes.count
      if count > 1, simulator.random.chance(faults.shortWrite) { count = 1 + simulator.random.below(count - 1) }
      if let capacity = platter.capacity {
        let room = max(capacity - platter.used, 0)
        let growth = max(offset + count - inode.cached.count, 0)
        count -= max(growth - room, 0)
        if count <= 0 { throw DiskError(operation: "write", path: path, code: ENOSPC) }
      }
      let change = Platter.Change.write(offset: offset, Array(bytes.prefix(count)))
      Platter.apply(change, to: &inode.cached)
      inode.unsynced.append(change)
      return count
    }
  }

  fileprivate func sync(_ inode: Platter.Inode, _ path: String) throws(DiskError) {
    if faults.forgetsToSyncLedgers, path.hasPrefix(Platter.ledger) { return }
    try perform("fdatasync", path, .sync) { () throws(DiskError) in
      if simulator.random.chance(faults.failedSync) {
        note("fdatasync \(path): failed")
        platter.failToSync(inode, &simulator.random)
        throw DiskError(operation: "fdatasync", path: path, code: EIO)
      }
      platter.sync(inode)
    }
  }
}

private final class SimulatedFile: DiskFile, @unchecked Sendable {
  let disk: SimulatedDisk
  let inode: Platter.Inode
  let path: String

  init(disk: SimulatedDisk, inode: Platter.Inode, path: String) {
    self.disk = disk
    self.inode = inode
    self.path = path
  }

  func write(_ buffers: [UnsafeRawBufferPointer], at offset: Int) throws(DiskError) -> Int {
    var bytes: [UInt8] = []
    for buffer in buffers { bytes.append(contentsOf: buffer) }
    return try disk.write(inode, path, bytes, offset)
  }

  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(DiskError) -> Int {
    try disk.perform("read", path, .read) { () throws(DiskError) in
      let end = min(inode.cached.count, offset + buffer.count)
      guard offset < end else { return 0 }
      inode.cached[offset..<end].withUnsafeBytes { buffer.copyMemory(from: $0) }
      return end - offset
    }
  }

  func sync() throws(DiskError) { try disk.sync(inode, path) }

  func truncate(to size: Int) throws(DiskError) {
    try disk.perform("truncate to \(size)", path, .other) { () throws(DiskError) in
      Platter.apply(.truncate(size), to: &inode.cached)
      inode.unsynced.append(.truncate(size))
    }
  }

  func size() throws(DiskError) -> Int {
    try disk.perform("fstat", path, .read) { () throws(DiskError) in inode.cached.count }
  }
}
