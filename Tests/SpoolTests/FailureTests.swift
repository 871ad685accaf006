// Torn tails, damage, full disks, failing syncs, compaction, content files, and the real disk.

import Glibc
import Primitives
import Testing

@testable import Spool

@Suite struct SpoolFailureTests {
  private let segment = "/q/spool/00000001.seg"

  @Test func aLockIsHeldThoughTheDiskHasNoRoomForTheNumberOfItsHolder() throws {
    guard case .acquired = try PosixDisk().lock("/dev/full") else {
      Issue.record("somebody else has it")
      return
    }
  }

  @Test func tornTailAtEveryByteOfTheLastRecordIsCutOff() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let first = try await spool.queue(100)
    let before = try disk.size(segment)
    try await spool.queue(100, seed: 1)
    let whole = disk.snapshot()
    let bytes = try #require(whole[segment])
    for end in before..<bytes.count {
      for isZeroed in [false, true] {
        var files = whole
        files[segment] = Array(bytes[..<end]) + [UInt8](repeating: 0, count: isZeroed ? bytes.count - end : 0)
        // What is zeroed may be padding, and then nothing is missing.
        if files[segment] == bytes { continue }
        let torn = MemoryDisk(files)
        let again = try open(torn)
        #expect(await again.ids() == [first])
        #expect(try torn.size(segment) == before)
        let next = try await again.queue(50)
        #expect(await (try open(torn.crash())).ids() == [first, next])
      }
    }
  }

  @Test func damageToWhatWasSafeIsRefused() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    try await spool.queue(100)
    let second = try disk.size(segment)
    try await spool.queue(100)
    try await spool.queue(100)
    for offset in [0, 12, 70, second, second + 4, second + 40, second + 200] {
      var files = disk.snapshot()
      files[segment]?[offset] ^= 0x10
      let error = #expect(throws: QueueError.self) { try open(MemoryDisk(files)) }
      guard case .corrupt(let file, _, _) = error else {
        Issue.record("\(offset): \(String(describing: error))")
        continue
      }
      #expect(file == segment)
    }
  }

  @Test func damageInEarlierSegmentAndMissingSegmentAreRefused() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small)
    for _ in 0..<8 { try await spool.queue(3000) }
    var files = disk.snapshot()
    let last = try #require(files[segment]?.count) - 1
    files[segment]?.removeSubrange((last - 20)...)
    #expect(throws: QueueError.self) { try open(MemoryDisk(files)) }
    files = disk.snapshot()
    files["/q/spool/00000002.seg"] = nil
    #expect(throws: QueueError.self) { try open(MemoryDisk(files)) }
  }

  @Test func crashWhileASegmentIsCreatedIsHealed() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let id = try await spool.queue(100)
    for size in [0, 10, 64] {
      var files = disk.snapshot()
      files["/q/spool/00000002.seg"] = [UInt8](repeating: 0, count: size)
      let healed = MemoryDisk(files)
      let again = try open(healed)
      let next = try await again.queue(10)
      #expect(await (try open(healed.crash())).ids() == [id, next])
    }
  }

  /// There was no space for its header, so that the one before it was written to all the same.
  @Test func segmentThatNeverWasDoesNotHideATornTailOfTheOneBefore() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let id = try await spool.queue(100)
    let safe = try disk.size(segment)
    try await spool.queue(100)
    var files = disk.snapshot()
    files[segment]?.removeSubrange((safe + 50)...)
    files["/q/spool/00000002.seg"] = [UInt8](repeating: 0, count: 10)
    let healed = MemoryDisk(files)
    let again = try open(healed)
    #expect(await again.ids() == [id])
    #expect(healed.snapshot()["/q/spool/00000002.seg"] == nil)
    let next = try await again.queue(10)
    #expect(await (try open(healed.crash())).ids() == [id, next])
  }

  @Test func fullDiskRefusesMessagesAndRecovers() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let first = try await spool.queue(1000)
    let size = try disk.size(segment)
    for room in [0, 1, 500] {
      disk.state.withLock { $0.room = room }
      await #expect(throws: QueueError.full) { try await spool.queue(1000) }
      #expect(try disk.size(segment) == size)
    }
    disk.state.withLock { $0.room = nil }
    let second = try await spool.queue(1000)
    #expect(await (try open(disk.crash())).ids() == [first, second])
  }

  @Test func changesOnAFullDiskAreKeptAndWrittenLater() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let held = try await spool.queue(10)
    let gone = try await spool.queue(10)
    disk.state.withLock { $0.room = 0 }
    spool.update(held) { $0.isHeld = true }
    spool.remove(gone)
    await #expect(throws: QueueError.full) { try await spool.flush() }
    #expect(await spool.ids() == [held])
    #expect(try await spool.readEnvelope(held)?.1.isHeld == true)
    disk.state.withLock { $0.room = nil }
    try await spool.flush()
    let again = try open(disk.crash())
    #expect(await again.ids() == [held])
    #expect(try await again.readEnvelope(held)?.1.isHeld == true)
  }

  @Test func failedSyncStopsTheSpoolForGood() async throws {
    let disk = MemoryDisk()
    let failures = Mutex<[QueueError]>([])
    let spool = try open(disk) { error in failures.withLock { $0.append(error) } }
    let id = try await spool.queue(10)
    disk.state.withLock { $0.failSync = true }
    await #expect(throws: QueueError.self) { try await spool.queue(10) }
    disk.state.withLock { $0.failSync = false }
    let syncs = disk.fileSyncs
    await #expect(throws: QueueError.self) { try await spool.queue(10) }
    await #expect(throws: QueueError.self) { try await spool.flush() }
    spool.remove(id)
    #expect(disk.fileSyncs == syncs)
    #expect(failures.withLock { $0.count } == 1)
    #expect(await (try open(disk.crash())).ids() == [id])
  }

  @Test func failedTruncationStopsTheSpool() async throws {
    let disk = MemoryDisk()
    let failures = Mutex(0)
    let spool = try open(disk) { _ in failures.withLock { $0 += 1 } }
    disk.state.withLock { s in
      s.room = 100
      s.failTruncate = true
    }
    await #expect(throws: QueueError.self) { try await spool.queue(1000) }
    disk.state.withLock { $0.room = nil }
    await #expect(throws: QueueError.self) { try await spool.queue(10) }
    #expect(failures.withLock { $0 } == 1)
  }

  @Test func compactionBoundsTheDiskAndResurrectsNothing() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small)
    let stuck = try await spool.queue(500, accounts: ["a", "b"], seed: 9)
    spool.update(stuck) {
      $0.recipients[0] = .delivered
      $0.lanes["b"] = Lane(nextAttempt: arrival + .seconds(9), attempts: 3, lastReply: "421")
    }
    var live: [QueueID] = [stuck]
    for round in 0..<200 {
      let id = try await spool.queue(700, seed: round)
      if round % 50 == 49 { live.append(id) } else { spool.remove(id) }
      if round % 10 == 0 {
        // Power fails here: nothing that was removed durably comes back, nothing acknowledged is missing.
        try await spool.flush()
        let again = try open(disk.crash(), small)
        #expect(await again.ids() == live)
        #expect(try await again.readEnvelope(stuck)?.1.recipients == [0: .delivered])
        #expect(try await again.read(stuck)?.content.inMemory == body(500, 9))
      }
    }
    await spool.settleCompaction()
    let s = spool.statistics
    #expect(s.diskBytes <= 2 * s.liveBytes + small.segmentSize)
    #expect(disk.snapshot()[segment] == nil)
    #expect(try await spool.readEnvelope(stuck)?.1.lanes["b"]?.attempts == 3)
  }

  @Test func segmentOfFullerTimesIsNotKeptForTheOneMessageThatIsLeft() async throws {
    let options = SpoolOptions(segmentSize: 64 << 10, syncInterval: .seconds(3600))
    let disk = MemoryDisk()
    let spool = try open(disk, options)
    var queued: [QueueID] = []
    for round in 0..<300 { queued.append(try await spool.queue(1000, seed: round)) }
    let stuck = queued.removeLast()
    for id in queued { spool.remove(id) }
    try await spool.flush()
    await spool.settleCompaction()
    let s = spool.statistics
    #expect(s.messages == 1)
    #expect(s.diskBytes <= 2 * s.liveBytes + options.segmentSize / 4)
    #expect(try await open(disk.crash(), options).read(stuck)?.content.inMemory == body(1000, 299))
  }

  @Test func contentFilesLiveAsLongAsTheirMessages() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small)
    let id = spool.nextID()
    let writer = try await spool.makeContentWriter(for: id)
    try await writer.write(body(1000))
    try await writer.write(body(500, 3))
    let content = try await writer.finish()
    try await spool.append(id, envelope(), content)
    await writer.discard()
    let path = "/q/content/\(id)"
    let orphan = try await spool.makeContentWriter(for: spool.nextID())
    try await orphan.write([1])
    _ = try await orphan.finish()
    // Compaction carries the message along.
    for _ in 0..<60 { spool.remove(try await spool.queue(1000)) }
    await spool.settleCompaction()
    #expect(disk.snapshot()[segment] == nil)

    let crashed = disk.crash()
    let again = try open(crashed, small)
    #expect(crashed.snapshot().keys.filter { $0.hasPrefix("/q/content/") } == [path])
    guard case .file(let stored) = try await again.read(id)?.content else {
      Issue.record("the content should be in a file")
      return
    }
    #expect(stored.count == 1500)
    #expect(try await stored.read(at: 990, count: 9000) == Array((body(1000) + body(500, 3))[990...]))
    // Another message with the same content gets a copy of its own.
    let copy = again.nextID()
    try await again.append(copy, envelope(), .file(stored))
    again.remove(id)
    #expect(await again.ids() == [copy])
    // Whether or not the removal is durable by now: a file that a message names is never missing.
    #expect(await (try open(crashed.crash(), small)).ids().contains(copy))
    try await again.flush()
    await again.core.io.run(id) {}
    #expect(crashed.snapshot()[path] == nil)
    #expect(crashed.snapshot()["/q/content/\(copy)"]?.count == 1500)
  }

  @Test func contentFileIsUnlinkedOnlyOnceTheRemovalIsDurable() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let id = spool.nextID()
    let writer = try await spool.makeContentWriter(for: id)
    try await writer.write([1, 2, 3])
    try await spool.append(id, envelope(), try await writer.finish())
    spool.remove(id)
    #expect(await spool.ids() == [])
    await spool.core.io.run(id) {}
    #expect(disk.snapshot()["/q/content/\(id)"] != nil)
    try await spool.flush()
    await spool.core.io.run(id) {}
    #expect(disk.snapshot()["/q/content/\(id)"] == nil)
  }

  @Test func damagedContentFileIsNoticedByWhoReadsItToItsEnd() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let id = spool.nextID()
    let writer = try await spool.makeContentWriter(for: id)
    try await writer.write(body(1000))
    try await spool.append(id, envelope(), try await writer.finish())
    func read(_ spool: Spool) async throws -> [UInt8] {
      guard case .file(let file) = try await spool.read(id)?.content else { return [] }
      return try await file.read(at: 0, count: 600) + (try await file.read(at: 600, count: 600))
    }
    #expect(try await read(spool) == body(1000))
    var files = disk.snapshot()
    files["/q/content/\(id)"]?[300] ^= 1
    let damaged = try open(MemoryDisk(files))
    let error = await #expect(throws: QueueError.self) { try await read(damaged) }
    guard case .corrupt(let path, _, _) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
    #expect(path == "/q/content/\(id)")
  }

  @Test func discardedContentIsGone() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let writer = try await spool.makeContentWriter(for: spool.nextID())
    try await writer.write([1, 2, 3])
    await writer.discard()
    #expect(disk.snapshot().keys.allSatisfy { !$0.hasPrefix("/q/content/") })
  }

  @Test func identifierTextReadsBackAndSorts() throws {
    var last = ""
    for value: UInt64 in [0, 1, 29, 30, 1_795_000_000_000_000, QueueID.maximum] {
      let id = QueueID(rawValue: value)
      #expect(id.description.utf8.count == 11)
      #expect(QueueID(id.description) == id && QueueID(id.description.uppercased()) == id)
      #expect(id.description > last)
      last = id.description
    }
    for text in ["", "0000000000", "000000000000", "0000000000a", "0000000000-", "0000000000é"] {
      #expect(QueueID(text) == nil)
    }
  }
}

