// Builds the state of the queue from what is on disk.

import Glibc
import Primitives

/// Reads all segments in order.
struct Recovery {
  let directory: String
  let disk: any Disk
  let safeguards: Safeguards
  var shared = SharedState()
  var lastID: UInt64 = 0
  /// Of the segment read last: its format version, and up to where its records say that it was durable.
  private var version = LogFormat.version
  private var promised = 0
  /// Up to where the last record vouches for the last segment; 0 when it does not.
  private(set) var vouched = 0
  /// Messages whose contents are not there, or not whole, and what is wrong with them.
  private(set) var damaged: [(id: QueueID, detail: String)] = []
  /// What was cut off the end of the last segment: a write that a crash has interrupted.
  private(set) var cutOff = 0

  private var segmentDirectory: String { directory + "/spool" }
  private var contentDirectory: String { directory + "/content" }

  init(directory: String, disk: any Disk, safeguards: Safeguards = .all) {
    self.directory = directory
    self.disk = disk
    self.safeguards = safeguards
  }

  mutating func run() throws(QueueError) {
    do throws(DiskError) {
      try disk.prepareDirectory(segmentDirectory)
      try disk.prepareDirectory(contentDirectory)
      try disk.syncDirectory(directory)
    } catch { throw error.asQueueError }
    let names: [String]
    do throws(DiskError) { names = try disk.list(segmentDirectory) } catch { throw error.asQueueError }
    var numbers = names.compactMap(LogFormat.segmentNumber).sorted()
    do throws(DiskError) {
      if let last = numbers.last, try SegmentHeader.isMissing(in: disk.open(path(last), .existing)) {
        try disk.unlink(path(last))
        try disk.syncDirectory(segmentDirectory)
        numbers.removeLast()
      }
    } catch { throw error.asQueueError }
    for (place, number) in numbers.enumerated() {
      if place > 0, numbers[place - 1] + 1 != number {
        throw .corrupt(file: path(numbers[place - 1] + 1), offset: 0, detail: "the segment is missing")
      }
    }
    for number in numbers { try replay(number, isLast: number == numbers.last) }
    do throws(DiskError) {
      if let last = shared.segments.last {
        if safeguards.contains(.rewritingOfUncertainTail) {
          guard try rewrite(last) else {
            throw DiskError(
              operation: "read", path: path(last.number), code: EIO, detail: "it does not read the same twice")
          }
        }
        try last.file.sync()
        try disk.syncDirectory(segmentDirectory)
        if version != LogFormat.version { try begin(last.number + 1) }
      } else {
        try begin(1)
      }
    } catch { throw error.asQueueError }
    try checkContents()
  }

  private static func isWhole(_ bytes: [UInt8], withHeader: Bool) -> Bool {
    bytes.withUnsafeBytes { raw in
      var offset = 0
      if withHeader {
        guard (try? SegmentHeader(raw)) != nil else { return false }
        offset = LogFormat.segmentHeaderSize
      }
      while offset < raw.count {
        guard let header = RecordHeader(UnsafeRawBufferPointer(rebasing: raw[offset...])),
          offset + header.total <= raw.count
        else { return false }
        let end = offset + LogFormat.recordHeaderSize + header.payloadCount
        guard LogFormat.checksum(UnsafeRawBufferPointer(rebasing: raw[(offset + 8)..<end])) == header.crc else {
          return false
        }
        offset += header.total
      }
      return true
    }
  }

  /// Writes again what may have been read from the page cache only.
  ///
  /// If just the process died, what it wrote last is in the cache and will be on the disk soon. But if it died because
  /// a sync had failed, the cache holds pages that the kernel takes for clean: syncing them again reports success and
  /// writes nothing, and a power failure later would leave a hole in front of records that were acknowledged. Only
  /// writing makes them dirty again. Nobody may act on what was read before that.
  /// - Returns: false when the octets are not those that were checked: the cache has let go of them since, and the disk
  ///   has others. Nothing is written then, and the next start cuts off what the disk does not have.
  private func rewrite(_ segment: Segment) throws(DiskError) -> Bool {
    // With no record that says otherwise not even the header is for certain on the disk.
    let promised = min(promised, segment.size)
    let bytes = try segment.file.bytes(segment.size - promised, at: promised)
    guard promised + bytes.count == segment.size, Self.isWhole(bytes, withHeader: promised == 0) else { return false }
    try segment.file.writeAll(bytes, at: promised)
    // The same holds for a truncation: what it cut off may still be on the disk, and would stand behind later records.
    try segment.file.truncate(to: segment.size)
    return true
  }

  private func path(_ number: UInt32) -> String { segmentDirectory + "/" + LogFormat.segmentName(number) }

  private mutating func begin(_ number: UInt32) throws(DiskError) {
    let file = try disk.open(path(number), .create)
    let header = SegmentHeader(number: number, lastID: lastID).encoded()
    try file.writeAll(header, at: 0)
    try file.sync()
    try disk.syncDirectory(segmentDirectory)
    shared.segments.append(Segment(number: number, file: file, size: header.count))
    version = LogFormat.version
    promised = header.count
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
        throw QueueError.corrupt(file: path, offset: 0, detail: "the segment header is damaged")
      }
      guard header.number == number else {
        throw QueueError.corrupt(file: path, offset: 12, detail: "the segment says it is number \(header.number)")
      }
      lastID = max(lastID, header.lastID)
      version = header.version
      promised = 0
      vouched = 0
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
      cutOff = size - end
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
        guard try scanner.verify(header) || !safeguards.contains(.checksums) else {
          return "the checksum of a record is wrong, or its end is missing"
        }
        guard header.id <= QueueID.maximum, try enter(header, number, offset, &scanner) else {
          return "a record makes no sense"
        }
        lastID = max(lastID, header.id)
        promised = max(promised, Int(clamping: header.synced))
        scanner.skip(header)
        vouched = header.id == LogFormat.nobody && header.synced == UInt64(offset) ? scanner.offset : 0
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
      shared.enter(IndexEntry(header, fixed, segment: number, offset: offset), summary)
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

  /// Looks for the content files that messages name; the others go.
  private mutating func checkContents() throws(QueueError) {
    var wanted: [String: Int] = [:]
    shared.index.walk(above: nil) { entry in
      if entry.hasFile { wanted[QueueID(rawValue: entry.id).description] = Int(entry.size) }
      return true
    }
    let contents = wanted.count
    do throws(DiskError) {
      for name in try disk.list(contentDirectory) {
        let path = contentDirectory + "/" + name
        if let size = wanted.removeValue(forKey: name) {
          let found = try disk.size(path)
          if found != size, let id = QueueID(name) {
            damaged.append((id, "\(path) has \(found) octets instead of \(size)"))
          }
        } else if let id = QueueID(name) {
          lastID = max(lastID, id.rawValue)
          try disk.unlink(path)
        }
      }
    } catch { throw error.asQueueError }
    // All at once they are not lost: somebody has forgotten to mount something, or to copy it.
    let missing = wanted.count
    if missing > 3, missing == contents {
      throw .corrupt(file: contentDirectory, offset: 0, detail: "all \(missing) contents of messages are missing")
    }
    for name in wanted.keys.sorted() {
      if let id = QueueID(name) { damaged.append((id, "\(contentDirectory)/\(name) is missing")) }
    }
  }
}
