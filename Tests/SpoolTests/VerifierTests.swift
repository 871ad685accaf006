// The read-only check of a queue: what is whole is counted, what is damaged is named, and what a running daemon does is
// not taken for damage.

import Glibc
import Primitives
import Testing

@testable import Spool

@Suite struct VerifierTests {
  @Test func segmentsOfAnyNumberAreReadAndWhatIsNoFileIsNamed() async throws {
    var template = Array("/tmp/ssmtp-verify.XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    defer { _ = system("rm -rf \(folder)") }
    let spool = try Spool.open(directory: folder, time: ManualTime(), onFailure: { _ in })
    let large = try await largeContent(spool, 270_000)
    await spool.close()
    func damages() throws -> [String] {
      try SpoolVerifier(directory: folder).run().damages.map { "\($0.file.dropFirst(folder.count)): \($0.detail)" }
    }
    #expect(try damages() == [])
    for name in ["00000000", "4294967295"] {
      let file = try #require(fopen("\(folder)/spool/\(name).seg", "w"))
      fputs("this is no segment, and it is longer than the header of a segment could ever be, by far\n", file)
      fclose(file)
    }
    let found = try damages()
    #expect(found.contains("/spool/00000000.seg: the segment header is damaged"), "\(found)")
    #expect(found.contains("/spool/4294967295.seg: the segment header is damaged"), "\(found)")
    for name in ["00000000", "4294967295"] { unlink("\(folder)/spool/\(name).seg") }

    unlink("\(folder)/content/\(large)")
    mkdir("\(folder)/content/\(large)", 0o700)
    #expect(try damages() == ["/content/\(large): it is a directory, and should be a file"])
    rmdir("\(folder)/content/\(large)")
    rmdir("\(folder)/content")
    let report = try SpoolVerifier(directory: folder).run()
    #expect(report.damages.map(\.file) == ["\(folder)/content"])
    #expect(report.damages.first?.affected == [large])
    mkdir("\(folder)/content", 0o700)
    mkdir("\(folder)/spool/00000002.seg", 0o700)
    #expect(try damages().contains("/spool/00000002.seg: it is a directory, and should be a file"))
  }

  private func verify(_ disk: any Disk) throws -> SpoolVerifier.Report {
    try SpoolVerifier(directory: "/q", disk: disk).run()
  }

  private func largeContent(_ spool: Spool, _ count: Int) async throws -> QueueID {
    let id = spool.nextID()
    let writer = try await spool.makeContentWriter(for: id)
    try await writer.write(body(count))
    try await spool.append(id, envelope(), try await writer.finish())
    return id
  }

  private func segment(_ disk: MemoryDisk, _ number: UInt32 = 1) -> String {
    "/q/spool/" + LogFormat.segmentName(number)
  }

  private func change(_ disk: MemoryDisk, _ path: String, _ body: (inout [UInt8]) -> Void) {
    disk.state.withLock { s in
      if let node = s.files[path] { body(&node.data) }
    }
  }

  @Test func aWholeQueueIsCountedWhileItIsInUse() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let ids = [try await spool.queue(100), try await spool.queue(200), try await spool.queue(300)]
    let large = try await largeContent(spool, 270_000)
    spool.update(ids[0]) { $0.isHeld = true }
    spool.update(ids[1]) { $0.deadReason = "nobody to tell" }
    spool.remove(ids[2])
    try await spool.flush()
    let before = disk.snapshot()
    let report = try verify(disk)
    #expect(report.damages == [])
    #expect(report.segments == 1)
    #expect(report.formatVersions == [LogFormat.version: 1])
    #expect((report.messageRecords, report.stateRecords, report.removalRecords) == (4, 2, 1))
    #expect((report.messages, report.held, report.dead) == (3, 1, 1))
    #expect((report.contentFiles, report.contentOctets, report.unnamedContentFiles) == (1, 270_000, 0))
    #expect(report.unfinishedOctets == 0)
    #expect(report.octets == before[segment(disk)]?.count)
    #expect(disk.snapshot() == before, "the check has changed something")
    #expect(large > ids[2])
    await spool.close()
  }

