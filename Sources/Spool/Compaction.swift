// Gives back the space of what is gone, from the oldest segment only.
//
// Why a removal record cannot vanish before the message it removes: a removal is written behind every copy of its
// message (the message record, and each copy that compaction made of it before; afterwards there is nothing left to
// copy). So all copies are in the same segment or in earlier ones. Segments are unlinked strictly oldest first, and each
// unlink is made durable in the directory before the next. When the segment of a removal goes, everything earlier is
// durably gone, and whatever is in the same segment goes with it in one step.
//
// Why a state cannot get lost: a copy is one record that holds message and latest state and replaces all earlier ones of
// the message. There is no moment between "message copied" and "state copied". State records behind an older copy are
// ignored by recovery once that copy is gone, and superseded as long as it is not.

import Primitives

extension LogWriter {
  /// Schedules a step of compaction when it is worth it.
  func considerCompaction() {
    if isCompactionScheduled { return }
    let isShort = core.isShortOfSpace
    let isWorth = core.shared.withLock { s in
      limit = min(core.options.segmentLimit(live: s.live), ceiling)
      guard s.failure == nil, let oldest = s.segments.first else { return false }
      if s.segments.count == 1 { return isWorthLeaving(oldest, isShort) }
      if oldest.messages == 0 || Self.removed(in: oldest, s) != nil { return true }
      let total = s.segments.reduce(0) { $0 + $1.size }
      if isShort, total > s.live + s.live / 2 + limit { return true }
      // This ends: a last segment that is larger than its limit is left with the first copy, and in a smaller one there
      // is no room for as much garbage. So there is garbage in others, and copying the oldest again and again reaches it.
      return total > core.options.diskBound(live: s.live)
    }
    guard isWorth else { return }
    isCompactionScheduled = true
    queue.async {
      self.isCompactionScheduled = false
      self.compact()
    }
  }

  /// Whether a lone segment is worth a new one, so that it can be given back: on a disk that is short of space early,
  /// else when it comes from a time when more was queued.
  private func isWorthLeaving(_ segment: Segment, _ isShort: Bool) -> Bool {
    if isShort, segment.size >= min(64 << 10, limit / 2), segment.live < segment.size / 2 {
      return true
    }
    return segment.size > core.options.diskBound(live: segment.live)
  }

  /// One bounded step.
  private func compact() {
    let (oldest, isAlone) = core.shared.withLock { s in
      (s.failure == nil ? s.segments.first : nil, s.segments.count == 1)
    }
    guard let oldest else { return }
    if isAlone {
      // Without the space for it the next removal tries again.
      if isWorthLeaving(oldest, core.isShortOfSpace), roll() == .done { considerCompaction() }
      return
    }
    if oldest.messages == 0 {
      retire(oldest)
      considerCompaction()
      return
    }
    if let removed = core.shared.withLock({ s in Self.removed(in: oldest, s) }) {
      retire(oldest, with: removed)
      considerCompaction()
      return
    }
    var scanner =
      compaction ?? SegmentScanner(file: PatientFile(oldest.file), from: LogFormat.segmentHeaderSize, to: oldest.size)
    do throws(QueueError) {
      let isDone = try copy(from: oldest.number, &scanner)
      // `nil`: no space for copies. The next commit or tick tries again; space may have been found by then.
      guard let isDone else {
        compaction = scanner
        return
      }
      compaction = scanner
      if isDone, try !rescueRest(of: oldest.number) { return }
    } catch {
      return fail(error)
    }
    considerCompaction()
  }

  /// The messages of a segment if each of them has been removed, though a full disk had no room for the records of it.
  ///
  /// The segment holds the only copies that are left, so unlinking it is as good as those records. Without this a disk
  /// that is full to the last octet could never become empty again.
  private static func removed(in segment: Segment, _ s: SharedState) -> [IndexEntry]? {
    // Nothing waits to be written but on a full disk.
    if s.unwritten.isEmpty { return nil }
    var removed: [IndexEntry] = []
    for (id, change) in s.unwritten {
      guard case .removed = change, let entry = s.index[id], entry.segment == segment.number else { continue }
      removed.append(entry)
    }
    return removed.count == segment.messages ? removed : nil
  }

  /// Copies the queued messages of the next stretch; `true` at the end of the segment, `nil` when the disk is full.
  private func copy(from segment: UInt32, _ scanner: inout SegmentScanner) throws(QueueError) -> Bool? {
    let stop = scanner.offset + core.options.compactionStep
    while scanner.offset < stop {
      let item: SegmentScanner.Item
      do throws(DiskError) { item = try scanner.header() } catch { throw error.asQueueError }
      switch item {
      case .end: return true
      // The index knows whose record this was.
      case .damaged: scanner.skipWord()
      case .record(let header, let offset):
        if header.type == RecordType.message.rawValue, let place = core.locatedForCopy(header.id, segment, offset) {
          switch try copy(place) {
          case .done: break
          case .full: return nil
          case .dead: return false
          }
        }
        scanner.skip(header)
      }
    }
    return false
  }

