// What the upstreams said about the latest mail. A message that is done leaves the queue and nothing behind but the
// log; whoever has just submitted it and waits asks here.

import Primitives
import SMTP
import Spool

/// The last word about each recipient of the latest messages, in memory only.
public final class RecentVerdicts: Sendable {
  public struct Verdict: Sendable, Equatable {
    /// As the client named it.
    public var recipient: String
    public var address: String
    /// `sent`, `deferred`, `bounced` or `expired`, as in the log.
    public var status: String
    public var reply: Reply
    public var upstream: String
  }

  private struct State {
    var verdicts: [QueueID: [Verdict]] = [:]
    /// The messages in the order of their first verdict, as a ring.
    var order: [QueueID] = []
    var next = 0
  }
  private let state = Mutex(State())

  /// In messages.
  private static let limit = 2000
  private static let recipientLimit = 200

  func note(_ id: QueueID, _ recipient: Recipient, _ status: String, _ reply: Reply, peer: String) {
    let verdict = Verdict(
      recipient: recipient.original, address: recipient.address, status: status, reply: reply, upstream: peer)
    state.withLock { state in
      if state.verdicts[id] == nil {
        if state.order.count < Self.limit {
          state.order.append(id)
        } else {
          state.verdicts[state.order[state.next]] = nil
          state.order[state.next] = id
          state.next = (state.next + 1) % Self.limit
        }
      }
      var list = state.verdicts[id] ?? []
      if let index = list.firstIndex(where: { $0.recipient == verdict.recipient && $0.address == verdict.address }) {
        list[index] = verdict
      } else if list.count < Self.recipientLimit {
        list.append(verdict)
      }
      state.verdicts[id] = list
    }
  }

  public func verdicts(_ id: QueueID) -> [Verdict] { state.withLock { $0.verdicts[id] ?? [] } }
}

extension Delivery {
  /// What was last said about the recipients of a message; empty when it has not been tried, or was long ago.
  public func verdicts(_ id: QueueID) -> [RecentVerdicts.Verdict] { services.verdicts.verdicts(id) }
}
