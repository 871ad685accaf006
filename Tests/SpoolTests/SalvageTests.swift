// What is saved of a damaged queue: all whose envelope is whole, with a hold on what is not as it was accepted, and
// without changing the queue.

import Glibc
import Primitives
import Testing

@testable import Spool

@Suite struct SalvageTests {
  private func salvage(_ disk: any Disk) throws -> SalvagedQueue {
    try SalvagedQueue(directory: "/q", disk: disk, time: ManualTime())
  }

  private func end(_ disk: MemoryDisk) throws -> Int { try #require(disk.snapshot()[segment]?.count) }

  private func flip(_ disk: MemoryDisk, _ path: String, _ offset: Int) {
    disk.state.withLock { $0.files[path]?.data[offset] ^= 1 }
  }

  private let segment = "/q/spool/00000001.seg"

  private func content(_ queue: SalvagedQueue, _ id: QueueID) async throws -> [UInt8]? {
    switch try await queue.read(id)?.content {
    case .bytes(let bytes): bytes
    case .file(let file): try await file.read(at: 0, count: file.count)
    case nil: nil
    }
  }

  private func ids(_ queue: SalvagedQueue) async -> [QueueID] {
    var all: [QueueID] = []
    while true {
      let page = await queue.entries(startingAfter: all.last, limit: 2)
      if page.isEmpty { return all }
      all += page.map(\.id)
    }
  }

  private func isHeld(_ queue: SalvagedQueue, _ id: QueueID) async throws -> Bool? {
    let listed = await queue.entries(startingAfter: nil, limit: .max).first { $0.id == id }?.isHeld
    let read = try await queue.readEnvelope(id)?.1.isHeld
    #expect(listed == read)
    return read
  }

  @Test func damagedContentIsSavedOnHoldAndTheRestAsItWas() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let before = try await spool.queue(1000, seed: 1)
    spool.update(before) {
      $0.lanes["example.com"] = Lane(nextAttempt: arrival + .seconds(60), attempts: 3, lastReply: "451 4.3.0 later")
    }
    try await spool.flush()
    let place = try end(disk)
    let hit = try await spool.queue(1000, seed: 2)
    let after = try await spool.queue(1000, seed: 3)
    await spool.close()
    flip(disk, segment, place + 900)
    let untouched = disk.snapshot()
    #expect(throws: QueueError.self) { try open(MemoryDisk(disk.snapshot())) }

    let queue = try salvage(disk)
    #expect(queue.report.damages.map(\.affected) == [[hit]])
    #expect(await ids(queue) == [before, hit, after])
    #expect(try await content(queue, before) == body(1000, 1))
    #expect(try await queue.readEnvelope(before)?.1.lanes["example.com"]?.attempts == 3)
    #expect(try await content(queue, after) == body(1000, 3))
    #expect(try await isHeld(queue, before) == false)
    #expect(try await isHeld(queue, hit) == true)
    #expect(try await queue.readEnvelope(hit)?.1.life.last?.text.contains("not what was accepted") == true)
    let damaged = try #require(try await content(queue, hit))
    #expect(zip(damaged, body(1000, 2)).count { $0.0 != $0.1 } == 1 && damaged.count == 1000)
    #expect(disk.snapshot() == untouched, "the queue has been changed")
  }

