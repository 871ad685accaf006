// What an account hands to a connection.

import Spool

/// A message on its way through one account.
struct Job: Sendable {
  let id: QueueID
  let envelope: Envelope
  /// The indices, in the envelope, of the recipients that this account still has to serve.
  let recipients: [Int]
  /// Attempts made before this one.
  let attempts: Int
  let content: Content
  let size: Int

  init(id: QueueID, envelope: Envelope, recipients: [Int], attempts: Int, content: Content) {
    self.id = id
    self.envelope = envelope
    self.recipients = recipients
    self.attempts = attempts
    self.content = content
    size =
      switch content {
      case .bytes(let bytes): bytes.count
      case .file(let file): file.count
      }
  }
}
