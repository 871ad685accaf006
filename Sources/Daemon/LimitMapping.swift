// From the configuration's limits on clients to those of the front door.

import Configuration
import Server

extension ServerLimits {
  init(_ global: GlobalSettings) {
    self.init()
    let limits = global.clientLimits
    messagesPerMinute = global.clientRateLimitPerMinute
    headerSize = limits.maxHeaderSize
    errors = limits.maxClientErrors
    commands = limits.maxClientCommands
    messagesPerSession = limits.maxClientMessages
    messageTime = limits.clientMessageTime
    dataRate = limits.clientDataRate
    sessionTime = limits.clientSessionTime
    handshakeTime = limits.clientHandshakeTime
  }
}
