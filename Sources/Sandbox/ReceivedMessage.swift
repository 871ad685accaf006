// What an upstream has seen: messages, and numbers for tests to look at.

import Primitives

/// A message the upstream has accepted.
public struct ReceivedMessage: Sendable, Hashable {
  /// Counts from 1, over all connections.
  public var number: Int
  /// The reverse-path without its angle brackets; empty for a bounce.
  public var reversePath: String
  /// The parameters of MAIL, as they came: `SIZE=120`, `BODY=8BITMIME`.
  public var parameters: [String]
  public var recipients: [String]
  /// The parameters of each RCPT, as they came; only an upstream that offers DSN takes any.
  public var recipientParameters: [[String]]
  /// The content byte for byte, without dot-stuffing.
  public var content: [UInt8]
  /// As in `TLSv1.3`; nil when it came in clear.
  public var tlsVersion: String?
  public var authenticatedUser: String?
  /// What the client called itself in EHLO.
  public var clientName: String
  /// Counts from 1.
  public var connection: Int
  /// Whether it came with BDAT.
  public var isChunked: Bool
  public var receivedAt: Timestamp
  /// The id in the final reply.
  public var id: String
}

/// Counts of what happened to an upstream since it started.
public struct Statistics: Sendable, Hashable {
  public var connections = 0
  public var openConnections = 0
  public var mostOpenConnections = 0
  public var handshakes = 0
  public var resumedHandshakes = 0
  public var failedHandshakes = 0
  public var authentications = 0
  public var authenticationFailures = 0
  /// AUTH commands that came before TLS: a client must never send any.
  public var credentialsInClear = 0
  public var commands = 0
  public var messages = 0
  public var contentBytes = 0
  /// Hangs and disconnections that the script asked for and that have happened.
  public var scriptedFaults = 0
  /// What a careful client would not have sent: bare LF, a parameter that was not offered, a MAIL before AUTH.
  public var violations: [String] = []

  public init() {}
}
