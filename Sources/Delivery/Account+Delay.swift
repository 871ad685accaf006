// Tells senders that their mail is late. The warning comes at its time, which need not be the time of an attempt, so it
// has a heap of its own and needs neither a connection nor a token.

import Collections
import Primitives
import SMTP
import Spool

/// A message that the queue held when the daemon started.
struct RecoveredMessage: Sendable {
  let id: QueueID
  let when: Timestamp
  /// When it arrived, if it has been put off and its sender has not been told.
  let deferredSince: Timestamp?
}

/// Messages whose senders are being told of a delay.
final class WarnedMessages: Sendable {
  private let ids = Mutex<Set<QueueID>>([])
  /// Returns false when somebody else is at it.
  func begin(_ id: QueueID) -> Bool { ids.withLock { $0.insert(id).inserted } }
  func end(_ id: QueueID) { ids.withLock { _ = $0.remove(id) } }
}

extension Account {
  private static let warningBatch = 100

  /// Has the sender told, once the time has come, that this message is late.
  func watchDelay(_ id: QueueID, _ arrival: Timestamp) {
    guard delivery.delayWarning > .zero, watched.insert(id).inserted else { return }
    warnings.insert(Due(when: (arrival + delivery.delayWarning).microseconds, id: id))
  }

  private func watchAgain(_ id: QueueID, in wait: Duration) {
    guard delivery.delayWarning > .zero, watched.insert(id).inserted else { return }
    warnings.insert(Due(when: (time.wallClock + wait).microseconds, id: id))
  }

  /// A reload has changed `delay_warning`.
  func shiftWarnings(from old: Duration, to new: Duration) {
    guard old != new else { return }
    if new == .zero {
      warnings = []
      watched = []
    } else {
      warnings = Heap(warnings.unordered.map { Due(when: $0.when + (new - old).microseconds, id: $0.id) })
    }
  }

  /// Whether the account sends nothing. The operator knows and mends it; a warning would say nothing of the mail, would
  /// mostly wait behind the same hold, and come together with the mail it speaks of.
  private var isOnHold: Bool {
    // One message that ends each of its connections is no reason for silence about it.
    let isOver = loginHold.map { $0.isAfterLogin && time.now >= $0.until } ?? false
    return isHeldUp && carriedBy == nil && (hold != nil || limitHold != nil || !isOver)
  }

  /// Tells the senders whose messages are late by now.
  func warnOfDelays() {
    guard !isWarning, !isOnHold, let first = warnings.min else { return }
    let wall = time.wallClock.microseconds
    guard first.when <= wall else {
      // The wall clock may be set meanwhile: look again within a minute.
      return wake(at: time.now + min(.microseconds(first.when - wall), .seconds(60)))
    }
    var ids: [QueueID] = []
    while ids.count < Self.warningBatch, let entry = warnings.min, entry.when <= wall {
      warnings.removeMin()
      watched.remove(entry.id)
      // What is under way may arrive; if it does not, it comes here again.
      if !active.contains(entry.id) { ids.append(entry.id) }
    }
    isWarning = true
    Task(executorPreference: seat.loop) { [ids] in await self.warnAll(ids) }
  }

  private func warnAll(_ ids: [QueueID]) async {
    await warn(ids)
    isWarning = false
    pump()
  }

  private func warn(_ ids: [QueueID]) async {
    let messages: [(id: QueueID, envelope: Envelope, state: MessageState)]
    do { messages = try await services.store.readEnvelopes(ids) } catch {
      for id in ids { watchAgain(id, in: .seconds(60)) }
      return
    }
    for (id, envelope, state) in messages where isLate(state) {
      guard !isOnHold, !isStopping else {
        watchDelay(id, envelope.arrival)
        continue
      }
      guard services.warned.begin(id) else { continue }
      await warn(id)
      services.warned.end(id)
    }
  }

  /// Whether a message waits for a later attempt. One that is due may arrive; if it does not, it comes here again.
  private func isLate(_ state: MessageState) -> Bool {
    guard !state.isHeld, !state.isDelayReported, let lane = state.lanes[name] else { return false }
    return lane.nextAttempt > time.wallClock
  }

  /// Whether a message was put off for a time, rather than to wait for the account.
  func isPutOff(_ lane: Lane) -> Bool { lane.attempts > 0 || lane.nextAttempt > time.wallClock }

  private func warn(_ id: QueueID) async {
    let message: QueuedMessage?
    do { message = try await services.store.read(id) } catch { return watchAgain(id, in: .seconds(60)) }
    guard let message, isLate(message.state) else { return }
    let notice = notice(message)
    guard !notice.fates.isEmpty else { return }
    switch await services.bouncer.notify(notice, message.content) {
    case .told(let report):
      let text = "<\(message.envelope.reversePath)> of the delay for \(notice.names), by \(report)"
      let event = LifeEvent(time: time.wallClock, kind: .notified, account: name, text: text)
      services.store.update(id) { state in
        state.isDelayReported = true
        state.note(event)
      }
    case .later: watchAgain(id, in: .seconds(60))
    case .tooMany: watchAgain(id, in: .seconds(300))
    case .impossible: break
    }
  }

  /// About everybody who still waits, whichever account carries the mail: there is one warning for a message.
  private func notice(_ message: QueuedMessage) -> Notice {
    let (envelope, state) = (message.envelope, message.state)
    var notice = Notice(id: message.id, envelope: envelope, fates: [])
    for (index, recipient) in envelope.recipients.enumerated()
    where state.recipients[index] == nil && recipient.wantsDelay {
      guard let lane = state.lanes[recipient.account], isPutOff(lane) else { continue }
      notice.attempts = max(notice.attempts, lane.attempts)
      let reply = Reply(recorded: lane.lastReply)
      let isTheirs = recipient.account == name && !LostReply.isOurs(reply)
      notice.fates.append(
        .init(
          recipient: recipient, action: .delayed, reply: reply, peer: isTheirs ? settings.host : nil,
          lastAttempt: state.lastAttempt(of: recipient.account), retryUntil: end(of: lane)))
    }
    notice.firstAttempt = state.firstAttempt
    return notice
  }

  /// When the last attempt will be, without jitter and if nothing holds the account up.
  /// nil when nothing has aged the message, which then is tried without end.
  private func end(of lane: Lane) -> Timestamp? {
    if lane.attempts == 0 { return nil }
    let used = delivery.retrySchedule.patience(atAttempt: lane.attempts + 1)
    return lane.nextAttempt + max(delivery.queueLifetime - used, .zero)
  }
}

extension MessageState {
  private static let attempts: Set<LifeEvent.Kind> = [.deferred, .inDoubt, .delivered, .failed]

  /// When the message was first tried; nil when it never was.
  var firstAttempt: Timestamp? { life.first { Self.attempts.contains($0.kind) }?.time }

  func lastAttempt(of account: String) -> Timestamp? {
    life.last { Self.attempts.contains($0.kind) && $0.account == account }?.time
  }
}
