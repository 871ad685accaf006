// What a queue is to the rest of the relay: messages, what became of each recipient, and the few things one can do
// with them. The store on disk is one implementation; a shared one for several relays can stand beside it.

import Primitives

/// One recipient of a message.
public struct Recipient: Sendable, Equatable {
  /// The forward-path that the upstream is given.
  public var address: String
  /// The forward-path as the client gave it, before any rewriting.
  public var original: String
  /// The account that delivers to it.
  public var account: String
  /// NOTIFY of RFC 3461 section 4.1 as a bit set; `nil` when the client said nothing.
  public var notify: UInt8?
  /// ORCPT of RFC 3461 section 4.2.
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

/// What a message carries beside its content; never changes once it is queued.
public struct Envelope: Sendable, Equatable {
  /// The reverse-path without angle brackets; empty for the null reverse-path (RFC 5321 section 4.5.5).
  public var reversePath: String
  public var recipients: [Recipient]
  public var arrival: Timestamp
  public var clientAddress: String
  public var helo: String
  /// Whether the client declared BODY=8BITMIME (RFC 6152).
  public var is8Bit: Bool
  /// Whether the client asked for SMTPUTF8 (RFC 6531).
  public var smtpUTF8: Bool
  /// ENVID of RFC 3461 section 4.4.
  public var envelopeID: String?
  /// RET of RFC 3461 section 4.3: `true` for FULL, `false` for HDRS.
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

/// Content that is not in memory.
public protocol StoredContent: Sendable {
  /// The size in octets.
  var count: Int { get }
  /// Reads up to `count` octets; fewer only at the end.
  func read(at: Int, count: Int) async throws(QueueError) -> [UInt8]
}

/// The content of a message: header section and body as they go over the wire, before dot-stuffing.
public enum Content: Sendable {
  case bytes([UInt8])
  case file(any StoredContent)
}

/// Takes a content piece by piece, so that a large one never has to be in memory.
public protocol ContentWriter: Sendable {
  /// - Throws: ``QueueError/full`` when the disk is.
  func write(_ bytes: [UInt8]) async throws(QueueError)
  /// Reads back what was written, up to `count` octets; fewer only at the end. Also after ``discard()``, so that one
  /// content can be made of another one under the same identifier.
  func read(at: Int, count: Int) async throws(QueueError) -> [UInt8]
  /// Makes all that was written durable and gives it as the content to append.
  func finish() async throws(QueueError) -> Content
  /// Throws away what was written; does nothing once the content has been appended.
  func discard() async
}

/// The end of the road for one recipient; a recipient without one is pending.
public enum RecipientState: Sendable, Equatable {
  case delivered
  /// Failed for good, with the reply that says why.
  case failed(String)
}

/// What the account that delivers part of a message has tried so far.
public struct Lane: Sendable, Equatable {
  public var nextAttempt: Timestamp
  public var attempts: Int
  public var lastReply: String
  /// How many attempts ended between the end of the message and the reply to it, so that it may have arrived.
  public var inDoubt: Int

  public init(nextAttempt: Timestamp, attempts: Int, lastReply: String, inDoubt: Int = 0) {
    self.nextAttempt = nextAttempt
    self.attempts = attempts
    self.lastReply = lastReply
    self.inDoubt = inDoubt
  }
}

/// Something that happened to a message: a line of its life, for people.
public struct LifeEvent: Sendable, Equatable {
  public enum Kind: UInt8, Sendable, CaseIterable {
    /// Written by a later release.
    case other = 0
    case deferred = 1
    /// The connection broke between the end of the message and the reply to it.
    case inDoubt = 2
    case delivered = 3
    case failed = 4
    /// The sender was told of a failure, a delay or a delivery.
    case notified = 5
    case held = 6
    case released = 7
    /// Kept, but neither delivered nor returned.
    case dead = 8
    case imported = 9
  }
  public var time: Timestamp
  public var kind: Kind
  /// The account at work; empty when it was none.
  public var account: String
  /// A reply, or who did it and why. On one line.
  public var text: String

