// One reading of a queue, from the first segment to the last content: counts what is whole, names what is not, and with
// salvage remembers where each message is.

import Glibc
import Primitives

/// Where a message of a damaged queue is.
struct SalvagedPlace {
  var place: Located
  var summary: Summary
  /// Why it may not be what was accepted, or not the latest of it; nil when nothing is known against it.
  var damage: String?
  var isContentGone = false
}

/// One reading of a queue.
struct VerifyingScan {
  let directory: String
  let disk: any Disk
  var report = SpoolVerifier.Report()
  /// Messages whose content file is not there.
  var missing: Set<QueueID> = []

  struct Live {
    var isHeld: Bool
    var isDead: Bool
    /// Size and checksum of the content when it is in a file.
    var file: (count: Int, crc: UInt32)?

    init(_ fixed: MessageFixed, _ summary: Summary) {
      isHeld = summary.isHeld
      isDead = summary.isDead
      file = fixed.isFile ? (fixed.contentCount, fixed.contentCRC) : nil
    }
  }
  var live: [UInt64: Live] = [:]
  /// By identifier; nil when nobody wants to know.
  var places: [UInt64: SalvagedPlace]?
  /// The segment that is being read.
  private var number: UInt32 = 0

  init(directory: String, disk: any Disk, isSalvage: Bool) {
    self.directory = directory
    self.disk = disk
    if isSalvage { places = [:] }
  }

  private func path(_ number: UInt32) -> String { directory + "/spool/" + LogFormat.segmentName(number) }
  func contentPath(_ id: QueueID) -> String { directory + "/content/" + id.description }

  private func numbers() throws(DiskError) -> [UInt32] {
    try disk.list(directory + "/spool").compactMap(LogFormat.segmentNumber).sorted()
  }

  mutating func damage(
    _ file: String, _ offset: Int, _ detail: String, _ affected: [QueueID] = [], _ advice: String
  ) {
    report.damages.append(
      .init(file: file, offset: offset, detail: detail, affected: affected, advice: advice))
  }

  private static let logAdvice =
    "the daemon does not start with this: check the disk, then restore the queue directory from a backup, or "
    + QueueError.wayOfSalvage

  static let directoryInPlace = "it is a directory, and should be a file"

  static func unreadable(_ octets: Int, _ code: Int32) -> String {
    "\(octets) octets from here on cannot be read: \(DiskError.message(code))"
  }

  /// - Returns: false when a file has vanished, so that the picture would be wrong.
  mutating func run() throws(DiskError) -> Bool {
    var done: UInt32?
    // Segments that are begun while we read belong to the picture: what compaction copies is found there.
    while true {
      let fresh = try begun().filter { number in done.map { number > $0 } ?? true }
      guard let last = fresh.last else { break }
      var expected = done.map { UInt64($0) + 1 } ?? UInt64(fresh[0])
      for number in fresh {
        if number != expected {
          damage(path(UInt32(clamping: expected)), 0, "the segment is missing", [], Self.logAdvice)
        }
        expected = UInt64(number) + 1
        guard try read(number, isLast: number == last) else { return false }
      }
      done = last
      // Without a new one the end has been reached.
      if try begun().last == last { break }
    }
    try checkContents()
    report.messages = live.count
    report.held = live.values.count { $0.isHeld }
    report.dead = live.values.count { $0.isDead }
    return true
  }

  /// The segments, without one at the end that never was: it does not make the one before it an older one.
  private func begun() throws(DiskError) -> [UInt32] {
    var all = try numbers()
    if all.count > 1, let last = all.last, try isStillborn(last) { all.removeLast() }
    return all
  }

  /// As in ``Recovery``; one that is gone, or is no file, is looked at later.
  private func isStillborn(_ number: UInt32) throws(DiskError) -> Bool {
    do throws(DiskError) { return try SegmentHeader.isMissing(in: disk.open(path(number), .reading)) } catch {
      if error.code == ENOENT || error.code == EISDIR { return false }
      throw error
    }
  }

  // MARK: Segments

