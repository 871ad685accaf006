// Walks over the records of one segment with large sequential reads.

import CChecksum

/// Reads a segment through a window of 1 MiB.
struct SegmentScanner {
  private static let windowSize = 1 << 20
  let file: any DiskFile
  /// Bytes of the segment to look at.
  let end: Int
  private(set) var offset: Int
  private var window: [UInt8] = []
  private var windowStart = 0

  init(file: any DiskFile, from offset: Int, to end: Int) {
    self.file = file
    self.offset = offset
    self.end = end
  }

  /// Makes the bytes at `offset` part of the window; `false` when the segment ends before.
  private mutating func load(_ count: Int, at offset: Int) throws(DiskError) -> Bool {
    guard offset + count <= end else { return false }
    if offset >= windowStart && offset + count <= windowStart + window.count { return true }
    let wanted = min(max(count, Self.windowSize), end - offset)
    if window.count != wanted { window = [UInt8](repeating: 0, count: wanted) }
    windowStart = offset
    let got: Int
    do throws(DiskError) {
      got = try Self.fill(&window, file, offset)
    } catch {
      window = []
      throw error
    }
    if got < wanted { window.removeSubrange(got...) }
    return got >= count
  }

  private static func fill(_ window: inout [UInt8], _ file: any DiskFile, _ offset: Int) throws(DiskError) -> Int {
    let result: Result<Int, DiskError> = window.withUnsafeMutableBytes { buffer in
      do throws(DiskError) { return .success(try file.read(into: buffer, at: offset)) } catch { return .failure(error) }
    }
    return try result.get()
  }

  private func bytes(_ count: Int, at offset: Int) -> WindowSlice {
    WindowSlice(window: window, range: offset - windowStart..<offset - windowStart + count)
  }

  /// What stands at the current offset.
  enum Item {
    case record(RecordHeader, offset: Int)
    case end
    case damaged(String)
  }

  /// The header of the record at the current offset; does not look at the payload.
  mutating func header() throws(DiskError) -> Item {
    if offset >= end { return .end }
    guard try load(LogFormat.recordHeaderSize, at: offset) else { return .damaged("a record header is cut short") }
    let header = bytes(LogFormat.recordHeaderSize, at: offset).with { RecordHeader($0) }
    guard let header else { return .damaged("no record begins here") }
    return .record(header, offset: offset)
  }

  /// Whether the record at the current offset is all there and has the right checksum.
  mutating func verify(_ header: RecordHeader) throws(DiskError) -> Bool {
    guard offset + header.total <= end else { return false }
    guard try load(LogFormat.recordHeaderSize, at: offset) else { return false }
    var crc = bytes(LogFormat.recordHeaderSize - 8, at: offset + 8).with { LogFormat.checksum($0) }
    var position = offset + LogFormat.recordHeaderSize
    var left = header.payloadCount
    while left > 0 {
      let step = min(left, Self.windowSize)
      guard try load(step, at: position) else { return false }
      crc = bytes(step, at: position).with { LogFormat.checksum($0, after: crc) }
      position += step
      left -= step
    }
    return crc == header.crc
  }

  /// Gives the first `count` bytes of the payload of the record at the current offset to `body`.
  mutating func withPayload<T>(_ count: Int, _ body: (UnsafeRawBufferPointer) -> T?) throws(DiskError) -> T? {
    guard try load(count, at: offset + LogFormat.recordHeaderSize) else { return nil }
    return bytes(count, at: offset + LogFormat.recordHeaderSize).with(body)
  }

  /// Goes behind the record at the current offset.
  mutating func skip(_ header: RecordHeader) { offset += header.total }

  /// Goes to the next place where a record could begin.
  mutating func skipWord() { offset += 8 }
}

/// A part of the window, kept alive while it is looked at.
private struct WindowSlice {
  let window: [UInt8]
  let range: Range<Int>

  func with<T>(_ body: (UnsafeRawBufferPointer) -> T) -> T {
    window.withUnsafeBytes { body(UnsafeRawBufferPointer(rebasing: $0[range])) }
  }
}
