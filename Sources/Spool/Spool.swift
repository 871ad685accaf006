// The queue on disk: what the rest of the relay sees of it.

import Primitives

/// Makes the queues that a spool works on, by their names.
public typealias SpoolQueues = @Sendable (String) -> any WorkQueue

/// A ``QueueStore`` in a directory: a log of segments, group commit, an index in memory.
///
/// Callers only put operations into a list; one writer on a queue of its own takes whatever has gathered, writes it with
/// few calls, syncs once, and wakes all who wait. Reads go on beside it.
public final class Spool: QueueStore {
  let core: SpoolCore
  private let writer: LogWriter
  private let lastID: Mutex<UInt64>
  private let lock: any DiskLock
  /// Octets that were cut off at the end of the log: a crash has interrupted their writing, and nobody was told that they
  /// are safe.
  public let cutOff: Int

  private init(core: SpoolCore, writer: LogWriter, lastID: UInt64, lock: any DiskLock, cutOff: Int) {
    self.cutOff = cutOff
    self.core = core
    self.writer = writer
    self.lastID = Mutex(lastID)
    self.lock = lock
  }

  /// Opens the queue in `directory`, which is created when missing, and recovers what is in it.
  ///
  /// Reads everything; not to be called on an event loop.
  /// - Parameters:
  ///   - onDamage: told, on any queue, what is wrong with single messages: they are kept back, and the others go on.
  ///   - onFailure: called once, on a queue of the spool, when it stops for good.
  /// - Throws: ``QueueError/locked(pid:)``, ``QueueError/notWritable(path:detail:)``,
  ///   ``QueueError/corrupt(file:offset:detail:)`` or ``QueueError/io(operation:path:errno:)``.
  public static func open(
    directory: String, disk: any Disk = PosixDisk(), time: any Timekeeper = SystemTime(),
    options: SpoolOptions = SpoolOptions(), queues: SpoolQueues = { DispatchWorkQueue($0) },
    onDamage: @escaping @Sendable (String) -> Void = { _ in },
    onFailure: @escaping @Sendable (QueueError) -> Void
  ) throws(QueueError) -> Spool {
    let result: DiskLockResult
    do throws(DiskError) {
      try disk.prepareDirectory(directory)
      result = try disk.lock(directory + "/lock")
    } catch { throw error.asQueueError }
    let lock: any DiskLock
    switch result {
    case .acquired(let acquired): lock = acquired
    case .heldBy(let pid): throw .locked(pid: pid)
    }
    var options = options
    var recovery = Recovery(directory: directory, disk: disk, safeguards: options.safeguards)
    do throws(QueueError) { try recovery.run() } catch {
      lock.release()
      throw error
    }
    guard let last = recovery.shared.segments.last else { throw .failed("no segment") }
    let lastID = recovery.lastID
    do throws(DiskError) {
      if let space = try disk.space(directory) {
        options.segmentSize = min(options.segmentSize, max(space.total / 32, 256 << 10))
      }
    } catch {
      lock.release()
      throw error.asQueueError
    }
    let core = SpoolCore(
      directory: directory, disk: disk, time: time, options: options, queues: queues, shared: recovery.shared,
      onFailure: onFailure, onDamage: onDamage)
    let writer = LogWriter(
      core: core, queue: queues("spool.writer"), file: last.file, number: last.number, tail: last.size,
      vouched: recovery.vouched, lastID: lastID)
    writer.queue.async { writer.begin() }
    let spool = Spool(core: core, writer: writer, lastID: lastID, lock: lock, cutOff: recovery.cutOff)
    for (id, detail) in recovery.damaged {
      onDamage("\(id) is damaged in the queue, and on hold: \(detail)")
      spool.update(id) { [now = time.wallClock] state in
        // It is said once, and not at each start.
        if !state.isHeld { state.keepBack(damagedBy: detail, at: now) }
      }
    }
    return spool
  }

