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
  let store: any QueueStore
  private let limit: Int
  private let hostname: String
  private let recipients: [String]
  /// The date that a message without one gets, and then a Message-ID as well; nil leaves messages as they are, and
  /// when that has been seen to.
  private var completion: Timestamp?
  private let headerLimit: Int
  private let budget: ContentBudget
  private var charged = 0

  var buffer: [UInt8] = []
  /// Our Received field, on top of what the client sends.
  let trace: [UInt8]
  var traceLength: Int { trace.count }
  private var decoder = DataDecoder()
  private var scanner = BareLineBreakScanner()
  private var header = HeaderMeter()
  private var chunkOctets = 0
  var writer: (any ContentWriter)?
  var spilled = 0
  private var refusal: Refusal?

  /// What a session holds in memory at most, beside what has just come from the socket.
  static let memoryLimit = 256 * 1024
  /// The same once there is a file: what comes then need not gather, and a hundred sessions hold half as much.
  private static let pieceSize = 128 * 1024
  /// Both, while all sessions together hold more than they should.
  private static let tightMemoryLimit = 64 * 1024

  init(
    id: QueueID, store: any QueueStore, limit: Int, headerLimit: Int = .max, budget: ContentBudget = ContentBudget(),
    hostname: String, recipients: [String], completion: Timestamp? = nil, trace: (inout [UInt8]) -> Void
  ) {
    self.id = id
    self.store = store
    self.limit = limit
    self.headerLimit = headerLimit
    self.budget = budget
    self.hostname = hostname
    self.recipients = recipients
    self.completion = completion
    trace(&buffer)
    self.trace = buffer
  }

  deinit { budget.add(-charged) }

  /// Tells the budget what is kept in memory now.
  private func charge() {
    budget.add(buffer.count - charged)
    charged = buffer.count
  }

  /// Octets that will be relayed, our Received field included.
  var size: Int { spilled + buffer.count }

  /// Takes what follows DATA. Returns whether the end of data has been seen.
  func decode(_ bytes: UnsafeRawBufferPointer) -> (consumed: Int, Bool) {
    if refusal == nil { makeRoom(bytes.count) }
    let before = buffer.count
    guard let (consumed, isFinished) = try? decoder.decode(bytes, into: &buffer) else { return (bytes.count, true) }
    if refusal == nil, bytes[..<consumed].holdsNUL { refuse(Replies.nulOctet) }
    if decoder.octetCount > limit { refuse(Replies.tooLarge(limit: limit)) }
    if decoder.sawBareLineBreak { refuse(Replies.bareLineBreak) }
    if !header.hasEnded, refusal == nil { buffer.withUnsafeBytes { measure($0[before...]) } }
    return (consumed, isFinished)
  }

  /// Takes octets of a BDAT chunk.
  func take(_ bytes: UnsafeRawBufferPointer) {
    if refusal == nil, bytes[...].holdsNUL { refuse(Replies.nulOctet) }
    chunkOctets += bytes.count
    scanner.scan(bytes)
    if chunkOctets > limit { refuse(Replies.tooLarge(limit: limit)) }
    if scanner.sawBareLineBreak { refuse(Replies.bareLineBreak) }
    if !header.hasEnded { measure(bytes[...]) }
    guard refusal == nil else { return }
    makeRoom(bytes.count)
    buffer.append(contentsOf: bytes)
  }

  private func measure(_ bytes: Slice<UnsafeRawBufferPointer>) {
    header.scan(UnsafeRawBufferPointer(rebasing: bytes))
    if header.count > headerLimit { refuse(Replies.headerTooLarge(limit: headerLimit)) }
  }

  /// One allocation for a piece, instead of one for each doubling up to it.
  private func makeRoom(_ count: Int) {
    guard writer != nil, buffer.count + count > buffer.capacity else { return }
    buffer.reserveCapacity(max(Self.pieceSize + 65536, buffer.count + count))
  }

  /// The content is no longer kept, only read to its end.
  func refuse(_ reply: Reply, because cause: QueueError? = nil) {
    if refusal == nil { refusal = Refusal(reply: reply, cause: cause) }
    decoder.discardsContent = true
    buffer = []
  }

  /// Moves what has come so far into a file, once it is too much for memory, and removes the file once it is in vain.
  nonisolated(nonsending) func spill() async {
    charge()
    if refusal != nil, writer != nil { return await discard() }
    let threshold =
      budget.isTight ? Self.tightMemoryLimit : writer == nil ? Self.memoryLimit : Self.pieceSize
    guard buffer.count > threshold, refusal == nil else { return }
    do throws(QueueError) {
      if writer == nil {
        if let reply = loopRefusal() { return refuse(reply) }
        complete(isWhole: false)
        writer = try await store.makeContentWriter(for: id)
      }
      // The announced size may have been too small, or many large messages may have been begun at once.
      guard store.admits(buffer.count) else { throw QueueError.full }
      let piece = buffer
      buffer = []
      spilled += piece.count
      try await writer?.write(piece)
      charge()
    } catch {
      refuse(Self.reply(for: error), because: error)
      await discard()
    }
  }

  var isRefused: Bool { refusal != nil }

  /// Finds out what only shows at the end.
  func examine() {
    scanner.finish()
    if refusal == nil, scanner.sawBareLineBreak { refuse(Replies.bareLineBreak) }
    if refusal == nil, writer == nil, let reply = loopRefusal() { refuse(reply) }
  }

  /// Moves all that has come into the file, if there is one.
  nonisolated(nonsending) func flush() async throws(QueueError) {
    guard let writer, !buffer.isEmpty else { return }
    spilled += buffer.count
    let piece = buffer
    buffer = []
    try await writer.write(piece)
  }

  /// Makes the message durable.
  /// - Parameter state: what has happened to it already.
  nonisolated(nonsending) func commit(
    _ envelope: Envelope, _ state: MessageState = MessageState()
  ) async -> Result<Content, Refusal> {
    examine()
    if let refusal {
      await discard()
      return .failure(refusal)
    }
    if writer == nil { complete(isWhole: true) }
    do throws(QueueError) {
      guard store.admits(buffer.count) else { throw .full }
      let content: Content
      if let writer {
        try await flush()
        content = try await writer.finish()
      } else {
        content = .bytes(buffer)
      }
      try await store.append(id, envelope, content, state)
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
    buffer.withUnsafeBytes { loopRefusal(UnsafeRawBufferPointer(rebasing: $0[traceLength...])) }
  }

  /// The refusal of a message that begins with these octets, when it goes in circles.
  func loopRefusal(_ bytes: UnsafeRawBufferPointer) -> Reply? {
    let header = HeaderView(bytes)
    return switch LoopDetector.examine(header, hostname: hostname, recipients: recipients) {
    case .fine: nil
    case .tooManyHops(let hops): Reply(554, "5.4.6", "Mail loop: the message has been relayed \(hops) times")
    case .seenBefore: Reply(554, "5.4.6", "Mail loop: the message was here before, for the same recipient")
    }
  }

  /// Puts the fields that a submitted message must have and does not (RFC 6409 8.1, 8.2) below our Received field.
  ///
  /// A header that does not end within what is in memory is left as it is: nobody knows what else it has.
  func complete(isWhole: Bool) {
    guard let completion else { return }
    self.completion = nil
    let fields: [UInt8] = buffer.withUnsafeBytes { bytes in
      let header = HeaderView(UnsafeRawBufferPointer(rebasing: bytes[traceLength...]))
      guard isWhole || header.bodyStart < bytes.count - traceLength else { return [] }
      var text = ""
      if !header.hasHeader("Date") { text += "Date: \(RFC5322Date.format(completion))\r\n" }
      if !header.hasHeader("Message-ID") { text += "Message-ID: <\(id).\(completion.seconds)@\(hostname)>\r\n" }
      return Array(text.utf8)
    }
    buffer.insert(contentsOf: fields, at: traceLength)
  }

  static func reply(for error: QueueError) -> Reply {
    if case .full = error { return Replies.insufficientStorage }
    return Reply(452, "4.3.0", "The queue cannot take mail now, try again later")
  }
}
