// What waits in a queue and why: walks over a queue of any size in parts that are small enough to be asked for one by
// one. The daemon answers with it over the admin socket, and the command line when no daemon runs.

import Delivery
import Message
import Primitives
import SMTP
import Spool
import Telemetry

/// Questions about a queue.
struct QueueReports: Sendable {
  let store: any QueueStore
  let time: any Timekeeper
  /// The messages that are being delivered at this moment.
  var underWay: @Sendable () async -> Set<QueueID> = { [] }
  /// The accounts; nil when there is nobody who delivers.
  var accounts: @Sendable () async -> [AccountSnapshot]? = { nil }

  /// A message that a filter names.
  struct Match {
    var entry: QueueEntry
    var state: QueueFilter.State
    /// There when it was asked for.
    var message: (envelope: Envelope, state: MessageState)?
  }

  /// A part of a walk.
  struct Part {
    var matches: [Match] = []
    /// Where the next part begins; nil at the end.
    var next: QueueID?
  }

  private static let batch = 500
  private static let entriesAtOnce = 5000
  /// How long one part may take before the rest is left to the next.
  private static let patience = Duration.seconds(2)

  /// Up to `limit` messages behind `after` that a filter names. Mail that comes and goes between two parts does no
  /// harm: the next one begins behind an identifier, not behind a number of messages.
  func walk(
    _ filter: QueueFilter, after: QueueID?, until: QueueID? = nil, limit: Int, withEnvelopes: Bool
  ) async throws(QueueError) -> Part {
    let active = await underWay()
    let began = time.now
    let readsEnvelopes = withEnvelopes || filter.needsEnvelope
    var part = Part()
    var position = after
    while true {
      let wanted = filter.isEmpty && readsEnvelopes ? min(limit + 1, Self.entriesAtOnce) : Self.entriesAtOnce
      let entries = await store.entries(startingAfter: position, limit: wanted)
      let now = time.wallClock
      var candidates: [Match] = []
      var isBeyond = false
      for entry in entries {
        if let until, entry.id > until {
          isBeyond = true
          break
        }
        let state = QueueFilter.State(entry, isActive: active.contains(entry.id))
        if filter.admits(entry, state, now: now) { candidates.append(Match(entry: entry, state: state)) }
      }
      var rest = candidates[...]
      while !rest.isEmpty {
        var batch = Array(rest.prefix(min(Self.batch, max(limit - part.matches.count, 32))))
        rest = rest.dropFirst(batch.count)
        if readsEnvelopes { batch = try await admitted(batch, filter) }
        for match in batch {
          if part.matches.count == limit {
            part.next = part.matches.last?.entry.id
            return part
          }
          part.matches.append(match)
        }
        if time.now - began > Self.patience, let last = rest.first {
          part.next = QueueID(rawValue: last.entry.id.rawValue - 1)
          return part
        }
      }
      guard !isBeyond, entries.count == wanted, let last = entries.last else { return part }
      position = last.id
      if time.now - began > Self.patience {
        part.next = last.id
        return part
      }
    }
  }

  /// Reads the envelopes of a batch and leaves out what the filter does not name, or what is gone.
  private func admitted(_ batch: [Match], _ filter: QueueFilter) async throws(QueueError) -> [Match] {
    var result: [Match] = []
    var place = 0
    for found in try await store.readEnvelopes(batch.map(\.entry.id)) {
      while batch[place].entry.id != found.id { place += 1 }
      guard filter.admits(found.envelope, found.state) else { continue }
      var match = batch[place]
      match.message = (found.envelope, found.state)
      result.append(match)
    }
    return result
  }

  // MARK: Counting

  func count(_ filter: QueueFilter, after: QueueID?) async throws(QueueError) -> QueueCount {
    var count = QueueCount()
    var position = after
    let began = time.now
    while true {
      let part = try await walk(filter, after: position, limit: Self.entriesAtOnce, withEnvelopes: false)
      for match in part.matches {
        count.add(match.state.rawValue, match.entry.lanes.map(\.account), octets: match.entry.size)
      }
      guard let next = part.next else { return count }
      position = next
      if time.now - began > Self.patience {
        count.next = next.description
        return count
      }
    }
  }

  // MARK: Listing

  enum Format: String { case json, table, ids }

  /// Lines for messages, and the last one that says where to go on.
  func lines(_ filter: QueueFilter, after: QueueID?, limit: Int, _ format: Format) async throws(QueueError) -> [UInt8] {
    let part = try await walk(filter, after: after, limit: limit, withEnvelopes: format != .ids)
    var text = JSONText(capacity: part.matches.count * (format == .json ? 400 : 150))
    let now = time.wallClock
    // Of ids alone nobody is told why they wait.
    let accounts = format == .ids ? [] : await accounts() ?? []
    for match in part.matches {
      guard format != .ids, let message = match.message else {
        text.line("\(match.entry.id)")
        continue
      }
      let item = item(match.entry, match.state, message.envelope, message.state, accounts, now)
      if format == .json { text.put(item) } else { text.row(item) }
    }
    text.line(part.next.map { "next \($0)" } ?? "end")
    return text.bytes
  }

