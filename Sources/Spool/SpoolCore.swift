// What the writer, the readers and the callers of a spool share, and the reading of single records.

import Primitives

/// A segment and what of it is still needed.
struct Segment {
  let number: UInt32
  let file: any DiskFile
  var size: Int
  /// Octets of message and state records that are the latest of a queued message.
  var live = 0
  /// Message records that are the latest of a queued message.
  var messages = 0
}

/// A change that is made but not yet in the log.
enum Unwritten {
  case removed
  case state(MessageState, Summary)
}

/// A message on its way into the log.
struct NewRecord {
  var id: QueueID
  var envelope: Envelope
  var state = MessageState()
  var content: [UInt8] = []
  /// Size and checksum of the content when it is in a file.
  var file: (count: Int, crc: UInt32)?
  var done: CheckedContinuation<Result<Void, QueueError>, Never>?
}

enum Operation {
  case append(NewRecord)
  case update(QueueID, @Sendable (inout MessageState) -> Void)
  case remove(QueueID)
  /// Done once everything before is in the index, and with `sync` durable.
  case barrier(sync: Bool, CheckedContinuation<Result<Void, QueueError>, Never>)
}

/// The state behind the mutex. Only the writer changes index, segments and unwritten changes.
struct SharedState {
  var pending: [Operation] = []
  /// Whether the writer has a drain on its queue.
  var isDraining = false
  /// How many pending operations change each message.
  var touched: [UInt64: Int] = [:]
  var index = MessageIndex()
  var unwritten: [UInt64: Unwritten] = [:]
  /// Messages that cannot be read, and why: nobody gets one of them from this process, whatever the disk says next, for
  /// changes of theirs may be lost.
  var keptBack: [UInt64: QueueError] = [:]
  /// In the order of their numbers, which have no gaps; the last one is written to.
  var segments: [Segment] = []
  var live = 0
  var contentFileBytes = 0
  var commits = 0
  var syncs = 0
  var failure: QueueError?
  var isClosed = false

  /// The place of a segment that is known to exist.
  func place(_ number: UInt32) -> Int { Int(number) - Int(segments.first?.number ?? 0) }

  mutating func count(_ entry: IndexEntry, _ sign: Int) {
    let message = place(entry.segment)
    segments[message].live += sign * entry.messageBytes
    segments[message].messages += sign
    live += sign * (entry.messageBytes + entry.stateBytes)
    if entry.stateSegment != 0 { segments[place(entry.stateSegment)].live += sign * entry.stateBytes }
    if entry.hasFile { contentFileBytes += sign * Int(entry.size) }
  }

  /// Enters a message record; whatever was known of the message before no longer counts.
  mutating func enter(_ entry: IndexEntry, _ summary: Summary) {
    if let old = index.remove(entry.id) { count(old, -1) }
    var entry = entry
    index.apply(summary, to: &entry)
    index.set(entry)
    count(entry, 1)
  }

  /// Enters a state record of a known message.
  mutating func enterState(_ id: UInt64, segment: UInt32, offset: Int, payload: Int, _ summary: Summary) {
    guard var entry = index[id] else { return }
    count(entry, -1)
    entry.stateSegment = segment
    entry.stateOffset = UInt32(offset)
    entry.statePayload = UInt32(payload)
    index.apply(summary, to: &entry)
    index.set(entry)
    count(entry, 1)
  }

  /// - Returns: the entry, when there was one.
  mutating func forget(_ id: UInt64) -> IndexEntry? {
    guard let entry = index.remove(id) else { return nil }
    count(entry, -1)
    return entry
  }
}

/// Where a message can be read. The files stay open while this lives, even when compaction has unlinked them.
struct Located {
  var entry: IndexEntry
  var file: any DiskFile
  var stateFile: (any DiskFile)?
  var unwritten: MessageState?

  /// In the file of the message record.
  var contentOffset: Int { Int(entry.offset) + LogFormat.recordHeaderSize + Int(entry.front) }
}

