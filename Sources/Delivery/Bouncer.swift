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
    /// The message was refused, not this recipient alone: a notification that repeats it would be refused like it.
    var isOfMessage = false
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
  var kind: NotificationKind { fates.first.map { NotificationKind($0.action) } ?? .failure }
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
  let sizes = AnnouncedSizes()
  let counter = NotificationCounter()
  let submit: @Sendable (QueueID, Envelope, Content) -> Void

  /// How much of a message comes back: as a whole, when its sender wants that (RET=FULL); enough for any header; a
  /// header that an upstream takes with the smallest limit. A notification that is too large would be the end of it.
  private static let forms: [(ret: MailParameters.Return, limit: Int)] = [
    (.full, fullLimit), (.headers, 64 * 1024), (.headers, 4 * 1024),
  ]
  /// In octets. A notification stays below a million octets with it, where few upstreams say no.
  static let fullLimit = 900_000
  private static let notificationLimit = 1_000_000

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
    if !notice.isByOperator, let reason = refusal(envelope.reversePath, notice.kind) { return .tooMany(reason) }
    let report = store.nextID()
    let now = time.wallClock
    do {
      var notification = DeliveryStatusNotification(
        hostname: hostname, reversePath: sender, queueID: id.description, envelopeID: envelope.envelopeID,
        arrivalDate: envelope.arrival, date: now, messageID: "\(report)@\(hostname)",
        recipients: notice.fates.map { .init($0) })
      notification.attempts = notice.attempts
      notification.firstAttempt = notice.firstAttempt
      // Only where it cannot be told otherwise: an upstream without SMTPUTF8 would refuse it (RFC 6533 4).
      notification.isInternationalized = recipients.contains { $0.address.utf8.contains { $0 >= 0x80 } }
      let room = recipients.compactMap { sizes.limit(of: $0.account) }.min() ?? .max
      let bytes = Content.bytes(try await compose(notification, notice, content, room: room))
      let wrapper = Envelope(
        reversePath: "", recipients: recipients, arrival: now, clientAddress: "", helo: hostname, is8Bit: true,
        smtpUTF8: notification.isInternationalized, envelopeID: nil, returnFull: nil)
      beforeQueueing()
      try await store.append(report, wrapper, bytes)
      counter.sent(notice.kind)
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
  private func refusal(_ sender: String, _ kind: NotificationKind) -> String? {
    switch limiter.ask(sender, kind, now: time.now) {
    case .granted(let withheld):
      if withheld > 0 { log.notice("notifications are sent again; \(withheld) were withheld") }
      return nil
    case .refused(let reason, let isFirst):
      counter.withheld(kind)
      guard isFirst else { return reason }
      switch kind {
      case .failure:
        log.error(
          "\(reason): further ones are withheld, and messages that failed are kept as dead; `ssmtp-mailer queue list --state dead` shows them"
        )
      case .delay: log.warning("\(reason): further warnings of delay come later")
      case .delivery: log.warning("\(reason): further reports of delivery are dropped; the mail itself is delivered")
      }
      return reason
    }
  }

  /// Returns as much of the message as was asked for, is good, and fits into `room`.
  private func compose(
    _ notification: DeliveryStatusNotification, _ notice: Notice, _ content: Content, room: Int
  ) async throws(QueueError) -> [UInt8] {
    let forms = wantsWhole(notice, content) ? Self.forms[...] : Self.forms.dropFirst()
    let original = try await beginning(of: content, forms.first?.limit ?? 0)
    var notification = notification
    var bytes: [UInt8] = []
    for (ret, limit) in forms {
      notification.ret = ret
      bytes = notification.compose(
        original: Array(original.prefix(limit)), isCut: min(limit, original.count) < content.count)
      if bytes.count <= min(room, Self.notificationLimit) { break }
    }
    return bytes
  }

  /// Only who lost the message gets it back: of others the header is enough (RFC 3461 4.3). So it is when the message
  /// was refused, for its size or for what it holds: with it the notification would be refused as well, and it is the
  /// notification that matters more.
  private func wantsWhole(_ notice: Notice, _ content: Content) -> Bool {
    notice.envelope.returnFull == true && notice.kind == .failure && !notice.fates.contains(where: \.isOfMessage)
      && content.count <= Self.fullLimit
  }

  private func beginning(of content: Content, _ limit: Int) async throws(QueueError) -> [UInt8] {
    switch content {
    case .bytes(let bytes): Array(bytes.prefix(limit))
    case .file(let file): try await file.read(at: 0, count: min(file.count, limit))
    }
  }
}

/// The limits of size that upstreams announced when they were last connected to (RFC 1870). From any thread.
final class AnnouncedSizes: Sendable {
  private let limits = Mutex<[String: Int]>([:])

  /// - Parameter limit: in octets; nil for none.
  func note(_ limit: Int?, of account: String) { limits.withLock { $0[account] = limit } }
  func limit(of account: String) -> Int? { limits.withLock { $0[account] } }
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

  /// Whether the codes speak of the message rather than of a recipient: its length, its content, or what a policy
  /// finds in it (RFC 3463 3.3, 3.4, 3.7, 3.8).
  var speaksOfMessage: Bool {
    guard let enhanced else { return code == 552 || code == 554 }
    switch (enhanced.subject, enhanced.detail) {
    case (2, 3), (3, 4), (6, _), (7, _): return true
    default: return false
    }
  }

  /// The same of a reply of which is not known at which stage it was said: whatever is not clearly about an address, a
  /// mailbox or the way there may be about the message, and a connection that its content ended.
  var maySpeakOfMessage: Bool {
    speaksOfMessage || ![1, 2, 4].contains(enhanced?.subject) || self == LostReply.inContent
      || self == LostReply.behindContent
  }
}
