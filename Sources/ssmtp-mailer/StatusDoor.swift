// What `status` says about the front door: its certificate, and the limits that clients have reached.

import CommandLineTools
import Daemon

extension StatusCommand {
  /// Lines for the table of facts.
  static func doorFacts(_ report: StatusReport) -> [[String]] {
    var facts: [[String]] = []
    if let certificate = report.certificate {
      let names = certificate.names.isEmpty ? certificate.subject : certificate.names.joined(separator: ", ")
      let left =
        certificate.secondsLeft < 0
        ? "EXPIRED: valid until" : "\(Quantity.count(certificate.daysLeft, "day")) left, until"
      facts.append(["certificate", TerminalText.clean("\(names), \(left) \(certificate.notAfter)")])
    } else {
      facts.append(["certificate", "none: STARTTLS is not offered"])
    }
    let reached = report.limits.filter { $0.value > 0 }.sorted { $0.key < $1.key }
    if !reached.isEmpty {
      facts.append(["limits", reached.map { "\($0.key) \($0.value)" }.joined(separator: ", ") + " times"])
    }
    return facts
  }
}
