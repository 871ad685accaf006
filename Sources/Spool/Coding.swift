// Envelopes, states and summaries as bytes: integers little-endian, strings with their length before them.

import Primitives

/// Collects bytes; reused from batch to batch, so that encoding seldom allocates.
struct Encoder {
  var bytes: [UInt8] = []

  mutating func put<T: FixedWidthInteger>(_ value: T) {
    withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
  }

  mutating func put(_ text: String) {
    put(UInt32(text.utf8.count))
    bytes.append(contentsOf: text.utf8)
  }

  mutating func zeros(_ count: Int) { bytes.append(contentsOf: repeatElement(0, count: count)) }

  mutating func set<T: FixedWidthInteger>(_ value: T, at offset: Int) {
    bytes.withUnsafeMutableBytes { $0.storeBytes(of: value.littleEndian, toByteOffset: offset, as: T.self) }
  }

  mutating func put(_ envelope: Envelope) {
    var flags: UInt8 = envelope.is8Bit ? 1 : 0
    if envelope.smtpUTF8 { flags |= 2 }
    if envelope.envelopeID != nil { flags |= 4 }
    if let full = envelope.returnFull { flags |= full ? 24 : 8 }
    put(flags)
    put(envelope.arrival.microseconds)
    put(envelope.reversePath)
    put(envelope.clientAddress)
    put(envelope.helo)
    if let text = envelope.envelopeID { put(text) }
    put(UInt32(envelope.recipients.count))
    for recipient in envelope.recipients {
      let same = recipient.original == recipient.address
      put(
        UInt8(
          (recipient.notify != nil ? 1 : 0) | (recipient.originalRecipient != nil ? 2 : 0) | (same ? 4 : 0)))
      put(recipient.address)
      if !same { put(recipient.original) }
      put(recipient.account)
      if let notify = recipient.notify { put(notify) }
      if let text = recipient.originalRecipient { put(text) }
    }
  }

  mutating func put(_ state: MessageState) {
    // The fifth flag says that a second part follows, which format version 1 did not have.
    let hasMore = state.isDelayReported || !state.life.isEmpty || state.lanes.values.contains { $0.inDoubt > 0 }
    put(UInt8((state.isHeld ? 1 : 0) | (state.deadReason != nil ? 2 : 0) | (hasMore ? 16 : 0)))
    if let reason = state.deadReason { put(reason) }
    put(UInt32(state.recipients.count))
    for (index, outcome) in state.recipients.sorted(by: { $0.key < $1.key }) {
      put(UInt32(index))
      switch outcome {
      case .delivered: put(UInt8(0))
      case .failed(let reply):
        put(UInt8(1))
        put(reply)
      }
    }
    put(UInt32(state.lanes.count))
    for (account, lane) in state.lanes.sorted(by: { $0.key < $1.key }) {
      put(account)
      put(lane.nextAttempt.microseconds)
      put(UInt32(clamping: lane.attempts))
      put(lane.lastReply)
    }
    if hasMore { putMore(state) }
  }

  /// The part of a state that came with format version 2. Its size stands in front, so that a reader can pass over
  /// what it does not know.
  private mutating func putMore(_ state: MessageState) {
    let start = bytes.count
    put(UInt32(0))
    put(UInt8(state.isDelayReported ? 1 : 0))
    let doubtful = state.lanes.filter { $0.value.inDoubt > 0 }.sorted { $0.key < $1.key }
    put(UInt32(doubtful.count))
    for (account, lane) in doubtful {
      put(account)
      put(UInt32(clamping: lane.inDoubt))
    }
    put(UInt32(state.life.count))
    for event in state.life {
      put(event.time.microseconds)
      put(event.kind.rawValue)
      put(event.account)
      put(event.text)
    }
    set(UInt32(bytes.count - start - 4), at: start)
  }

  mutating func put(_ summary: Summary) {
    put(UInt8((summary.isHeld ? 1 : 0) | (summary.isDead ? 2 : 0) | (summary.isDelayReported ? 4 : 0)))
    put(UInt32(summary.lanes.count))
    for lane in summary.lanes {
      put(lane.account)
      put(lane.nextAttempt.microseconds)
      put(UInt32(clamping: lane.attempts))
    }
  }
}

/// What the index keeps of envelope and state. It stands in front of every record that changes it, so that recovery
/// need not decode the rest.
struct Summary: Equatable {
  var isHeld: Bool
  var isDead: Bool
  var isDelayReported: Bool
  var lanes: [EntryLane]

  init(isHeld: Bool, isDead: Bool, isDelayReported: Bool, lanes: [EntryLane]) {
    self.isHeld = isHeld
    self.isDead = isDead
    self.isDelayReported = isDelayReported
    self.lanes = lanes
  }

