// The knobs of the spool.

/// How a ``Spool`` behaves.
public struct SpoolOptions: Sendable {
  /// A segment takes no further record that would make it larger, in octets (at most 2 GiB).
  public var segmentSize: Int
  /// How long a change of state may stay unsynced.
  public var syncInterval: Duration
  /// Octets that are written before they are synced and acknowledged, however many messages wait.
  public var batchSize: Int
  /// Octets of a segment that one step of compaction looks at before waiting messages get their turn.
  public var compactionStep: Int

  public init(
    segmentSize: Int = 64 << 20, syncInterval: Duration = .milliseconds(100), batchSize: Int = 16 << 20,
    compactionStep: Int = 1 << 20
  ) {
    self.segmentSize = min(max(segmentSize, 4096), 1 << 31)
    self.syncInterval = syncInterval
    self.batchSize = max(batchSize, 1)
    self.compactionStep = max(compactionStep, 1)
  }
}
