// The content of one message on its way in: kept in memory while it is small, streamed into a file of its own when
// it is not, so that a session costs a bounded amount of memory whatever it sends.

import Message
import Primitives
import SMTP
import Spool

/// A message that is not taken, and the reply that says so.
struct Refusal: Error {
  let reply: Reply
  /// What the queue said, when it is the queue that cannot take the message: for the log, not for the client.
  var cause: QueueError?
}

/// Belongs to its session.
final class ContentReceiver {
  let id: QueueID
  private let store: any QueueStore
  private let limit: Int
  private let hostname: String
  private let recipients: [String]

  private var buffer: [UInt8] = []
  private let traceLength: Int
  private var decoder = DataDecoder()
  private var scanner = BareLineBreakScanner()
  private var chunkOctets = 0
  private var writer: (any ContentWriter)?
  private var spilled = 0
  private var refusal: Refusal?

  /// What a session holds in memory at most, beside what has just come from the socket.
  private static let memoryLimit = 256 * 1024
  /// The same once there is a file: what comes then need not gather, and a hundred sessions hold half as much.
  private static let pieceSize = 128 * 1024

  init(
    id: QueueID, store: any QueueStore, limit: Int, hostname: String, recipients: [String],
    trace: (inout [UInt8]) -> Void
  ) {
    self.id = id
    self.store = store
    self.limit = limit
    self.hostname = hostname
    self.recipients = recipients
    trace(&buffer)
    traceLength = buffer.count
  }

  /// Octets that will be relayed, our Received field included.
  var size: Int { spilled + buffer.count }

  /// Takes what follows DATA. Returns whether the end of data has been seen.
  func decode(_ bytes: UnsafeRawBufferPointer) -> (consumed: Int, Bool) {
    if refusal == nil { makeRoom(bytes.count) }
    guard let (consumed, isFinished) = try? decoder.decode(bytes, into: &buffer) else { return (bytes.count, true) }
    if refusal == nil, bytes[..<consumed].holdsNUL { refuse(Replies.nulOctet) }
    if decoder.octetCount > limit { refuse(Replies.tooLarge(limit: limit)) }
    if decoder.sawBareLineBreak { refuse(Replies.bareLineBreak) }
    return (consumed, isFinished)
  }

  /// Takes octets of a BDAT chunk.
  func take(_ bytes: UnsafeRawBufferPointer) {
    if refusal == nil, bytes[...].holdsNUL { refuse(Replies.nulOctet) }
    chunkOctets += bytes.count
    scanner.scan(bytes)
    if chunkOctets > limit { refuse(Replies.tooLarge(limit: limit)) }
    if scanner.sawBareLineBreak { refuse(Replies.bareLineBreak) }
    guard refusal == nil else { return }
    makeRoom(bytes.count)
    buffer.append(contentsOf: bytes)
  }

  /// One allocation for a piece, instead of one for each doubling up to it.
  private func makeRoom(_ count: Int) {
    guard writer != nil, buffer.count + count > buffer.capacity else { return }
    buffer.reserveCapacity(max(Self.pieceSize + 65536, buffer.count + count))
  }

  /// The content is no longer kept, only read to its end.
  private func refuse(_ reply: Reply, because cause: QueueError? = nil) {
    if refusal == nil { refusal = Refusal(reply: reply, cause: cause) }
    decoder.discardsContent = true
    buffer = []
  }

  /// Moves what has come so far into a file, once it is too much for memory, and removes the file once it is in vain.
  nonisolated(nonsending) func spill() async {
    if refusal != nil, writer != nil { return await discard() }
    guard buffer.count > (writer == nil ? Self.memoryLimit : Self.pieceSize), refusal == nil else { return }
    do throws(QueueError) {
      if writer == nil {
        if let reply = loopRefusal() { return refuse(reply) }
        writer = try await store.makeContentWriter(for: id)
      }
      // The announced size may have been too small, or many large messages may have been begun at once.
      guard store.admits(buffer.count) else { throw QueueError.full }
      let piece = buffer
      buffer = []
      spilled += piece.count
      try await writer?.write(piece)
    } catch {
      refuse(Self.reply(for: error), because: error)
      await discard()
    }
  }

  /// Makes the message durable.
  nonisolated(nonsending) func commit(_ envelope: Envelope) async -> Result<Content, Refusal> {
    scanner.finish()
    if refusal == nil, scanner.sawBareLineBreak { refuse(Replies.bareLineBreak) }
    if refusal == nil, writer == nil, let reply = loopRefusal() { refuse(reply) }
    if let refusal {
      await discard()
      return .failure(refusal)
    }
    do throws(QueueError) {
      guard store.admits(buffer.count) else { throw .full }
      let content: Content
      if let writer {
        if !buffer.isEmpty {
          spilled += buffer.count
          let piece = buffer
          buffer = []
          try await writer.write(piece)
        }
        content = try await writer.finish()
      } else {
        content = .bytes(buffer)
      }
      try await store.append(id, envelope, content)
      writer = nil
      return .success(content)
    } catch {
      await discard()
      return .failure(Refusal(reply: Self.reply(for: error), cause: error))
    }
  }

  /// Removes what was written of a message that is not taken.
  nonisolated(nonsending) func discard() async {
    await writer?.discard()
    writer = nil
    buffer = []
  }

  private func loopRefusal() -> Reply? {
    buffer.withUnsafeBytes { bytes in
      let header = HeaderView(UnsafeRawBufferPointer(rebasing: bytes[traceLength...]))
      return switch LoopDetector.examine(header, hostname: hostname, recipients: recipients) {
      case .fine: nil
      case .tooManyHops(let hops): Reply(554, "5.4.6", "Mail loop: the message has been relayed \(hops) times")
      case .seenBefore: Reply(554, "5.4.6", "Mail loop: the message was here before, for the same recipient")
      }
    }
  }

  private static func reply(for error: QueueError) -> Reply {
    if case .full = error { return Replies.insufficientStorage }
    return Reply(452, "4.3.0", "The queue cannot take mail now, try again later")
  }
}
