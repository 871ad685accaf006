// A file on a disk that has bad sectors: what can be read of it is read.

import Glibc
import Primitives

/// Reads a file although the disk fails at some places of it: those are read as zeros, and remembered.
///
/// A whole window of the file fails to be read when one sector of it does, so the window is read again in pieces of the
/// size in which disks fail.
final class PatientFile: DiskFile {
  private static let piece = 4096
  private let file: any DiskFile
  /// The pieces that cannot be read, and the error of the last of them.
  private let bad = Mutex<(pieces: Set<Int>, code: Int32)>(([], 0))

  init(_ file: any DiskFile) { self.file = file }

  /// The first octet that cannot be read, how many there are of them in all, and `errno`; nil when all could be read.
  var unreadable: (offset: Int, octets: Int, code: Int32)? {
    bad.withLock { bad in bad.pieces.min().map { ($0, bad.pieces.count * Self.piece, bad.code) } }
  }

  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(DiskError) -> Int {
    do throws(DiskError) { return try file.read(into: buffer, at: offset) } catch {
      guard error.code == EIO else { throw error }
    }
    let end = min(try file.size(), offset + buffer.count)
    var place = offset
    while place < end {
      let start = place / Self.piece * Self.piece
      let next = min(start + Self.piece, end)
      let part = UnsafeMutableRawBufferPointer(rebasing: buffer[place - offset..<next - offset])
      // A disk may take seconds for each of its refusals.
      if bad.withLock({ $0.pieces.contains(start) }) {
        part.initializeMemory(as: UInt8.self, repeating: 0)
        place = next
        continue
      }
      do throws(DiskError) { _ = try file.read(into: part, at: place) } catch {
        guard error.code == EIO else { throw error }
        part.initializeMemory(as: UInt8.self, repeating: 0)
        bad.withLock { bad in
          bad.pieces.insert(start)
          bad.code = error.code
        }
      }
      place = next
    }
    return max(end - offset, 0)
  }

  func size() throws(DiskError) -> Int { try file.size() }
  func write(_ buffers: [UnsafeRawBufferPointer], at offset: Int) throws(DiskError) -> Int {
    try file.write(buffers, at: offset)
  }
  func sync() throws(DiskError) { try file.sync() }
  func truncate(to size: Int) throws(DiskError) { try file.truncate(to: size) }
}
