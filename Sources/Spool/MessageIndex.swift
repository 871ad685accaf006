// All that is kept in memory of a queued message: 64 bytes. A million messages fit into less than 100 MB, which a
// Dictionary (whose buckets are half empty, and which has no order to page through) would take twice.

import Primitives

/// Where a message is and when it is due.
struct IndexEntry {
  var id: UInt64
  var arrival: Int64
  /// The earliest attempt of its only lane.
  var nextAttempt: Int64
  var segment: UInt32
  var offset: UInt32
  /// Payload bytes of the message record.
  var payload: UInt32
  /// Payload bytes before the content.
  var front: UInt32
  var size: UInt32
  /// Where the state record is; segment 0 when the state is the one in the message record.
  var stateSegment: UInt32
  var stateOffset: UInt32
  var statePayload: UInt32
  /// Index into the account names, or one of the two values below.
  var account: UInt32
  var attempts: UInt16
  var flags: UInt8

  static let noLane = UInt32.max
  static let manyLanes = UInt32.max - 1
  static let held: UInt8 = 1
  static let dead: UInt8 = 2
  static let file: UInt8 = 4
  static let delayReported: UInt8 = 8

  var messageBytes: Int { LogFormat.padded(LogFormat.recordHeaderSize + Int(payload)) }
  var stateBytes: Int {
    stateSegment == 0 ? 0 : LogFormat.padded(LogFormat.recordHeaderSize + Int(statePayload))
  }
  var hasFile: Bool { flags & Self.file != 0 }
}

extension IndexEntry {
  /// The entry of a message record, before anything of its summary is in it.
  init(_ header: RecordHeader, _ fixed: MessageFixed, segment: UInt32, offset: Int) {
    self.init(
      id: header.id, arrival: fixed.arrival.microseconds, nextAttempt: 0, segment: segment, offset: UInt32(offset),
      payload: UInt32(header.payloadCount), front: UInt32(fixed.frontCount),
      size: UInt32(truncatingIfNeeded: fixed.contentCount), stateSegment: 0, stateOffset: 0, statePayload: 0,
      account: Self.noLane, attempts: 0, flags: fixed.isFile ? Self.file : 0)
  }
}

/// The queued messages in order of their identifiers.
///
/// Sorted pages of entries: identifiers grow, so nearly every insertion is at the end of the last page; a removal moves
/// at most one page; pages that become small join their neighbour.
struct MessageIndex {
  private static let pageSize = 256
  fileprivate var pages: [ContiguousArray<IndexEntry>] = []
  private(set) var count = 0
  private var accounts: [String] = []
  private var accountNumbers: [String: UInt32] = [:]
  private var manyLanes: [UInt64: [EntryLane]] = [:]

  /// The place of the first entry with an identifier of at least `id`.
  private func place(_ id: UInt64) -> (page: Int, slot: Int) {
    var low = 0
    var high = pages.count
    while low < high {
      let middle = (low + high) / 2
      if pages[middle][pages[middle].count - 1].id < id { low = middle + 1 } else { high = middle }
    }
    guard low < pages.count else { return (low, 0) }
    let page = low
    low = 0
    high = pages[page].count
    while low < high {
      let middle = (low + high) / 2
      if pages[page][middle].id < id { low = middle + 1 } else { high = middle }
    }
    return (page, low)
  }

  subscript(id: UInt64) -> IndexEntry? {
    let (page, slot) = place(id)
    guard page < pages.count, pages[page][slot].id == id else { return nil }
    return pages[page][slot]
  }

