// What status and metrics tell about logins.

import Primitives
import Server
import Telemetry

/// Logins since the daemon started, and who is kept from trying.
public struct LoginReport: Codable, Sendable, Equatable {
  public struct Ban: Codable, Sendable, Equatable {
    /// An IPv4 address, or `2001:db8::/64`.
    public var address: String
    public var until: String
  }

  public var succeeded: Int
  public var failed: Int
  /// Attempts that were answered with 454, because too many were under way.
  public var busy: Int
  /// Bans that were imposed.
  public var bans: Int
  /// Connections that were turned away during a ban.
  public var turnedAway: Int
  public var bannedNow: Int
  /// The longest bans first, 100 at most.
  public var banned: [Ban]

  init(_ guardian: LoginGuard, now: Timestamp) {
    let (counters, bans) = (guardian.counters, guardian.bans)
    succeeded = counters.succeeded
    failed = counters.failed
    busy = counters.busy
    self.bans = counters.bans
    turnedAway = counters.turnedAway
    bannedNow = bans.count
    banned = bans.prefix(100).map { ban in
      Ban(
        address: ban.address.isIPv4 ? ban.address.description : "\(ban.address)/64",
        until: ISOTime.format(now + ban.left)
      )
    }
  }

  func add(to metrics: inout MetricsText) {
    metrics.add("logins_total", .counter, "Clients that logged in.", succeeded)
    metrics.add("login_failures_total", .counter, "Logins with a wrong name or password.", failed)
    metrics.add("logins_busy_total", .counter, "Logins that were put off because too many were under way.", busy)
    metrics.add("login_bans_total", .counter, "Addresses that were banned for guessing.", bans)
    metrics.add("login_banned_addresses", .gauge, "Addresses that are banned now.", bannedNow)
    metrics.add("login_banned_connections_total", .counter, "Connections turned away during a ban.", turnedAway)
  }
}
