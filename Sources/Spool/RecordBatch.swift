// Records on their way to the disk: headers and envelopes are encoded into one reused buffer, contents stay where they
// are, and both go to the disk in one gathering write.

import Primitives

/// A few records that are written with one call.
struct RecordBatch {
  /// More would only make the recursion of `withBuffers` deeper; 64 messages of 10 KiB are a large write already. It
  /// also keeps the buffers of a call far below IOV_MAX.
  static let limit = 64

  private struct Piece {
    /// End of the encoded bytes in front of the content.
    var end: Int
    var content: [UInt8]
  }
  private var encoder = Encoder()
  private var pieces: [Piece] = []
  /// Octets that the batch takes in the segment.
  private(set) var size = 0
  private(set) var count = 0

  mutating func clear() {
    encoder.bytes.removeAll(keepingCapacity: true)
    pieces.removeAll(keepingCapacity: true)
    size = 0
    count = 0
  }

  /// Adds a message and says where in the batch it stands.
  mutating func add(_ record: NewRecord, _ summary: Summary, segment: UInt32, tail: Int, synced: Int) -> IndexEntry {
    let start = begin(.message, record.id.rawValue, synced)
    let fixed = encoder.bytes.count
    encoder.zeros(LogFormat.messageFixedSize)
    encoder.put(summary)
    let summaryEnd = encoder.bytes.count
    encoder.put(record.envelope)
    let envelopeEnd = encoder.bytes.count
    if record.state != MessageState() { encoder.put(record.state) }
    let end = encoder.bytes.count
    let contentCount = record.file?.count ?? record.content.count
    encoder.set(UInt32(summaryEnd - fixed - LogFormat.messageFixedSize), at: fixed + 4)
    encoder.set(UInt32(envelopeEnd - summaryEnd), at: fixed + 8)
    encoder.set(UInt32(end - envelopeEnd), at: fixed + 12)
    encoder.set(UInt64(contentCount), at: fixed + 16)
    encoder.set(record.file?.crc ?? 0, at: fixed + 24)
    encoder.set(UInt32(record.file != nil ? 1 : 0), at: fixed + 28)
    encoder.set(record.envelope.arrival.microseconds, at: fixed + 32)
    let frontCRC = encoder.bytes.withUnsafeBytes { LogFormat.checksum(.init(rebasing: $0[(fixed + 4)..<end])) }
    encoder.set(frontCRC, at: fixed)
    let payload = end - fixed + record.content.count
    let offset = tail + size
    finish(start, payload, record.content)
    return IndexEntry(
      id: record.id.rawValue, arrival: record.envelope.arrival.microseconds, nextAttempt: 0, segment: segment,
      offset: UInt32(offset), payload: UInt32(payload), front: UInt32(end - fixed), size: UInt32(contentCount),
      stateSegment: 0, stateOffset: 0, statePayload: 0, account: IndexEntry.noLane, attempts: 0,
      flags: record.file != nil ? IndexEntry.file : 0)
  }

  /// Adds a state record or a removal and returns its place relative to the batch and its payload.
  mutating func add(_ change: Unwritten, _ id: UInt64, synced: Int) -> (offset: Int, payload: Int) {
    let offset = size
    let start: Int
    switch change {
    case .removed: start = begin(.removal, id, synced)
    case .state(let state, let summary):
      start = begin(.state, id, synced)
      encoder.put(summary)
      encoder.put(state)
    }
    let payload = encoder.bytes.count - start - LogFormat.recordHeaderSize
    finish(start, payload, [])
    return (offset, payload)
  }

  private mutating func begin(_ type: RecordType, _ id: UInt64, _ synced: Int) -> Int {
    let start = encoder.bytes.count
    encoder.put(LogFormat.recordMagic)
    encoder.put(UInt64(0))  // Checksum and payload size.
    encoder.put(UInt32(type.rawValue))
    encoder.put(id)
    encoder.put(UInt64(synced))
    return start
  }

  private mutating func finish(_ start: Int, _ payload: Int, _ content: [UInt8]) {
    encoder.set(UInt32(payload), at: start + 8)
    var crc = encoder.bytes.withUnsafeBytes { LogFormat.checksum(.init(rebasing: $0[(start + 8)...])) }
    if !content.isEmpty {
      crc = content.withUnsafeBytes { LogFormat.checksum($0, after: crc) }
      pieces.append(Piece(end: encoder.bytes.count, content: content))
    }
    encoder.set(crc, at: start + 4)
    let length = LogFormat.recordHeaderSize + payload
    encoder.zeros(LogFormat.padded(length) - length)
    size += LogFormat.padded(length)
    count += 1
  }

  /// Writes the batch at `offset`.
  func write(to file: any DiskFile, at offset: Int) throws(DiskError) {
    let result: Result<Void, DiskError> = encoder.bytes.withUnsafeBytes { encoded in
      withBuffers(encoded, 0, 0, []) { buffers in
        do throws(DiskError) { return .success(try file.writeAll(buffers, at: offset)) } catch {
          return .failure(error)
        }
      }
    }
    try result.get()
  }

  /// Collects the buffers piece by piece, each inside the scope that keeps its content in place: no copies.
  private func withBuffers(
    _ encoded: UnsafeRawBufferPointer, _ piece: Int, _ start: Int, _ buffers: [UnsafeRawBufferPointer],
    _ body: ([UnsafeRawBufferPointer]) -> Result<Void, DiskError>
  ) -> Result<Void, DiskError> {
    var buffers = buffers
    guard piece < pieces.count else {
      if start < encoded.count { buffers.append(UnsafeRawBufferPointer(rebasing: encoded[start...])) }
      return body(buffers)
    }
    let end = pieces[piece].end
    buffers.append(UnsafeRawBufferPointer(rebasing: encoded[start..<end]))
    return pieces[piece].content.withUnsafeBytes { content in
      withBuffers(encoded, piece + 1, end, buffers + [content], body)
    }
  }
}
