// A mail filter of the configuration: where it listens, what happens without it, and how it has been doing.

import Logging
import Network
import Primitives

/// What the configuration says about a mail filter.
public struct MilterSettings: Sendable, Hashable {
  public enum Address: Sendable, Hashable {
    case tcp(Endpoint)
    case host(String, port: UInt16)
    case socket(path: String)
  }
  /// What becomes of mail while the filter cannot be asked.
  public enum Fallback: String, Sendable, Hashable, CaseIterable {
    /// 451: the client tries again later.
    case temporaryFailure = "tempfail"
    /// It goes on unfiltered.
    case accept
    /// 550.
    case reject
    /// It is queued on hold.
    case quarantine
  }
  /// As it was written.
  public var name: String
  public var address: Address
  public var fallback = Fallback.temporaryFailure
  /// For the connection and the negotiation.
  public var connectTimeout = Duration.seconds(30)
  /// For each answer.
  public var commandTimeout = Duration.seconds(30)
  /// For the answer to a whole message; each sign of progress begins it anew.
  public var contentTimeout = Duration.seconds(300)

  public init(name: String, address: Address) {
    self.name = name
    self.address = address
  }
}

/// What is known of a filter since the daemon started.
public struct MilterHealth: Sendable, Hashable {
  public var connections = 0
  /// Messages that it has judged.
  public var messages = 0
  /// Refused for good, and for now, at whatever command.
  public var rejected = 0
  public var deferred = 0
  public var discarded = 0
  public var quarantined = 0
  /// Messages that it has changed.
  public var changed = 0
  /// How often it could not be asked.
  public var failures = 0
  /// nil before it was ever needed.
  public var isUp: Bool?
  public var lastError: String?
  public var lastErrorTime: Timestamp?

  public init() {}
}

/// A mail filter that sessions ask. Each does so on a connection of its own.
public final class Milter: Sendable {
  public let settings: MilterSettings
  let time: any Timekeeper
  let log: Logger
  private let resolver: Resolver
  private struct State {
    var health = MilterHealth()
    /// Until when nobody tries to connect, because one has just waited in vain for all of the time-out.
    var closedUntil: MonotonicInstant?
    /// The failure that was logged last, and when: the same again and again is said once a minute.
    var told: (text: String, time: MonotonicInstant)?
  }
  private let state = Mutex(State())

  public init(_ settings: MilterSettings, time: any Timekeeper, resolver: Resolver, log: Logger) {
    self.settings = settings
    self.time = time
    self.resolver = resolver
    self.log = log
  }

  public var health: MilterHealth { state.withLock { $0.health } }

  public func count(_ change: (inout MilterHealth) -> Void) { state.withLock { change(&$0.health) } }

  func addresses() async throws(NetworkError) -> [Endpoint] {
    switch settings.address {
    case .tcp(let endpoint): [endpoint]
    case .host(let name, let port):
      try await resolver.addresses(of: name).map { Endpoint(address: $0, port: port) }
    case .socket: []
    }
  }

  /// Whether it is worth while to connect.
  var isWorthAsking: Bool { state.withLock { state in state.closedUntil.map { $0 <= time.now } ?? true } }

  func isUp() {
    let wasDown = state.withLock { state in
      defer { state.health.isUp = true }
      state.closedUntil = nil
      state.health.connections += 1
      if state.health.isUp == false { state.told = nil }
      return state.health.isUp == false
    }
    if wasDown { log.notice("milter \(settings.name): it answers again") }
  }

  /// Takes note of a failure, and says so.
  /// - Parameter isSilence: whether it did not even answer, so that others should not wait as long.
  func failed(_ reason: String, isSilence: Bool) {
    let now = time.now
    let isNew = state.withLock { state in
      state.health.failures += 1
      state.health.isUp = false
      state.health.lastError = reason
      state.health.lastErrorTime = time.wallClock
      if isSilence { state.closedUntil = now + Self.pause }
      if let told = state.told, told.text == reason, now - told.time < .seconds(60) { return false }
      state.told = (reason, now)
      return true
    }
    guard isNew else { return }
    let consequence =
      switch settings.fallback {
      case .temporaryFailure: "mail gets 451 meanwhile"
      case .accept: "mail passes unfiltered meanwhile"
      case .reject: "mail is refused meanwhile"
      case .quarantine: "mail is held meanwhile"
      }
    log.error(
      "milter \(settings.name): \(reason); \(consequence) (milter_default_action = \(settings.fallback.rawValue))")
  }

  private static let pause = Duration.seconds(10)
}
