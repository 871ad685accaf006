// How many messages are held and dead. The queue keeps no such count, so its entries are walked over; how old an answer
// may be grows with what it cost, so that a monitor that asks each second costs a queue of a million no more than a few
// hundredths of a processor.

import Primitives
import Spool

actor QueueCensus {
  private let store: any QueueStore
  private let time: any Timekeeper
  private var last: (held: Int, dead: Int)?
  private var validUntil = MonotonicInstant(nanoseconds: .min)
  private static let page = 10_000
  private static let costFactor = 30

  init(store: any QueueStore, time: any Timekeeper) {
    self.store = store
    self.time = time
  }

  func count() async -> (held: Int, dead: Int) {
    if let last, time.now < validUntil { return last }
    let began = time.now
    // Whoever asks meanwhile gets the old answer.
    if last != nil { validUntil = .distantFuture }
    var counts = (held: 0, dead: 0)
    var after: QueueID?
    while true {
      let entries = await store.entries(startingAfter: after, limit: Self.page)
      for entry in entries {
        switch QueueFilter.State(entry, isActive: false) {
        case .held: counts.held += 1
        case .dead: counts.dead += 1
        default: break
        }
      }
      guard entries.count == Self.page, let end = entries.last else { break }
      after = end.id
    }
    last = counts
    let now = time.now
    validUntil = now + (now - began) * Self.costFactor
    return counts
  }
}