  private mutating func read(_ number: UInt32, isLast: Bool) throws(DiskError) -> Bool {
    let path = path(number)
    self.number = number
    let file: PatientFile
    do throws(DiskError) { file = PatientFile(try disk.open(path, .reading)) } catch {
      if error.code == ENOENT { return false }
      throw error
    }
    var size: Int
    let headerBytes: [UInt8]
    do throws(DiskError) {
      size = try file.size()
      headerBytes = try file.bytes(min(LogFormat.segmentHeaderSize, size), at: 0)
    } catch {
      guard error.code == EISDIR else { throw error }
      damage(path, 0, Self.directoryInPlace, [], Self.logAdvice)
      return true
    }
    report.segments += 1
    let header: Result<SegmentHeader, SegmentHeader.Problem> = headerBytes.withUnsafeBytes { raw in
      do throws(SegmentHeader.Problem) { return .success(try SegmentHeader(raw)) } catch { return .failure(error) }
    }
    switch header {
    case .success(let header):
      report.formatVersions[header.version, default: 0] += 1
      if header.number != number {
        damage(path, 12, "the segment says it is number \(header.number)", [], Self.logAdvice)
      }
    case .failure(.version(let version)):
      report.formatVersions[version, default: 0] += 1
      damage(
        path, 8, "format version \(version) is not known to this release", [],
        "verify it with the release that wrote it")
      report.octets += size
      return true
    case .failure(.damaged):
      if isLast, size <= LogFormat.segmentHeaderSize {
        // A segment that is just being created.
        report.octets += size
        report.unfinishedOctets = size
        return true
      }
      damage(path, 0, "the segment header is damaged", [], Self.logAdvice)
    }
    var offset = LogFormat.segmentHeaderSize
    while true {
      var scanner = SegmentScanner(file: file, from: offset, to: size)
      let problem = try walk(&scanner, path)
      offset = scanner.offset
      guard let problem else { break }
      if isLast, try settleEnd(file, path, offset, &size, problem) {
        if offset < size { continue }
        break
      }
      // Whoever salvages takes what can be had, also of what may never have been acknowledged.
      if isLast, report.unfinishedOctets > 0, places == nil { break }
      guard let next = try resume(file, path, offset, size, problem) else { break }
      offset = next
    }
    if let (offset, octets, code) = file.unreadable {
      damage(path, offset, Self.unreadable(octets, code), [], Self.logAdvice)
    }
    report.octets += size
    return true
  }

  /// What to make of the first place in the last segment that is no record.
  /// - Returns: true when it has become one meanwhile. Otherwise the end is unfinished, and counted so, or damaged.
  private mutating func settleEnd(
    _ file: any DiskFile, _ path: String, _ offset: Int, _ size: inout Int, _ problem: String
  ) throws(DiskError) -> Bool {
    size = try file.size()
    if size <= offset { return true }
    var again = SegmentScanner(file: file, from: offset, to: size)
    if case .record(let header, _) = try again.header(), try again.verify(header) { return true }
    if try firstRecord(file, offset, size, promising: offset) == nil { report.unfinishedOctets = size - offset }
    return false
  }

  /// Names a damaged stretch, and finds where records go on.
  private mutating func resume(
    _ file: any DiskFile, _ path: String, _ offset: Int, _ size: Int, _ problem: String
  ) throws(DiskError) -> Int? {
    var scanner = SegmentScanner(file: file, from: offset, to: size)
    var affected: [QueueID] = []
    let next = try firstRecord(file, offset + 8, size, promising: nil)
    if case .record(let header, _) = try scanner.header(), header.id <= QueueID.maximum {
      affected = [QueueID(rawValue: header.id)]
      try salvage(header, &scanner, upTo: next ?? size)
    }
    let end = next.map { "up to offset \($0)" } ?? "up to the end of the file"
    damage(path, offset, "\(problem) (\(end))", affected, Self.logAdvice)
    return next
  }

  /// The offset of the first whole record from `offset` on; with `promising`, of one that says that this place had been
  /// durable when it was written.
  private func firstRecord(
    _ file: any DiskFile, _ offset: Int, _ size: Int, promising: Int?
  ) throws(DiskError) -> Int? {
    var scanner = SegmentScanner(file: file, from: offset, to: size)
    while scanner.offset + LogFormat.recordHeaderSize <= size {
      if case .record(let header, let place) = try scanner.header(), RecordType(rawValue: header.type) != nil,
        promising.map({ header.synced > $0 && header.synced <= place }) ?? true, try scanner.verify(header)
      {
        return place
      }
      scanner.skipWord()
    }
    return nil
  }

