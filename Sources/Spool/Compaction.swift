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

import Glibc
import Primitives

extension LogWriter {
  /// Schedules a step of compaction when it is worth it.
  func considerCompaction() {
    if isCompactionScheduled { return }
    if let pausedUntil {
      guard core.time.now >= pausedUntil else { return }
      self.pausedUntil = nil
    }
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
    // Whatever the limit is, a segment with next to nothing in it is not worth another one.
    return segment.size > max(core.options.diskBound(live: segment.live), LogFormat.segmentHeaderSize + 4096)
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
      if isDone {
        guard try rescueRest(of: oldest.number) else { return }
        if core.shared.withLock({ $0.segments.first?.messages ?? 0 }) > 0 {
          throw .corrupt(
            file: core.segmentPath(oldest.number), offset: scanner.offset, detail: "queued messages are missing")
        }
      }
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
    var isRescued = false
    do throws(QueueError) { message = try core.message(place, withContent: true) } catch {
      guard error.isOfOneMessage else { throw error }
      // What a disk does not give now it may give later.
      if case .io = error, !isGivenUp(place.entry.id) { return .full }
      damagedSegments.insert(place.entry.segment)
      guard let rescued = core.rescued(place, because: "\(error)") else { return forget(place, error) }
      core.onDamage("\(rescued.id) is damaged in the queue, and on hold: \(error)")
      message = rescued
      isRescued = true
    }
    var record = NewRecord(id: message.id, envelope: message.envelope, state: message.state)
    if !core.options.safeguards.contains(.stateInCopies) { record.state = MessageState() }
    switch message.content {
    case .bytes(let bytes): record.content = bytes
    case .file(let content):
      guard let own = content as? ContentFile else { throw .failed("a content in a file has no checksum") }
      record.file = (own.count, own.crc)
    }
    if tail + record.content.count + 4096 > limit && tail > LogFormat.segmentHeaderSize {
      let outcome = roll()
      if outcome != .done { return outcome }
    }
    batch.clear()
    let summary = Summary(record.envelope, record.state)
    let entry = batch.add(record, summary, segment: number, tail: tail, synced: synced)
    let outcome = writeBatch()
    if outcome == .done {
      core.shared.withLock { s in
        s.enter(entry, summary)
        // A change that waits for space must not undo the hold.
        if isRescued, case .state(var state, var summary)? = s.unwritten[entry.id] {
          state.isHeld = true
          summary.isHeld = true
          s.unwritten[entry.id] = .state(state, summary)
        }
      }
    }
    return outcome
  }

  /// Whether a message that cannot be read was tried often enough; else compaction rests for a while.
  private func isGivenUp(_ id: UInt64) -> Bool {
    let times = trouble?.id == id ? (trouble?.times ?? 0) + 1 : 1
    trouble = times < Self.patience ? (id, times) : nil
    if trouble != nil { pause() }
    return trouble == nil
  }

  private static let patience = 5

  private func pause() { pausedUntil = core.time.now + .seconds(10) }

  /// Lets go of a message of which not even the envelope can be read. Its segment and its content are kept for people.
  private func forget(_ place: Located, _ damage: QueueError) -> Outcome {
    let id = QueueID(rawValue: place.entry.id)
    if place.entry.hasFile {
      let outcome = setAside(core.contentPath(id.rawValue), from: core.contentDirectory, as: "\(id)")
      if outcome != .done { return outcome }
    }
    core.onDamage(
      "\(id) cannot be delivered, nobody can read its envelope: \(damage). What is left of it will be in "
        + core.damagedDirectory)
    core.shared.withLock { s in
      s.unwritten[place.entry.id] = nil
      _ = s.forget(place.entry.id)
    }
    return .done
  }

  /// Moves a file of the queue to where nothing is done with it.
  private func setAside(_ path: String, from directory: String, as name: String) -> Outcome {
    do throws(DiskError) {
      try core.disk.prepareDirectory(core.damagedDirectory)
      try core.disk.syncDirectory(core.directory)
      do throws(DiskError) { try core.disk.rename(path, to: core.damagedDirectory + "/" + name) } catch {
        // It is gone, or was moved before.
        guard error.code == ENOENT else { throw error }
      }
      try core.disk.syncDirectory(core.damagedDirectory)
      try core.disk.syncDirectory(directory)
      return .done
    } catch { return outcome(of: error) }
  }

  /// Only a sync that fails leaves it open what the disk holds; everything else can be tried again.
  private func outcome(of error: DiskError) -> Outcome {
    guard error.operation == "fsync" else {
      pause()
      return .full
    }
    fail(error.asFailure)
    return .dead
  }

  /// Unlinks the oldest segment, in which no queued message is left but those that go with it.
  private func retire(_ segment: Segment, with removed: [IndexEntry] = []) {
    compaction = nil
    // The copies must be durable before the originals go.
    if core.options.safeguards.contains(.syncBeforeUnlinking) { guard sync() else { return } }
    guard giveBack(segment) == .done else { return }
    damagedSegments.remove(segment.number)
    core.shared.withLock { s in
      for entry in removed {
        s.unwritten[entry.id] = nil
        if s.forget(entry.id)?.hasFile == true { contentsToUnlink.append(QueueID(rawValue: entry.id)) }
      }
      _ = s.segments.removeFirst()
    }
    if !removed.isEmpty, sync() { durable() }
    // The copies are the last there are of them: they want a witness.
    scheduleTick()
  }

  private func giveBack(_ segment: Segment) -> Outcome {
    let path = core.segmentPath(segment.number)
    if damagedSegments.contains(segment.number) {
      return setAside(path, from: core.segmentDirectory, as: LogFormat.segmentName(segment.number))
    }
    do throws(DiskError) {
      do throws(DiskError) { try core.disk.unlink(path) } catch {
        guard error.code == ENOENT else { throw error }
      }
      try core.disk.syncDirectory(core.segmentDirectory)
      return .done
    } catch { return outcome(of: error) }
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
}
