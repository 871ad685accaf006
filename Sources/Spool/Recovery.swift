// Builds the state of the queue from what is on disk.

import Glibc
import Primitives

/// Reads all segments in order.
struct Recovery {
  let directory: String
  let disk: any Disk
  var shared = SharedState()
  var lastID: UInt64 = 0

  private var segmentDirectory: String { directory + "/spool" }
  private var contentDirectory: String { directory + "/content" }

  init(directory: String, disk: any Disk) {
    self.directory = directory
    self.disk = disk
  }

  mutating func run() throws(QueueError) {
    do throws(DiskError) {
      try disk.prepareDirectory(segmentDirectory)
      try disk.prepareDirectory(contentDirectory)
      try disk.syncDirectory(directory)
    } catch { throw error.asQueueError }
    let names: [String]
    do throws(DiskError) { names = try disk.list(segmentDirectory) } catch { throw error.asQueueError }
    let numbers = names.compactMap(LogFormat.segmentNumber).sorted()
    for (place, number) in numbers.enumerated() {
      if place > 0, numbers[place - 1] + 1 != number {
        throw .corrupt(file: path(numbers[place - 1] + 1), offset: 0, detail: "the segment is missing")
      }
    }
    for number in numbers { try replay(number, isLast: number == numbers.last) }
    do throws(DiskError) {
      if shared.segments.isEmpty { try begin(1) }
      // What was read may have been in the page cache only, if just the process died. Nobody may act on it before a
      // power failure can no longer take it back.
      try shared.segments[shared.segments.count - 1].file.sync()
      try disk.syncDirectory(segmentDirectory)
    } catch { throw error.asQueueError }
    try checkContents()
  }

  private func path(_ number: UInt32) -> String { segmentDirectory + "/" + LogFormat.segmentName(number) }

  private mutating func begin(_ number: UInt32) throws(DiskError) {
    let file = try disk.open(path(number), .create)
    let header = SegmentHeader(number: number, lastID: lastID).encoded()
    try file.writeAll(header, at: 0)
    try file.sync()
    try disk.syncDirectory(segmentDirectory)
    shared.segments.append(Segment(number: number, file: file, size: header.count))
  }

  private mutating func replay(_ number: UInt32, isLast: Bool) throws(QueueError) {
    let path = path(number)
    do {
      let file = try disk.open(path, .existing)
      let size = try file.size()
      let header: SegmentHeader
      let bytes = try file.bytes(LogFormat.segmentHeaderSize, at: 0)
      do throws(SegmentHeader.Problem) {
        header = try bytes.withUnsafeBytes { raw in
          Result { () throws(SegmentHeader.Problem) in try SegmentHeader(raw) }
        }.get()
      } catch {
        if case .version(let version) = error {
          throw QueueError.corrupt(
            file: path, offset: 8,
            detail: "format version \(version) is not known to this release; use the one that wrote it")
        }
        // A crash while the segment was created: nothing was written behind a header that is not durable.
        if isLast, size <= LogFormat.segmentHeaderSize { return try begin(number) }
        throw QueueError.corrupt(file: path, offset: 0, detail: "the segment header is damaged")
      }
      guard header.number == number else {
        throw QueueError.corrupt(file: path, offset: 12, detail: "the segment says it is number \(header.number)")
      }
      lastID = max(lastID, header.lastID)
      shared.segments.append(Segment(number: number, file: file, size: LogFormat.segmentHeaderSize))
      var scanner = SegmentScanner(file: file, from: LogFormat.segmentHeaderSize, to: size)
      let problem = try replay(&scanner, number)
      let end = scanner.offset
      shared.segments[shared.segments.count - 1].size = end
      guard let problem else { return }
      guard isLast else { throw QueueError.corrupt(file: path, offset: end, detail: problem) }
      if let witness = try promisedBehind(end, file, size) {
        throw QueueError.corrupt(
          file: path, offset: end, detail: "\(problem), though the record at offset \(witness) says all was well here")
      }
      try file.truncate(to: end)
      try file.sync()
    } catch let error as DiskError {
      throw error.asQueueError
    } catch let error as QueueError {
      throw error
    } catch {
      throw .failed("\(error)")
    }
  }