  /// Reads records up to the end, or up to the first place that is none, and says what is wrong there.
  private mutating func walk(_ scanner: inout SegmentScanner, _ path: String) throws(DiskError) -> String? {
    while true {
      switch try scanner.header() {
      case .end: return nil
      case .damaged(let detail): return detail
      case .record(let header, let offset):
        guard try scanner.verify(header) else {
          return "the checksum of a record is wrong, or its end is missing"
        }
        if try !enter(header, &scanner) {
          damage(
            path, offset, "a record makes no sense although its checksum is right",
            [QueueID(rawValue: header.id)], "this is a fault of the program that wrote it: please report it")
        }
        scanner.skip(header)
      }
    }
  }

  private mutating func enter(_ header: RecordHeader, _ scanner: inout SegmentScanner) throws(DiskError) -> Bool {
    switch RecordType(rawValue: header.type) {
    case .removal:
      if header.id != LogFormat.nobody { report.removalRecords += 1 }
      live[header.id] = nil
      places?[header.id] = nil
      return true
    case .state:
      report.stateRecords += 1
      let summary = try scanner.withPayload(header.payloadCount) { Self.summaryOfState($0) }
      guard let summary else { return false }
      live[header.id]?.isHeld = summary.isHeld
      live[header.id]?.isDead = summary.isDead
      rememberState(header, summary, scanner)
      return true
    case .message:
      report.messageRecords += 1
      guard let (fixed, summary) = try front(header, &scanner) else { return false }
      live[header.id] = Live(fixed, summary)
      remember(header, fixed, summary, scanner)
      return true
    case nil: return false
    }
  }

  /// All of a message record but its content, if that part is what was written.
  private func front(
    _ header: RecordHeader, _ scanner: inout SegmentScanner
  ) throws(DiskError) -> (MessageFixed, Summary)? {
    guard let fixed = try scanner.withPayload(LogFormat.messageFixedSize, { MessageFixed($0) }),
      fixed.frontCount + (fixed.isFile ? 0 : fixed.contentCount) == header.payloadCount,
      let summary = try scanner.withPayload(fixed.frontCount, { Self.summaryOfFront($0, fixed) })
    else { return nil }
    return (fixed, summary)
  }

  /// Decodes all of a state record.
  private static func summaryOfState(_ payload: UnsafeRawBufferPointer) -> Summary? {
    var decoder = Decoder(payload)
    do throws(MalformedRecord) {
      let summary = try decoder.summary()
      _ = try decoder.state()
      return summary
    } catch { return nil }
  }

  /// Decodes all of a message record but its content.
  private static func summaryOfFront(_ front: UnsafeRawBufferPointer, _ fixed: MessageFixed) -> Summary? {
    guard LogFormat.checksum(UnsafeRawBufferPointer(rebasing: front[4...])) == fixed.frontCRC else { return nil }
    var decoder = Decoder(UnsafeRawBufferPointer(rebasing: front[LogFormat.messageFixedSize...]))
    do throws(MalformedRecord) {
      let summary = try decoder.summary()
      _ = try decoder.envelope()
      if fixed.stateCount > 0 { _ = try decoder.state() }
      return summary
    } catch { return nil }
  }

  // MARK: Salvage

  /// Makes what can be made of a record whose checksum is wrong.
  private mutating func salvage(
    _ header: RecordHeader, _ scanner: inout SegmentScanner, upTo end: Int
  ) throws(DiskError) {
    guard places != nil else { return }
    if header.type == RecordType.message.rawValue, scanner.offset + header.total <= end,
      let (fixed, summary) = try front(header, &scanner)
    {
      remember(header, fixed, summary, scanner)
      live[header.id] = Live(fixed, summary)
      places?[header.id]?.damage = "its content is not what was accepted"
    } else {
      places?[header.id]?.damage = "a later record about it is damaged: it may have been delivered, or changed"
    }
  }

  private mutating func remember(
    _ header: RecordHeader, _ fixed: MessageFixed, _ summary: Summary, _ scanner: SegmentScanner
  ) {
    let entry = IndexEntry(header, fixed, segment: number, offset: scanner.offset)
    places?[header.id] = SalvagedPlace(place: Located(entry: entry, file: scanner.file), summary: summary)
  }

  private mutating func rememberState(_ header: RecordHeader, _ summary: Summary, _ scanner: SegmentScanner) {
    guard var known = places?[header.id] else { return }
    known.place.entry.stateSegment = number
    known.place.entry.stateOffset = UInt32(scanner.offset)
    known.place.entry.statePayload = UInt32(header.payloadCount)
    known.place.stateFile = scanner.file
    known.summary = summary
    places?[header.id] = known
  }
}
