// Which messages of the queue are meant: the same words for a list, a count, an order and an export.

import Primitives
import Spool

/// Conditions that a message has to meet, all of them.
public struct QueueFilter: Sendable, Equatable {
  /// The state of a message in one word.
  public enum State: String, Sendable, CaseIterable, Hashable {
    /// Not tried yet.
    case queued
    /// Under way at this moment.
    case active
    /// To be tried again.
    case deferred
    /// Kept back by the operator.
    case held
    /// Kept, but neither delivered nor returned, and nobody is left to whom it could be delivered.
    case dead

    init(_ entry: QueueEntry, isActive: Bool) {
      let isTried = entry.lanes.contains { $0.attempts > 0 || $0.nextAttempt != entry.arrival }
      self =
        isActive
        ? .active : entry.isHeld ? .held : entry.isDead && entry.lanes.isEmpty ? .dead : isTried ? .deferred : .queued
    }
  }

  public var state: State?
  /// The name of a `[domain:]`, in any case.
  public var account: String?
  /// An address or a pattern; matches the address as it was given and as it was rewritten, of those who have not got it.
  public var recipient: String?
  /// An address or a pattern; `<>` is the null reverse-path.
  public var sender: String?
  public var olderThan: Duration?
  public var youngerThan: Duration?

  public init() {}

  public var isEmpty: Bool { self == QueueFilter() }

  /// Whether the entries of the index are not enough.
  var needsEnvelope: Bool { recipient != nil || sender != nil }

  // MARK: As a query

  /// A query that is not understood, in words.
  public struct Malformed: Error, Sendable { public var description: String }

  /// The names of the conditions in a query.
  static let names: Set<String> = ["state", "account", "recipient", "sender", "older_than", "younger_than"]

  public var query: [(name: String, value: String)] {
    var pairs: [(name: String, value: String)] = []
    if let state { pairs.append(("state", state.rawValue)) }
    if let account { pairs.append(("account", account)) }
    if let recipient { pairs.append(("recipient", recipient)) }
    if let sender { pairs.append(("sender", sender)) }
    if let olderThan { pairs.append(("older_than", "\(olderThan.components.seconds)s")) }
    if let youngerThan { pairs.append(("younger_than", "\(youngerThan.components.seconds)s")) }
    return pairs
  }

  public init(query: [String: String]) throws(Malformed) {
    if let word = query["state"] {
      guard let known = State(rawValue: word) else {
        let words = State.allCases.map(\.rawValue).joined(separator: ", ")
        throw Malformed(description: "there is no state \(word): write one of \(words)")
      }
      state = known
    }
    account = query["account"]
    recipient = query["recipient"]
    sender = query["sender"]
    olderThan = try Self.span(query["older_than"])
    youngerThan = try Self.span(query["younger_than"])
  }

  private static func span(_ text: String?) throws(Malformed) -> Duration? {
    guard let text else { return nil }
    guard let span = duration(text) else {
      throw Malformed(description: "\(text) is no time span: write 30s, 15m, 2h, 3d or 1d12h")
    }
    return span
  }

  /// Reads `90` (seconds), `30s`, `15m`, `2h`, `3d`, `1d12h`.
  public static func duration(_ text: String) -> Duration? {
    // A hundred thousand years: what is longer is a mistake, and time stamps cannot be reckoned with it.
    let longest: Int64 = 100_000 * 366 * 86_400
    var total: Int64 = 0
    var number: Int64?
    for character in text {
      if let digit = character.wholeNumberValue, character.isASCII {
        guard (number ?? 0) < 1_000_000_000 else { return nil }
        number = (number ?? 0) * 10 + Int64(digit)
        continue
      }
      let units: [Character: Int64] = ["s": 1, "m": 60, "h": 3600, "d": 86_400]
      guard let count = number, let unit = units[character] else { return nil }
      let (span, isTooLong) = count.multipliedReportingOverflow(by: unit)
      let (sum, isTooMuch) = total.addingReportingOverflow(span)
      guard !isTooLong, !isTooMuch, sum <= longest else { return nil }
      total = sum
      number = nil
    }
    if let number {
      guard total == 0 else { return nil }
      total = number
    }
    return text.isEmpty ? nil : .seconds(total)
  }

  // MARK: Matching

  /// Whether the index alone allows the message.
  func admits(_ entry: QueueEntry, _ state: State, now: Timestamp) -> Bool {
    if let wanted = self.state, wanted != state { return false }
    if let olderThan, now - entry.arrival < olderThan { return false }
    if let youngerThan, now - entry.arrival >= youngerThan { return false }
    if let account {
      guard entry.lanes.contains(where: { $0.account.lowercased() == account.lowercased() }) else { return false }
    }
    return true
  }

  /// Whether the message itself allows it as well.
  func admits(_ envelope: Envelope, _ state: MessageState) -> Bool {
    if let sender {
      let isNull = envelope.reversePath.isEmpty
      guard sender == "<>" ? isNull : !isNull && AddressGlob.matches(envelope.reversePath, sender) else {
        return false
      }
    }
    guard let recipient else { return true }
    return state.waiting(of: envelope).contains {
      AddressGlob.matches($0.address, recipient) || AddressGlob.matches($0.original, recipient)
    }
  }
}

extension MessageState {
  /// The recipients for whose sake the message is still there: those who are to get it, or when there are none, those of
  /// whose failure nobody was told.
  func waiting(of envelope: Envelope) -> [Recipient] {
    let open = envelope.recipients.indices.filter { recipients[$0] == nil }
    let waiting = open.isEmpty ? envelope.recipients.indices.filter { recipients[$0] != .delivered } : open
    return waiting.map { envelope.recipients[$0] }
  }
}

/// Addresses against patterns in which `*` stands for any text, also none. ASCII case does not count.
enum AddressGlob {
  static func matches(_ text: String, _ pattern: String) -> Bool {
    matches(Array(text.utf8), Array(pattern.utf8))
  }

  private static func matches(_ text: [UInt8], _ pattern: [UInt8]) -> Bool {
    func lower(_ byte: UInt8) -> UInt8 { byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte }
    var at = 0
    var wanted = 0
    // Where the last star was, and up to where it has swallowed: only that one need ever be tried again.
    var star: (pattern: Int, text: Int)?
    while at < text.count {
      if wanted < pattern.count, pattern[wanted] == UInt8(ascii: "*") {
        star = (wanted, at)
        wanted += 1
      } else if wanted < pattern.count, lower(pattern[wanted]) == lower(text[at]) {
        wanted += 1
        at += 1
      } else if let last = star {
        star = (last.pattern, last.text + 1)
        wanted = last.pattern + 1
        at = last.text + 1
      } else {
        return false
      }
    }
    while wanted < pattern.count, pattern[wanted] == UInt8(ascii: "*") { wanted += 1 }
    return wanted == pattern.count
  }
}
