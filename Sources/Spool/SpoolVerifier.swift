// Looks at every octet of a queue without changing one and without its lock, so that it may be asked of a queue that is
// in use, that refuses to open, or that is a copy.
//
// What a daemon does meanwhile must not look like damage: the end of the last segment may be half written, segments go
// when compaction has copied what lived in them, and content files go with their messages. So the end is read again
// before it is called unfinished, and a scan that has lost a file begins anew.

import CChecksum
import Glibc
import Primitives

/// A read-only check of a queue directory.
public struct SpoolVerifier: Sendable {
  /// Something that is not what was written.
  public struct Damage: Sendable, Equatable {
    public var file: String
    /// In octets from the beginning of the file.
    public var offset: Int
    public var detail: String
    /// The messages it concerns, as far as that can be known.
    public var affected: [QueueID]
    /// What to do about it.
    public var advice: String
  }

  /// What was found.
  public struct Report: Sendable, Equatable {
    public var segments = 0
    /// Octets of the segments.
    public var octets = 0
    /// Segments by their format version.
    public var formatVersions: [UInt32: Int] = [:]
    public var messageRecords = 0
    public var stateRecords = 0
    public var removalRecords = 0
    /// Messages that are queued, the dead and the held ones among them.
    public var messages = 0
    public var dead = 0
    public var held = 0
    public var contentFiles = 0
    /// Octets of the contents in files.
    public var contentOctets = 0
    /// Files in `content` that no message names: being received now, or left over from a crash.
    public var unnamedContentFiles = 0
    /// The end of the last segment that is not a whole record: being written now, or cut off by a crash before anybody
    /// was told that it is safe. Octets.
    public var unfinishedOctets = 0
    public var damages: [Damage] = []
  }

  /// Why there is no report.
  public enum Problem: Error, Sendable, Equatable, CustomStringConvertible {
    case cannotRead(QueueError)
    /// Compaction was quicker, again and again.
    case keepsChanging

    public var description: String {
      switch self {
      case .cannotRead(let error): "\(error)"
      case .keepsChanging: "the queue changes faster than it can be read: try again when less mail comes in"
      }
    }
  }

  private let directory: String
  private let disk: any Disk
  private static let rounds = 8

  public init(directory: String, disk: any Disk = PosixDisk()) {
    self.directory = directory
    self.disk = disk
  }

  /// Reads all of the queue. Not to be called on an event loop.
  public func run() throws(Problem) -> Report {
    var lost: Set<QueueID> = []
    for _ in 0..<Self.rounds {
      var scan = VerifyingScan(directory: directory, disk: disk)
      do throws(DiskError) {
        guard try scan.run() else { continue }
      } catch { throw .cannotRead(error.asQueueError) }
      // A content file may have gone with its message since the log was read; one that is missing twice is lost.
      if scan.missing.isSubset(of: lost) {
        scan.reportMissing()
        return scan.report
      }
      lost = scan.missing
    }
    throw .keepsChanging
  }
}

/// One reading of a queue.
private struct VerifyingScan {
  let directory: String
  let disk: any Disk
  var report = SpoolVerifier.Report()
  /// Messages whose content file is not there.
  var missing: Set<QueueID> = []

  private struct Live {
    var isHeld: Bool
    var isDead: Bool
    /// Size and checksum of the content when it is in a file.
    var file: (count: Int, crc: UInt32)?
  }
  private var live: [UInt64: Live] = [:]

  init(directory: String, disk: any Disk) {
    self.directory = directory
    self.disk = disk
  }

  private func path(_ number: UInt32) -> String { directory + "/spool/" + LogFormat.segmentName(number) }
  private func contentPath(_ id: QueueID) -> String { directory + "/content/" + id.description }

  private func numbers() throws(DiskError) -> [UInt32] {
    try disk.list(directory + "/spool").compactMap(LogFormat.segmentNumber).sorted()
  }

  private mutating func damage(
    _ file: String, _ offset: Int, _ detail: String, _ affected: [QueueID] = [], _ advice: String
  ) {
    report.damages.append(
      .init(file: file, offset: offset, detail: detail, affected: affected, advice: advice))
  }

  private static let logAdvice =
    "the daemon does not start with this: check the disk, keep a copy of the queue directory, and restore it from a "
    + "backup or ask for help with the copy"

  private static let directoryInPlace = "it is a directory, and should be a file"