  /// Replays up to the end, or to the first place that is not a whole record, and says what is wrong there.
  private mutating func replay(_ scanner: inout SegmentScanner, _ number: UInt32) throws(DiskError) -> String? {
    while true {
      switch try scanner.header() {
      case .end: return nil
      case .damaged(let detail): return detail
      case .record(let header, let offset):
        guard try scanner.verify(header) else { return "the checksum of a record is wrong, or its end is missing" }
        guard try enter(header, number, offset, &scanner) else { return "a record makes no sense" }
        lastID = max(lastID, header.id)
        scanner.skip(header)
      }
    }
  }

  private mutating func enter(
    _ header: RecordHeader, _ number: UInt32, _ offset: Int, _ scanner: inout SegmentScanner
  ) throws(DiskError) -> Bool {
    switch RecordType(rawValue: header.type) {
    case .removal:
      _ = shared.forget(header.id)
      return true
    case .state:
      // Behind a copy of the message that is already gone; the later copy has it.
      guard shared.index[header.id] != nil else { return true }
      guard let summary = try scanner.withPayload(header.payloadCount, Self.summary) else { return false }
      shared.enterState(header.id, segment: number, offset: offset, payload: header.payloadCount, summary)
      return true
    case .message:
      guard header.payloadCount >= LogFormat.messageFixedSize,
        let fixed = try scanner.withPayload(LogFormat.messageFixedSize, { MessageFixed($0) }),
        fixed.frontCount + (fixed.isFile ? 0 : fixed.contentCount) == header.payloadCount,
        let summary = try scanner.withPayload(
          LogFormat.messageFixedSize + fixed.summaryCount,
          { Self.summary(UnsafeRawBufferPointer(rebasing: $0[LogFormat.messageFixedSize...])) })
      else { return false }
      let entry = IndexEntry(
        id: header.id, arrival: fixed.arrival.microseconds, nextAttempt: 0, segment: number, offset: UInt32(offset),
        payload: UInt32(header.payloadCount), front: UInt32(fixed.frontCount),
        size: UInt32(truncatingIfNeeded: fixed.contentCount), stateSegment: 0, stateOffset: 0, statePayload: 0,
        account: IndexEntry.noLane, attempts: 0, flags: fixed.isFile ? IndexEntry.file : 0)
      shared.enter(entry, summary)
      return true
    case nil:
      return false
    }
  }

  private static func summary(_ bytes: UnsafeRawBufferPointer) -> Summary? {
    var decoder = Decoder(bytes)
    do throws(MalformedRecord) { return try decoder.summary() } catch { return nil }
  }

  /// The offset of a whole record behind `offset` that was written when everything there was durable already. If there
  /// is one, the damage did not come from a torn write, and cutting the tail off would lose acknowledged mail.
  private func promisedBehind(_ offset: Int, _ file: any DiskFile, _ size: Int) throws(DiskError) -> Int? {
    var scanner = SegmentScanner(file: file, from: offset, to: size)
    while scanner.offset + LogFormat.recordHeaderSize <= size {
      if case .record(let header, let place) = try scanner.header(), header.synced > offset,
        header.synced <= place, try scanner.verify(header)
      {
        return place
      }
      scanner.skipWord()
    }
    return nil
  }

  /// Every content file named by a message must be there; the others go.
  private mutating func checkContents() throws(QueueError) {
    var wanted: [String: Int] = [:]
    shared.index.walk(above: nil) { entry in
      if entry.hasFile { wanted[QueueID(rawValue: entry.id).description] = Int(entry.size) }
      return true
    }
    do {
      for name in try disk.list(contentDirectory) {
        let path = contentDirectory + "/" + name
        if let size = wanted.removeValue(forKey: name) {
          let found = try disk.size(path)
          if found != size {
            throw QueueError.corrupt(file: path, offset: found, detail: "its size should be \(size)")
          }
        } else if let id = QueueID(name) {
          lastID = max(lastID, id.rawValue)
          try disk.unlink(path)
        }
      }
    } catch let error as DiskError {
      throw error.asQueueError
    } catch let error as QueueError {
      throw error
    } catch {
      throw .failed("\(error)")
    }
    if let missing = wanted.keys.sorted().first {
      throw .corrupt(file: contentDirectory + "/" + missing, offset: 0, detail: "the content of a message is missing")
    }
  }
}
