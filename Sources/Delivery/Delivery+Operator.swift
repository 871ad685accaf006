// What an operator does to a single message: hold it, release it, send it back. Each leaves a line in its life.

import Message
import Primitives
import SMTP
import Spool

/// What became of a message that the operator sent back.
public enum OperatorBounce: Sendable, Equatable {
  case bounced
  /// It has left the queue as well, but its sender had not wanted to be told of failures.
  case removedUntold
  case noSuchMessage
  /// It is being delivered at this moment: nothing was done.
  case isUnderWay
  /// Its sender cannot be told, for this reason: nothing was done.
  case nobodyToTell(String)
}

/// What became of a message that the operator wanted gone.
public enum OperatorDeletion: Sendable, Equatable {
  case deleted
  case noSuchMessage
  /// It is being delivered at this moment: nothing was done.
  case isUnderWay
}

extension Delivery {
  /// Keeps a message in the queue until ``release(_:by:)``. One that is under way finishes its attempt first.
  /// - Parameter reason: who does it and why, for the life of the message.
  /// - Returns: false when it is not queued.
  public func hold(_ id: QueueID, by reason: String) async throws(QueueError) -> Bool {
    guard let (envelope, _) = try await services.store.readEnvelope(id) else { return false }
    let reason = HeaderText.singleLine(reason, limit: 300)
    services.store.update(id) { [now = services.time.wallClock] in $0.hold(reason, at: now) }
    // Whose recipients are not to be read may still be in the memory of any account.
    let known = Set(envelope.recipients.map(\.account))
    for account in known.isEmpty ? all : known.map(account) { await account.forget(id) }
    services.log.notice("\(id): on hold: \(reason)")
    return true
  }

  /// Ends the hold of a message and tries it at once. The time on hold has not aged it: only attempts do.
  /// - Returns: false when it is not queued.
  public func release(_ id: QueueID, by reason: String) async throws(QueueError) -> Bool {
    guard let (envelope, state) = try await services.store.readEnvelope(id) else { return false }
    guard state.isHeld else { return true }
    let reason = HeaderText.singleLine(reason, limit: 300)
    services.store.update(id) { [now = services.time.wallClock] in $0.release(reason, at: now) }
    services.log.notice("\(id): released: \(reason)")
    let open = envelope.recipients.indices.filter { state.recipients[$0] == nil }
    for name in Set(open.map { envelope.recipients[$0].account }) { await account(name).resume(id) }
    return true
  }

  /// Gives up a message, whatever state it is in: its sender is told of everybody who did not get it, as after any
  /// other failure, and it leaves the queue.
  public func bounce(_ id: QueueID, by reason: String) async -> OperatorBounce {
    guard beginOrder(id) else { return .isUnderWay }
    defer { endOrder(id) }
    let accounts = all
    var isFree = true
    for account in accounts where await !account.cancel(id) { isFree = false }
    let outcome = isFree ? await returnToSender(id, HeaderText.singleLine(reason, limit: 300)) : .isUnderWay
    let isRemoved = [.bounced, .removedUntold, .noSuchMessage].contains(outcome)
    for account in accounts { await account.endCancel(id, isRemoved: isRemoved) }
    return outcome
  }

  private func returnToSender(_ id: QueueID, _ reason: String) async -> OperatorBounce {
    let message: QueuedMessage?
    do { message = try await services.store.read(id) } catch {
      return .nobodyToTell("the message cannot be read: \(error)")
    }
    guard let message else { return .noSuchMessage }
    if let obstacle = services.bouncer.obstacle(message.envelope) { return .nobodyToTell(obstacle) }
    var notice = Notice(id: id, envelope: message.envelope, fates: [], isByOperator: true)
    notice.attempts = message.state.lanes.values.map(\.attempts).max() ?? 0
    notice.firstAttempt = message.state.firstAttempt
    for (index, recipient) in message.envelope.recipients.enumerated() where recipient.wantsFailure {
      let reply: Reply
      let isOfMessage: Bool
      switch message.state.recipients[index] {
      case .delivered: continue
      case .failed(let text):
        // Only where the message is dead was nobody told then.
        if message.state.deadReason == nil { continue }
        reply = Reply(recorded: text)
        isOfMessage = reply.maySpeakOfMessage
      case nil:
        let lane = message.state.lanes[recipient.account]
        let last = lane.flatMap { $0.lastReply.isEmpty ? nil : Reply(recorded: $0.lastReply) }
        reply = Self.givenUp(reason, last, doubts: lane?.inDoubt ?? 0)
        isOfMessage = last?.maySpeakOfMessage ?? false
      }
      notice.fates.append(
        .init(
          recipient: recipient, action: .failed, reply: reply,
          lastAttempt: message.state.lastAttempt(of: recipient.account), isOfMessage: isOfMessage))
    }
    guard !notice.fates.isEmpty else {
      services.store.remove(id)
      services.log.notice("\(id): given up by the operator: \(reason); its sender did not want to be told")
      return .removedUntold
    }
    switch await services.bouncer.notify(notice, message.content) {
    case .told: break
    case .impossible(let why): return .nobodyToTell(why)
    case .tooMany(let why): return .nobodyToTell(why)
    case .later: return .nobodyToTell("the queue does not take the notification now; try again later")
    }
    services.store.remove(id)
    services.log.notice("\(id): returned to <\(message.envelope.reversePath)> by the operator: \(reason)")
    return .bounced
  }

  /// A policy of this relay. Not 5.1 or 5.2, nor 5.0.0: senders' list managers would take those for a dead address.
  private static func givenUp(_ reason: String, _ last: Reply?, doubts: Int) -> Reply {
    var text = "Returned by the operator of this relay: \(reason)"
    if doubts > 0 {
      let times = doubts == 1 ? "once" : "\(doubts) times"
      text += "; \(DeliveryStatusNotification.doubt): the connection broke \(times) behind the end of the message"
    }
    if let last, !LostReply.isOurs(last) {
      text += "; the last answer was: \(last)"
    } else if let last, last != LostReply.behindContent {
      text += "; the last attempt had no answer: \(last.text)"
    }
    return Reply(550, "5.7.0", text)
  }
}