  /// Inserts the entry or replaces the one with its identifier.
  mutating func set(_ entry: IndexEntry) {
    var (page, slot) = place(entry.id)
    if page < pages.count, pages[page][slot].id == entry.id {
      pages[page][slot] = entry
      return
    }
    count += 1
    if page == pages.count {
      // Behind everything.
      if let last = pages.indices.last, pages[last].count < Self.pageSize {
        pages[last].append(entry)
      } else {
        var fresh = ContiguousArray<IndexEntry>()
        fresh.reserveCapacity(Self.pageSize)
        fresh.append(entry)
        pages.append(fresh)
      }
      return
    }
    if pages[page].count >= Self.pageSize {
      let half = pages[page].count / 2
      var upper = ContiguousArray<IndexEntry>()
      upper.reserveCapacity(Self.pageSize)
      upper.append(contentsOf: pages[page][half...])
      pages[page].removeSubrange(half...)
      pages.insert(upper, at: page + 1)
      if slot > half { (page, slot) = (page + 1, slot - half) }
    }
    pages[page].insert(entry, at: slot)
  }

  @discardableResult
  mutating func remove(_ id: UInt64) -> IndexEntry? {
    let (page, slot) = place(id)
    guard page < pages.count, pages[page][slot].id == id else { return nil }
    let entry = pages[page].remove(at: slot)
    if entry.account == IndexEntry.manyLanes { manyLanes[id] = nil }
    count -= 1
    let left = pages[page].count
    if left == 0 {
      pages.remove(at: page)
    } else if left < Self.pageSize / 4, page + 1 < pages.count, pages[page + 1].count + left <= Self.pageSize / 2 {
      let upper = pages.remove(at: page + 1)
      pages[page].append(contentsOf: upper)
    }
    return entry
  }

  // MARK: Summaries

  /// Writes what `summary` says into `entry` and the tables beside it.
  mutating func apply(_ summary: Summary, to entry: inout IndexEntry) {
    entry.flags &= IndexEntry.file
    if summary.isHeld { entry.flags |= IndexEntry.held }
    if summary.isDead { entry.flags |= IndexEntry.dead }
    if summary.isDelayReported { entry.flags |= IndexEntry.delayReported }
    if entry.account == IndexEntry.manyLanes { manyLanes[entry.id] = nil }
    entry.nextAttempt = summary.lanes.map(\.nextAttempt.microseconds).min() ?? entry.arrival
    entry.attempts = UInt16(clamping: summary.lanes.first?.attempts ?? 0)
    switch summary.lanes.count {
    case 0: entry.account = IndexEntry.noLane
    case 1: entry.account = number(of: summary.lanes[0].account)
    default:
      entry.account = IndexEntry.manyLanes
      manyLanes[entry.id] = summary.lanes
    }
  }

  private mutating func number(of account: String) -> UInt32 {
    if let known = accountNumbers[account] { return known }
    let number = UInt32(accounts.count)
    accounts.append(account)
    accountNumbers[account] = number
    return number
  }

  func summary(of entry: IndexEntry) -> Summary {
    let lanes: [EntryLane] =
      switch entry.account {
      case IndexEntry.noLane: []
      case IndexEntry.manyLanes: manyLanes[entry.id] ?? []
      default:
        [
          EntryLane(
            account: accounts[Int(entry.account)], nextAttempt: Timestamp(microseconds: entry.nextAttempt),
            attempts: Int(entry.attempts))
        ]
      }
    return Summary(
      isHeld: entry.flags & IndexEntry.held != 0, isDead: entry.flags & IndexEntry.dead != 0,
      isDelayReported: entry.flags & IndexEntry.delayReported != 0, lanes: lanes)
  }

  // MARK: Walking

  /// Calls `body` for the entries with identifiers above `id`, in order, until it returns `false`.
  func walk(above id: UInt64?, _ body: (IndexEntry) -> Bool) {
    var (page, slot) = id.map { $0 == .max ? (pages.count, 0) : place($0 + 1) } ?? (0, 0)
    while page < pages.count {
      while slot < pages[page].count {
        guard body(pages[page][slot]) else { return }
        slot += 1
      }
      (page, slot) = (page + 1, 0)
    }
  }
}

extension MessageIndex {
  /// The greatest identifier queued; 0 when nothing is.
  var lastID: UInt64 {
    guard let page = pages.last else { return 0 }
    return page.last?.id ?? 0
  }
}
