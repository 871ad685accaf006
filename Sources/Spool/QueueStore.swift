import Primitives

public struct QueueID: Hashable, Comparable, Sendable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  public var description: String { String(rawValue, radix: 32) }
}
public struct Recipient: Sendable, Equatable {
  public var address: String
  public var original: String
  public var account: String
  public var notify: UInt8?
  public var originalRecipient: String?
  public init(
    address: String, original: String, account: String, notify: UInt8? = nil, originalRecipient: String? = nil
  ) {
    self.address = address
    self.original = original
    self.account = account
    self.notify = notify
    self.originalRecipient = originalRecipient
  }
}
public struct Envelope: Sendable, Equatable {
  public var reversePath: String
  public var recipients: [Recipient]
  public var arrival: Timestamp
  public var clientAddress: String
  public var helo: String
  public var is8Bit: Bool
  public var smtpUTF8: Bool
  public var envelopeID: String?
  public var returnFull: Bool?
  public init(
    reversePath: String, recipients: [Recipient], arrival: Timestamp, clientAddress: String = "", helo: String = "",
    is8Bit: Bool = false, smtpUTF8: Bool = false, envelopeID: String? = nil, returnFull: Bool? = nil
  ) {
    self.reversePath = reversePath
    self.recipients = recipients
    self.arrival = arrival
    self.clientAddress = clientAddress
    self.helo = helo
    self.is8Bit = is8Bit
    self.smtpUTF8 = smtpUTF8
    self.envelopeID = envelopeID
    self.returnFull = returnFull
  }
}
public enum QueueError: Error, Sendable { case full, failed }
public protocol StoredContent: Sendable {
  var count: Int { get }
  func read(at: Int, count: Int) async throws(QueueError) -> [UInt8]
}
public enum Content: Sendable {
  case bytes([UInt8])
  case file(any StoredContent)
}
public protocol ContentWriter: Sendable {
  func write(_ bytes: [UInt8]) async throws(QueueError)
  func finish() async throws(QueueError) -> Content
  func discard() async
}
public enum RecipientState: Sendable, Equatable { case delivered, failed(String) }
public struct Lane: Sendable, Equatable {
  public var nextAttempt: Timestamp
  public var attempts: Int
  public var lastReply: String
  public init(nextAttempt: Timestamp, attempts: Int, lastReply: String) {
    self.nextAttempt = nextAttempt
    self.attempts = attempts
    self.lastReply = lastReply
  }
}
public struct MessageState: Sendable, Equatable {
  public var recipients: [Int: RecipientState] = [:]
  public var lanes: [String: Lane] = [:]
  public var isHeld = false
  public var deadReason: String?
}
public struct QueuedMessage: Sendable {
  public var id: QueueID
  public var envelope: Envelope
  public var state: MessageState
  public var content: Content
}
public struct EntryLane: Sendable { public var account: String; public var nextAttempt: Timestamp; public var attempts: Int }
public struct QueueEntry: Sendable {
  public var id: QueueID
  public var size: Int
  public var lanes: [EntryLane]
  public var isHeld: Bool
  public var isDead: Bool
}
public protocol QueueStore: Sendable {
  func nextID() -> QueueID
  func append(_ id: QueueID, _ envelope: Envelope, _ content: Content) async throws(QueueError)
  func makeContentWriter(for id: QueueID) async throws(QueueError) -> any ContentWriter
  func read(_ id: QueueID) async throws(QueueError) -> QueuedMessage?
  func readEnvelope(_ id: QueueID) async throws(QueueError) -> (Envelope, MessageState)?
  func update(_ id: QueueID, _ change: @escaping @Sendable (inout MessageState) -> Void)
  func remove(_ id: QueueID)
}
