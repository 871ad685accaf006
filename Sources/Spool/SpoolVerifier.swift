// Looks at every octet of a queue without changing one and without its lock, so that it may be asked of a queue that is
// in use, that refuses to open, or that is a copy.
//
// What a daemon does meanwhile must not look like damage: the end of the last segment may be half written, segments go
// when compaction has copied what lived in them, and content files go with their messages. So the end is read again
// before it is called unfinished, and a scan that has lost a file begins anew.

import Glibc
import Primitives

/// A read-only check of a queue directory.
public struct SpoolVerifier: Sendable {
  /// Something that is not what was written.
  public struct Damage: Sendable, Equatable {
    public var file: String
    /// In octets from the beginning of the file.
    public var offset: Int
    public var detail: String
    /// The messages it concerns, as far as that can be known.
    public var affected: [QueueID]
    /// What to do about it.
    public var advice: String
  }

  /// What was found.
  public struct Report: Sendable, Equatable {
    public var segments = 0
    /// Octets of the segments.
    public var octets = 0
    /// Segments by their format version.
    public var formatVersions: [UInt32: Int] = [:]
    public var messageRecords = 0
    public var stateRecords = 0
    public var removalRecords = 0
    /// Messages that are queued, the dead and the held ones among them.
    public var messages = 0
    public var dead = 0
    public var held = 0
    public var contentFiles = 0
    /// Octets of the contents in files.
    public var contentOctets = 0
    /// Files in `content` that no message names: being received now, or left over from a crash.
    public var unnamedContentFiles = 0
    /// The end of the last segment that is not a whole record: being written now, or cut off by a crash before anybody
    /// was told that it is safe. Octets.
    public var unfinishedOctets = 0
    public var damages: [Damage] = []
  }

  /// Why there is no report.
  public enum Problem: Error, Sendable, Equatable, CustomStringConvertible {
    case cannotRead(QueueError)
    /// Compaction was quicker, again and again.
    case keepsChanging

    public var description: String {
      switch self {
      case .cannotRead(let error): "\(error)"
      case .keepsChanging: "the queue changes faster than it can be read: try again when less mail comes in"
      }
    }
  }

  private let directory: String
  private let disk: any Disk
  private static let rounds = 8

  public init(directory: String, disk: any Disk = PosixDisk()) {
    self.directory = directory
    self.disk = disk
  }

  /// Reads all of the queue. Not to be called on an event loop.
  public func run() throws(Problem) -> Report { try scan(isSalvage: false).report }

  /// - Parameter isSalvage: whether to remember where each message is.
  func scan(isSalvage: Bool) throws(Problem) -> VerifyingScan {
    var lost: Set<QueueID> = []
    for _ in 0..<Self.rounds {
      var scan = VerifyingScan(directory: directory, disk: disk, isSalvage: isSalvage)
      do throws(DiskError) {
        guard try scan.run() else { continue }
      } catch { throw .cannotRead(error.asQueueError) }
      // A content file may have gone with its message since the log was read; one that is missing twice is lost.
      if scan.missing.isSubset(of: lost) {
        scan.reportMissing()
        return scan
      }
      lost = scan.missing
    }
    throw .keepsChanging
  }
}
