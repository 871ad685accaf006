// A queue in memory, for tests of what stands around it.

import Primitives
import Spool

public final class MemoryStore: QueueStore {
  private struct State {
    var messages: [QueueID: QueuedMessage] = [:]
    var removed: [QueueID] = []
    var last: UInt64 = 0
    var error: QueueError?
    var readError: QueueError?
    var isShort = false
    var onAppend: (@Sendable (QueueID) -> Void)?
  }
  private let state = Mutex(State())

  public init() {}

  /// While set, nothing is taken.
  public func fail(with error: QueueError?) { state.withLock { $0.error = error } }

  /// While set, nothing can be read.
  public func failReads(with error: QueueError?) { state.withLock { $0.readError = error } }

  /// Whether new mail is to be refused because the disk is nearly full.
  public func beShortOfSpace(_ isShort: Bool) { state.withLock { $0.isShort = isShort } }

  /// Calls `body` before each append, with nothing locked.
  public func beforeAppending(_ body: (@Sendable (QueueID) -> Void)?) { state.withLock { $0.onAppend = body } }

  public var messages: [QueueID: QueuedMessage] { state.withLock { $0.messages } }
  public var removed: [QueueID] { state.withLock { $0.removed } }

  public func nextID() -> QueueID {
    state.withLock { state in
      state.last += 1
      return QueueID(rawValue: state.last)
    }
  }

  public func append(
    _ id: QueueID, _ envelope: Envelope, _ content: Content, _ initial: MessageState
  ) async throws(QueueError) {
    state.withLock { $0.onAppend }?(id)
    let error = state.withLock { state in
      if state.error == nil {
        state.messages[id] = QueuedMessage(id: id, envelope: envelope, state: initial, content: content)
      }
      return state.error
    }
    if let error { throw error }
  }

  public func makeContentWriter(for id: QueueID) async throws(QueueError) -> any ContentWriter {
    if let error = state.withLock({ $0.error }) { throw error }
    return MemoryWriter()
  }

  public func read(_ id: QueueID) async throws(QueueError) -> QueuedMessage? {
    let (message, error) = state.withLock { ($0.messages[id], $0.readError) }
    if let error { throw error }
    return message
  }

  public func readEnvelope(_ id: QueueID) async throws(QueueError) -> (Envelope, MessageState)? {
    state.withLock { $0.messages[id].map { ($0.envelope, $0.state) } }
  }

  public func readEnvelopes(
    _ ids: [QueueID]
  ) async throws(QueueError) -> [(id: QueueID, envelope: Envelope, state: MessageState)] {
    state.withLock { state in ids.compactMap { id in state.messages[id].map { (id, $0.envelope, $0.state) } } }
  }

  public func admits(_ octets: Int) -> Bool { state.withLock { !$0.isShort } }

  public func update(_ id: QueueID, _ change: @escaping @Sendable (inout MessageState) -> Void) {
    state.withLock { state in
      guard var message = state.messages[id] else { return }
      change(&message.state)
      let isDone = message.envelope.recipients.indices.allSatisfy { message.state.recipients[$0] != nil }
      if isDone, message.state.deadReason == nil {
        state.messages[id] = nil
        state.removed.append(id)
      } else {
        state.messages[id] = message
      }
    }
  }

  public func remove(_ id: QueueID) {
    state.withLock { state in
      state.messages[id] = nil
      state.removed.append(id)
    }
  }

  public func flush() async throws(QueueError) {}
  public func entries(startingAfter: QueueID?, limit: Int) async -> [QueueEntry] { [] }
  public var statistics: QueueStatistics {
    QueueStatistics(messages: 0, liveBytes: 0, segments: 0, diskBytes: 0, commits: 0, syncs: 0)
  }
}

/// Collects a large content.
final class MemoryWriter: ContentWriter {
  private let bytes = Mutex<[UInt8]>([])
  func write(_ piece: [UInt8]) async throws(QueueError) { bytes.withLock { $0 += piece } }
  func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
    bytes.withLock { Array($0.dropFirst(offset).prefix(count)) }
  }
  func finish() async throws(QueueError) -> Content { .file(MemoryContent(bytes: bytes.withLock { $0 })) }
  func discard() async {}
}

struct MemoryContent: StoredContent {
  let bytes: [UInt8]
  var count: Int { bytes.count }
  func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] { Array(bytes[offset..<(offset + count)]) }
}
