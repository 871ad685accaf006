// Lists of clients in the DNS (RFC 5782): is the address that connects on one of them? Answers are kept as long as they
// are good, and a list that does not answer never stands in the way of mail.

import Logging
import Network
import Primitives

/// What the configuration says about a list.
public struct DNSListSettings: Sendable, Hashable {
  public var domain: String
  /// For each of the four numbers of an answer the ranges that count; nil counts every answer in 127.0.0.0/8.
  public var pattern: [[ClosedRange<UInt8>]]?

  public init(domain: String, pattern: [[ClosedRange<UInt8>]]? = nil) {
    self.domain = domain
    self.pattern = pattern
  }
}

/// A client that is on a list.
public struct DNSListing: Sendable, Hashable {
  public var domain: String
  public var answers: [IPAddress]
  /// What the list says to it, on one line of printable ASCII; empty when it says nothing.
  public var text: String
}

/// What is known of a list since the daemon started.
public struct DNSListHealth: Sendable, Hashable {
  /// Questions that went to the DNS, and those that were answered from memory.
  public var queries = 0
  public var cacheHits = 0
  /// Clients that were found on it.
  public var listed = 0
  /// Questions without a usable answer.
  public var failures = 0
  public var lastError: String?
  public var lastErrorTime: Timestamp?
  /// Whether it is passed over for a while because it did not answer.
  public var isSkipped = false

  public init() {}
}

