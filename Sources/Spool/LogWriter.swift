// The only one that writes to the log: group commit, rolling over to new segments, and what to do when the disk fails.

import Glibc
import Primitives

/// Writes the log, on a serial queue of its own.
///
/// `@unchecked Sendable` because every variable is touched only by code that runs on `queue`, which is serial; the
/// initializer runs before anything is given to the queue.
final class LogWriter: @unchecked Sendable {
  enum Outcome { case done, full, dead }

  let core: SpoolCore
  let queue: any WorkQueue

  // The last segment, where everything is written.
  var file: any DiskFile
  var number: UInt32
  var tail: Int
  /// Up to where the last segment is durable.
  var synced: Int
  /// The greatest identifier seen in the log.
  var lastID: UInt64
  var batch = RecordBatch()
  /// Content files whose removal record is written but not yet durable.
  var contentsToUnlink: [QueueID] = []
  /// How large the last segment may become, as of the last look at what is queued.
  var limit: Int
  /// A file must not become larger than this, as the system said.
  var ceiling = Int.max
  /// Up to where records of the last segment say that everything before them is durable.
  private var vouched: Int
  /// Compaction rests until then.
  var pausedUntil: MonotonicInstant?
  /// A message that the disk does not give, and how often it was asked for it.
  var trouble: (id: UInt64, times: Int)?
  /// By identifier.
  var stuck: [UInt64: StuckChanges] = [:]
  var stuckUntil = MonotonicInstant(nanoseconds: .min)
  /// Segments that held what could not be read: they are kept for people when their turn comes.
  var damagedSegments: Set<UInt32> = []
  var compaction: SegmentScanner?
  var isCompactionScheduled = false
  private var isTickScheduled = false

  // Messages of the commit at hand.
  private var appends: [NewRecord] = []
  var appendIDs: Set<UInt64> = []
  private var unacknowledged: [(record: NewRecord, entry: IndexEntry, summary: Summary)] = []
  private var unacknowledgedBytes = 0

  init(
    core: SpoolCore, queue: any WorkQueue, file: any DiskFile, number: UInt32, tail: Int, vouched: Int, lastID: UInt64
  ) {
    self.core = core
    self.queue = queue
    self.file = file
    self.number = number
    self.tail = tail
    self.vouched = vouched
    synced = tail
    limit = core.shared.withLock { core.options.segmentLimit(live: $0.live) }
    self.lastID = lastID
  }

  var isDead: Bool { core.shared.withLock { $0.failure != nil } }

  // MARK: Draining

  /// Takes all that waits. What arrives meanwhile waits for the next round and shares its sync; the round after goes
  /// behind whatever else the queue holds (timer, compaction), so that no load can starve them.
  func drain() {
    let operations = core.shared.withLock { s in
      let taken = s.pending
      s.pending = []
      if taken.isEmpty { s.isDraining = false }
      return taken
    }
    if operations.isEmpty { return }
    var barriers: [(sync: Bool, done: CheckedContinuation<Result<Void, QueueError>, Never>)] = []
    var touched: [UInt64] = []
    if !core.options.safeguards.contains(.removalBeforeContent) { durable() }
    changeStuck()
    for operation in operations {
      switch operation {
      case .append(let record): accept(record)
      case .update(let id, let change):
        touched.append(id.rawValue)
        update(id, change)
      case .remove(let id):
        touched.append(id.rawValue)
        if appendIDs.contains(id.rawValue) { commit() }
        core.shared.withLock { s in
          if s.index[id.rawValue] != nil { s.unwritten[id.rawValue] = .removed }
        }
      case .barrier(let sync, let done): barriers.append((sync, done))
      }
    }
    commit()
    if barriers.contains(where: \.sync) { _ = sync() }
    let (failure, isUnwritten) = core.shared.withLock { s in
      for id in touched {
        let left = (s.touched[id] ?? 0) - 1
        s.touched[id] = left > 0 ? left : nil
      }
      return (s.failure, !s.unwritten.isEmpty)
    }
    for (sync, done) in barriers {
      if sync, let error = failure ?? stuck.first?.value.error {
        done.resume(returning: .failure(error))
      } else if sync && isUnwritten {
        done.resume(returning: .failure(.full))
      } else {
        done.resume(returning: .success(()))
      }
    }
    considerCompaction()
    queue.async { self.drain() }
  }

  private func accept(_ record: NewRecord) {
    let id = record.id.rawValue
    let known = core.shared.withLock { s in s.index[id] != nil }
    if known || appendIDs.contains(id) {
      record.done?.resume(returning: .failure(.alreadyQueued(record.id)))
      return
    }
    appends.append(record)
    appendIDs.insert(id)
  }