  @Test func messageWhoseEnvelopeIsDamagedIsNamedAndTheOthersAreSaved() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let hit = try await spool.queue(1000)
    let after = try await spool.queue(1000)
    await spool.close()
    flip(disk, segment, LogFormat.segmentHeaderSize + 120)
    let queue = try salvage(disk)
    #expect(queue.report.damages.map(\.affected) == [[hit]])
    #expect(await ids(queue) == [after])
  }

  @Test(arguments: [true, false]) func messageWhoseLaterRecordIsDamagedIsSavedOnHold(isRemoval: Bool) async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let hit = try await spool.queue(1000, accounts: ["a", "b"])
    let place = try end(disk)
    if isRemoval { spool.remove(hit) } else { spool.update(hit) { $0.recipients[0] = .delivered } }
    try await spool.flush()
    let gone = try await spool.queue(1000)
    spool.remove(gone)
    try await spool.flush()
    await spool.close()
    flip(disk, segment, place + 24)
    let queue = try salvage(disk)
    #expect(await ids(queue) == [hit], "what was removed elsewhere stays removed")
    #expect(try await isHeld(queue, hit) == true)
    #expect(try await queue.readEnvelope(hit)?.1.life.last?.text.contains("may have been delivered") == true)
    #expect(try await content(queue, hit) == body(1000))
  }

  @Test func missingSegmentLeavesWhatIsInTheOthers() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small)
    var all: [QueueID] = []
    for seed in 0..<12 { all.append(try await spool.queue(1500, seed: seed)) }
    await spool.close()
    try #require(spool.statistics.segments > 3)
    try disk.unlink("/q/spool/00000002.seg")
    let queue = try salvage(disk)
    #expect(queue.report.damages.map(\.detail) == ["the segment is missing"])
    let saved = await ids(queue)
    #expect(saved.count > 6 && saved.count < 12)
    for id in saved { #expect(try await content(queue, id) == body(1500, try #require(all.firstIndex(of: id)))) }
  }

  @Test func sectorThatCannotBeReadCostsWhatStandsThere() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    var all: [QueueID] = []
    for seed in 0..<8 { all.append(try await spool.queue(3000, seed: seed)) }
    await spool.close()
    // Octets 8192 to 12287 hold parts of the third and fourth message.
    let bad = BadDisk(disk, segment, 8192..<12288)
    let queue = try salvage(bad)
    #expect(queue.report.damages.contains { $0.offset == 8192 && $0.detail.contains("4096 octets") })
    let saved = await ids(queue)
    #expect(saved.count >= 6)
    var whole = 0
    for id in saved where try await isHeld(queue, id) == false {
      #expect(try await content(queue, id) == body(3000, try #require(all.firstIndex(of: id))))
      whole += 1
    }
    #expect(whole == 6)
    #expect(throws: DiskError.self) { _ = try bad.open(segment, .reading).bytes(100, at: 9000) }
  }

  @Test func contentFilesAreSavedWhateverTheirChecksum() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    var all: [QueueID] = []
    for seed in 0..<4 {
      let id = spool.nextID()
      let writer = try await spool.makeContentWriter(for: id)
      try await writer.write(body(5000, seed))
      try await spool.append(id, envelope(), try await writer.finish())
      all.append(id)
    }
    await spool.close()
    flip(disk, "/q/content/\(all[1])", 4000)
    disk.state.withLock { $0.files["/q/content/\(all[2])"]?.data.removeLast(1000) }
    try disk.unlink("/q/content/\(all[3])")
    let queue = try salvage(disk)
    #expect(queue.report.damages.map(\.affected) == [[all[1]], [all[2]], [all[3]]])
    #expect(try await content(queue, all[0]) == body(5000, 0))
    #expect(try await isHeld(queue, all[0]) == false)
    #expect(try await isHeld(queue, all[1]) == true)
    #expect(try await content(queue, all[1])?.count == 5000)
    #expect(try await content(queue, all[2]) == Array(body(5000, 2).dropLast(1000)))
    let gone = await #expect(throws: QueueError.self) { try await queue.read(all[3]) }
    #expect("\(try #require(gone))".contains("from <a@example.org> to <x0@local> is missing"))
  }
}

/// A disk of which some octets of one file cannot be read.
private struct BadDisk: AlteredDisk {
  let disk: MemoryDisk
  let path: String
  let bad: Range<Int>

  init(_ disk: MemoryDisk, _ path: String, _ bad: Range<Int>) {
    self.disk = disk
    self.path = path
    self.bad = bad
  }

  func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile {
    let file = try disk.open(path, mode)
    return path == self.path ? FailingFile(file: file) { [bad] in bad.overlaps($0) } : file
  }
}