/// All lists of the configuration. Sessions ask it, whatever loop they live on.
public actor DNSLists {
  public nonisolated let lists: [DNSListSettings]
  /// For all lists together.
  public nonisolated let timeout: Duration
  /// Who is asked, for whoever wants to know whether that has changed.
  public nonisolated let server: String
  private let source: any DNSSource
  private let time: any Timekeeper
  private let log: Logger

  private struct Entry {
    var listing: DNSListing?
    var expires: MonotonicInstant
  }
  private struct State {
    var health = DNSListHealth()
    var failuresInARow = 0
    var skippedUntil: MonotonicInstant?
    var told: MonotonicInstant?
    var running = 0
    var waiting: [CheckedContinuation<Void, Never>] = []
  }
  private var cache: [String: Entry] = [:]
  private var asking: [String: Task<DNSListing?, Never>] = [:]
  private var states: [State]

  /// Answers that are kept, at about 200 octets each.
  private static let keptAnswers = 20_000
  /// Questions to one list that are under way at once. Each has a thread that waits, and the queue of mail needs some too.
  private static let concurrentQuestions = 10
  /// Questions that wait for their turn; more clients than that pass unasked.
  private static let waitingQuestions = 1000
  private static let shortestLife = Duration.seconds(10)
  private static let longestLife = Duration.seconds(3600)
  /// When the server does not say it.
  private static let lifeOfAbsence = Duration.seconds(60)
  private static let failuresUntilSkipped = 5
  private static let pause = Duration.seconds(120)

  public init(
    _ lists: [DNSListSettings], source: any DNSSource, server: String = "", time: any Timekeeper, timeout: Duration,
    log: Logger
  ) {
    self.server = server
    self.lists = lists
    self.source = source
    self.time = time
    self.timeout = timeout
    self.log = log
    states = lists.map { _ in State() }
  }

  /// What is known of each list, in the order of the configuration.
  public var health: [(domain: String, health: DNSListHealth)] {
    lists.indices.map { place in
      var health = states[place].health
      health.isSkipped = isSkipped(place)
      return (lists[place].domain, health)
    }
  }

  /// Asks all lists at once whether an address is on one of them. The first in the order of the configuration counts,
  /// of those that have answered in time. A question that is late goes on for those who come after.
  public func listing(of address: IPAddress) async -> DNSListing? {
    let (answers, end) = AsyncStream<(place: Int, listing: DNSListing?)>.makeStream()
    for place in lists.indices { Task { end.yield((place, await self.listing(of: address, on: place))) } }
    let alarm = Task { [time, timeout] in
      guard (try? await time.sleep(until: time.now + timeout)) != nil else { return }
      end.finish()
    }
    defer { alarm.cancel() }
    var known: [Int: DNSListing?] = [:]
    for await answer in answers {
      known[answer.place] = .some(answer.listing)
      // As soon as no list before it can have another word.
      for place in lists.indices {
        guard let listing = known[place] else { break }
        if let listing { return listing }
      }
      if known.count == lists.count { return nil }
    }
    return lists.indices.lazy.compactMap { known[$0] ?? nil }.first
  }

  private func listing(of address: IPAddress, on place: Int) async -> DNSListing? {
    let name = Self.name(of: address, on: lists[place].domain)
    if let entry = cache[name], entry.expires > time.now {
      states[place].health.cacheHits += 1
      if entry.listing != nil { states[place].health.listed += 1 }
      return entry.listing
    }
    if let running = asking[name] { return await running.value }
    if isSkipped(place) { return nil }
    // One question finds out whether it answers again; the others go on without.
    let isProbe = states[place].skippedUntil != nil
    if isProbe { states[place].skippedUntil = time.now + Self.pause }
    let task = Task { await self.ask(name, place, isProbe: isProbe) }
    asking[name] = task
    let listing = await task.value
    asking[name] = nil
    if listing != nil { states[place].health.listed += 1 }
    return listing
  }

  private func isSkipped(_ place: Int) -> Bool { states[place].skippedUntil.map { $0 > time.now } ?? false }

  /// Waits for a turn. Returns false when too many do.
  private func takeTurn(_ place: Int) async -> Bool {
    if states[place].running < Self.concurrentQuestions {
      states[place].running += 1
      return true
    }
    guard states[place].waiting.count < Self.waitingQuestions else { return false }
    await withCheckedContinuation { states[place].waiting.append($0) }
    return true
  }

  private func endTurn(_ place: Int) {
    if states[place].waiting.isEmpty {
      states[place].running -= 1
    } else {
      states[place].waiting.removeFirst().resume()
    }
  }

  private func ask(_ name: String, _ place: Int, isProbe: Bool) async -> DNSListing? {
    guard await takeTurn(place) else {
      states[place].health.failures += 1
      states[place].health.lastError = "\(Self.waitingQuestions) questions were waiting already"
      states[place].health.lastErrorTime = time.wallClock
      return nil
    }
    defer { endTurn(place) }
    // It may have fallen silent while this one waited.
    if !isProbe, isSkipped(place) { return nil }
    states[place].health.queries += 1
    let list = lists[place]
    let answer = await source.ask(name, .a)
    switch answer.status {
    case .failed(let failure):
      failed(place, "\(failure)")
      return nil
    case .noSuchName, .noData:
      answered(place)
      keep(name, nil, answer.negativeTimeToLive.map { .seconds(Int64($0)) } ?? Self.lifeOfAbsence)
      return nil
    case .found: break
    }
    let life = Duration.seconds(Int64(answer.timeToLive ?? 0))
    // What is no loopback address is somebody's wildcard, and 127.255.255.0/24 is how Spamhaus says that it does not
    // answer this resolver. Neither says anything about the client.
    if let odd = answer.addresses.first(where: { !Self.isVerdict($0) }) {
      failed(place, "it answers \(odd), which is not a verdict but an error of the list or of its use")
      return nil
    }
    answered(place)
    let counting = answer.addresses.filter { Self.matches($0, list.pattern) }
    guard !counting.isEmpty else {
      keep(name, nil, life)
      return nil
    }
    let texts = await source.ask(name, .txt).texts
    let listing = DNSListing(domain: list.domain, answers: counting, text: Self.clean(texts.joined(separator: " / ")))
    keep(name, listing, life)
    return listing
  }

  private func keep(_ name: String, _ listing: DNSListing?, _ life: Duration) {
    let now = time.now
    if cache.count >= Self.keptAnswers {
      cache = cache.filter { $0.value.expires > now }
      if cache.count >= Self.keptAnswers { cache.removeAll(keepingCapacity: true) }
    }
    cache[name] = Entry(listing: listing, expires: now + min(max(life, Self.shortestLife), Self.longestLife))
  }

  private func answered(_ place: Int) {
    if states[place].skippedUntil != nil { log.notice("dnsbl \(lists[place].domain): it answers again") }
    states[place].failuresInARow = 0
    states[place].skippedUntil = nil
  }

  private func failed(_ place: Int, _ reason: String) {
    let now = time.now
    states[place].health.failures += 1
    states[place].health.lastError = reason
    states[place].health.lastErrorTime = time.wallClock
    states[place].failuresInARow += 1
    if states[place].failuresInARow >= Self.failuresUntilSkipped { states[place].skippedUntil = now + Self.pause }
    if let told = states[place].told, now - told < .seconds(3600) { return }
    states[place].told = now
    log.warning("dnsbl \(lists[place].domain): \(reason); mail passes without it (said once an hour)")
  }

  // MARK: Names and answers

  /// What is asked about an address (RFC 5782 2.1, 2.4): its numbers, or its hexadecimal digits, the last first.
  static func name(of address: IPAddress, on domain: String) -> String {
    let reverse = address.reverseName
    let suffix = address.isIPv4 ? ".in-addr.arpa" : ".ip6.arpa"
    return reverse.dropLast(suffix.count) + "." + domain
  }

  static func isVerdict(_ answer: IPAddress) -> Bool {
    answer.isIPv4 && answer.bytes[0] == 127 && !(answer.bytes[1] == 255 && answer.bytes[2] == 255)
  }

  static func matches(_ answer: IPAddress, _ pattern: [[ClosedRange<UInt8>]]?) -> Bool {
    guard let pattern else { return true }
    return zip(answer.bytes, pattern).allSatisfy { byte, ranges in ranges.contains { $0.contains(byte) } }
  }

  /// A text of the list as part of a reply: printable ASCII, 200 octets at most.
  static func clean(_ text: String) -> String {
    let kept = text.utf8.map { $0 < 0x20 || $0 > 0x7e ? UInt8(ascii: " ") : $0 }.prefix(200)
    return String(decoding: kept, as: UTF8.self).split(separator: " ").joined(separator: " ")
  }
}
