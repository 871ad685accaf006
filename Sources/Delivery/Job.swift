// What an account hands to a connection.

import Primitives
import SMTP
import Spool

/// A message on its way through one account.
struct Job: Sendable {
  let id: QueueID
  let envelope: Envelope
  /// The indices, in the envelope, of the recipients that this account still has to serve.
  let recipients: [Int]
  /// What the queue knew of this lane when the message was read: the attempts before this one, and the time that was
  /// planned for this one. nil when it was never tried.
  let before: Lane?
  /// Attempts made before this one that count.
  var attempts: Int { before?.attempts ?? 0 }
  /// Whether the attempt before this one ended with the connection, in the content as far as the queue knows. Once is
  /// bad luck; twice, and the message itself may be what ends its connections.
  var wasInterrupted: Bool {
    guard let last = before.map({ Reply(recorded: $0.lastReply) }) else { return false }
    return last.code == 421 || last == LostReply.inContent
  }
  /// As it is in the queue.
  let content: Content
  /// As it leaves.
  var outgoing: Content
  /// The one it leaves under.
  var reversePath: String
  /// Of what leaves.
  var size: Int { outgoing.count }
  /// When it was first tried; nil when this is the first attempt.
  let firstAttempt: Timestamp?
  /// Whether the sender knows that it is late.
  let isDelayReported: Bool
  /// The account whose recipients these are.
  let lane: String
  /// That account, when another one carries the message.
  var owner: Account?
  /// What the carrier's ledger has entered for it.
  var reservation: LedgerReservation?

  init(
    id: QueueID, envelope: Envelope, recipients: [Int], before: Lane? = nil, content: Content, lane: String,
    firstAttempt: Timestamp? = nil, isDelayReported: Bool = false
  ) {
    self.id = id
    self.envelope = envelope
    self.recipients = recipients
    self.before = before
    self.content = content
    self.lane = lane
    outgoing = content
    reversePath = envelope.reversePath
    self.firstAttempt = firstAttempt
    self.isDelayReported = isDelayReported
  }

  /// What an upstream that offers DSN is told (RFC 3461 5.2.1); nil when there is nothing to tell.
  var dsnOptions: ClientTransaction.DSNOptions? {
    let parameters = recipients.map { index in
      let recipient = envelope.recipients[index]
      var notify = recipient.notifies
      // The sender hears from us that the alias was expanded, not from each of its addresses that it was reached.
      if envelope.isExpanded(recipient) { notify?.remove(.success) }
      let isRewritten = recipient.original != recipient.address && recipient.original.utf8.contains(UInt8(ascii: "@"))
      return RecipientParameters(
        notify: notify,
        originalRecipient: recipient.givenOriginal ?? (isRewritten ? recipient.reportedOriginal : nil))
    }
    let ret = envelope.returnFull.map { $0 ? MailParameters.Return.full : .headers }
    guard ret != nil || envelope.envelopeID != nil || parameters.contains(where: \.usesDSN) else { return nil }
    return .init(ret: ret, envelopeID: envelope.envelopeID, recipients: parameters)
  }
}
