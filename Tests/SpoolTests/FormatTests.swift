// Format versions: what an older release has written is read, what a newer one has written is refused by name.

import Primitives
import Testing

@testable import Spool

@Suite struct FormatTests {
  private let segment = "/q/spool/00000001.seg"

  /// A segment's header with another version.
  private func header(version: UInt32) -> [UInt8] {
    var header = SegmentHeader(number: 1, lastID: 7)
    header.version = version
    return header.encoded()
  }

  /// A queue as version 1 had it: the same records, without the second part of a state.
  private func oldQueue() async throws -> (disk: MemoryDisk, id: QueueID) {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let id = try await spool.queue(100, accounts: ["a", "b"])
    spool.update(id) {
      $0.recipients[0] = .delivered
      $0.lanes["b"] = Lane(nextAttempt: arrival + .seconds(9), attempts: 3, lastReply: "421")
    }
    try await spool.flush()
    var files = disk.snapshot()
    files[segment]?.replaceSubrange(0..<LogFormat.segmentHeaderSize, with: header(version: 1))
    return (MemoryDisk(files), id)
  }

  @Test func spoolOfVersionOneIsReadAndGoesOnInVersionTwo() async throws {
    let (disk, id) = try await oldQueue()
    let before = try disk.size(segment)
    let spool = try open(disk)
    #expect(await spool.ids() == [id])
    let state = try #require(try await spool.readEnvelope(id)).1
    #expect(state.lanes["b"]?.attempts == 3 && state.life.isEmpty && !state.isDelayReported)
    let event = LifeEvent(time: arrival, kind: .deferred, account: "b", text: "450 later")
    spool.update(id) {
      $0.note(event)
      $0.isDelayReported = true
      $0.lanes["b"]?.inDoubt = 2
    }
    let next = try await spool.queue(10)
    // Nothing is added to the old segment: an older release would misread it.
    #expect(try disk.size(segment) == before)
    let again = try open(disk.crash())
    #expect(await again.ids() == [id, next])
    let kept = try #require(try await again.readEnvelope(id)).1
    #expect(kept.life == [event] && kept.isDelayReported && kept.lanes["b"]?.inDoubt == 2)
    #expect(await again.entries(startingAfter: nil, limit: 1).first?.isDelayReported == true)
  }

  @Test func unknownVersionIsRefusedByName() async throws {
    let disk = MemoryDisk()
    try await open(disk).queue(10)
    var files = disk.snapshot()
    files[segment]?.replaceSubrange(0..<LogFormat.segmentHeaderSize, with: header(version: LogFormat.version + 1))
    let error = #expect(throws: QueueError.self) { try open(MemoryDisk(files)) }
    #expect("\(String(describing: error))".contains("format version 3"))
  }

  @Test func laterPartsOfAStateArePassedOver() throws {
    var state = MessageState()
    state.note(LifeEvent(time: arrival, kind: .held, text: "by the operator"))
    var encoder = Encoder()
    encoder.put(state)
    // A later release adds eight octets to the second part, and a kind of event that is not known here.
    var bytes = encoder.bytes
    let part = bytes.count - 4 - Int(bytes.withUnsafeBytes { $0.little(UInt32.self, 9) })
    #expect(part == 9)
    let count = bytes.withUnsafeBytes { $0.little(UInt32.self, part) }
    bytes.withUnsafeMutableBytes { $0.storeBytes(of: (count + 8).littleEndian, toByteOffset: part, as: UInt32.self) }
    bytes[part + 4 + 1 + 4 + 4 + 8] = 200
    bytes += [UInt8](repeating: 0xee, count: 8)
    let decoded = try bytes.withUnsafeBytes { raw in
      var decoder = Decoder(raw)
      let state = try decoder.state()
      #expect(decoder.offset == raw.count)
      return state
    }
    #expect(decoded.life.map(\.kind) == [.other] && decoded.life[0].text == "by the operator")
  }

  @Test func lifeOfAMessageKeepsItsBeginningAndItsLatestPart() {
    var state = MessageState()
    for number in 0..<100 { state.note(LifeEvent(time: arrival, kind: .deferred, text: "\(number)")) }
    #expect(state.life.count == 24)
    #expect(state.life.prefix(4).map(\.text) == ["0", "1", "2", "3"])
    #expect(state.life.suffix(20).map(\.text) == (80..<100).map(String.init))
  }
}
