// How many recipients an account has sent to within 24 hours: what providers count, and what survives a restart.
//
// Recipients are entered before they are sent to. What is on disk is always as much as was entered, or more: it is
// written ahead in small blocks, so that a crash can make an account more careful than it need be, and never less.

import Primitives

/// Recipients that were entered and may be taken out again, should they not be sent to.
struct LedgerReservation: Sendable, Equatable {
  fileprivate(set) var entry: Int
  var count: Int
}

/// A rolling window of 24 hours, in entries of five minutes. An entry counts until its last moment is 24 hours ago.
struct DailyLedger: Sendable {
  enum Answer: Sendable, Equatable {
    case granted(LedgerReservation)
    /// The disk has not promised so many yet: write ``plan(for:)``, then ask again.
    case unwritten
    /// The limit is reached; so many fit again after this time.
    case full(Duration)
  }

  /// What is to be written, and what it promises.
  struct Plan: Sendable {
    let bytes: [UInt8]
    fileprivate let promises: [Int: Int]
  }

  private struct Entry: Sendable {
    let number: Int
    /// In seconds of the wall clock.
    var start: Int64
    var count: Int
    /// What the disk says, at least.
    var promised = 0
  }

  static let window: Int64 = 86_400
  static let grain: Int64 = 300

  var limit: Int
  /// Oldest first.
  private var entries: [Entry] = []
  private var nextNumber = 0
  private var wall: Timestamp
  private var now: MonotonicInstant
  private(set) var used = 0

  init(limit: Int, wall: Timestamp, now: MonotonicInstant) {
    self.limit = limit
    self.wall = wall
    self.now = now
  }

  /// How many recipients are promised to the disk at once, and so how many a crash may count too many.
  private var block: Int { max(1, min(limit / 100, 1000)) }

  // MARK: Asking

  /// Enters recipients. More than the limit go when nothing else counts, for they would wait for ever.
  /// - Parameter isForced: although the disk has promised nothing.
  mutating func reserve(_ count: Int, wall: Timestamp, now: MonotonicInstant, isForced: Bool = false) -> Answer {
    let answer = check(count, wall: wall, now: now)
    if case .full = answer { return answer }
    if answer == .unwritten, !isForced { return answer }
    let place = entries.count - 1
    entries[place].count += count
    used += count
    return .granted(LedgerReservation(entry: entries[place].number, count: count))
  }

  /// What ``reserve(_:wall:now:isForced:)`` would say; the reservation is empty.
  mutating func check(_ count: Int, wall: Timestamp, now: MonotonicInstant) -> Answer {
    advance(wall: wall, now: now)
    let wanted = min(count, limit)
    if used + wanted > limit {
      var free = limit - used
      for entry in entries {
        free += entry.count
        if free >= wanted { return .full(timeToLive(entry)) }
      }
      return .full(.seconds(Self.window))
    }
    if entries.last.map({ wall.seconds - $0.start >= Self.grain }) ?? true {
      entries.append(Entry(number: nextNumber, start: wall.seconds, count: 0))
      nextNumber += 1
    }
    guard let last = entries.last, last.count + count <= last.promised else { return .unwritten }
    return .granted(LedgerReservation(entry: last.number, count: 0))
  }

  /// Takes out recipients that were not sent to.
  mutating func refund(_ reservation: LedgerReservation, _ count: Int) {
    guard let place = entries.firstIndex(where: { $0.number == reservation.entry }) else { return }
    let count = min(count, entries[place].count)
    entries[place].count -= count
    used -= count
  }

  /// How many more may be sent to now.
  var left: Int { max(limit - used, 0) }

  /// When the oldest recipients stop counting; nil when none count.
  func nextSlot() -> Duration? { entries.first { $0.count > 0 }.map(timeToLive) }

  private func timeToLive(_ entry: Entry) -> Duration {
    max(Timestamp(seconds: entry.start + Self.grain + Self.window) - wall, .seconds(1))
  }

  /// Lets go of what is older than 24 hours. When the wall clock was set, the entries move with it: their age is what
  /// the monotonic clock says.
  mutating func advance(wall: Timestamp, now: MonotonicInstant) {
    let jump = (wall - self.wall) - (now - self.now)
    self.wall = wall
    self.now = now
    if jump > .seconds(60) || jump < .seconds(-60) {
      for place in entries.indices { entries[place].start += jump.components.seconds }
    }
    let gone = entries.prefix { $0.start + Self.grain + Self.window <= wall.seconds }
    used -= gone.reduce(0) { $0 + $1.count }
    entries.removeFirst(gone.count)
  }

  // MARK: Disk

  /// Whether the next block should be written before somebody has to wait for it.
  var isLow: Bool { entries.last.map { $0.promised - $0.count < block / 2 } ?? false }

  /// What to write so that `count` more recipients can be entered; with nil, what there is, and no more.
  func plan(for count: Int?) -> Plan {
    var promises: [Int: Int] = [:]
    var text = "\(Self.title)\nwritten \(wall.seconds)\n"
    for (place, entry) in entries.enumerated() {
      let ahead = place == entries.count - 1 ? count.map { $0 + block } ?? 0 : 0
      promises[entry.number] = entry.count + ahead
      // Entries that have moved with a wrong clock may lie before 1970, or a second ahead by rounding: no file says so,
      // for it would be refused, and forget the whole day.
      text += "\(min(max(entry.start, 0), wall.seconds)) \(entry.count + ahead)\n"
    }
    return Plan(bytes: Array(text.utf8), promises: promises)
  }

  /// The plan is on disk.
  mutating func confirm(_ plan: Plan) {
    for place in entries.indices {
      if let promised = plan.promises[entries[place].number] { entries[place].promised = promised }
    }
  }

  private static let title = "ssmtp-mailer ledger 1"

  /// Takes up what a file says; false when it is damaged, and nothing is taken then.
  ///
  /// A file from the future was written under a wrong clock, or this one is wrong: it counts as written now.
  mutating func restore(_ bytes: [UInt8], wall: Timestamp, now: MonotonicInstant) -> Bool {
    let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n", omittingEmptySubsequences: false)
    guard lines.count >= 3, lines[0] == Self.title, lines[1].hasPrefix("written "), lines.last?.isEmpty == true,
      let written = Int64(lines[1].dropFirst(8)), (0...Int64(1) << 40).contains(written)
    else { return false }
    var restored: [Entry] = []
    let shift = min(wall.seconds - written, 0)
    for line in lines.dropFirst(2).dropLast() {
      let fields = line.split(separator: " ")
      guard fields.count == 2, let start = Int64(fields[0]), (0...written).contains(start), let count = Int(fields[1]),
        (0...1_000_000_000).contains(count)
      else { return false }
      restored.append(Entry(number: nextNumber, start: start + shift, count: count, promised: count))
      nextNumber += 1
    }
    (self.wall, self.now) = (wall, now)
    entries = restored.sorted { $0.start < $1.start } + entries
    used = entries.reduce(0) { $0 + $1.count }
    advance(wall: wall, now: now)
    return true
  }
}
