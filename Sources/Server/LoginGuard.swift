// Who guesses passwords, and what it costs: a delay that grows, and a ban for the address. Only counts are kept, in
// tables of a bounded size.

import Primitives

/// How much guessing is borne.
public struct LoginLimits: Sendable, Hashable {
  /// Failures of one address within about an hour until it is banned; 0 never bans.
  public var maximumFailures: Int
  public var banTime: Duration

  public init(maximumFailures: Int = 10, banTime: Duration = .seconds(900)) {
    self.maximumFailures = maximumFailures
    self.banTime = banTime
  }

  /// How many failures are forgotten in an hour.
  fileprivate var forgottenPerHour: Int { maximumFailures > 0 ? maximumFailures : 10 }
}

/// Counts failed logins by address and by name.
///
/// A failure raises a level by one, and a level sinks by ``LoginLimits/maximumFailures`` an hour: one number says what a
/// list of times would. An address whose level reaches the maximum is banned. A name is never banned, or whoever knows
/// it could lock its owner out: its level only makes the refusal slower, and a login that succeeds never waits.
///
/// The same wrong password for the same name, again, is a forgotten device and not a guess: it waits, but does not
/// raise the level.
public final class LoginGuard: Sendable {
  /// What a failure leads to.
  struct Penalty: Hashable, Sendable {
    /// How long the refusal is kept back.
    var delay: Duration
    /// Set when this failure was one too many.
    var isBan: Bool
    /// The failures of this name from all addresses, when they have just become suspicious.
    var notableFailures: Int?
  }

  enum Admission: Hashable, Sendable { case go, banned, tooManyAtOnce }

  /// An address that may not log in for now.
  public struct Ban: Hashable, Sendable {
    /// Of an IPv6 address the first 64 bits.
    public var address: IPAddress
    public var left: Duration
  }

  /// Since the daemon started.
  public struct Counters: Hashable, Sendable {
    public var succeeded = 0
    public var failed = 0
    /// Attempts that were not looked at, because too many were under way.
    public var busy = 0
    public var bans = 0
    /// Connections that were turned away because their address was banned.
    public var turnedAway = 0
  }

  private struct Level {
    var value = 0.0
    var updated: MonotonicInstant
    /// Attempts that are being checked.
    var pending = 0
    var bannedUntil: MonotonicInstant?
    /// A keyed hash of the name and password that failed last.
    var lastFailure = 0

    /// The level in whole failures: one that has begun to sink still counts.
    var failures: Int { Int((value - 1e-6).rounded(.up)) }

    mutating func rise(upTo limit: Int) { value = min(value + 1, Double(limit)) }

    mutating func sink(_ now: MonotonicInstant, perHour: Int) {
      value = max(0, value - (now - updated).inSeconds / 3600 * Double(perHour))
      updated = now
    }
  }

  private struct State {
    var addresses: [IPAddress: Level] = [:]
    /// By a keyed hash of the name: names are typed by clients and may be long.
    var names: [Int: Level] = [:]
    var counters = Counters()
  }

  private let time: any Timekeeper
  private let tableLimit: Int
  private let state = Mutex(State())
  static let longestDelay = Duration.seconds(10)

  public init(time: any Timekeeper, tableLimit: Int = 10_000) {
    self.time = time
    self.tableLimit = tableLimit
  }

  // MARK: Asked by sessions

  func isBanned(_ address: IPAddress) -> Bool {
    let now = time.now
    return state.withLock { ($0.addresses[address.clientBlock]?.bannedUntil).map { now < $0 } ?? false }
  }

  /// An attempt could not begin.
  func countBusy() { state.withLock { $0.counters.busy += 1 } }

  /// A connection from a banned address was refused.
  func countTurnedAway() { state.withLock { $0.counters.turnedAway += 1 } }

  /// Begins an attempt; one that may go on ends with ``succeeded(_:)``, ``failed(_:name:password:limits:isTrusted:)`` or
  /// ``abandoned(_:)``.
  ///
  /// What is under way counts like a failure until it is known: else many connections at once would have as many
  /// guesses before the first of them counts.
  func begin(_ address: IPAddress, limits: LoginLimits, isTrusted: Bool) -> Admission {
    let now = time.now
    return state.withLock { state in
      let unit = address.clientBlock
      let maximum = limits.maximumFailures
      if var level = state.addresses[unit] {
        if let end = level.bannedUntil, now < end { return .banned }
        level.sink(now, perHour: limits.forgottenPerHour)
        state.addresses[unit] = level
        if maximum > 0, !isTrusted, level.pending > 0, Int(level.value) + level.pending >= maximum {
          return .tooManyAtOnce
        }
      }
      makeRoom(in: &state.addresses, for: unit, now)
      state.addresses[unit, default: Level(updated: now)].pending += 1
      return .go
    }
  }

