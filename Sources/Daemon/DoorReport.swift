// What the front door adds to the status and the metrics: its certificate, and the limits that clients have reached.

import Network
import Server

extension StatusReport {
  public struct Certificate: Codable, Sendable, Equatable {
    public var subject: String
    public var issuer: String
    /// The DNS names and addresses it is good for.
    public var names: [String]
    /// As in `Nov 24 12:00:00 2026 GMT`.
    public var notAfter: String
    /// Whole days; negative once it has expired.
    public var daysLeft: Int
    public var secondsLeft: Int
  }

  /// The TLS handshakes of clients.
  public struct Handshakes: Codable, Sendable, Equatable {
    /// Those that succeeded, the resumed ones among them.
    public var done = 0
    public var resumed = 0
    public var failed = 0
    public var timedOut = 0
  }

  mutating func addDoor(_ counters: ServerCounters, _ summary: CertificateSummary?) {
    certificate = summary.map {
      Certificate(
        subject: $0.subject, issuer: $0.issuer, names: $0.names, notAfter: $0.notAfter, daysLeft: $0.daysLeft,
        secondsLeft: $0.secondsLeft)
    }
    for limit in ServerLimit.allCases { limits[limit.rawValue] = counters.limits[limit] ?? 0 }
    let handshakes = counters.handshakes
    tlsHandshakes = Handshakes(
      done: handshakes.done, resumed: handshakes.resumed, failed: handshakes.failed, timedOut: handshakes.timedOut)
  }

  func addDoor(to metrics: inout MetricsText) {
    metrics.add(
      "client_limit_total", .counter, "How often clients have reached a limit.",
      limits.sorted { $0.key < $1.key }.map { ([("limit", $0.key)], Double($0.value)) })
    metrics.add(
      "tls_handshakes_total", .counter, "TLS handshakes of clients.",
      [
        ([("result", "full")], Double(tlsHandshakes.done - tlsHandshakes.resumed)),
        ([("result", "resumed")], Double(tlsHandshakes.resumed)),
        ([("result", "failed")], Double(tlsHandshakes.failed)),
        ([("result", "timed_out")], Double(tlsHandshakes.timedOut)),
      ])
    guard let certificate else { return }
    metrics.add(
      "certificate_days_left", .gauge, "Days until the certificate ends; negative once it has.",
      [([("names", certificate.names.joined(separator: ","))], Double(certificate.daysLeft))])
  }
}
