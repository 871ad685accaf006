// Tells senders what became of their mail: failed, late, or handed on. A notification is a message like any other:
// durable in the queue, routed, delivered by an account; but from the null reverse-path, so that it never causes
// another one.

import Logging
import Message
import Primitives
import SMTP
import Spool

/// What is to be told about one message.
struct Notice: Sendable {
  struct Fate: Sendable {
    let recipient: Recipient
    let action: DeliveryStatusNotification.Action
    let reply: Reply
    /// The upstream that gave the reply, as `host[address]:port`; nil when the reply is our own.
    var peer: String?
    /// The upstream's own last words, when `reply` is what we made of them.
    var diagnostic: Reply?
    var lastAttempt: Timestamp?
    /// Until when a message that is late will be tried.
    var retryUntil: Timestamp?
  }

  let id: QueueID
  let envelope: Envelope
  var fates: [Fate]
  /// How often delivery was tried, and when for the first time.
  var attempts = 0
  var firstAttempt: Timestamp?
  /// An operator asked for it: no limit holds.
  var isByOperator = false

  var names: String { fates.map(\.recipient.address).listed }
}

/// Whether a sender was told.
enum NoticeOutcome: Sendable {
  /// By this message.
  case told(QueueID)
  /// Nobody can be told, for this reason.
  case impossible(String)
  /// More notifications were sent than are good, which the reason says.
  case tooMany(String)
  /// The queue does not take the notification now.
  case later
}

struct Bouncer: Sendable {
  let store: any QueueStore
  let time: any Timekeeper
  let hostname: String
  let log: Logger
  let limiter: NotificationLimiter
  let route: BounceRouting
  let submit: @Sendable (QueueID, Envelope, Content) -> Void

  /// Enough for any header.
  private static let headerLimit = 64 * 1024
  /// A message that its sender wants back as a whole (RET=FULL) comes back up to this size; of a larger one, the header.
  static let fullLimit = 1024 * 1024

  /// Why nobody can be told anything about a message; nil when its sender can.
  func obstacle(_ envelope: Envelope) -> String? {
    if case .none(let reason) = wayBack(envelope, from: envelope.recipients.first?.account ?? "") {
      reason
    } else {
      nil
    }
  }

  private enum WayBack {
    case to(Mailbox, [Recipient])
    case none(String)
  }

  private func wayBack(_ envelope: Envelope, from lane: String) -> WayBack {
    let sender = envelope.reversePath
    if sender.isEmpty { return .none("it is a notification itself") }
    let routes = route(sender, lane)
    guard let mailbox = try? Mailbox(parsing: sender), !routes.isEmpty else {
      return .none("there is no route to its sender <\(sender)>")
    }
    return .to(mailbox, routes.map { Recipient(address: $0.address, original: sender, account: $0.account) })
  }

  /// Queues a notification to the sender of the message.
  /// - Parameter beforeQueueing: called when nothing is left to do but to queue it, so that what it writes down and
  ///   the notification become durable together.
  func notify(
    _ notice: Notice, _ content: Content, beforeQueueing: @Sendable () -> Void = {}
  ) async -> NoticeOutcome {
    let (id, envelope) = (notice.id, notice.envelope)
    let sender: Mailbox
    let recipients: [Recipient]
    switch wayBack(envelope, from: notice.fates.first?.recipient.account ?? "") {
    case .none(let reason): return .impossible(reason)
    case .to(let mailbox, let routes): (sender, recipients) = (mailbox, routes)
    }
    if !notice.isByOperator, let reason = refusal(envelope.reversePath, notice) { return .tooMany(reason) }
    let report = store.nextID()
    let now = time.wallClock
    do {
      let ret = ret(notice, content)
      let original = try await beginning(of: content, ret == .full ? Self.fullLimit : Self.headerLimit)
      var notification = DeliveryStatusNotification(
        hostname: hostname, reversePath: sender, queueID: id.description, envelopeID: envelope.envelopeID,
        arrivalDate: envelope.arrival, date: now, messageID: "\(report)@\(hostname)",
        recipients: notice.fates.map { .init($0) }, ret: ret)
      notification.attempts = notice.attempts
      notification.firstAttempt = notice.firstAttempt
      let bytes = Content.bytes(notification.compose(original: original))
      let wrapper = Envelope(
        reversePath: "", recipients: recipients, arrival: now, clientAddress: "", helo: hostname, is8Bit: true,
        smtpUTF8: envelope.smtpUTF8, envelopeID: nil, returnFull: nil)
      beforeQueueing()
      try await store.append(report, wrapper, bytes)
      let action = notice.fates.first?.action.rawValue ?? ""
      log.notice("\(id): \(action) for \(notice.names): sender <\(envelope.reversePath)> is notified by \(report)")
      submit(report, wrapper, bytes)
      return .told(report)
    } catch {
      if !notice.isByOperator { limiter.refund(envelope.reversePath) }
      log.error("\(id): cannot queue the notification to <\(envelope.reversePath)>: \(error)")
      return .later
    }
  }