  /// Copies the messages whose records a scan does not find any more.
  /// - Returns: false when there is no space for it now.
  private func rescueRest(of segment: UInt32) throws(QueueError) -> Bool {
    guard core.shared.withLock({ $0.segments.first?.messages ?? 0 }) > 0 else { return true }
    let rest = core.shared.withLock { s in
      var rest: [IndexEntry] = []
      s.index.walk(above: nil) { entry in
        if entry.segment == segment { rest.append(entry) }
        return true
      }
      return rest
    }
    for entry in rest {
      guard let place = core.locatedForCopy(entry.id, segment, Int(entry.offset)) else { continue }
      if try copy(place) != .done { return false }
    }
    return true
  }

  private func copy(_ place: Located) throws(QueueError) -> Outcome {
    let message: QueuedMessage
    do throws(QueueError) { message = try core.message(place, withContent: true) } catch {
      guard error.isOfOneMessage else { throw error }
      guard let rescued = core.rescued(place, because: "\(error)") else { return forget(place, error) }
      core.onDamage("\(rescued.id) is damaged in the queue, and on hold: \(error)")
      message = rescued
    }
    var record = NewRecord(id: message.id, envelope: message.envelope, state: message.state)
    if !core.options.safeguards.contains(.stateInCopies) { record.state = MessageState() }
    switch message.content {
    case .bytes(let bytes): record.content = bytes
    case .file(let content): record.file = (content.count, try core.contentCRC(place))
    }
    if tail + record.content.count + 4096 > limit && tail > LogFormat.segmentHeaderSize {
      let outcome = roll()
      if outcome != .done { return outcome }
    }
    batch.clear()
    let summary = Summary(record.envelope, record.state)
    let entry = batch.add(record, summary, segment: number, tail: tail, synced: synced)
    let outcome = writeBatch()
    if outcome == .done { core.shared.withLock { $0.enter(entry, summary) } }
    return outcome
  }

  /// Lets go of a message of which not even the envelope can be read; its octets are set aside.
  private func forget(_ place: Located, _ damage: QueueError) -> Outcome {
    let id = QueueID(rawValue: place.entry.id)
    do throws(DiskError) {
      let path = try core.setAside(place)
      core.onDamage(
        "\(id) cannot be delivered, nobody can read its envelope: \(damage). What is left of it is in \(path)")
    } catch {
      if error.isFull { return .full }
      fail(error.asQueueError)
      return .dead
    }
    core.shared.withLock { s in
      s.unwritten[place.entry.id] = nil
      _ = s.forget(place.entry.id)
    }
    return .done
  }

  /// Unlinks the oldest segment, in which no queued message is left but those that go with it.
  private func retire(_ segment: Segment, with removed: [IndexEntry] = []) {
    compaction = nil
    // The copies must be durable before the originals go.
    if core.options.safeguards.contains(.syncBeforeUnlinking) { guard sync() else { return } }
    let path = core.segmentPath(segment.number)
    do throws(DiskError) {
      try core.disk.unlink(path)
      try core.disk.syncDirectory(core.segmentDirectory)
    } catch {
      return fail(.failed("\(error.operation) \(error.path): \(DiskError.message(error.code))"))
    }
    core.shared.withLock { s in
      for entry in removed {
        s.unwritten[entry.id] = nil
        if s.forget(entry.id)?.hasFile == true { contentsToUnlink.append(QueueID(rawValue: entry.id)) }
      }
      _ = s.segments.removeFirst()
    }
    if !removed.isEmpty, sync() { durable() }
  }
}

extension SpoolCore {
  /// Where to read a message whose latest record is at this place. Changes that are not in the log are left out: they
  /// are written behind the copy.
  func locatedForCopy(_ id: UInt64, _ segment: UInt32, _ offset: Int) -> Located? {
    shared.withLock { s in
      guard let entry = s.index[id], entry.segment == segment, entry.offset == UInt32(offset) else { return nil }
      return Located(
        entry: entry, file: s.segments[s.place(segment)].file,
        stateFile: entry.stateSegment == 0 ? nil : s.segments[s.place(entry.stateSegment)].file)
    }
  }

  func contentCRC(_ place: Located) throws(QueueError) -> UInt32 {
    let bytes: [UInt8]
    let offset = Int(place.entry.offset) + LogFormat.recordHeaderSize
    do throws(DiskError) { bytes = try place.file.bytes(LogFormat.messageFixedSize, at: offset) } catch {
      throw error.asQueueError
    }
    return bytes.withUnsafeBytes { MessageFixed($0)?.contentCRC ?? 0 }
  }
}
