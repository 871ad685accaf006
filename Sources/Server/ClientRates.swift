// How many messages each client has begun lately: one number a client, in a table that is bounded, and that nobody can
// make forget him by filling it with others.

import Primitives

/// A token bucket for each client, as the time at which it is full again (the "virtual scheduling" of GCRA, ITU-T
/// I.371): an entry whose time has passed says nothing any more and can be dropped without anybody gaining by it.
struct ClientRates {
  private var fullAt: [IPAddress: MonotonicInstant] = [:]
  private let capacity: Int
  private static let minute = Duration.seconds(60)

  /// - Parameter capacity: clients that are remembered at most.
  init(capacity: Int = 65_536) { self.capacity = capacity }

  var count: Int { fullAt.count }

  /// Takes a token of `client`'s bucket, which holds `limit` of them and is filled within a minute.
  /// - Returns: false when there is none.
  mutating func admit(_ client: IPAddress, limit: Int, now: MonotonicInstant) -> Bool {
    let cost = Duration.nanoseconds(Self.minute.nanoseconds / Int64(limit))
    let full = max(fullAt[client] ?? now, now) + cost
    guard full - now <= Self.minute else { return false }
    if fullAt.count >= capacity, fullAt[client] == nil { makeRoom(now) }
    fullAt[client] = full
    return true
  }

  /// Forgets who has nothing on his account; if that is not enough, the half that has least. So whoever fills the table
  /// with other addresses pushes out those, and not the one that has used up its bucket.
  private mutating func makeRoom(_ now: MonotonicInstant) {
    fullAt = fullAt.filter { $0.value > now }
    guard fullAt.count > capacity - capacity / 8 else { return }
    let median = fullAt.values.sorted()[fullAt.count / 2]
    fullAt = fullAt.filter { $0.value > median }
  }
}