  /// Why the sender gets no notification now. Said in the log once for each storm.
  private func refusal(_ sender: String, _ notice: Notice) -> String? {
    let isFailure = notice.fates.contains { $0.action == .failed }
    switch limiter.ask(sender, isFailure: isFailure, now: time.now) {
    case .granted(let withheld):
      if withheld > 0 { log.notice("notifications are sent again; \(withheld) were withheld") }
      return nil
    case .refused(let reason, let isFirst):
      if isFirst {
        log.error(
          "\(reason): further ones are withheld, and messages that failed are kept as dead; `ssmtp-mailer queue list --state dead` shows them"
        )
      }
      return reason
    }
  }

  /// Only who lost the message gets it back: of others the header is enough (RFC 3461 4.3).
  private func ret(_ notice: Notice, _ content: Content) -> MailParameters.Return {
    guard notice.envelope.returnFull == true, notice.fates.contains(where: { $0.action == .failed }),
      content.count <= Self.fullLimit
    else { return .headers }
    return .full
  }

  private func beginning(of content: Content, _ limit: Int) async throws(QueueError) -> [UInt8] {
    switch content {
    case .bytes(let bytes): Array(bytes.prefix(limit))
    case .file(let file): try await file.read(at: 0, count: min(file.count, limit))
    }
  }
}

extension DeliveryStatusNotification.Recipient {
  init(_ fate: Notice.Fate) {
    self.init(
      finalRecipient: fate.recipient.address, originalRecipient: fate.recipient.reportedOriginal,
      action: fate.action, reply: fate.reply, remoteMTA: fate.peer.map { String($0.prefix { $0 != "[" }) },
      diagnostic: fate.diagnostic, lastAttempt: fate.lastAttempt, willRetryUntil: fate.retryUntil)
  }
}

extension Recipient {
  /// NOTIFY as it was given.
  var notifies: RecipientParameters.Notify? { notify.map { .init(rawValue: $0) } }

  /// Whether the sender wants to hear of failures: nothing said means yes (RFC 3461 4.1).
  var wantsFailure: Bool { notifies?.contains(.failure) ?? true }
  var wantsDelay: Bool { notifies?.contains(.delay) ?? true }
  var wantsSuccess: Bool { notifies?.contains(.success) ?? false }

  /// ORCPT as it was given, `type;address`.
  var givenOriginal: RecipientParameters.OriginalRecipient? {
    guard let text = originalRecipient, let semicolon = text.firstIndex(of: ";") else { return nil }
    return .init(addressType: String(text[..<semicolon]), address: String(text[text.index(after: semicolon)...]))
  }

  /// What the sender calls this recipient: ORCPT, or the address before it was rewritten.
  var reportedOriginal: RecipientParameters.OriginalRecipient {
    givenOriginal ?? .init(addressType: original.utf8.allSatisfy { $0 < 0x80 } ? "rfc822" : "utf-8", address: original)
  }
}

extension Envelope {
  /// Whether a recipient is one of several that an address of the client's stood for: a multiple-recipient alias
  /// (RFC 3461 5.2.7).
  func isExpanded(_ recipient: Recipient) -> Bool {
    recipients.lazy.filter { $0.original == recipient.original }.prefix(2).count > 1
  }
}

extension Content {
  /// The size in octets.
  var count: Int {
    switch self {
    case .bytes(let bytes): bytes.count
    case .file(let file): file.count
    }
  }
}

extension [String] {
  /// Addresses for a line of log or life: `<a>, <b>, <c> and 97 more`.
  var listed: String {
    let names = prefix(3).map { "<\($0)>" }.joined(separator: ", ")
    return count > 3 ? "\(names) and \(count - 3) more" : names
  }
}

extension Reply {
  /// Reads back what ``description`` wrote into the queue.
  init(recorded text: String) {
    let words = text.split(separator: " ", maxSplits: 2, omittingEmptySubsequences: false)
    guard let code = words.first.flatMap({ Int($0) }), (200...599).contains(code) else {
      self.init(550, nil, text)
      return
    }
    if words.count > 1, let enhanced = EnhancedStatusCode(parsing: words[1]) {
      self.init(code: code, enhanced: enhanced, lines: words.count > 2 ? [String(words[2])] : [])
    } else {
      self.init(code: code, enhanced: nil, lines: [words.dropFirst().joined(separator: " ")])
    }
  }
}
