// The knobs of the spool.

import Primitives

/// How a ``Spool`` behaves.
public struct SpoolOptions: Sendable {
  /// A segment takes no further record that would make it larger, in octets (at most 2 GiB). On a small file system
  /// it is a thirty-second of that, so that there is always a whole segment that can be given back.
  public var segmentSize: Int
  /// How long a change of state may stay unsynced.
  public var syncInterval: Duration
  /// Octets that are written before they are synced and acknowledged, however many messages wait.
  public var batchSize: Int
  /// Octets of a segment that one step of compaction looks at before waiting messages get their turn.
  public var compactionStep: Int
  /// Octets of the file system that new mail must leave free; nil for a tenth of it, 256 MiB at most.
  public var reserve: Int?
  var safeguards = Safeguards.all

  public init(
    segmentSize: Int = 64 << 20, syncInterval: Duration = .milliseconds(100), batchSize: Int = 16 << 20,
    compactionStep: Int = 1 << 20, reserve: Int? = nil
  ) {
    self.segmentSize = min(max(segmentSize, 4096), 1 << 31)
    self.syncInterval = syncInterval
    self.batchSize = max(batchSize, 1)
    self.compactionStep = max(compactionStep, 1)
    self.reserve = reserve
  }
}

/// The steps whose absence loses or doubles mail, but only when a disk fails or loses power at the wrong moment.
///
/// They are never left out in service. The simulation leaves out one at a time and has to notice each: a test that
/// cannot find a planted bug would not find a real one either.
struct Safeguards: OptionSet, Sendable {
  let rawValue: Int

  /// Log files are synced before messages are acknowledged.
  static let syncBeforeAcknowledging = Safeguards(rawValue: 1)
  /// The directory is synced before the first record of a new segment.
  static let syncOfNewNames = Safeguards(rawValue: 2)
  /// Copies are durable before the segment of the originals is unlinked.
  static let syncBeforeUnlinking = Safeguards(rawValue: 4)
  /// A failed sync ends the spool instead of being tried again.
  static let endAfterFailedSync = Safeguards(rawValue: 8)
  /// A content file is synced before the record that names it.
  static let syncOfContents = Safeguards(rawValue: 16)
  /// Recovery writes again what may have reached the page cache only.
  static let rewritingOfUncertainTail = Safeguards(rawValue: 32)
  /// Recovery believes no record whose checksum is wrong.
  static let checksums = Safeguards(rawValue: 64)
  /// A content file goes only once the removal of its message is durable.
  static let removalBeforeContent = Safeguards(rawValue: 128)

  static let all = Safeguards(rawValue: 255)
}
