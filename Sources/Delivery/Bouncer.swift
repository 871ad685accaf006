// Tells senders what did not arrive. A notification is a message like any other: durable in the queue, routed,
// delivered by an account; but from the null reverse-path, so that it never causes another one.

import Logging
import Message
import Primitives
import SMTP
import Spool

/// Whether a sender was told.
enum BounceOutcome: Sendable {
  case told
  /// Nobody can be told: the message is kept as dead.
  case impossible
  /// The queue does not take the notification now.
  case later
}

struct Bouncer: Sendable {
  let store: any QueueStore
  let time: any Timekeeper
  let hostname: String
  let log: Logger
  let route: @Sendable (String) -> (address: String, account: String)?
  let submit: @Sendable (QueueID, Envelope, Content) -> Void

  /// Enough for any header, and for the part of the original that is worth returning.
  private static let returnedLimit = 64 * 1024

  /// Why nobody can be told anything about a message; nil when its sender can.
  func obstacle(_ envelope: Envelope) -> String? {
    if envelope.reversePath.isEmpty { return "the message has no sender: it is a notification itself" }
    if (try? Mailbox(parsing: envelope.reversePath)) == nil || route(envelope.reversePath) == nil {
      return "there is no route to its sender <\(envelope.reversePath)>"
    }
    return nil
  }

  /// Queues a notification about `failures` to the sender of the message.
  func bounce(_ id: QueueID, _ envelope: Envelope, _ content: Content, _ failures: [BounceFailure]) async
    -> BounceOutcome
  {
    let names = failures.map { "<\($0.recipient.address)>" }.joined(separator: ", ")
    guard !envelope.reversePath.isEmpty else {
      log.error("\(id): failed for \(names), and it is a notification itself: kept as dead")
      return .impossible
    }
    guard let sender = try? Mailbox(parsing: envelope.reversePath), let route = route(envelope.reversePath) else {
      log.error(
        "\(id): failed for \(names), and there is no route to its sender <\(envelope.reversePath)>: kept as dead")
      return .impossible
    }
    let report = store.nextID()
    let now = time.wallClock
    let notification = DeliveryStatusNotification(
      hostname: hostname, reversePath: sender, queueID: id.description, envelopeID: envelope.envelopeID,
      arrivalDate: envelope.arrival, date: now, messageID: "\(report)@\(hostname)",
      recipients: failures.map { failure in
        .init(
          finalRecipient: failure.recipient.address,
          originalRecipient: .init(addressType: "rfc822", address: failure.recipient.original), action: .failed,
          reply: failure.reply, lastAttempt: now)
      })
    do {
      let original = try await beginning(of: content)
      let bytes = Content.bytes(notification.compose(original: original))
      let recipient = Recipient(address: route.address, original: envelope.reversePath, account: route.account)
      let wrapper = Envelope(
        reversePath: "", recipients: [recipient], arrival: now, clientAddress: "", helo: hostname, is8Bit: true,
        smtpUTF8: envelope.smtpUTF8, envelopeID: nil, returnFull: nil)
      try await store.append(report, wrapper, bytes)
      log.notice("\(id): failed for \(names): sender <\(envelope.reversePath)> is notified by \(report)")
      submit(report, wrapper, bytes)
      return .told
    } catch {
      log.error("\(id): cannot queue the notification to <\(envelope.reversePath)>: \(error); tried again later")
      return .later
    }
  }

  private func beginning(of content: Content) async throws(QueueError) -> [UInt8] {
    switch content {
    case .bytes(let bytes): Array(bytes.prefix(Self.returnedLimit))
    case .file(let file): try await file.read(at: 0, count: min(file.count, Self.returnedLimit))
    }
  }
}
