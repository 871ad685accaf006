// Messages in, messages out; what survives which crash.

import Dispatch
import Glibc
import Primitives
import Testing

@testable import Spool

@Suite struct SpoolTests {
  @Test func messageComesBackAsItWasQueued() async throws {
    let spool = try open(MemoryDisk())
    let id = spool.nextID()
    var sent = envelope(["one", "two", "one"], from: "")
    sent.clientAddress = "192.0.2.1"
    sent.helo = "client"
    sent.is8Bit = true
    sent.smtpUTF8 = true
    sent.envelopeID = "QQ"
    sent.returnFull = false
    sent.recipients[1].notify = 3
    sent.recipients[1].originalRecipient = "rfc822;x@y"
    try await spool.append(id, sent, .bytes(body(10_000)))
    let message = try #require(try await spool.read(id))
    #expect(message.envelope == sent)
    #expect(message.state == MessageState())
    #expect(message.content.inMemory == body(10_000))
    let entry = try #require(await spool.entries(startingAfter: nil, limit: 10).first)
    #expect(entry.lanes.map(\.account) == ["one", "two"])
    #expect(entry.lanes.allSatisfy { $0.nextAttempt == arrival && $0.attempts == 0 })
    #expect(entry.size == 10_000 && entry.arrival == arrival)
  }

  @Test(arguments: [0, 1, 7, 8, 9, 4096, 3_000_000]) func everySizeSurvivesPowerLoss(size: Int) async throws {
    let disk = MemoryDisk()
    let id = try await open(disk).queue(size)
    let again = try open(disk.crash())
    #expect(try await again.read(id)?.content.inMemory == body(size))
  }

  @Test func stateIsSeenAtOnceAndSurvivesKill() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let id = try await spool.queue(100, accounts: ["a", "b"])
    let later = arrival + .seconds(60)
    spool.update(id) {
      $0.recipients[0] = .delivered
      $0.lanes["b"] = Lane(nextAttempt: later, attempts: 2, lastReply: "450 4.2.1 busy")
    }
    let state = try #require(try await spool.readEnvelope(id)).1
    #expect(state.recipients == [0: .delivered])
    let expected = [EntryLane(account: "b", nextAttempt: later, attempts: 2)]
    #expect(await spool.entries(startingAfter: nil, limit: 1).first?.lanes == expected)
    let again = try open(disk.kill())
    #expect(try await again.readEnvelope(id)?.1 == state)
    #expect(await again.entries(startingAfter: nil, limit: 1).first?.lanes == expected)
    // Unsynced, a power failure takes it back; the message stays.
    #expect(try await open(disk.crash()).readEnvelope(id)?.1 == MessageState())
    try await spool.flush()
    #expect(try await open(disk.crash()).readEnvelope(id)?.1 == state)
  }

  @Test func finishedMessageIsRemovedAndDeadOneStays() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let done = try await spool.queue(10)
    let dead = try await spool.queue(10)
    spool.update(done) { $0.recipients[0] = .delivered }
    spool.update(dead) {
      $0.recipients[0] = .failed("550 no")
      $0.deadReason = "null reverse-path"
    }
    #expect(await spool.ids() == [dead])
    #expect(try await spool.read(done) == nil)
    try await spool.flush()
    let again = try open(disk.crash())
    let entry = try #require(await again.entries(startingAfter: nil, limit: 9).first)
    #expect(entry.id == dead && entry.isDead && entry.lanes.isEmpty)
    again.remove(dead)
    #expect(await again.ids() == [])
  }

  @Test func waitingMessagesShareOneSync() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let before = disk.fileSyncs
    let hold = DispatchSemaphore(value: 0)
    let entered = DispatchSemaphore(value: 0)
    disk.beforeSync.withLock {
      $0 = {
        entered.signal()
        hold.wait()
      }
    }
    async let first = spool.queue(10)
    await withCheckedContinuation { done in
      DispatchQueue.global().async {
        entered.wait()
        done.resume()
      }
    }
    // The writer hangs in the sync of the first message; twenty more gather behind it.
    let others = (0..<20).map { _ in Task { try await spool.queue(10_240) } }
    while spool.waiting < 20 { await Task.yield() }
    disk.beforeSync.withLock { $0 = nil }
    hold.signal()
    _ = try await first
    for other in others { _ = try await other.value }
    #expect(disk.fileSyncs - before == 2)
    #expect(spool.statistics.commits == 2)
    #expect(await spool.ids().count == 21)
  }

  @Test func unsyncedChangeIsSyncedByTheTimer() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, SpoolOptions(syncInterval: .zero))
    let id = try await spool.queue(10)
    let synced = DispatchSemaphore(value: 0)
    disk.beforeSync.withLock { $0 = { synced.signal() } }
    spool.update(id) { $0.isHeld = true }
    let waited = await withCheckedContinuation { done in
      DispatchQueue.global().async { done.resume(returning: synced.wait(timeout: .now() + 10)) }
    }
    #expect(waited == .success)
  }

  @Test func identifiersGrowAcrossRestartsAndClocksThatJumpBack() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk, small, time: ManualTime(wallClock: Timestamp(seconds: 2_000_000_000)))
    let id = try await spool.queue(10)
    #expect(spool.nextID() > id)
    spool.remove(id)
    // Rolls over until the segments that name the first message are gone; the last ones are older by their clock.
    try await spool.flush()
    let second = try open(disk.crash(), small, time: ManualTime(wallClock: Timestamp(seconds: 1_000_000_000)))
    #expect(second.nextID() > id)
    var last = id
    for _ in 0..<20 {
      let next = try await second.queue(3000)
      #expect(next > last)
      last = next
      second.remove(next)
    }
    try await second.flush()
    #expect(try open(disk.crash(), small, time: ManualTime(wallClock: arrival)).nextID() > id)
  }

  @Test func pagesThroughAllMessages() async throws {
    let spool = try open(MemoryDisk())
    var ids: [QueueID] = []
    for _ in 0..<1000 { ids.append(try await spool.queue(1)) }
    for id in ids.enumerated() where id.offset % 3 != 0 { spool.remove(id.element) }
    let left = ids.enumerated().filter { $0.offset % 3 == 0 }.map(\.element)
    var found: [QueueID] = []
    while true {
      let page = await spool.entries(startingAfter: found.last, limit: 37)
      if page.isEmpty { break }
      #expect(page.count <= 37)
      found += page.map(\.id)
    }
    #expect(found == left)
  }

  @Test func secondSpoolIsRefusedUntilTheFirstCloses() async throws {
    let disk = MemoryDisk()
    let first = try open(disk)
    #expect(throws: QueueError.locked(pid: 4711)) { try open(disk) }
    await first.close()
    _ = try open(disk)
    await #expect(throws: QueueError.self) { try await first.queue(1) }
  }
}