  /// - Returns: false when a file has vanished, so that the picture would be wrong.
  mutating func run() throws(DiskError) -> Bool {
    var done: UInt32?
    // Segments that are begun while we read belong to the picture: what compaction copies is found there.
    while true {
      let all = try numbers()
      let fresh = all.filter { number in done.map { number > $0 } ?? true }
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
      if try numbers().last == last { break }
    }
    try checkContents()
    report.messages = live.count
    report.held = live.values.count { $0.isHeld }
    report.dead = live.values.count { $0.isDead }
    return true
  }

  // MARK: Segments

  private mutating func read(_ number: UInt32, isLast: Bool) throws(DiskError) -> Bool {
    let path = path(number)
    let file: any DiskFile
    do throws(DiskError) { file = try disk.open(path, .reading) } catch {
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
      if isLast, report.unfinishedOctets > 0 { break }
      guard let next = try resume(file, path, offset, size, problem) else { break }
      offset = next
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
    if case .record(let header, _) = try scanner.header(), header.id <= QueueID.maximum {
      affected = [QueueID(rawValue: header.id)]
    }
    let next = try firstRecord(file, offset + 8, size, promising: nil)
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
      report.removalRecords += 1
      live[header.id] = nil
      return true
    case .state:
      report.stateRecords += 1
      let summary = try scanner.withPayload(header.payloadCount) { Self.summaryOfState($0) }
      guard let summary else { return false }
      live[header.id]?.isHeld = summary.isHeld
      live[header.id]?.isDead = summary.isDead
      return true
    case .message:
      report.messageRecords += 1
      guard let fixed = try scanner.withPayload(LogFormat.messageFixedSize, { MessageFixed($0) }),
        fixed.frontCount + (fixed.isFile ? 0 : fixed.contentCount) == header.payloadCount,
        let summary = try scanner.withPayload(fixed.frontCount, { Self.summaryOfFront($0, fixed) })
      else { return false }
      live[header.id] = Live(
        isHeld: summary.isHeld, isDead: summary.isDead,
        file: fixed.isFile ? (fixed.contentCount, fixed.contentCRC) : nil)
      return true
    case nil: return false
    }
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

  // MARK: Contents

  private static func contentAdvice(_ id: QueueID) -> String {
    "restore this file from a backup, or delete the message with `ssmtp-mailer queue delete \(id)` and have it sent again"
  }

  private mutating func checkContents() throws(DiskError) {
    let names: Set<String>
    do throws(DiskError) { names = Set(try disk.list(directory + "/content")) } catch {
      guard error.code == ENOENT || error.code == ENOTDIR else { throw error }
      damage(
        directory + "/content", 0, "the directory of the contents is missing",
        live.filter { $0.value.file != nil }.keys.sorted().map { QueueID(rawValue: $0) },
        "restore it from a backup; if no message is named here, an empty directory will do")
      return
    }
    var named = 0
    for (raw, message) in live.sorted(by: { $0.key < $1.key }) {
      guard let wanted = message.file else { continue }
      let id = QueueID(rawValue: raw)
      if names.contains(id.description) { named += 1 }
      let found: (count: Int, crc: UInt32)
      do throws(DiskError) { found = try checksum(contentPath(id)) } catch {
        switch error.code {
        case ENOENT: missing.insert(id)
        case EISDIR: damage(contentPath(id), 0, Self.directoryInPlace, [id], Self.contentAdvice(id))
        default: throw error
        }
        continue
      }
      report.contentFiles += 1
      report.contentOctets += found.count
      let advice = Self.contentAdvice(id)
      if found.count != wanted.count {
        damage(contentPath(id), min(found.count, wanted.count), "its size should be \(wanted.count)", [id], advice)
      } else if found.crc != wanted.crc {
        damage(contentPath(id), 0, "the content is not what was written: its checksum is wrong", [id], advice)
      }
    }
    report.unnamedContentFiles = names.count - named
  }

  private func checksum(_ path: String) throws(DiskError) -> (count: Int, crc: UInt32) {
    let file = try disk.open(path, .reading)
    var offset = 0
    var crc: UInt32 = 0
    while true {
      let bytes = try file.bytes(1 << 20, at: offset)
      if bytes.isEmpty { return (offset, crc) }
      crc = bytes.withUnsafeBytes { LogFormat.checksum($0, after: crc) }
      offset += bytes.count
    }
  }

  mutating func reportMissing() {
    for id in missing.sorted() {
      damage(
        contentPath(id), 0, "the content of a message is missing", [id],
        "the daemon does not start without it: restore the file from a backup")
    }
  }
}
