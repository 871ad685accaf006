// The knobs of the spool.

import Primitives

/// How a ``Spool`` behaves.
public struct SpoolOptions: Sendable {
  /// A segment takes no further record that would make it larger, in octets (at most 2 GiB). On a small file system
  /// it is a thirty-second of that, so that there is always a whole segment that can be given back. With little in the
  /// queue segments are smaller, down to a quarter: see ``segmentLimit(live:)``.
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

  /// How large the last segment may become while so many octets of the log are needed.
  ///
  /// Only whole segments can be given back, so their size is what the disk holds beyond the bound of ``diskBound(live:)``.
  /// It goes along with what is queued; below a quarter of the usual size a new segment would come, with its three syncs,
  /// more often than it is worth.
  func segmentLimit(live: Int) -> Int { min(segmentSize, max(segmentSize / 4, live / 8)) }

  /// The octets that segments may take while so many of them are needed; with more, compaction begins.
  ///
  /// Less than twice, because what compaction copies is there twice for a moment.
  func diskBound(live: Int) -> Int { live + live / 4 * 3 + segmentLimit(live: live) }
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
  /// A copy of a message carries its latest state.
  static let stateInCopies = Safeguards(rawValue: 256)

  static let all = Safeguards(rawValue: 511)
}
