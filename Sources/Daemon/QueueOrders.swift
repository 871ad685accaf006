// What an operator has done with messages: with the daemon, which has to ask the accounts first, or on a queue that
// nobody delivers from.

import Delivery
import Primitives
import Spool

import struct Logging.Logger

/// How an order on one message went.
enum OrderOutcome: Sendable {
  /// What was done, as the predicate of a sentence about the message.
  case done(String)
  /// The same, but not what the order says: told also of a message that only a filter has named, and not counted.
  case doneButTell(String)
  /// It is not in the queue.
  case unknown
  /// It was so already.
  case unchanged(String)
  /// It cannot be done with this message.
  case refused(String)
  /// Not at this moment.
  case later(String)
}

/// Whoever carries out orders.
protocol OrderTaker: Sendable {
  /// - Parameter reason: what the operator said about it.
  func carryOut(_ order: QueueOrder, _ id: QueueID, reason: String?) async throws(QueueError) -> OrderOutcome
  /// All messages, and all that accounts are on hold for.
  /// - Returns: how many are tried; nil when each message has to be told.
  func retryAll() async throws(QueueError) -> Int?
  /// Takes a message that was queued from outside.
  func take(_ entry: QueueEntry) async
}

/// Orders on a queue without a daemon.
struct StoppedOrders: OrderTaker {
  let store: any QueueStore
  let time: any Timekeeper

  func retryAll() async -> Int? { nil }
  func take(_ entry: QueueEntry) async {}

  func carryOut(_ order: QueueOrder, _ id: QueueID, reason: String?) async throws(QueueError) -> OrderOutcome {
    guard let (envelope, state) = try await store.readEnvelope(id) else { return .unknown }
    let now = time.wallClock
    let text = OrderWords.text(reason)
    switch order {
    case .hold:
      if state.isHeld { return .unchanged("is held already") }
      store.update(id) { $0.hold(text, at: now) }
      return .done("is held")
    case .release:
      if !state.isHeld { return .unchanged("is not held") }
      store.update(id) { $0.release(text, at: now) }
      return .done("is released")
    case .delete:
      store.remove(id)
      return .done("is deleted")
    case .retry:
      if let refusal = OrderWords.refusalOfRetry(envelope, state) { return .refused(refusal) }
      store.update(id) { state in for name in state.lanes.keys { state.lanes[name]?.nextAttempt = now } }
      return .done("is tried when the daemon starts")
    case .bounce: return .later("can only be returned by the daemon, which does not run: start it first")
    }
  }
}

enum OrderWords {
  /// Who did it and why, for the life of a message.
  static func text(_ reason: String?) -> String {
    oneLine(reason).map { "by the operator: \($0)" } ?? "by the operator"
  }

  /// A reason that cannot begin a line of its own anywhere; nil for none.
  static func oneLine(_ reason: String?) -> String? {
    guard let reason, !reason.isEmpty else { return nil }
    return String(reason.map { $0.isNewline ? " " : $0 })
  }

  static func refusalOfRetry(_ envelope: Envelope, _ state: MessageState) -> String? {
    if state.isHeld { return "is held: release it, and it will be tried" }
    if envelope.recipients.indices.allSatisfy({ state.recipients[$0] != nil }) {
      return "is dead: there is nobody left to whom it could be delivered"
    }
    return nil
  }
}

/// Orders on many messages, in parts.
struct QueueOrders: Sendable {
  let reports: QueueReports
  let taker: any OrderTaker
  /// Where orders are written down; nil without a daemon.
  let log: Logger?

  private static let limit = 1000
  private static let patience = Duration.seconds(5)

  /// Carries out an order on the messages that are named.
  func carryOut(_ order: QueueOrder, ids: [String], reason: String?) async throws(QueueError) -> OrderReport {
    var report = OrderReport()
    for text in ids {
      guard let id = QueueID(text) else {
        report.lines.append(.init(id: text, status: 65, text: "\(text) is no id of a message"))
        continue
      }
      note(try await taker.carryOut(order, id, reason: reason), order, id, in: &report, isNamed: true)
    }
    try await reports.store.flush()
    return report
  }

  /// Carries out an order on a part of what a filter names.
  /// - Parameter until: what has come later is left alone: mail that nobody has seen yet, and the notifications that
  ///   the order itself brings about. Nil for the first part, which says where it is.
  func carryOut(
    _ order: QueueOrder, _ filter: QueueFilter, after: QueueID?, until: QueueID?, reason: String?
  ) async throws(QueueError) -> OrderReport {
    var report = OrderReport()
    if order == .retry, filter.isEmpty, after == nil, let count = try await taker.retryAll() {
      report.done = count
      log?.notice("operator: all messages are tried now")
      return report
    }
    let began = reports.time.now
    let until = until ?? reports.store.nextID()
    report.until = until.description
    let part = try await reports.walk(filter, after: after, until: until, limit: Self.limit, withEnvelopes: false)
    report.next = part.next?.description
    for (place, match) in part.matches.enumerated() {
      let outcome = try await taker.carryOut(order, match.entry.id, reason: reason)
      note(outcome, order, match.entry.id, in: &report, isNamed: false)
      if reports.time.now - began > Self.patience, place + 1 < part.matches.count {
        report.next = match.entry.id.description
        break
      }
    }
    try await reports.store.flush()
    return report
  }

  private func note(
    _ outcome: OrderOutcome, _ order: QueueOrder, _ id: QueueID, in report: inout OrderReport, isNamed: Bool
  ) {
    switch outcome {
    case .done(let text):
      report.done += 1
      if isNamed { report.lines.append(.init(id: id.description, status: 0, text: "\(id) \(text)")) }
      // The others are written down by whoever does them.
      if order == .retry || order == .delete { log?.notice("\(id): operator: \(text)") }
    case .doneButTell(let text):
      report.lines.append(.init(id: id.description, status: 0, text: "\(id) \(text)"))
    case .unknown:
      // One that a filter has named has been delivered since.
      if isNamed {
        report.lines.append(
          .init(id: id.description, status: 65, text: "there is no message \(id) in the queue"))
      }
    case .unchanged(let text):
      if isNamed { report.lines.append(.init(id: id.description, status: 0, text: "\(id) \(text)")) }
    case .refused(let text):
      // To retry everything is not to ask why some of it is held.
      if isNamed || order != .retry {
        report.lines.append(.init(id: id.description, status: 65, text: "\(id) \(text)"))
      }
    case .later(let text):
      report.lines.append(.init(id: id.description, status: 75, text: "\(id) \(text)"))
    }
  }
}
