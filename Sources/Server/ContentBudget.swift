// How much of the messages on their way in is kept in memory by all sessions together.

import struct Synchronization.Atomic

/// A count that sessions share. It refuses nothing: when it is used up, contents go to files of their own sooner, so
/// that a thousand clients with half a message each cost a quarter of what they could.
final class ContentBudget: Sendable {
  private let used = Atomic<Int>(0)
  /// Octets from which memory is short.
  private let limit: Int

  init(limit: Int = 32 << 20) { self.limit = limit }

  func add(_ octets: Int) { used.add(octets, ordering: .relaxed) }
  var isTight: Bool { used.load(ordering: .relaxed) > limit }
  var octets: Int { used.load(ordering: .relaxed) }
}