  // MARK: Committing

  /// Writes all messages and changes; syncs and acknowledges when there were messages.
  func commit() {
    var next = 0
    var outcome = Outcome.done
    while next < appends.count, outcome == .done {
      outcome = isDead ? .dead : writeMessages(&next)
    }
    let refused = appends[next...]
    appends = []
    appendIDs.removeAll(keepingCapacity: true)
    if outcome != .dead, writeChanges() == .full { scheduleTick(isFull: true) }
    if !unacknowledged.isEmpty { acknowledge() }
    if !refused.isEmpty {
      let error = core.shared.withLock { $0.failure } ?? .full
      for record in refused { record.done?.resume(returning: .failure(error)) }
    }
    if synced < tail || vouched < tail { scheduleTick() }
  }

  /// Writes some of the messages; counts `next` up by those that are written.
  private func writeMessages(_ next: inout Int) -> Outcome {
    // Encodes what fits into the segment; the first record always fits into a fresh one.
    batch.clear()
    var written: [(record: NewRecord, entry: IndexEntry, summary: Summary)] = []
    while next + written.count < appends.count, batch.count < RecordBatch.limit,
      batch.size + unacknowledgedBytes < core.options.batchSize
    {
      let record = appends[next + written.count]
      let room = limit - tail - batch.size
      // An upper bound for the envelope would need encoding it; content and a page are near enough.
      if record.content.count + 4096 > room && (tail > LogFormat.segmentHeaderSize || !written.isEmpty) {
        if written.isEmpty {
          let outcome = roll()
          if outcome != .done { return outcome }
          continue
        }
        break
      }
      let summary = Summary(record.envelope, record.state)
      let entry = batch.add(record, summary, segment: number, tail: tail, synced: synced)
      written.append((record, entry, summary))
    }
    if written.isEmpty {
      acknowledge()
      return isDead ? .dead : .done
    }
    let outcome = writeBatch()
    guard outcome == .done else { return outcome }
    next += written.count
    unacknowledgedBytes += batch.size
    unacknowledged += written
    if unacknowledgedBytes >= core.options.batchSize { acknowledge() }
    return isDead ? .dead : .done
  }

  /// Syncs, enters the written messages into the index and wakes their senders.
  private func acknowledge() {
    let written = unacknowledged
    unacknowledged = []
    unacknowledgedBytes = 0
    if !core.options.safeguards.contains(.syncBeforeAcknowledging) || sync() {
      core.shared.withLock { s in
        s.commits += 1
        for (_, entry, summary) in written { s.enter(entry, summary) }
      }
      for (record, _, _) in written {
        lastID = max(lastID, record.id.rawValue)
        record.done?.resume(returning: .success(()))
      }
    } else {
      let error = core.shared.withLock { $0.failure } ?? .failed("the log could not be synced")
      for (record, _, _) in written { record.done?.resume(returning: .failure(error)) }
    }
  }

  /// Writes the changes of state that are not in the log yet.
  private func writeChanges() -> Outcome {
    while true {
      if isDead { return .dead }
      let changes = core.shared.withLock { s in s.unwritten.isEmpty ? [] : Array(s.unwritten.prefix(512)) }
      if changes.isEmpty { return .done }
      if tail >= limit {
        let outcome = roll()
        // Without space for another segment this one may become larger: what has been delivered must be written down.
        if outcome == .dead || outcome == .full && tail >= min(2 * core.options.segmentSize, ceiling) { return outcome }
      }
      batch.clear()
      let places = changes.map { batch.add($0.value, $0.key, synced: synced) }
      let start = tail
      let outcome = writeBatch()
      guard outcome == .done else { return outcome }
      core.shared.withLock { s in
        for ((id, change), place) in zip(changes, places) {
          s.unwritten[id] = nil
          switch change {
          case .removed:
            if let entry = s.forget(id), entry.hasFile { contentsToUnlink.append(QueueID(rawValue: id)) }
          case .state(_, let summary):
            s.enterState(id, segment: number, offset: start + place.offset, payload: place.payload, summary)
          }
        }
      }
    }
  }

  // MARK: The disk

