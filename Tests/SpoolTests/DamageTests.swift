// One message that is not what was accepted is kept back, and all the others go on; what is not there any more is never
// taken for something that never was.

import Glibc
import Primitives
import Testing

@testable import Spool

@Suite struct DamageTests {
  private let segment = "/q/spool/00000001.seg"

  /// What the spool reports while it is open.
  private final class Reports: Sendable {
    let damages = Mutex<[String]>([])
    let failure = Mutex<QueueError?>(nil)
  }

  private func open(
    _ disk: any Disk, _ options: SpoolOptions = quiet, _ reports: Reports = Reports()
  ) throws -> Spool {
    try Spool.open(
      directory: "/q", disk: disk, time: ManualTime(), options: options,
      onDamage: { text in reports.damages.withLock { $0.append(text) } },
      onFailure: { error in reports.failure.withLock { $0 = error } })
  }

  private func flip(_ disk: MemoryDisk, _ path: String, _ offset: Int) {
    disk.state.withLock { $0.files[path]?.data[offset] ^= 1 }
  }

  /// Mail comes and goes until compaction has taken away the first segment.
  private func compact(_ spool: Spool, _ disk: MemoryDisk) async throws {
    for round in 0..<60 where disk.snapshot()[segment] != nil {
      spool.remove(try await spool.queue(2000, seed: round))
      try await spool.flush()
    }
    await spool.settleCompaction()
    #expect(disk.snapshot()[segment] == nil)
  }

  @Test func damagedContentIsOnHoldAndMovesWithTheOthers() async throws {
    let disk = MemoryDisk()
    let reports = Reports()
    let spool = try open(disk, small, reports)
    let hit = try await spool.queue(1000)
    flip(disk, segment, 64 + 900)
    await #expect(throws: QueueError.self) { try await spool.read(hit) }
    let sound = try await spool.queue(1000, seed: 3)
    try await compact(spool, disk)
    #expect(reports.failure.withLock { $0 } == nil)
    #expect(reports.damages.withLock { $0 }.contains { $0.contains("\(hit)") })
    let state = try #require(try await spool.readEnvelope(hit)?.1)
    #expect(state.isHeld && state.life.last?.text.contains("damaged in the queue") == true)
    // From here on it is a message like any other: the next start does not stumble over it.
    await spool.close()
    let again = try open(disk.kill(), small)
    #expect(await again.ids() == [hit, sound])
    #expect(await again.entries(startingAfter: nil, limit: 9).map(\.isHeld) == [true, false])
    let content = try #require(try await again.read(hit)?.content.inMemory)
    #expect(zip(content, body(1000)).count { $0.0 != $0.1 } == 1)
    #expect(try await again.read(sound)?.content.inMemory == body(1000, 3))
  }

  @Test func messageWithoutAnEnvelopeIsSetAsideAndTheOthersGoOn() async throws {
    let disk = MemoryDisk()
    let reports = Reports()
    let spool = try open(disk, small, reports)
    let hit = try await spool.queue(1000)
    flip(disk, segment, 64 + 32 + 60)
    // To hold it is what delivery does with a message that it cannot read.
    spool.update(hit) { $0.isHeld = true }
    try await spool.flush()
    #expect(reports.failure.withLock { $0 } == nil)
    #expect(await spool.entries(startingAfter: nil, limit: 9).map(\.isHeld) == [true])
    #expect(try await spool.readEnvelope(hit)?.1.life.last?.text.contains("damaged in the queue") == true)
    #expect(try await spool.readEnvelopes([hit]).map(\.id) == [hit])
    let sound = try await spool.queue(1000, seed: 3)
    try await compact(spool, disk)
    #expect(reports.failure.withLock { $0 } == nil)
    #expect(reports.damages.withLock { $0 }.contains { $0.contains("\(hit) cannot be delivered") })
    #expect(await spool.ids() == [sound])
    let kept = try #require(disk.snapshot()["/q/damaged/00000001.seg"])
    #expect(kept.indices.contains { kept[$0...].starts(with: body(1000)) }, "its content is there")
    await spool.close()
    #expect(await (try open(disk.kill(), small)).ids() == [sound])
  }

  @Test func recordWhoseHeaderIsDamagedIsFoundByTheIndex() async throws {
    let disk = MemoryDisk()
    let reports = Reports()
    let spool = try open(disk, small, reports)
    let hit = try await spool.queue(1000)
    let sound = try await spool.queue(1000, seed: 3)
    flip(disk, segment, 64)
    try await compact(spool, disk)
    #expect(reports.failure.withLock { $0 } == nil)
    #expect(await spool.ids() == [sound])
    #expect(reports.damages.withLock { $0 }.contains { $0.contains("\(hit)") })
    #expect(disk.snapshot()["/q/damaged/00000001.seg"] != nil)
    #expect(try await spool.read(sound)?.content.inMemory == body(1000, 3))
  }