  /// Makes everything durable, lets go of the lock and refuses every later change.
  public func close() async {
    let isFirst = core.shared.withLock { s in
      defer { s.isClosed = true }
      return !s.isClosed
    }
    guard isFirst else { return }
    _ = await withCheckedContinuation { done in push(.barrier(sync: true, done)) }
    // From here on the writer does nothing more, not even compaction.
    await withCheckedContinuation { (done: CheckedContinuation<Void, Never>) in
      writer.queue.async {
        self.writer.vouch()
        self.core.shared.withLock { s in
          if s.failure == nil { s.failure = .failed("it was closed") }
        }
        done.resume()
      }
    }
    // Contents whose messages have just gone are removed by their own queues.
    await core.io.settle()
    lock.release()
  }

  // MARK: Handing over to the writer

  private func push(_ operation: Operation) {
    let begins = core.shared.withLock { s in
      s.pending.append(operation)
      switch operation {
      case .update(let id, _), .remove(let id): s.touched[id.rawValue, default: 0] += 1
      default: break
      }
      if s.isDraining { return false }
      s.isDraining = true
      return true
    }
    if begins { writer.queue.async { [writer] in writer.drain() } }
  }

  /// Operations that the writer has not taken yet.
  var waiting: Int { core.shared.withLock { $0.pending.count } }

  private func refusal() -> QueueError? {
    core.shared.withLock { s in s.failure ?? (s.isClosed ? .failed("it was closed") : nil) }
  }

  // MARK: QueueStore

  public func nextID() -> QueueID {
    let wall = UInt64(clamping: core.time.wallClock.microseconds)
    return lastID.withLock { last in
      last = max(last + 1, wall)
      return QueueID(rawValue: last)
    }
  }

  public func append(
    _ id: QueueID, _ envelope: Envelope, _ content: Content, _ state: MessageState
  ) async throws(QueueError) {
    var record = NewRecord(id: id, envelope: envelope, state: state)
    var file: ContentFile?
    switch content {
    case .bytes(let bytes): record.content = bytes
    case .file(let stored):
      let own: ContentFile
      if let stored = stored as? ContentFile, stored.path == core.contentPath(id.rawValue), stored.adopt() {
        own = stored
      } else {
        own = try await copy(stored, for: id)
      }
      record.file = (own.count, own.crc)
      file = own
    }
    let result: Result<Void, QueueError>
    if let refusal = refusal() {
      result = .failure(refusal)
    } else {
      result = await withCheckedContinuation { done in
        var record = record
        record.done = done
        push(.append(record))
      }
    }
    if case .failure(let error) = result, let path = file?.path {
      // After a failed sync the record may be on the disk: then the file has to stay for it.
      if error == .full {
        let disk = core.disk
        await core.io.run(id) {
          do throws(DiskError) { try disk.unlink(path) } catch {}
        }
      }
    }
    try result.get()
  }

  /// A content of another message becomes a file of this one.
  private func copy(_ stored: any StoredContent, for id: QueueID) async throws(QueueError) -> ContentFile {
    let writer = try await makeContentWriter(for: id)
    do throws(QueueError) {
      var offset = 0
      while offset < stored.count {
        let piece = try await stored.read(at: offset, count: 1 << 20)
        if piece.isEmpty { throw .failed("the content ends early") }
        try await writer.write(piece)
        offset += piece.count
      }
      if case .file(let own as ContentFile) = try await writer.finish(), own.adopt() { return own }
      throw .failed("the content could not be copied")
    } catch {
      await writer.discard()
      throw error
    }
  }

  public func admits(_ octets: Int) -> Bool {
    let isAdmitted = core.admits(octets)
    if !isAdmitted { writer.queue.async { [writer] in writer.considerCompaction() } }
    return isAdmitted
  }

  public func makeContentWriter(for id: QueueID) async throws(QueueError) -> any ContentWriter {
    if let refusal = refusal() { throw refusal }
    let core = core
    let writer = await core.io.run(id) { () -> Result<ContentFileWriter, QueueError> in
      do throws(DiskError) {
        return .success(
          try ContentFileWriter(id: id, core: core))
      } catch { return .failure(error.asQueueError) }
    }
    return try writer.get()
  }

