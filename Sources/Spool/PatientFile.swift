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
      // What is known is not asked for again: a disk may take seconds for each of its refusals.
      let isGiven = isBad(start) ? false : try fill(part, at: place, of: start)
      if !isGiven { part.initializeMemory(as: UInt8.self, repeating: 0) }
      place = next
    }
    return max(end - offset, 0)
  }

  private func isBad(_ piece: Int) -> Bool { bad.withLock { $0.pieces.contains(piece) } }

  /// - Returns: false when the disk does not give it, which is remembered of the piece.
  private func fill(
    _ buffer: UnsafeMutableRawBufferPointer, at offset: Int, of piece: Int
  ) throws(DiskError) -> Bool {
    do throws(DiskError) {
      _ = try file.read(into: buffer, at: offset)
      return true
    } catch {
      guard error.code == EIO else { throw error }
      bad.withLock { bad in
        bad.pieces.insert(piece)
        bad.code = error.code
      }
      return false
    }
  }

  func size() throws(DiskError) -> Int { try file.size() }
  func write(_ buffers: [UnsafeRawBufferPointer], at offset: Int) throws(DiskError) -> Int {
    try file.write(buffers, at: offset)
  }
  func sync() throws(DiskError) { try file.sync() }
  func truncate(to size: Int) throws(DiskError) { try file.truncate(to: size) }
}
