// The state of an account as people and monitors see it.

import Primitives

/// What an account has done since the daemon started. Recipients, unless the name says otherwise.
public struct AccountCounters: Sendable, Hashable {
  public var delivered = 0
  public var deferred = 0
  public var failed = 0
  /// Messages whose connection broke between their end and the reply to it.
  public var inDoubt = 0
  /// Connections begun.
  public var connections = 0
  public var logins = 0
  /// TLS handshakes that resumed a session.
  public var resumed = 0
  /// Times a message that was due waited for the rate limit.
  public var throttled = 0
  /// Messages delivered for accounts that were on hold.
  public var carried = 0
}

/// An account at one moment.
public struct AccountSnapshot: Sendable {
  public struct Hold: Sendable {
    public var fault: AccountFault
    public var reason: String
    public var since: Timestamp
    public var nextTry: Timestamp
    public var advice: String
  }

  public struct Slowed: Sendable {
    public var ratePerMinute: Int
    public var connections: Int
  }

  /// Recipients within 24 hours.
  public struct Ledger: Sendable {
    public var limit: Int
    public var used: Int
    /// When the oldest stop counting; nil when none count.
    public var nextSlot: Timestamp?
    public var left: Int { max(limit - used, 0) }
  }

  /// The name of the `[domain:]`.
  public var name: String
  public var account: String
  /// Host and port.
  public var upstream: String
  public var isEnabled: Bool
  /// Whether the configuration has it. Mail of a `[domain:]` that is gone waits in an account that is not there.
  public var isConfigured: Bool { !account.isEmpty || !upstream.hasPrefix(":") }
  /// Messages that wait, and messages that are under way.
  public var queued: Int
  public var active: Int
  public var connections: Int
  public var maximumConnections: Int
  /// nil when the rate is not limited.
  public var ratePerMinute: Int?
  public var tokens: Int?
  /// Why nothing is sent; nil when the account sends.
  public var hold: Hold?
  /// Why no connection is opened while those that live go on.
  public var loginHold: Hold?
  /// What the account has slowed itself down to; nil when it goes as configured.
  public var slowed: Slowed?
  /// nil without a daily limit, and until its file has been read.
  public var ledger: Ledger?
  /// Who carries its mail while it is on hold.
  public var carriedBy: String?
  /// Whose mail it has at this moment.
  public var carriesFor: [String] = []
  public var lastError: String?
  public var counters: AccountCounters
}

extension Duration {
  /// For log lines: `0.04s`, `12s`, `5m`, `2h`.
  var rounded: String {
    let seconds = inSeconds
    if seconds < 10 {
      let hundredths = Int((seconds * 100).rounded())
      let rest = hundredths % 100
      return "\(hundredths / 100).\(rest < 10 ? "0" : "")\(rest)s"
    }
    if seconds < 120 { return "\(Int(seconds.rounded()))s" }
    if seconds < 7200 { return "\(Int((seconds / 60).rounded()))m" }
    return "\(Int((seconds / 3600).rounded()))h"
  }
}