final class SpoolCore: Sendable {
  let directory: String
  let disk: any Disk
  let time: any Timekeeper
  let options: SpoolOptions
  let shared: Mutex<SharedState>
  let io: ContentQueues
  let space: Mutex<SpaceGauge>
  private let onFailure: @Sendable (QueueError) -> Void
  /// Told what is wrong with single messages, which are kept back for it.
  let onDamage: @Sendable (String) -> Void

  init(
    directory: String, disk: any Disk, time: any Timekeeper, options: SpoolOptions, queues: SpoolQueues,
    shared: sending SharedState, onFailure: @escaping @Sendable (QueueError) -> Void = { _ in },
    onDamage: @escaping @Sendable (String) -> Void = { _ in }
  ) {
    self.onFailure = onFailure
    self.onDamage = onDamage
    self.directory = directory
    self.disk = disk
    self.time = time
    self.options = options
    self.shared = Mutex(shared)
    io = ContentQueues(queues)
    space = Mutex(SpaceGauge(reserve: options.reserve))
  }

  var segmentDirectory: String { directory + "/spool" }
  var contentDirectory: String { directory + "/content" }
  /// What was damaged beyond use, for people.
  var damagedDirectory: String { directory + "/damaged" }
  func segmentPath(_ number: UInt32) -> String { segmentDirectory + "/" + LogFormat.segmentName(number) }
  func contentPath(_ id: UInt64) -> String { contentDirectory + "/" + QueueID(rawValue: id).description }

  /// Stops the spool for good.
  func fail(_ error: QueueError) {
    let isFirst = shared.withLock { s in
      if s.failure != nil { return false }
      s.failure = error
      return true
    }
    if isFirst { onFailure(error) }
  }

  func locate(_ id: QueueID) -> Located? {
    shared.withLock { s in
      guard let entry = s.index[id.rawValue] else { return nil }
      var located = Located(entry: entry, file: s.segments[s.place(entry.segment)].file)
      if entry.stateSegment != 0 { located.stateFile = s.segments[s.place(entry.stateSegment)].file }
      switch s.unwritten[id.rawValue] {
      case .removed: return nil
      case .state(let state, _): located.unwritten = state
      case nil: break
      }
      return located
    }
  }

  // MARK: Reading records

  /// What stands in front of the content of a message, and the checksums: that of the whole record, and that of what was
  /// read so far.
  struct Front {
    var envelope: Envelope
    var state: MessageState
    var fixed: MessageFixed
    var recordCRC: UInt32
    var crc: UInt32
  }

  func front(_ place: Located) throws(QueueError) -> Front {
    let entry = place.entry
    let frontEnd = LogFormat.recordHeaderSize + Int(entry.front)
    let bytes = try read(place.file, entry.segment, frontEnd, at: Int(entry.offset))
    let id = entry.id
    let front: Front? = bytes.withUnsafeBytes { raw in
      guard let header = RecordHeader(raw), header.id == id, header.type == RecordType.message.rawValue else {
        return nil
      }
      let payload = UnsafeRawBufferPointer(rebasing: raw[LogFormat.recordHeaderSize...])
      guard let fixed = MessageFixed(payload), fixed.frontCount == payload.count,
        LogFormat.checksum(UnsafeRawBufferPointer(rebasing: payload[4...])) == fixed.frontCRC
      else { return nil }
      let body = UnsafeRawBufferPointer(rebasing: payload[(LogFormat.messageFixedSize + fixed.summaryCount)...])
      var decoder = Decoder(body)
      do throws(MalformedRecord) {
        let envelope = try decoder.envelope()
        let state = fixed.stateCount > 0 ? try decoder.state() : MessageState()
        let crc = LogFormat.checksum(UnsafeRawBufferPointer(rebasing: raw[8...]))
        return Front(envelope: envelope, state: state, fixed: fixed, recordCRC: header.crc, crc: crc)
      } catch { return nil }
    }
    guard let front else { throw damaged(entry.segment, entry.offset) }
    return front
  }

