// Orders on the queue of the daemon: the accounts are asked first, because one of them may be delivering the message.

import Delivery
import Primitives
import Spool

struct DeliveryOrders: OrderTaker {
  let store: any QueueStore
  let delivery: Delivery

  func retryAll() async -> Bool {
    await delivery.retry(nil)
    return true
  }

  func take(_ entry: QueueEntry) async { await delivery.recover([entry]) }

  func carryOut(_ order: QueueOrder, _ id: QueueID, reason: String?) async throws(QueueError) -> OrderOutcome {
    guard let (envelope, state) = try await store.readEnvelope(id) else { return .unknown }
    let busy = OrderOutcome.later("is being delivered at this moment: try again")
    let text = OrderWords.text(reason)
    switch order {
    case .retry:
      if let refusal = OrderWords.refusalOfRetry(envelope, state) { return .refused(refusal) }
      await delivery.retry(id)
      return .done("is tried now")
    case .hold:
      if state.isHeld { return .unchanged("is held already") }
      return await delivery.hold(id, by: text) ? .done("is held") : .unknown
    case .release:
      if !state.isHeld { return .unchanged("is not held") }
      return await delivery.release(id, by: text) ? .done("is released") : .unknown
    case .delete: return await delivery.delete(id) ? .done("is deleted") : busy
    case .bounce:
      switch await delivery.bounce(id, by: OrderWords.oneLine(reason) ?? "no reason was given") {
      case .bounced: return .done("is returned to its sender")
      case .noSuchMessage: return .unknown
      case .isUnderWay: return busy
      case .nobodyToTell(let why): return .refused("cannot be returned: \(why)")
      }
    }
  }
}