  @Test func damageIsNamedWithItsOffsetAndItsMessageAndTheRestIsStillRead() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    _ = try await spool.queue(1000)
    let offset = try #require(disk.snapshot()[segment(disk)]?.count)
    let hit = try await spool.queue(1000)
    _ = try await spool.queue(1000)
    await spool.close()
    change(disk, segment(disk)) { $0[offset + 500] ^= 1 }
    let report = try verify(disk)
    let damage = try #require(report.damages.first)
    #expect(report.damages.count == 1)
    #expect(damage.file == segment(disk))
    #expect(damage.offset == offset)
    #expect(damage.affected == [hit])
    #expect(damage.detail.contains("checksum"))
    #expect(report.messages == 2)
  }

  @Test func damageInAnOlderSegmentIsNoUnfinishedEnd() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small)
    for seed in 0..<8 { _ = try await spool.queue(3000, seed: seed) }
    await spool.close()
    let size = try #require(disk.snapshot()[segment(disk)]?.count)
    change(disk, segment(disk)) { $0[size - 100] ^= 0xff }
    let report = try verify(disk)
    #expect(report.segments > 1)
    #expect(report.damages.map(\.file) == [segment(disk)])
    #expect(report.unfinishedOctets == 0)
    #expect(report.messages == 7)
  }

  @Test func aMissingSegmentIsNamed() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small)
    for seed in 0..<8 { _ = try await spool.queue(3000, seed: seed) }
    await spool.close()
    disk.state.withLock { s in s.files[segment(disk, 2)] = nil }
    let report = try verify(disk)
    #expect(report.damages.map(\.file) == [segment(disk, 2)])
    #expect(report.damages.first?.detail == "the segment is missing")
  }

  @Test(arguments: [5, 40, 600]) func theHalfWrittenEndOfTheLastSegmentIsNoDamage(_ kept: Int) async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    _ = try await spool.queue(1000)
    let offset = try #require(disk.snapshot()[segment(disk)]?.count)
    _ = try await spool.queue(1000)
    await spool.close()
    change(disk, segment(disk)) { $0 = Array($0.prefix(offset + kept)) }
    let report = try verify(disk)
    #expect(report.damages == [])
    #expect(report.unfinishedOctets == kept)
    #expect(report.messages == 1)
  }

  @Test func contentFilesThatAreMissingShortOrChangedAreNamed() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    var ids: [QueueID] = []
    for _ in 0..<4 { ids.append(try await largeContent(spool, 130_000)) }
    await spool.close()
    let paths = ids.map { "/q/content/\($0)" }
    disk.state.withLock { s in s.files[paths[0]] = nil }
    change(disk, paths[1]) { $0.removeLast() }
    change(disk, paths[2]) { $0[123_450] ^= 4 }
    let report = try verify(disk)
    #expect(Set(report.damages.map(\.file)) == Set(paths[0...2]))
    #expect(Set(report.damages.flatMap(\.affected)) == Set(ids[0...2]))
    #expect(report.damages.first { $0.file == paths[1] }?.detail == "its size should be 130000")
    #expect(report.damages.first { $0.file == paths[2] }?.detail.contains("checksum") == true)
    #expect(report.messages == 4)
  }

  @Test func aSegmentThatCompactionTakesAwayMeanwhileMakesTheCheckBeginAnew() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small)
    for seed in 0..<8 { _ = try await spool.queue(3000, seed: seed) }
    await spool.close()
    let racing = RacingDisk(disk) { call in
      // The first look sees a segment that is gone by the time it is opened: what lived there lives further on.
      if call == 1 { disk.state.withLock { s in s.files["/q/spool/00000001.seg"] = nil } }
    }
    let report = try verify(racing)
    #expect(report.damages == [])
    #expect(report.messages < 8)
    #expect(racing.opens > report.segments)
  }
}

/// Tells of each opening of a file before it happens.
private final class RacingDisk: AlteredDisk {
  let disk: MemoryDisk
  private let before: @Sendable (Int) -> Void
  private let count = Mutex(0)

  init(_ disk: MemoryDisk, _ before: @escaping @Sendable (Int) -> Void) {
    self.disk = disk
    self.before = before
  }

  var opens: Int { count.withLock { $0 } }

  func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> any DiskFile {
    before(
      count.withLock { count in
        count += 1
        return count
      })
    return try disk.open(path, mode)
  }
}
