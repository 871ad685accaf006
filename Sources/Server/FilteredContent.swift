// The content of a message while mail filters look at it and change it: its header as a list of fields, its body where
// it is, in memory or on disk, or where a filter has put another one.

import Filters
import Message
import SMTP
import Spool

/// Octets that come piece by piece: in memory while they are few, in a file of the queue when they are not.
final class GatheredContent {
  private let store: any QueueStore
  private var buffer: [UInt8] = []
  private var writer: (any ContentWriter)?
  private(set) var count = 0
  private var endsWithCR = false

  private static let memoryLimit = 256 * 1024

  init(store: any QueueStore) { self.store = store }

  nonisolated(nonsending) func append(_ piece: [UInt8]) async throws(QueueError) {
    let before = buffer.count
    take(piece)
    count += buffer.count - before
    guard store.admits(count) else { throw .full }
    guard buffer.count > Self.memoryLimit else { return }
    // Under a number of its own: that of the message belongs to what the client has sent.
    if writer == nil { writer = try await store.makeContentWriter(for: store.nextID()) }
    let full = buffer
    buffer = []
    try await writer?.write(full)
  }

  /// Filters are programs like others, and many write lines that end with LF. What leaves has CRLF and no NUL, or the
  /// next server would see other lines than we do.
  private func take(_ piece: [UInt8]) {
    buffer.reserveCapacity(buffer.count + piece.count)
    for byte in piece {
      if byte == 0x0a {
        if !endsWithCR { buffer.append(0x0d) }
      } else if endsWithCR {
        buffer.append(0x0a)
      }
      endsWithCR = byte == 0x0d
      buffer.append(byte == 0 ? 0x20 : byte)
    }
  }

  /// Moves what is left to where the rest is, so that all can be read in one way.
  nonisolated(nonsending) func finish() async throws(QueueError) -> BodyPlace {
    if endsWithCR {
      endsWithCR = false
      buffer.append(0x0a)
      count += 1
    }
    guard let writer else { return .memory(buffer, from: 0) }
    if !buffer.isEmpty { try await writer.write(buffer) }
    buffer = []
    return .file(writer, from: 0, count: count)
  }

  nonisolated(nonsending) func discard() async {
    await writer?.discard()
    writer = nil
    buffer = []
  }
}

/// Where a body is.
enum BodyPlace {
  case memory([UInt8], from: Int)
  case file(any ContentWriter, from: Int, count: Int)

  var count: Int {
    switch self {
    case .memory(let bytes, let start): bytes.count - start
    case .file(_, _, let count): count
    }
  }

  /// Up to `count` octets from `offset` on.
  nonisolated(nonsending) func read(at offset: Int, count: Int) async throws(QueueError) -> ArraySlice<UInt8> {
    switch self {
    case .memory(let bytes, let start):
      return bytes[(start + offset)..<min(start + offset + count, bytes.count)]
    case .file(let writer, let start, let size):
      return try await writer.read(at: start + offset, count: min(count, size - offset))[...]
    }
  }
}

extension ContentReceiver {
  /// A header larger than this cannot be examined, and no filter may make it larger.
  static let headerLimit = 256 * 1024

  /// The content as filters see it, without our own Received field; nil when it is refused already, or now.
  nonisolated(nonsending) func contentToFilter() async -> (header: EditableHeader, body: BodyPlace)? {
    examine()
    guard !isRefused else { return nil }
    do throws(QueueError) {
      guard let writer else {
        // Now, not when it is queued: a signature has to cover the fields that we add.
        complete(isWhole: true)
        let header = buffer[traceLength...].withUnsafeBytes { HeaderView($0).bodyStart }
        let place = traceLength + header
        return (Self.header(buffer[traceLength..<place]), .memory(buffer, from: place))
      }
      try await flush()
      let start = try await writer.read(at: traceLength, count: Self.headerLimit)
      let header = start.withUnsafeBytes { HeaderView($0).bodyStart }
      if header == start.count, traceLength + header < spilled {
        refuse(Reply(552, "5.3.4", "The header of the message exceeds \(Self.headerLimit) octets"))
        return nil
      }
      let place = traceLength + header
      return (Self.header(start[..<header]), .file(writer, from: place, count: spilled - place))
    } catch {
      refuse(Self.reply(for: error), because: error)
      return nil
    }
  }

  private static func header(_ octets: ArraySlice<UInt8>) -> EditableHeader {
    octets.withUnsafeBytes { EditableHeader($0) }
  }

  /// Puts what filters have made of the message in the place of what the client has sent. Memory stays bounded: a
  /// large message is copied from one file to the other.
  nonisolated(nonsending) func replace(header: EditableHeader, body: BodyPlace) async {
    let octets = header.octets
    if octets.count > Self.headerLimit {
      return refuse(Reply(552, "5.3.4", "The header of the message exceeds \(Self.headerLimit) octets"))
    }
    let before = trace + octets
    do throws(QueueError) {
      guard store.admits(before.count + body.count) else { throw .full }
      // The file keeps what it holds until nobody reads it any more; its name is free at once.
      if let old = writer { await old.discard() }
      writer = nil
      spilled = 0
      buffer = []
      if before.count + body.count <= Self.memoryLimit {
        buffer = before + (try await body.read(at: 0, count: body.count))
      } else {
        let new = try await store.makeContentWriter(for: id)
        writer = new
        try await new.write(before)
        spilled = before.count
        var offset = 0
        while offset < body.count {
          let piece = try await body.read(at: offset, count: 1 << 20)
          if piece.isEmpty { throw .failed("the content ends early") }
          try await new.write(Array(piece))
          spilled += piece.count
          offset += piece.count
        }
      }
      if let reply = octets.withUnsafeBytes({ loopRefusal($0) }) { refuse(reply) }
    } catch {
      refuse(Self.reply(for: error), because: error)
    }
  }
}
