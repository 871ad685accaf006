// The reserve of space: mail is refused before the disk is full, and taken again only once there is room to spare.

import Primitives
import Testing

@testable import Spool

@Suite struct SpaceTests {
  private let total = 1_000_000
  private let time = ManualTime()

  private func spool(free: Int, reserve: Int? = nil) throws -> (Spool, MemoryDisk) {
    let disk = MemoryDisk()
    disk.state.withLock { $0.space = DiskSpace(total: total, free: free) }
    let options = SpoolOptions(syncInterval: .seconds(3600), reserve: reserve)
    return (try open(disk, options, time: time), disk)
  }

  private func change(_ disk: MemoryDisk, free: Int) {
    disk.state.withLock { $0.space = DiskSpace(total: total, free: free) }
    time.advance(by: .seconds(1))
  }

  @Test func mailIsRefusedBelowTheReserveAndTakenAgainAQuarterAboveIt() async throws {
    let (spool, disk) = try spool(free: 500_000)
    #expect(spool.admits(0) && spool.admits(399_000) && !spool.admits(401_000))
    #expect(!spool.statistics.isShortOfSpace, "one message that is too large is no shortage")
    change(disk, free: 99_000)
    #expect(!spool.admits(0))
    #expect(spool.statistics.isShortOfSpace && spool.statistics.freeBytes == 99_000)
    // Notifications and changes of state may use the reserve.
    try await spool.queue(1000)
    change(disk, free: 120_000)
    #expect(!spool.admits(0), "so that it does not flutter")
    change(disk, free: 125_001)
    #expect(spool.admits(0) && !spool.statistics.isShortOfSpace)
  }

  @Test func whatIsWrittenCountsBeforeTheDiskIsAskedAgain() async throws {
    let (spool, _) = try spool(free: 200_000)
    #expect(spool.admits(90_000))
    try await spool.queue(50_000)
    // No time has passed, so the disk has not been asked.
    #expect(!spool.admits(90_000) && spool.admits(40_000))
  }

  @Test func reserveCanBeSetOrSwitchedOff() throws {
    #expect(try spool(free: 500_000, reserve: 499_000).0.admits(1000))
    #expect(try !spool(free: 500_000, reserve: 499_000).0.admits(1001))
    #expect(try spool(free: 1, reserve: 0).0.admits(1))
  }

  @Test func shortageGivesBackTheLoneSegment() async throws {
    let (spool, disk) = try spool(free: 500_000)
    for _ in 0..<5 { spool.remove(try await spool.queue(10_000)) }
    try await spool.flush()
    #expect(disk.snapshot()["/q/spool/00000001.seg"] != nil)
    change(disk, free: 50_000)
    #expect(!spool.admits(0))
    while disk.snapshot()["/q/spool/00000001.seg"] != nil { try await spool.flush() }
    #expect(spool.statistics.diskBytes < 1000)
  }
}
