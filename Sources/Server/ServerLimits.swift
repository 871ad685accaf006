// What a client may cost: the limits of the front door as values, their names in metrics, and the replies that tell a
// client which of them it has reached. docs/limits.md lists them for people.

import Primitives
import SMTP

/// The limits that hold for each client, beside those on connections, recipients and size.
public struct ServerLimits: Sendable, Hashable {
  /// Messages that a client may begin in a minute; 0 does not limit. Trusted clients are not counted.
  public var messagesPerMinute = 0
  /// Octets up to the first empty line of a message.
  public var headerSize = 256 * 1024
  /// Commands that were refused until the connection is closed.
  public var errors = 20
  /// Commands without a message in between: NOOP, RSET, VRFY, refused recipients and the like.
  public var commands = 200
  /// Transactions in one session; trusted clients are not counted.
  public var messagesPerSession = 1000
  /// From MAIL to the end of the content.
  public var messageTime = Duration.seconds(3600)
  /// Octets a second that content has to come with on average, once the client's timeout is used up; 0 does not limit.
  public var dataRate = 500
  /// How long a session may go on; heeded between two transactions only.
  public var sessionTime = Duration.seconds(3600)
  public var handshakeTime = Duration.seconds(30)

  public init() {}
}

/// A limit that a client has reached, as metrics name it.
public enum ServerLimit: String, Sendable, Hashable, CaseIterable {
  case connections
  case connectionsPerAddress = "connections_per_address"
  case messageRate = "message_rate"
  case recipients, size
  case headerSize = "header_size"
  case lineLength = "line_length"
  case errors, commands, messages
  case commandTime = "command_time"
  case messageTime = "message_time"
  case sessionTime = "session_time"
  case handshakeTime = "handshake_time"

  /// The limit that a reply of the state machine or of the content tells of; nil for every other reply.
  init?(_ reply: Reply) {
    switch reply.code {
    case 421 where reply == Replies.tooManyErrors: self = .errors
    case 421 where reply == Replies.tooManyTransactions: self = .messages
    case 452 where reply == Replies.tooManyRecipients: self = .recipients
    case 500 where reply == LineError.tooLong.reply: self = .lineLength
    case 552 where reply.lines.first?.hasPrefix(Replies.headerTooLargeText) == true: self = .headerSize
    case 552 where reply.enhanced == EnhancedStatusCode(5, 3, 4): self = .size
    default: return nil
    }
  }
}

extension IPAddress {
  /// What counts as one client: an IPv4 address, or the /64 of an IPv6 address, which is the least that anybody gets
  /// (RFC 6177); its holder has 2^64 addresses to choose from.
  var clientBlock: IPAddress {
    guard !isIPv4 else { return self }
    return IPAddress(bytes: Array(bytes[..<8]) + [UInt8](repeating: 0, count: 8)) ?? self
  }
}