  init(_ envelope: Envelope, _ state: MessageState) {
    isHeld = state.isHeld
    isDead = state.deadReason != nil
    isDelayReported = state.isDelayReported
    lanes = []
    for (index, recipient) in envelope.recipients.enumerated() where state.recipients[index] == nil {
      if lanes.contains(where: { $0.account == recipient.account }) { continue }
      let lane = state.lanes[recipient.account]
      lanes.append(
        EntryLane(
          account: recipient.account, nextAttempt: lane?.nextAttempt ?? envelope.arrival,
          attempts: lane?.attempts ?? 0))
    }
  }
}

/// The bytes end early, or name something unknown.
struct MalformedRecord: Error {}

/// Reads what ``Encoder`` wrote.
struct Decoder {
  let bytes: UnsafeRawBufferPointer
  private(set) var offset = 0

  init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

  mutating func integer<T: FixedWidthInteger>(_ type: T.Type) throws(MalformedRecord) -> T {
    guard bytes.count - offset >= MemoryLayout<T>.size else { throw MalformedRecord() }
    defer { offset += MemoryLayout<T>.size }
    return bytes.little(type, offset)
  }

  mutating func string() throws(MalformedRecord) -> String {
    let count = Int(try integer(UInt32.self))
    guard bytes.count - offset >= count else { throw MalformedRecord() }
    defer { offset += count }
    return String(decoding: UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count]), as: UTF8.self)
  }

  private mutating func time() throws(MalformedRecord) -> Timestamp {
    Timestamp(microseconds: try integer(Int64.self))
  }

  mutating func envelope() throws(MalformedRecord) -> Envelope {
    let flags = try integer(UInt8.self)
    let arrival = try time()
    let reversePath = try string()
    let client = try string()
    let helo = try string()
    let envelopeID = flags & 4 != 0 ? try string() : nil
    let count = try integer(UInt32.self)
    var recipients: [Recipient] = []
    for _ in 0..<count {
      let has = try integer(UInt8.self)
      let address = try string()
      let original = has & 4 != 0 ? address : try string()
      let account = try string()
      let notify = has & 1 != 0 ? try integer(UInt8.self) : nil
      let text = has & 2 != 0 ? try string() : nil
      recipients.append(
        Recipient(address: address, original: original, account: account, notify: notify, originalRecipient: text))
    }
    return Envelope(
      reversePath: reversePath, recipients: recipients, arrival: arrival, clientAddress: client, helo: helo,
      is8Bit: flags & 1 != 0, smtpUTF8: flags & 2 != 0, envelopeID: envelopeID,
      returnFull: flags & 8 != 0 ? flags & 16 != 0 : nil)
  }

  mutating func state() throws(MalformedRecord) -> MessageState {
    var state = MessageState()
    let flags = try integer(UInt8.self)
    state.isHeld = flags & 1 != 0
    if flags & 2 != 0 { state.deadReason = try string() }
    for _ in 0..<(try integer(UInt32.self)) {
      let index = Int(try integer(UInt32.self))
      switch try integer(UInt8.self) {
      case 0: state.recipients[index] = .delivered
      case 1: state.recipients[index] = .failed(try string())
      default: throw MalformedRecord()
      }
    }
    for _ in 0..<(try integer(UInt32.self)) {
      let account = try string()
      let next = try time()
      let attempts = Int(try integer(UInt32.self))
      state.lanes[account] = Lane(nextAttempt: next, attempts: attempts, lastReply: try string())
    }
    if flags & 16 != 0 { try more(&state) }
    return state
  }

  private mutating func more(_ state: inout MessageState) throws(MalformedRecord) {
    let count = Int(try integer(UInt32.self))
    guard bytes.count - offset >= count else { throw MalformedRecord() }
    let end = offset + count
    state.isDelayReported = try integer(UInt8.self) & 1 != 0
    for _ in 0..<(try integer(UInt32.self)) {
      let account = try string()
      let times = Int(try integer(UInt32.self))
      state.lanes[account]?.inDoubt = times
    }
    for _ in 0..<(try integer(UInt32.self)) {
      let time = try time()
      let kind = LifeEvent.Kind(rawValue: try integer(UInt8.self)) ?? .other
      let account = try string()
      state.note(LifeEvent(time: time, kind: kind, account: account, text: try string()))
    }
    guard offset <= end else { throw MalformedRecord() }
    offset = end
  }

  mutating func summary() throws(MalformedRecord) -> Summary {
    let flags = try integer(UInt8.self)
    var lanes: [EntryLane] = []
    for _ in 0..<(try integer(UInt32.self)) {
      let account = try string()
      let next = try time()
      lanes.append(EntryLane(account: account, nextAttempt: next, attempts: Int(try integer(UInt32.self))))
    }
    return Summary(
      isHeld: flags & 1 != 0, isDead: flags & 2 != 0, isDelayReported: flags & 4 != 0, lanes: lanes)
  }
}
