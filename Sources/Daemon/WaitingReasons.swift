// Why a message waits, in the words of somebody who is asked at the telephone.

import Delivery
import Primitives
import Spool
import Telemetry

struct WaitingReasons {
  let entry: QueueEntry
  /// The message comes from the null reverse-path: nobody can be told about it.
  let isNotification: Bool
  let word: QueueFilter.State
  let state: MessageState
  /// nil when no daemon runs.
  let accounts: [AccountSnapshot]?
  let now: Timestamp

  /// One line for each thing it waits for.
  var lines: [String] {
    if word == .active { return ["it is being delivered at this moment"] }
    var lines: [String] = []
    if let reason = state.deadReason, !entry.lanes.isEmpty {
      lines.append("nobody was told of a failure: \(reason)")
    } else if let reason = state.deadReason {
      lines.append(
        isNotification
          ? "dead: it cannot be delivered, and as a notification not be returned; it is kept until you delete it"
            + " (`ssmtp-mailer queue delete \(entry.id)`): \(reason)"
          : "dead: it could not be delivered, and its sender was not told; it is kept until you return it, once the"
            + " reason is gone (`ssmtp-mailer queue bounce \(entry.id)`), or delete it (`ssmtp-mailer queue delete"
            + " \(entry.id)`): \(reason)")
    }
    if state.isHeld {
      let event = state.life.last { $0.kind == .held }
      let since = event.map { " since \(ISOTime.format($0.time)), \($0.text)" } ?? " by the operator"
      lines.append("held\(since)")
      return lines
    }
    for lane in entry.lanes { lines += waiting(for: lane) }
    return lines
  }

  private func waiting(for lane: EntryLane) -> [String] {
    let name = lane.account
    var lines: [String] = []
    if let known = state.lanes[name], !known.lastReply.isEmpty {
      let attempts = known.attempts == 1 ? "1 attempt" : "\(known.attempts) attempts"
      lines.append("\(name): deferred after \(attempts), the upstream said: \(known.lastReply)")
      if known.inDoubt > 0 {
        lines.append("\(name): in doubt \(known.inDoubt) times: the reply to the end of the message was lost")
      }
    }
    guard let accounts else {
      lines.append("\(name): the daemon does not run")
      return lines
    }
    guard let account = accounts.first(where: { $0.name == name }), account.isEnabled else {
      lines.append("\(name): this [domain:] is disabled, or not in the configuration any more")
      return lines
    }
    if let hold = account.hold {
      lines.append(
        "\(name): the account is on hold since \(ISOTime.format(hold.since)): \(hold.reason) → \(hold.advice)"
          + " (next try \(ISOTime.format(hold.nextTry)))"
          + (account.carriedBy.map { "; \($0) carries its mail meanwhile" } ?? ""))
    } else if lane.nextAttempt > now {
      lines.append("\(name): it is tried next at \(ISOTime.format(lane.nextAttempt))")
    } else if account.tokens == 0, let rate = account.ratePerMinute {
      lines.append("\(name): the rate limit of \(rate) messages a minute; it goes in its turn")
    } else {
      lines.append("\(name): it is due, and goes as soon as a connection is free")
    }
    return lines
  }
}