  public init(time: Timestamp, kind: Kind, account: String = "", text: String) {
    self.time = time
    self.kind = kind
    self.account = account
    self.text = text
  }
}

/// All that changes about a queued message.
public struct MessageState: Sendable, Equatable {
  /// By index into ``Envelope/recipients``; those not named are pending.
  public var recipients: [Int: RecipientState] = [:]
  /// By account.
  public var lanes: [String: Lane] = [:]
  public var isHeld = false
  /// Why the message is dead: kept, but neither delivered nor bounced.
  public var deadReason: String?
  /// Whether the sender was told that the message is late: that is said once.
  public var isDelayReported = false
  /// What happened so far, oldest first; see ``note(_:)``.
  public private(set) var life: [LifeEvent] = []

  public init(
    recipients: [Int: RecipientState] = [:], lanes: [String: Lane] = [:], isHeld: Bool = false,
    deadReason: String? = nil, isDelayReported: Bool = false, life: [LifeEvent] = []
  ) {
    self.recipients = recipients
    self.lanes = lanes
    self.isHeld = isHeld
    self.deadReason = deadReason
    self.isDelayReported = isDelayReported
    self.life = life
  }

  /// Adds to the life of the message. Of a long one the beginning and the latest part are kept.
  public mutating func note(_ event: LifeEvent) {
    life.append(event)
    if life.count > Self.lifeLimit { life.remove(at: Self.lifeBeginning) }
  }

  /// Keeps the message back; it is said once.
  public mutating func hold(_ why: String, at time: Timestamp) {
    if isHeld { return }
    isHeld = true
    note(LifeEvent(time: time, kind: .held, text: why))
  }

  /// Keeps the message back because it is not what was accepted; that is said also of one that is held already.
  public mutating func keepBack(damagedBy damage: String, at time: Timestamp) {
    isHeld = true
    note(LifeEvent(time: time, kind: .held, text: "damaged in the queue: \(damage)"))
  }

  /// Ends a hold, and makes the message due: the time on hold has not aged it.
  public mutating func release(_ why: String, at time: Timestamp) {
    guard isHeld else { return }
    isHeld = false
    for (name, lane) in lanes { lanes[name]?.nextAttempt = min(lane.nextAttempt, time) }
    note(LifeEvent(time: time, kind: .released, text: why))
  }

  private static let lifeLimit = 24
  private static let lifeBeginning = 4
}

/// A message as it comes out of the queue.
public struct QueuedMessage: Sendable {
  public var id: QueueID
  public var envelope: Envelope
  public var state: MessageState
  public var content: Content

  public init(id: QueueID, envelope: Envelope, state: MessageState, content: Content) {
    self.id = id
    self.envelope = envelope
    self.state = state
    self.content = content
  }
}

/// When an account tries a message next.
public struct EntryLane: Sendable, Equatable {
  public var account: String
  public var nextAttempt: Timestamp
  public var attempts: Int

  public init(account: String, nextAttempt: Timestamp, attempts: Int) {
    self.account = account
    self.nextAttempt = nextAttempt
    self.attempts = attempts
  }
}

/// What is known of a queued message without reading it.
public struct QueueEntry: Sendable, Equatable {
  public var id: QueueID
  /// The size of the content in octets.
  public var size: Int
  public var arrival: Timestamp
  /// One for each account that has pending recipients; due at the arrival when no lane was recorded.
  public var lanes: [EntryLane]
  public var isHeld: Bool
  public var isDead: Bool
  public var isDelayReported: Bool

