// What one mail filter wants changed about a message, collected until its verdict.

import Filters
import SMTP
import Spool

/// Belongs to the session that asks the filter.
final class MessageEdit: MilterEditor {
  private(set) var header: EditableHeader
  private(set) var body: GatheredContent?
  /// As the filter has written them, without angle brackets, in its order.
  private(set) var recipients: [(isAdded: Bool, path: String)] = []
  private(set) var sender: String?
  private(set) var quarantine: String?
  private(set) var hasChanged = false
  private let leadingSpace: Bool
  private let store: any QueueStore
  private let bodyLimit: Int
  private var headerOctets = 0
  /// Why the queue could not take a new body.
  private(set) var trouble: QueueError?

  /// More than this is no honest change of recipients.
  private static let recipientLimit = 1000

  /// - Parameter bodyLimit: what a new body may have, in octets.
  init(_ header: EditableHeader, leadingSpace: Bool, store: any QueueStore, bodyLimit: Int) {
    self.header = header
    self.leadingSpace = leadingSpace
    self.store = store
    self.bodyLimit = bodyLimit
  }

  nonisolated(nonsending) func apply(_ reply: MilterReply) async throws(MilterFault) {
    switch reply {
    case .addHeader(let name, let value):
      try accept(name, value) { $0.add(name: name, value: value, leadingSpace: leadingSpace) }
    case .insertHeader(let index, let name, let value):
      try accept(name, value) {
        $0.insert(at: Int(clamping: index), name: name, value: value, leadingSpace: leadingSpace)
      }
    case .changeHeader(let index, let name, let value):
      try accept(name, value) {
        $0.change(index: Int(clamping: index), name: name, value: value, leadingSpace: leadingSpace)
      }
    case .addRecipient(let path): try change(true, path)
    case .deleteRecipient(let path): try change(false, path)
    case .changeSender(let path): sender = Self.bare(path)
    case .quarantine(let reason): quarantine = reason
    case .replaceBody(let piece): try await replace(piece)
    case .proceed, .accept, .reject, .temporaryFailure, .discard, .skip, .progress, .connectionFailure, .shutdown,
      .reply, .negotiation:
      throw .unexpected("what is no change")
    }
  }

  private func accept(
    _ name: [UInt8], _ value: [UInt8], _ change: (inout EditableHeader) -> Bool
  ) throws(MilterFault) {
    headerOctets += name.count + value.count
    guard headerOctets <= ContentReceiver.headerLimit else { throw .unexpected("more header fields than fit") }
    guard change(&header) else { throw .malformed("the name of a header field that cannot be one") }
    hasChanged = true
  }

  private func change(_ isAdded: Bool, _ path: String) throws(MilterFault) {
    guard recipients.count < Self.recipientLimit else { throw .unexpected("more recipients than can be") }
    recipients.append((isAdded, Self.bare(path)))
  }

  private nonisolated(nonsending) func replace(_ piece: [UInt8]) async throws(MilterFault) {
    let body = body ?? GatheredContent(store: store)
    self.body = body
    hasChanged = true
    guard body.count + piece.count <= bodyLimit else { throw .unexpected("a body that exceeds max_message_size") }
    guard trouble == nil else { return }
    do throws(QueueError) { try await body.append(piece) } catch { trouble = error }
  }

  private static func bare(_ path: String) -> String {
    path.hasPrefix("<") && path.hasSuffix(">") ? String(path.dropFirst().dropLast()) : path
  }
}
