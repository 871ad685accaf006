// Orders on the queue of the daemon: the accounts are asked first, because one of them may be delivering the message.

import Delivery
import Primitives
import Spool

struct DeliveryOrders: OrderTaker {
  let store: any QueueStore
  let delivery: Delivery

  func retryAll() async throws(QueueError) -> Int? {
    let count = await countToTry()
    try await delivery.retry(nil)
    return count
  }

  /// How many messages somebody is left for and nobody holds.
  private func countToTry() async -> Int {
    let page = 10_000
    var count = 0
    var after: QueueID?
    while true {
      let entries = await store.entries(startingAfter: after, limit: page)
      count += entries.count { !$0.isHeld && !$0.lanes.isEmpty }
      guard entries.count == page, let end = entries.last else { return count }
      after = end.id
    }
  }

  func take(_ entry: QueueEntry) async { await delivery.recover([entry]) }

  func carryOut(_ order: QueueOrder, _ id: QueueID, reason: String?) async throws(QueueError) -> OrderOutcome {
    guard let (envelope, state) = try await store.readEnvelope(id) else { return .unknown }
    let busy = OrderOutcome.later("is being delivered at this moment: try again")
    let text = OrderWords.text(reason)
    switch order {
    case .retry:
      if let refusal = OrderWords.refusalOfRetry(envelope, state) { return .refused(refusal) }
      if try await delivery.retry(id) { return .done("is tried now") }
      return try await store.readEnvelope(id) == nil
        ? .unknown : .unchanged("is being delivered at this moment already")
    case .hold:
      if state.isHeld { return .unchanged("is held already") }
      guard try await delivery.hold(id, by: text) else { return .unknown }
      let isUnderWay = await delivery.messagesUnderWay().contains(id)
      return .done(isUnderWay ? "is being delivered at this moment, and held if that fails" : "is held")
    case .release:
      if !state.isHeld { return .unchanged("is not held") }
      return try await delivery.release(id, by: text) ? .done("is released") : .unknown
    case .delete:
      switch try await delivery.delete(id) {
      case .deleted: return .done("is deleted")
      case .noSuchMessage: return .unknown
      case .isUnderWay: return busy
      }
    case .bounce:
      switch await delivery.bounce(id, by: OrderWords.oneLine(reason) ?? "no reason was given") {
      case .bounced: return .done("is returned to its sender")
      case .removedUntold: return .doneButTell("is removed; its sender did not want to be told, and was not")
      case .noSuchMessage: return .unknown
      case .isUnderWay: return busy
      case .nobodyToTell(let why): return .refused("cannot be returned: \(why)")
      }
    }
  }
}