  public init(
    id: QueueID, size: Int, arrival: Timestamp, lanes: [EntryLane], isHeld: Bool, isDead: Bool,
    isDelayReported: Bool = false
  ) {
    self.id = id
    self.size = size
    self.arrival = arrival
    self.lanes = lanes
    self.isHeld = isHeld
    self.isDead = isDead
    self.isDelayReported = isDelayReported
  }
}

/// How full the queue is and how hard it works.
public struct QueueStatistics: Sendable, Equatable {
  public var messages: Int
  /// Octets of all that is still needed.
  public var liveBytes: Int
  public var segments: Int
  /// Octets of all files.
  public var diskBytes: Int
  /// Batches of appended messages that became durable.
  public var commits: Int
  /// Syncs of log files, for whatever reason.
  public var syncs: Int
  /// Octets that are free on the file system; nil when that is not known.
  public var freeBytes: Int?
  /// Whether new mail is refused until there is more space.
  public var isShortOfSpace: Bool

  public init(
    messages: Int, liveBytes: Int, segments: Int, diskBytes: Int, commits: Int, syncs: Int, freeBytes: Int? = nil,
    isShortOfSpace: Bool = false
  ) {
    self.messages = messages
    self.liveBytes = liveBytes
    self.segments = segments
    self.diskBytes = diskBytes
    self.commits = commits
    self.syncs = syncs
    self.freeBytes = freeBytes
    self.isShortOfSpace = isShortOfSpace
  }
}

/// A durable queue of messages.
///
/// Calls of one task take effect in their order: what ``update(_:_:)`` and ``remove(_:)`` changed is seen by every later
/// read.
public protocol QueueStore: Sendable {
  /// A fresh identifier, greater than all before it, also than those of earlier runs that were used.
  func nextID() -> QueueID

  /// Queues a message; when this returns, the message survives a crash of the machine.
  /// - Throws: ``QueueError/full`` when there is no space (a later append may succeed), anything else for good. The
  ///   message is then not queued, and a content file given with it is gone. (Was it a failed sync, the message may
  ///   turn up after a restart all the same: nobody can know what such a disk has kept.)
  /// - Parameter state: what has happened to it already, in another queue.
  func append(
    _ id: QueueID, _ envelope: Envelope, _ content: Content, _ state: MessageState
  ) async throws(QueueError)

  /// Whether there is space for another message of so many octets, with a reserve that is kept for the work on what
  /// is queued already. Asked before mail is accepted; ``append(_:_:_:)`` itself uses the reserve, for notifications.
  func admits(_ octets: Int) -> Bool

  /// Begins a content too large to be held in memory.
  func makeContentWriter(for id: QueueID) async throws(QueueError) -> any ContentWriter

  /// The whole message; `nil` when it is not queued (any more).
  func read(_ id: QueueID) async throws(QueueError) -> QueuedMessage?

  /// The message without its content; `nil` when it is not queued (any more).
  func readEnvelope(_ id: QueueID) async throws(QueueError) -> (Envelope, MessageState)?

  /// Several messages without their contents, in the order asked for; those that are not queued (any more) are left
  /// out. Much cheaper than one after the other.
  func readEnvelopes(
    _ ids: [QueueID]
  ) async throws(QueueError) -> [(id: QueueID, envelope: Envelope, state: MessageState)]

  /// Changes the state of a message; does nothing when it is not queued (any more).
  ///
  /// The change survives a crash of the process at once and of the machine soon after. If it leaves no recipient
  /// pending, the message is removed, unless it has a ``MessageState/deadReason``.
  func update(_ id: QueueID, _ change: @escaping @Sendable (inout MessageState) -> Void)

  /// Removes a message, with the same durability as ``update(_:_:)``.
  func remove(_ id: QueueID)

  /// Returns once every change made before is durable.
  func flush() async throws(QueueError)

  /// Up to `limit` messages with identifiers above `startingAfter`, in their order.
  func entries(startingAfter: QueueID?, limit: Int) async -> [QueueEntry]

  var statistics: QueueStatistics { get }
}

extension QueueStore {
  /// Queues a message that is new.
  public func append(_ id: QueueID, _ envelope: Envelope, _ content: Content) async throws(QueueError) {
    try await append(id, envelope, content, MessageState())
  }
}