  /// Writes the batch behind the tail. When there is no space, the tail is put back to where it was: otherwise parts of
  /// refused messages could be found behind later ones.
  func writeBatch() -> Outcome {
    do throws(DiskError) {
      try batch.write(to: file, at: tail)
    } catch {
      guard error.isFull else {
        fail(error.asQueueError)
        return .dead
      }
      // Not the disk is full, but the file as large as it may be: the next record goes into another one.
      if error.code == EFBIG {
        ceiling = max((try? file.size()) ?? tail, Self.lowestCeiling)
        limit = min(limit, ceiling)
      }
      do throws(DiskError) {
        try file.truncate(to: tail)
      } catch {
        fail(error.asQueueError)
        return .dead
      }
      // The truncation must be durable too, or leftovers of this batch might line up behind later records.
      core.shared.withLock { $0.syncs += 1 }
      do throws(DiskError) { try file.sync() } catch {
        fail(error.asFailure)
        return .dead
      }
      synced = tail
      durable()
      return .full
    }
    tail += batch.size
    core.space.withLock { $0.wrote(batch.size) }
    core.shared.withLock { s in s.segments[s.segments.count - 1].size = tail }
    return .done
  }

  /// Makes everything written durable; `false` when that failed, now or earlier.
  func sync() -> Bool {
    if isDead { return false }
    if synced < tail {
      core.shared.withLock { $0.syncs += 1 }
      do throws(DiskError) { try file.sync() } catch {
        // Never tried again: the kernel may have dropped the pages and would report success the second time.
        guard core.options.safeguards.contains(.endAfterFailedSync) else {
          synced = tail
          return true
        }
        fail(error.asFailure)
        return false
      }
      synced = tail
    }
    durable()
    return true
  }

  func durable() {
    let gone = contentsToUnlink
    contentsToUnlink = []
    for id in gone {
      let path = core.contentPath(id.rawValue)
      let disk = core.disk
      core.io.queue(id).async {
        // Should this fail, recovery removes the file: no message names it.
        do throws(DiskError) { try disk.unlink(path) } catch {}
      }
    }
  }

  /// Goes on in a new segment. The old one is made durable first, so that only the last can ever end in a torn record.
  func roll() -> Outcome {
    guard sync() else { return .dead }
    let path = core.segmentPath(number + 1)
    lastID = max(lastID, core.shared.withLock { $0.index.lastID })
    let header = SegmentHeader(number: number + 1, lastID: lastID).encoded()
    let fresh: any DiskFile
    do throws(DiskError) {
      fresh = try core.disk.open(path, .create)
      try fresh.writeAll(header, at: 0)
    } catch {
      guard error.isFull || error.isOfDescriptors else {
        fail(error.asQueueError)
        return .dead
      }
      // Should it come back, recovery knows that it never was the last one; and the next attempt empties it again.
      do throws(DiskError) { try core.disk.unlink(path) } catch {}
      return .full
    }
    core.shared.withLock { $0.syncs += 1 }
    do throws(DiskError) {
      try fresh.sync()
      if core.options.safeguards.contains(.syncOfNewNames) { try core.disk.syncDirectory(core.segmentDirectory) }
    } catch {
      // The name may be durable or not: as long as the segment has no header, it never was.
      if error.isOfDescriptors, (try? fresh.truncate(to: 0)) != nil, (try? fresh.sync()) != nil {
        do throws(DiskError) { try core.disk.unlink(path) } catch {}
        return .full
      }
      fail(error.asFailure)
      return .dead
    }
    file = fresh
    number += 1
    tail = header.count
    synced = tail
    vouched = tail
    core.shared.withLock { $0.segments.append(Segment(number: number, file: fresh, size: tail)) }
    return .done
  }

  func fail(_ error: QueueError) { core.fail(error) }

  private static let lowestCeiling = 64 << 10

  /// Has a record say that everything so far is durable, when no other one is there to say so.
  ///
  /// Without it damage to the last batch could not be told from a write that was torn, and would be cut off without a
  /// word. It needs no sync: only who is durable needs a witness, and a witness that is lost is none.
  func vouch() {
    guard !isDead, synced == tail, vouched < tail, tail > LogFormat.segmentHeaderSize else { return }
    batch.clear()
    _ = batch.add(.removed, LogFormat.nobody, synced: synced)
    if writeBatch() == .done { vouched = tail }
  }

  // MARK: The timer

  /// What a spool that has just been opened owes to what it has found.
  func begin() {
    if synced < tail || vouched < tail { scheduleTick() }
    considerCompaction()
  }

  func scheduleTick(isFull: Bool = false) {
    if isTickScheduled { return }
    isTickScheduled = true
    // A disk that was full a moment ago is not asked ten times a second.
    queue.async(after: isFull ? max(core.options.syncInterval, .seconds(1)) : core.options.syncInterval) { self.tick() }
  }

  /// Syncs what no commit has synced, and tries again to write what found no space.
  private func tick() {
    isTickScheduled = false
    if isDead { return }
    changeStuck()
    let outcome = writeChanges()
    if outcome == .dead { return }
    if sync() { vouch() }
    considerCompaction()
    if outcome == .full || !stuck.isEmpty { scheduleTick(isFull: true) }
  }
}
