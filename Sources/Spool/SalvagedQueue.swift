// A damaged queue, as far as it can be read: for the copies that an operator takes of it before starting anew.

import Primitives

/// The messages of a queue that ``Spool`` refuses to open. Read only, without the lock, also on a copy or a file system
/// that is mounted read-only.
///
/// What is known to be damaged is there as a message on hold, whose life says what is wrong with it: nothing that was
/// accepted is left out as long as its envelope is whole, and nothing that is not what was accepted goes to anybody
/// before a person has looked at it. A message may be here though it has been delivered: the record of that can be
/// among what is lost.
public final class SalvagedQueue: QueueStore {
  /// What is damaged, and what is whole.
  public let report: SpoolVerifier.Report
  private let core: SpoolCore
  private let places: [UInt64: SalvagedPlace]
  private let order: [UInt64]

  /// Reads all of the queue in `directory`. Not to be called on an event loop.
  public init(
    directory: String, disk: any Disk = PosixDisk(), time: any Timekeeper = SystemTime(),
    queues: SpoolQueues = { DispatchWorkQueue($0) }
  ) throws(SpoolVerifier.Problem) {
    let scan = try SpoolVerifier(directory: directory, disk: disk).scan(isSalvage: true)
    report = scan.report
    places = scan.places ?? [:]
    order = places.keys.sorted()
    core = SpoolCore(
      directory: directory, disk: disk, time: time, options: SpoolOptions(), queues: queues, shared: SharedState())
  }

  // MARK: Reading

  private func load(_ id: QueueID, withContent: Bool) async throws(QueueError) -> QueuedMessage? {
    guard let known = places[id.rawValue] else { return nil }
    return try await core.io.run(id) { [self] () -> Result<QueuedMessage, QueueError> in
      do throws(QueueError) {
        guard let damage = known.damage else {
          let message = try core.message(known.place, withContent: withContent)
          return known.isContentGone && withContent ? .failure(gone(message)) : .success(message)
        }
        guard var message = core.rescued(known.place, because: damage) else {
          return .failure(
            .corrupt(
              file: core.segmentPath(known.place.entry.segment), offset: Int(known.place.entry.offset), detail: damage))
        }
        if known.isContentGone, withContent { return .failure(gone(message)) }
        if known.place.entry.hasFile, withContent {
          let path = core.contentPath(known.place.entry.id)
          do throws(DiskError) {
            message.content = .file(try DamagedContent(core.disk.open(path, .reading), core, known.place.entry.id))
          } catch { throw error.asQueueError }
        }
        return .success(message)
      } catch { return .failure(error) }
    }.get()
  }

  private func gone(_ message: QueuedMessage) -> QueueError {
    let recipients = message.envelope.recipients.map { "<\($0.original)>" }.joined(separator: ", ")
    return .corrupt(
      file: core.contentPath(message.id.rawValue), offset: 0,
      detail: "the content of the message from <\(message.envelope.reversePath)> to \(recipients) is missing")
  }

  public func read(_ id: QueueID) async throws(QueueError) -> QueuedMessage? { try await load(id, withContent: true) }

  public func readEnvelope(_ id: QueueID) async throws(QueueError) -> (Envelope, MessageState)? {
    try await load(id, withContent: false).map { ($0.envelope, $0.state) }
  }

  public func readEnvelopes(
    _ ids: [QueueID]
  ) async throws(QueueError) -> [(id: QueueID, envelope: Envelope, state: MessageState)] {
    var found: [(id: QueueID, envelope: Envelope, state: MessageState)] = []
    for id in ids {
      if let message = try await load(id, withContent: false) { found.append((id, message.envelope, message.state)) }
    }
    return found
  }

  public func entries(startingAfter id: QueueID?, limit: Int) async -> [QueueEntry] {
    let first = id.map { id in order.firstIndex { $0 > id.rawValue } ?? order.count } ?? 0
    return order[first...].prefix(max(limit, 0)).compactMap { id in
      places[id].map { known in
        let entry = known.place.entry
        return QueueEntry(
          id: QueueID(rawValue: id), size: Int(entry.size), arrival: Timestamp(microseconds: entry.arrival),
          lanes: known.summary.lanes, isHeld: known.summary.isHeld || known.damage != nil,
          isDead: known.summary.isDead, isDelayReported: known.summary.isDelayReported)
      }
    }
  }

  public var statistics: QueueStatistics {
    QueueStatistics(
      messages: places.count, liveBytes: 0, segments: report.segments, diskBytes: report.octets, commits: 0, syncs: 0)
  }

  // MARK: What a queue that is only read does not do

  private static let refusal = QueueError.failed("a damaged queue is only read")

  public func nextID() -> QueueID { QueueID(rawValue: 0) }
  public func append(
    _ id: QueueID, _ envelope: Envelope, _ content: Content, _ state: MessageState
  ) async throws(QueueError) { throw Self.refusal }
  public func admits(_ octets: Int) -> Bool { false }
  public func makeContentWriter(for id: QueueID) async throws(QueueError) -> any ContentWriter { throw Self.refusal }
  public func update(_ id: QueueID, _ change: @escaping @Sendable (inout MessageState) -> Void) {}
  public func remove(_ id: QueueID) {}
  public func flush() async throws(QueueError) { throw Self.refusal }
}

/// A content file that is read without a look at its checksum.
private final class DamagedContent: StoredContent {
  let count: Int
  private let file: PatientFile
  private let core: SpoolCore
  private let id: UInt64

  init(_ file: any DiskFile, _ core: SpoolCore, _ id: UInt64) throws(DiskError) {
    self.file = PatientFile(file)
    self.core = core
    self.id = id
    count = try file.size()
  }

  func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
    try await core.io.run(QueueID(rawValue: id)) { [file] () -> Result<[UInt8], QueueError> in
      do throws(DiskError) { return .success(try file.bytes(count, at: offset)) } catch {
        return .failure(error.asQueueError)
      }
    }.get()
  }
}