  private func item(
    _ entry: QueueEntry, _ word: QueueFilter.State, _ envelope: Envelope, _ state: MessageState,
    _ accounts: [AccountSnapshot], _ now: Timestamp
  ) -> QueueItem {
    let lanes = entry.lanes.compactMap { state.lanes[$0.account] }
    let lane = lanes.min { $0.nextAttempt < $1.nextAttempt }
    let reason: String?
    switch word {
    case .held: reason = state.life.last { $0.kind == .held }?.text
    case .dead: reason = state.deadReason
    default: reason = lane?.lastReply ?? Self.hold(entry, accounts)
    }
    return QueueItem(
      id: entry.id.description, state: word.rawValue, arrival: ISOTime.format(envelope.arrival),
      ageSeconds: Int((now - envelope.arrival).components.seconds), size: entry.size, sender: envelope.reversePath,
      recipients: state.waiting(of: envelope).map(\.address), accounts: entry.lanes.map(\.account),
      attempts: lanes.map(\.attempts).max() ?? 0, nextAttempt: lane.map { ISOTime.format($0.nextAttempt) },
      reason: reason)
  }

  /// Why a message is not even tried.
  private static func hold(_ entry: QueueEntry, _ accounts: [AccountSnapshot]) -> String? {
    for lane in entry.lanes {
      guard let account = accounts.first(where: { $0.name == lane.account }), let hold = account.hold else { continue }
      return "account \(account.name) is on hold: \(hold.reason)"
    }
    return nil
  }

  // MARK: One message

  /// The entry of a message as the index has it, out of the message itself.
  func entry(_ id: QueueID, _ size: Int, _ envelope: Envelope, _ state: MessageState) -> QueueEntry {
    var lanes: [EntryLane] = []
    for (index, recipient) in envelope.recipients.enumerated() where state.recipients[index] == nil {
      if lanes.contains(where: { $0.account == recipient.account }) { continue }
      let lane = state.lanes[recipient.account]
      lanes.append(
        EntryLane(
          account: recipient.account, nextAttempt: lane?.nextAttempt ?? envelope.arrival,
          attempts: lane?.attempts ?? 0))
    }
    return QueueEntry(
      id: id, size: size, arrival: envelope.arrival, lanes: lanes, isHeld: state.isHeld,
      isDead: state.deadReason != nil, isDelayReported: state.isDelayReported)
  }

  /// All about a message; nil when it is not queued.
  func detail(_ id: QueueID) async throws(QueueError) -> QueueDetail? {
    guard let message = try await store.read(id) else { return nil }
    let beginning: [UInt8] =
      switch message.content {
      case .bytes(let bytes): bytes
      case .file(let file): try await file.read(at: 0, count: min(file.count, 65536))
      }
    let header = beginning.withUnsafeBytes { bytes in
      String(decoding: bytes[HeaderView(bytes).headerRange], as: UTF8.self)
    }
    let (envelope, state) = (message.envelope, message.state)
    let entry = entry(id, message.content.count, envelope, state)
    let word = QueueFilter.State(entry, isActive: await underWay().contains(id))
    let accounts = await accounts()
    return QueueDetail(
      item: item(entry, word, envelope, state, accounts ?? [], time.wallClock), client: envelope.clientAddress,
      helo: envelope.helo,
      parameters: Self.parameters(envelope), recipients: MessageDocument.recipients(envelope, state),
      lanes: state.lanes.map { name, lane in
        .init(
          account: name, attempts: lane.attempts, nextAttempt: ISOTime.format(lane.nextAttempt),
          lastReply: lane.lastReply, inDoubt: lane.inDoubt)
      }.sorted { $0.account < $1.account },
      life: state.life.map {
        .init(
          time: ISOTime.format($0.time), event: "\($0.kind)", account: $0.account.isEmpty ? nil : $0.account,
          text: $0.text)
      },
      waiting: WaitingReasons(
        entry: entry, isNotification: envelope.reversePath.isEmpty, word: word, state: state, accounts: accounts,
        now: time.wallClock
      ).lines,
      isDelayReported: state.isDelayReported, header: header)
  }

  private static func parameters(_ envelope: Envelope) -> [String] {
    var parameters: [String] = []
    if envelope.is8Bit { parameters.append("BODY=8BITMIME") }
    if envelope.smtpUTF8 { parameters.append("SMTPUTF8") }
    if let text = envelope.envelopeID { parameters.append("ENVID=\(text)") }
    if let full = envelope.returnFull { parameters.append(full ? "RET=FULL" : "RET=HDRS") }
    return parameters
  }
}

extension Content {
  /// In octets.
  var count: Int {
    switch self {
    case .bytes(let bytes): bytes.count
    case .file(let file): file.count
    }
  }

  /// A part of it; empty at the end.
  func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
    switch self {
    case .bytes(let bytes): Array(bytes[min(offset, bytes.count)..<min(offset + count, bytes.count)])
    case .file(let file): try await file.read(at: offset, count: count)
    }
  }
}

extension JSONText {
  mutating func line(_ text: String) {
    for byte in text.utf8 { append(byte) }
    append(0x0a)
  }

  fileprivate mutating func put(_ item: QueueItem) {
    open("{")
    field("id", item.id)
    field("state", item.state)
    field("arrival", item.arrival)
    field("age_seconds", item.ageSeconds)
    field("size", item.size)
    field("sender", item.sender)
    field("recipients", item.recipients)
    field("accounts", item.accounts)
    field("attempts", item.attempts)
    if let next = item.nextAttempt { field("next_attempt", next) }
    if let reason = item.reason { field("reason", reason) }
    close("}")
    endLine()
  }

  /// What a table shows of a message, between tabs.
  fileprivate mutating func row(_ item: QueueItem) {
    cell(item.id)
    cell(item.state)
    cell(String(item.ageSeconds))
    cell(String(item.size))
    cell(item.sender)
    cell(item.recipients.first ?? "")
    cell(String(item.recipients.count))
    cell(item.reason ?? "")
    endLine()
  }

  private mutating func cell(_ text: String) {
    for byte in text.utf8 { append(byte < 0x20 ? 0x20 : byte) }
    append(0x09)
  }
}