  func succeeded(_ address: IPAddress) {
    state.withLock { state in
      state.counters.succeeded += 1
      Self.release(address.clientBlock, &state)
    }
  }

  /// The attempt was not looked at.
  func abandoned(_ address: IPAddress) {
    state.withLock { state in
      state.counters.busy += 1
      Self.release(address.clientBlock, &state)
    }
  }

  private static func release(_ unit: IPAddress, _ state: inout State) {
    guard let level = state.addresses[unit] else { return }
    state.addresses[unit]?.pending = max(0, level.pending - 1)
    if level.value == 0, level.pending <= 1, level.bannedUntil == nil { state.addresses[unit] = nil }
  }

  /// - Parameter isTrusted: such an address is slowed down, but never banned.
  func failed(
    _ address: IPAddress, name: String, password: [UInt8], limits: LoginLimits, isTrusted: Bool
  ) -> Penalty {
    let now = time.now
    var hasher = Hasher()
    hasher.combine(name)
    let nameKey = hasher.finalize()
    hasher = Hasher()
    hasher.combine(name)
    hasher.combine(password)
    let attempt = hasher.finalize()
    return state.withLock { state in
      state.counters.failed += 1
      let unit = address.clientBlock
      var level = state.addresses[unit] ?? Level(updated: now)
      level.sink(now, perHour: limits.forgottenPerHour)
      level.pending = max(0, level.pending - 1)
      let isRepetition = level.value > 0 && level.lastFailure == attempt
      level.lastFailure = attempt
      if !isRepetition { level.rise(upTo: 2 * limits.forgottenPerHour) }
      var penalty = Penalty(delay: .zero, isBan: false)
      // Others that were under way meanwhile do not ban it again.
      let isBanned = level.bannedUntil.map { now < $0 } ?? false
      if limits.maximumFailures > 0, !isTrusted, !isBanned, !isRepetition,
        level.failures >= limits.maximumFailures
      {
        level.bannedUntil = now + limits.banTime
        state.counters.bans += 1
        penalty.isBan = true
      }
      makeRoom(in: &state.addresses, for: unit, now)
      state.addresses[unit] = level

      var named = state.names[nameKey] ?? Level(updated: now)
      named.sink(now, perHour: Self.nameRate)
      if !isRepetition {
        let before = named.failures
        named.rise(upTo: 2 * Self.nameRate)
        if before < Self.nameRate, named.failures >= Self.nameRate { penalty.notableFailures = named.failures }
      }
      makeRoom(in: &state.names, for: nameKey, now)
      state.names[nameKey] = named
      penalty.delay = Self.delay(max(level.failures, named.failures))
      return penalty
    }
  }

  /// Failures an hour that a name is allowed before the log speaks of it.
  private static let nameRate = 10

  /// 1 s for the first failure, then twice as much with each, up to ``longestDelay``.
  static func delay(_ failures: Int) -> Duration { min(.seconds(1 << max(0, min(failures - 1, 10))), longestDelay) }

  // MARK: Memory

  /// Makes room for a new key in a table that is full: first of what has sunk to nothing, else of what is oldest.
  private func makeRoom<Key: Hashable>(in table: inout [Key: Level], for key: Key, _ now: MonotonicInstant) {
    guard table.count >= tableLimit, table[key] == nil else { return }
    func isBanned(_ level: Level) -> Bool { level.bannedUntil.map { now < $0 } ?? false }
    table = table.filter { $1.pending > 0 || isBanned($1) || (now - $1.updated) < .seconds(3600) }
    guard table.count >= tableLimit else { return }
    // A quarter at once, so that a flood of addresses does not sort the table each time. Bans go last.
    let order = table.sorted { a, b in
      let (x, y) = (isBanned(a.value), isBanned(b.value))
      return x == y ? a.value.updated < b.value.updated : y
    }
    for (key, _) in order.prefix(max(1, tableLimit / 4)) { table[key] = nil }
  }

  // MARK: Shown to people

  public var counters: Counters { state.withLock { $0.counters } }

  /// Those in force, the longest first.
  public var bans: [Ban] {
    let now = time.now
    return state.withLock { state in
      state.addresses.compactMap { unit, level in
        level.bannedUntil.flatMap { $0 > now ? Ban(address: unit, left: $0 - now) : nil }
      }
    }.sorted { ($0.left, $0.address.description) > ($1.left, $1.address.description) }
  }

  /// Entries kept, of addresses and of names.
  var tableSizes: (addresses: Int, names: Int) { state.withLock { ($0.addresses.count, $0.names.count) } }
}