extension Spool {
  /// Returns when compaction has nothing left to do. Barriers and steps of compaction take turns on one queue.
  func settleCompaction() async {
    for _ in 0..<2000 { _ = try? await flush() }
  }
}

@Suite struct PosixDiskTests {
  private func scratch() -> String {
    var template = Array("/tmp/spool-XXXXXX".utf8CString)
    return String(cString: mkdtemp(&template))
  }

  private func delete(_ directory: String) {
    for sub in ["/spool", "/content", ""] {
      for name in (try? PosixDisk().list(directory + sub)) ?? [] { unlink(directory + sub + "/" + name) }
      rmdir(directory + sub)
    }
    rmdir(directory)
  }

  @Test func manySendersOnTheRealDisk() async throws {
    let directory = scratch()
    defer { delete(directory) }
    let options = SpoolOptions(segmentSize: 1 << 20)
    let spool = try Spool.open(directory: directory, options: options) { Issue.record($0) }
    let all = try await withThrowingTaskGroup(of: [QueueID].self) { group in
      for sender in 0..<20 {
        group.addTask {
          var kept: [QueueID] = []
          for round in 0..<50 {
            let id = try await spool.queue(10_240, seed: round)
            let message = try await spool.read(id)
            #expect(message?.content.inMemory == body(10_240, round))
            if (round + sender) % 5 == 0 { kept.append(id) } else { spool.update(id) { $0.recipients[0] = .delivered } }
          }
          return kept
        }
      }
      return try await group.reduce(into: []) { $0 += $1 }
    }
    #expect(await spool.ids() == all.sorted())
    let error = #expect(throws: QueueError.self) { try Spool.open(directory: directory) { _ in } }
    #expect(error == .locked(pid: getpid()))
    await spool.close()
    let again = try Spool.open(directory: directory, options: options) { Issue.record($0) }
    #expect(await again.ids() == all.sorted())
    await again.close()
  }

  @Test func unusableDirectoryIsNamed() throws {
    for path in ["/proc/nowhere", "/dev/null"] {
      let error = #expect(throws: QueueError.self) { try Spool.open(directory: path) { _ in } }
      #expect("\(String(describing: error))".contains(path))
    }
  }

  @Test func directoryIsPrivate() async throws {
    let parent = scratch()
    defer { rmdir(parent) }
    let directory = parent + "/queue"
    let spool = try Spool.open(directory: directory) { _ in }
    var status = stat()
    #expect(stat(directory, &status) == 0 && status.st_mode & 0o777 == 0o700)
    await spool.close()
    delete(directory)
  }
}
