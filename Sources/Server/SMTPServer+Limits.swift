// The limits that hold for a client across its sessions, and what is counted and written when one is reached.

import Network
import Primitives
import SMTP

extension SMTPServer.State {
  /// Counts a client in. Returns the refusal when there are too many.
  mutating func refusal(of address: IPAddress) -> Reply? {
    let limit: ServerLimit
    let text: String
    switch admission.enter(
      address, maximum: settings.maximumConnections, perAddress: settings.maximumConnectionsPerAddress)
    {
    case .admitted: return nil
    case .tooMany: (limit, text) = (.connections, "too many connections")
    case .tooManyFromThere: (limit, text) = (.connectionsPerAddress, "too many connections from your address")
    }
    counters.limits[limit, default: 0] += 1
    return Reply(421, "4.7.0", "\(settings.hostname) has \(text), try again later")
  }
}

extension SMTPServer {
  /// Shows another certificate from the next handshake on; sessions that have TLS keep theirs.
  public func show(_ context: TLSContext) {
    change { $0.tls = context }
  }

  /// Counts that somebody has reached a limit.
  func reached(_ limit: ServerLimit) { count { $0.limits[limit, default: 0] += 1 } }

  /// The same with a line in the log, unless there are too many of the kind.
  func reached(_ limit: ServerLimit, _ client: IPAddress, _ text: @autoclosure () -> String) {
    reached(limit)
    warn(limit, client, text())
  }

  /// Logs that a client was not let in.
  func turnAway(_ client: IPAddress, _ refusal: Reply) { warn(.connections, client, "turned away: \(refusal)") }

  private func warn(_ limit: ServerLimit, _ client: IPAddress, _ text: @autoclosure () -> String) {
    let now = SystemTime().now
    let suffix = state.withLock { $0.limitLogs[limit, default: LimitLog()].suffix(now: now) }
    if let suffix { log.warning("\(client): \(text())\(suffix)") }
  }

  /// Counts a message that `client` begins. Returns false when it has begun too many lately.
  func admitMessage(from client: IPAddress, limit: Int) -> Bool {
    guard limit > 0 else { return true }
    let now = time.now
    return state.withLock { $0.rates.admit(client.clientBlock, limit: limit, now: now) }
  }
}