  @Test func contentOfAMessageWithoutAnEnvelopeIsKeptForPeople() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small)
    let hit = spool.nextID()
    let writer = try await spool.makeContentWriter(for: hit)
    try await writer.write(body(4000))
    try await spool.append(hit, envelope(), try await writer.finish())
    flip(disk, segment, 64 + 32 + 60)
    try await compact(spool, disk)
    await spool.close()
    let left = disk.kill()
    #expect(await (try open(left, small)).ids() == [])
    #expect(left.snapshot()["/q/damaged/\(hit)"] == body(4000))
  }

  @Test func changeOfAMessageIsNotLostWhenTheDiskStammers() async throws {
    let disk = MemoryDisk()
    let stammering = StammeringDisk(disk)
    let time = ManualTime()
    let spool = try Spool.open(directory: "/q", disk: stammering, time: time, options: quiet, onFailure: { _ in })
    let id = try await spool.queue(1000, accounts: ["a", "b"])
    stammering.failures.withLock { $0 = 2 }
    spool.update(id) { $0.recipients[0] = .delivered }
    try await spool.flush()
    #expect(stammering.failures.withLock { $0 } == 0)
    #expect(try await spool.readEnvelope(id)?.1.recipients == [0: .delivered])
    // What it does not give at all nobody gets until it does, and what has changed meanwhile is made up for.
    stammering.failures.withLock { $0 = 20 }
    spool.update(id) { $0.isHeld = true }
    spool.update(id) { $0.lanes["b"] = Lane(nextAttempt: arrival, attempts: 7, lastReply: "451") }
    await #expect(throws: QueueError.self) { try await spool.flush() }
    stammering.failures.withLock { $0 = 0 }
    await #expect(throws: QueueError.self) { try await spool.read(id) }
    #expect(await spool.entries(startingAfter: nil, limit: 9).map(\.isHeld) == [true])
    time.advance(by: .seconds(1))
    try await spool.flush()
    let state = try #require(try await spool.read(id)?.state)
    #expect(state.isHeld && state.lanes["b"]?.attempts == 7 && state.recipients == [0: .delivered])
  }

  @Test func compactionWaitsForADiskThatStammers() async throws {
    let disk = MemoryDisk()
    let stammering = StammeringDisk(disk)
    let reports = Reports()
    let time = ManualTime()
    let spool = try Spool.open(
      directory: "/q", disk: stammering, time: time, options: small,
      onDamage: { text in reports.damages.withLock { $0.append(text) } }, onFailure: { _ in })
    let id = try await spool.queue(1000)
    for round in 0..<8 {
      stammering.failures.withLock { $0 = 3 }
      for _ in 0..<3 { spool.remove(try await spool.queue(2000, seed: round)) }
      try await spool.flush()
      await spool.settleCompaction()
    }
    #expect(reports.damages.withLock { $0 } == [], "it was asked once, and time stands still")
    stammering.failures.withLock { $0 = 0 }
    time.advance(by: .seconds(10))
    try await compact(spool, disk)
    #expect(reports.damages.withLock { $0 } == [])
    #expect(try await spool.read(id)?.content.inMemory == body(1000))
    #expect(await spool.entries(startingAfter: nil, limit: 9).map(\.isHeld) == [false])
  }

  @Test func killedQueueThatHasRestedHasAWitness() async throws {
    let disk = MemoryDisk()
    let options = SpoolOptions(syncInterval: .milliseconds(1))
    let spool = try open(disk, options)
    try await spool.queue(100)
    // Until the last record is a removal.
    while disk.snapshot()[segment]?.suffix(32).dropFirst(12).first != RecordType.removal.rawValue { await Task.yield() }
    let left = disk.kill()
    flip(left, segment, 64 + 60)
    #expect(throws: QueueError.self) { try open(left) }
    _ = spool
  }

  @Test func messageThatCannotBeReadCanBeDeleted() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let hit = try await spool.queue(1000)
    flip(disk, segment, 64 + 32 + 60)
    spool.remove(hit)
    try await spool.flush()
    #expect(await spool.ids() == [])
  }

  @Test func damageToTheLastBatchOfAQueueAtRestIsNotTakenForATornWrite() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    try await spool.queue(100)
    let second = try disk.size(segment)
    try await spool.queue(100)
    await spool.close()
    var files = disk.snapshot()
    files[segment]?[second + 40] ^= 0x10
    #expect(throws: QueueError.self) { try open(MemoryDisk(files)) }
    #expect(try !SpoolVerifier(directory: "/q", disk: MemoryDisk(files)).run().damages.isEmpty)
    // The witness itself is of no use when it is damaged, and no loss.
    var others = disk.snapshot()
    let last = try #require(others[segment]?.count) - 8
    others[segment]?[last] ^= 1
    #expect(await (try open(MemoryDisk(others))).ids().count == 2)
  }

  @Test func queueThatIsOnlyLookedAtDoesNotGrow() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    try await spool.queue(100)
    await spool.close()
    let size = try disk.size(segment)
    for _ in 0..<3 { await (try open(disk)).close() }
    #expect(try disk.size(segment) == size)
  }

  @Test func missingAndShortContentsAreOnHoldAndTheQueueOpens() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    var ids: [QueueID] = []
    for seed in 0..<3 {
      let id = spool.nextID()
      let writer = try await spool.makeContentWriter(for: id)
      try await writer.write(body(4000, seed))
      try await spool.append(id, envelope(), try await writer.finish())
      ids.append(id)
    }
    await spool.close()
    try disk.unlink("/q/content/\(ids[0])")
    disk.state.withLock { _ = $0.files["/q/content/\(ids[1])"]?.data.removeLast() }
    let reports = Reports()
    let again = try open(disk, quiet, reports)
    #expect(reports.damages.withLock { $0 }.count == 2)
    #expect(await again.entries(startingAfter: nil, limit: 9).map(\.isHeld) == [true, true, false])
    #expect(try await again.readEnvelope(ids[0])?.1.life.last?.text.contains("is missing") == true)
    guard case .file(let file) = try await again.read(ids[0])?.content else { return }
    await #expect(throws: QueueError.self) { try await file.read(at: 0, count: 10) }
    await again.close()
    // Its life does not grow with each start.
    let third = try open(disk)
    #expect(try await third.readEnvelope(ids[0])?.1.life.count == 1)
  }

  @Test func twoReadersOfOneContentAreBothToldOfDamage() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let id = spool.nextID()
    let writer = try await spool.makeContentWriter(for: id)
    try await writer.write(body(4000))
    let content = try await writer.finish()
    try await spool.append(id, envelope(), content)
    flip(disk, "/q/content/\(id)", 1500)
    guard case .file(let file) = content else { return }
    var errors = 0
    for offset in stride(from: 0, to: 4000, by: 1000) {
      for _ in 0..<2 { do { _ = try await file.read(at: offset, count: 1000) } catch { errors += 1 } }
    }
    #expect(errors == 2)
  }

  @Test func failedSyncOfTheNamesOfContentsEndsTheQueue() async throws {
    let disk = MemoryDisk()
    let reports = Reports()
    let spool = try open(FailingNames(disk), quiet, reports)
    let writer = try await spool.makeContentWriter(for: spool.nextID())
    try await writer.write(body(100))
    await #expect(throws: QueueError.self) { _ = try await writer.finish() }
    #expect(reports.failure.withLock { $0 } != nil)
    await #expect(throws: QueueError.self) { try await spool.queue(10) }
  }

  @Test func verifierAgreesWithRecoveryAboutATornTailBeforeASegmentThatNeverWas() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    try await spool.queue(100)
    let safe = try disk.size(segment)
    try await spool.queue(100)
    var files = disk.snapshot()
    files[segment]?.removeSubrange((safe + 50)...)
    files["/q/spool/00000002.seg"] = [UInt8](repeating: 0, count: 10)
    let report = try SpoolVerifier(directory: "/q", disk: MemoryDisk(files)).run()
    #expect(report.damages.isEmpty, "\(report.damages)")
    let opened = try open(MemoryDisk(files))
    #expect(opened.cutOff == 50)
  }
}

/// A disk whose reads of segments fail for a while.
private final class StammeringDisk: AlteredDisk {
  let disk: MemoryDisk
  /// How many reads still fail.
  let failures = Mutex(0)
  init(_ disk: MemoryDisk) { self.disk = disk }

  func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile {
    FailingFile(file: try disk.open(path, mode)) { [self] _ in
      failures.withLock { left in
        defer { left = max(0, left - 1) }
        return left > 0
      }
    }
  }
}

/// A disk whose directory of contents cannot be synced.
private struct FailingNames: AlteredDisk {
  let disk: MemoryDisk
  init(_ disk: MemoryDisk) { self.disk = disk }

  func syncDirectory(_ path: String) throws(DiskError) {
    if path.hasSuffix("/content") { throw DiskError(operation: "fsync", path: path, code: EIO) }
    disk.syncDirectory(path)
  }
}
