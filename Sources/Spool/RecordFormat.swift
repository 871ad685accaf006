// The bytes of the log: segment headers, record headers, and the fixed part of a message record. The page
// docs/spool-format.md says the same for people who write a reader.

import CChecksum
import Primitives

/// Format constants. All integers are little-endian; every record begins at a multiple of eight.
enum LogFormat {
  /// What is written. Version 1 had no second part of the state (``Encoder``), and nothing else was different: its
  /// segments are read as they are, but no record is added to one.
  static let version: UInt32 = 2
  static let oldestVersion: UInt32 = 1
  static let segmentMagic: UInt64 = 0x4745_5350_544D_5353  // "SSMTPSEG"
  static let segmentHeaderSize = 64
  static let recordMagic: UInt32 = 0x4352_5153  // "SQRC"
  static let recordHeaderSize = 32
  static let messageFixedSize = 48
  /// The identifier of no message: its removal says only that everything before it is durable.
  static let nobody: UInt64 = 0

  static func padded(_ count: Int) -> Int { (count + 7) & ~7 }

  static func segmentName(_ number: UInt32) -> String {
    let digits = String(number)
    return String(repeating: "0", count: max(0, 8 - digits.utf8.count)) + digits + ".seg"
  }

  static func segmentNumber(_ name: String) -> UInt32? {
    guard name.hasSuffix(".seg"), name.utf8.count >= 12, let number = UInt32(name.dropLast(4)) else { return nil }
    return segmentName(number) == name ? number : nil
  }

  static func checksum(_ bytes: UnsafeRawBufferPointer, after crc: UInt32 = 0) -> UInt32 {
    ssmtp_crc32c(crc, bytes.baseAddress, bytes.count)
  }
}

enum RecordType: UInt8 {
  /// Envelope, state and (unless it has a file) content. Replaces every earlier record of the same message.
  case message = 1
  /// The whole state of a message.
  case state = 2
  /// The message is gone.
  case removal = 3
}

struct SegmentHeader {
  var version = LogFormat.version
  var number: UInt32
  /// The greatest identifier used before this segment began, so that it outlives the segments before.
  var lastID: UInt64

  func encoded() -> [UInt8] {
    var encoder = Encoder()
    encoder.put(LogFormat.segmentMagic)
    encoder.put(version)
    encoder.put(number)
    encoder.put(lastID)
    encoder.zeros(LogFormat.segmentHeaderSize - 28)
    let crc = encoder.bytes.withUnsafeBytes { LogFormat.checksum($0) }
    encoder.put(crc)
    return encoder.bytes
  }

  enum Problem: Error {
    case damaged
    case version(UInt32)
  }

  init(number: UInt32, lastID: UInt64) {
    self.number = number
    self.lastID = lastID
  }

  init(_ bytes: UnsafeRawBufferPointer) throws(Problem) {
    guard bytes.count >= LogFormat.segmentHeaderSize, bytes.little(UInt64.self, 0) == LogFormat.segmentMagic,
      bytes.little(UInt32.self, 60) == LogFormat.checksum(UnsafeRawBufferPointer(rebasing: bytes[0..<60]))
    else { throw .damaged }
    version = bytes.little(UInt32.self, 8)
    guard (LogFormat.oldestVersion...LogFormat.version).contains(version) else { throw .version(version) }
    number = bytes.little(UInt32.self, 12)
    lastID = bytes.little(UInt64.self, 16)
  }
}

extension SegmentHeader {
  /// Whether a segment was never finished: a crash came while it was created, or there was no space for its header. In
  /// the latter case the one before it was written to all the same, so that it may end in a torn record: it is the last
  /// one, and this one never was.
  static func isMissing(in file: any DiskFile) throws(DiskError) -> Bool {
    guard try file.size() <= LogFormat.segmentHeaderSize else { return false }
    return try file.bytes(LogFormat.segmentHeaderSize, at: 0).withUnsafeBytes { raw in
      do throws(Problem) {
        _ = try SegmentHeader(raw)
        return false
      } catch {
        if case .damaged = error { return true }
        return false
      }
    }
  }
}

/// The first 32 bytes of a record.
struct RecordHeader {
  var crc: UInt32
  var payloadCount: Int
  var type: UInt8
  var id: UInt64
  /// The offset in this segment below which everything had been synced when this record was written. With it recovery
  /// tells a torn tail (nothing behind the damage was promised) from damage to what had been safe.
  var synced: UInt64

  /// Bytes in the segment, padding included.
  var total: Int { LogFormat.padded(LogFormat.recordHeaderSize + payloadCount) }

  /// `nil` when these cannot be the first bytes of a record.
  init?(_ bytes: UnsafeRawBufferPointer) {
    guard bytes.count >= LogFormat.recordHeaderSize, bytes.little(UInt32.self, 0) == LogFormat.recordMagic
    else { return nil }
    crc = bytes.little(UInt32.self, 4)
    payloadCount = Int(bytes.little(UInt32.self, 8))
    type = bytes[12]
    id = bytes.little(UInt64.self, 16)
    synced = bytes.little(UInt64.self, 24)
  }
}

/// The first 48 bytes of the payload of a message record.
struct MessageFixed {
  var frontCRC: UInt32
  var summaryCount: Int
  var envelopeCount: Int
  var stateCount: Int
  var contentCount: Int
  var contentCRC: UInt32
  var isFile: Bool
  var arrival: Timestamp

  /// Bytes of the payload before the content.
  var frontCount: Int { LogFormat.messageFixedSize + summaryCount + envelopeCount + stateCount }

  init?(_ bytes: UnsafeRawBufferPointer) {
    guard bytes.count >= LogFormat.messageFixedSize else { return nil }
    frontCRC = bytes.little(UInt32.self, 0)
    summaryCount = Int(bytes.little(UInt32.self, 4))
    envelopeCount = Int(bytes.little(UInt32.self, 8))
    stateCount = Int(bytes.little(UInt32.self, 12))
    // Sums of sizes must not overflow, whatever stands there.
    guard let size = Int(exactly: bytes.little(UInt64.self, 16)), size < 1 << 62 else { return nil }
    contentCount = size
    contentCRC = bytes.little(UInt32.self, 24)
    isFile = bytes.little(UInt32.self, 28) & 1 != 0
    arrival = Timestamp(microseconds: Int64(bitPattern: bytes.little(UInt64.self, 32)))
  }
}

extension UnsafeRawBufferPointer {
  func little<T: FixedWidthInteger>(_ type: T.Type, _ offset: Int) -> T {
    T(littleEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
  }
}