  /// Waits until the changes of a message that were asked for have been made.
  private func settle(_ id: QueueID) async {
    let isTouched = core.shared.withLock { s in s.touched[id.rawValue] != nil }
    if isTouched { _ = await withCheckedContinuation { done in push(.barrier(sync: false, done)) } }
  }

  private func load(_ id: QueueID, withContent: Bool) async throws(QueueError) -> QueuedMessage? {
    await settle(id)
    guard let place = core.locate(id) else { return nil }
    let core = core
    if withContent, let error = core.shared.withLock({ $0.keptBack[id.rawValue] }) { throw error }
    return try await core.io.run(id) { () -> Result<QueuedMessage, QueueError> in
      do throws(QueueError) {
        return .success(
          withContent ? try core.message(place, withContent: true) : try core.messageWithoutContent(place))
      } catch {
        return withContent || !error.isOfOneMessage ? .failure(error) : .success(core.shown(place, error))
      }
    }.get()
  }

  public func read(_ id: QueueID) async throws(QueueError) -> QueuedMessage? {
    try await load(id, withContent: true)
  }

  public func readEnvelope(_ id: QueueID) async throws(QueueError) -> (Envelope, MessageState)? {
    try await load(id, withContent: false).map { ($0.envelope, $0.state) }
  }

  public func readEnvelopes(
    _ ids: [QueueID]
  ) async throws(QueueError) -> [(id: QueueID, envelope: Envelope, state: MessageState)] {
    guard let first = ids.first else { return [] }
    let isTouched = core.shared.withLock { s in !s.touched.isEmpty }
    if isTouched { _ = await withCheckedContinuation { done in push(.barrier(sync: false, done)) } }
    let core = core
    return try await core.io.run(first) {
      () -> Result<[(id: QueueID, envelope: Envelope, state: MessageState)], QueueError> in
      do throws(QueueError) {
        var found: [(id: QueueID, envelope: Envelope, state: MessageState)] = []
        for id in ids {
          guard let place = core.locate(id) else { continue }
          let message: QueuedMessage
          do throws(QueueError) { message = try core.messageWithoutContent(place) } catch {
            guard error.isOfOneMessage else { throw error }
            message = core.shown(place, error)
          }
          found.append((id, message.envelope, message.state))
        }
        return .success(found)
      } catch { return .failure(error) }
    }.get()
  }

  public func update(_ id: QueueID, _ change: @escaping @Sendable (inout MessageState) -> Void) {
    push(.update(id, change))
  }

  public func remove(_ id: QueueID) { push(.remove(id)) }

  public func flush() async throws(QueueError) {
    try await withCheckedContinuation { done in push(.barrier(sync: true, done)) }.get()
  }

  public func entries(startingAfter id: QueueID?, limit: Int) async -> [QueueEntry] {
    let isTouched = core.shared.withLock { s in !s.touched.isEmpty }
    if isTouched { _ = await withCheckedContinuation { done in push(.barrier(sync: false, done)) } }
    return core.shared.withLock { s in
      var entries: [QueueEntry] = []
      if limit <= 0 { return entries }
      s.index.walk(above: id?.rawValue) { entry in
        let summary: Summary
        switch s.unwritten[entry.id] {
        case .removed: return true
        case .state(_, let unwritten): summary = unwritten
        case nil: summary = s.index.summary(of: entry)
        }
        entries.append(
          QueueEntry(
            id: QueueID(rawValue: entry.id), size: Int(entry.size), arrival: Timestamp(microseconds: entry.arrival),
            lanes: summary.lanes, isHeld: summary.isHeld, isDead: summary.isDead,
            isDelayReported: summary.isDelayReported))
        return entries.count < limit
      }
      return entries
    }
  }

  public var statistics: QueueStatistics {
    core.refreshSpace()
    let (free, isShort) = core.space.withLock { ($0.free, $0.isShort) }
    return core.shared.withLock { s in
      QueueStatistics(
        messages: s.index.count, liveBytes: s.live + s.contentFileBytes, segments: s.segments.count,
        diskBytes: s.segments.reduce(0) { $0 + $1.size } + s.contentFileBytes, commits: s.commits, syncs: s.syncs,
        freeBytes: free, isShortOfSpace: isShort)
    }
  }
}
