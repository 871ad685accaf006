// The keys that bound what a client may cost, beside those on connections and sizes (docs/limits.md).

import Primitives

/// What each client may do and for how long.
public struct ClientLimitSettings: Sendable, Hashable {
  /// Octets.
  public var maxHeaderSize = 256 * 1024
  /// Refused commands in a session.
  public var maxClientErrors = 20
  /// Commands without a message in between.
  public var maxClientCommands = 200
  /// Messages in a session.
  public var maxClientMessages = 1000
  /// From MAIL to the end of the content.
  public var clientMessageTime = Duration.seconds(3600)
  /// Octets a second; 0 does not limit.
  public var clientDataRate = 500
  public var clientSessionTime = Duration.seconds(3600)
  public var clientHandshakeTime = Duration.seconds(30)

  public init() {}
}

extension GlobalSettings {
  mutating func readClientLimits(_ reader: inout SectionReader, _ findings: inout Findings) {
    let defaults = ClientLimitSettings()
    clientLimits.maxHeaderSize = reader.value(
      "max_header_size", default: defaults.maxHeaderSize, wanted: "a size from 16K to 16M, such as 256K",
      show: String.init, &findings
    ) { ValueReader.size($0).flatMap { (16_384...(16 << 20)).contains($0) ? $0 : nil } }
    clientLimits.maxClientErrors = reader.count("max_client_errors", default: defaults.maxClientErrors, &findings)
    // A session with STARTTLS has said four commands before its first recipient.
    clientLimits.maxClientCommands = reader.count(
      "max_client_commands", default: defaults.maxClientCommands, in: 10...1_000_000, &findings)
    clientLimits.maxClientMessages = reader.count(
      "max_client_messages", default: defaults.maxClientMessages, &findings)
    clientLimits.clientMessageTime = reader.duration(
      "client_message_time", default: defaults.clientMessageTime, &findings)
    clientLimits.clientDataRate = reader.value(
      "client_data_rate", default: defaults.clientDataRate, wanted: "octets a second such as 500 or 1K, or 0",
      show: String.init, &findings, parse: ValueReader.size)
    clientLimits.clientSessionTime = reader.duration(
      "client_session_time", default: defaults.clientSessionTime, &findings)
    clientLimits.clientHandshakeTime = reader.duration(
      "client_handshake_time", default: defaults.clientHandshakeTime, &findings)
  }
}