  /// Reads and checks a message.
  func message(_ place: Located, withContent: Bool) throws(QueueError) -> QueuedMessage {
    let entry = place.entry
    let front = try front(place)
    var content = Content.bytes([])
    if withContent {
      if entry.hasFile {
        content = .file(contentFile(place, front))
      } else {
        let bytes = try read(place.file, entry.segment, Int(entry.size), at: place.contentOffset)
        guard bytes.withUnsafeBytes({ LogFormat.checksum($0, after: front.crc) }) == front.recordCRC else {
          throw damaged(entry.segment, entry.offset)
        }
        content = .bytes(bytes)
      }
    }
    let state = try state(place) ?? front.state
    return QueuedMessage(id: QueueID(rawValue: entry.id), envelope: front.envelope, state: state, content: content)
  }

  /// Reads and checks all but the content. A disk that stammers is asked again at once.
  func messageWithoutContent(_ place: Located) throws(QueueError) -> QueuedMessage {
    for _ in 0..<2 {
      do throws(QueueError) { return try message(place, withContent: false) } catch {
        guard case .io = error else { throw error }
      }
    }
    return try message(place, withContent: false)
  }

  func contentFile(_ place: Located, _ front: Front) -> ContentFile {
    ContentFile(
      id: QueueID(rawValue: place.entry.id), path: contentPath(place.entry.id), count: Int(place.entry.size),
      crc: front.fixed.contentCRC, core: self)
  }

  /// The state behind the message record; nil when there is none.
  func state(_ place: Located) throws(QueueError) -> MessageState? {
    if let unwritten = place.unwritten { return unwritten }
    guard let file = place.stateFile else { return nil }
    let entry = place.entry
    let count = LogFormat.recordHeaderSize + Int(entry.statePayload)
    let bytes = try read(file, entry.stateSegment, count, at: Int(entry.stateOffset))
    let state: MessageState? = bytes.withUnsafeBytes { raw in
      guard let header = RecordHeader(raw), header.id == entry.id,
        LogFormat.checksum(UnsafeRawBufferPointer(rebasing: raw[8...])) == header.crc
      else { return nil }
      var decoder = Decoder(UnsafeRawBufferPointer(rebasing: raw[LogFormat.recordHeaderSize...]))
      do throws(MalformedRecord) {
        _ = try decoder.summary()
        return try decoder.state()
      } catch { return nil }
    }
    guard let state else { throw damaged(entry.stateSegment, entry.stateOffset) }
    return state
  }

  private func read(
    _ file: any DiskFile, _ segment: UInt32, _ count: Int, at offset: Int
  ) throws(QueueError) -> [UInt8] {
    let bytes: [UInt8]
    do throws(DiskError) { bytes = try file.bytes(count, at: offset) } catch { throw error.asQueueError }
    guard bytes.count == count else { throw damaged(segment, UInt32(offset)) }
    return bytes
  }

  private func damaged(_ segment: UInt32, _ offset: UInt32) -> QueueError {
    .corrupt(file: segmentPath(segment), offset: Int(offset), detail: "the record is not what was written")
  }
}

extension DiskFile {
  /// Up to `count` bytes from `offset`; fewer only at the end of the file.
  func bytes(_ count: Int, at offset: Int) throws(DiskError) -> [UInt8] {
    var failure: DiskError?
    let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      do throws(DiskError) {
        filled = try read(
          into: UnsafeMutableRawBufferPointer(rebasing: UnsafeMutableRawBufferPointer(buffer)[..<count]), at: offset)
      } catch { failure = error }
    }
    if let failure { throw failure }
    return bytes
  }

  /// Writes all of `bytes`, however many calls it takes.
  func writeAll(_ bytes: [UInt8], at offset: Int) throws(DiskError) {
    let result: Result<Void, DiskError> = bytes.withUnsafeBytes { raw in
      do throws(DiskError) { return .success(try writeAll([raw], at: offset)) } catch { return .failure(error) }
    }
    try result.get()
  }

  func writeAll(_ buffers: [UnsafeRawBufferPointer], at offset: Int) throws(DiskError) {
    var rest = buffers[...]
    var offset = offset
    var given = buffers
    while !rest.isEmpty {
      var written = try write(given, at: offset)
      offset += written
      while let first = rest.first, written >= first.count {
        written -= first.count
        rest.removeFirst()
      }
      if written > 0, let first = rest.first {
        rest[rest.startIndex] = UnsafeRawBufferPointer(rebasing: first[written...])
      }
      given = Array(rest)
    }
  }
}
