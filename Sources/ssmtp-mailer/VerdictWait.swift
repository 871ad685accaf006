// `send --wait`: asks the daemon what the upstreams said, until each recipient has an answer or time is over.

import CommandLineTools
import Daemon
import Glibc
import Primitives

struct VerdictWait {
  private let client: AdminClient
  private let deadline: MonotonicInstant

  private static let firstPause = Duration.milliseconds(50)
  private static let longestPause = Duration.seconds(1)

  /// - Throws: ``CommandFailure`` when nobody could be asked: before the message is sent, not after.
  init(_ client: AdminClient, limit: Duration) throws(CommandFailure) {
    self.client = client
    deadline = SystemTime().now + limit
    switch client.presence() {
    case .answers: break
    case .nobody: throw CommandFailure(.unavailable, "--wait: the daemon does not answer on its admin_socket")
    case .forbidden:
      throw CommandFailure(
        .unavailable, "--wait: no permission for the admin_socket: run this as root or as a member of its group")
    }
  }

  /// Prints what becomes of the messages.
  /// - Throws: ``CommandFailure`` with the status of the worst.
  func run(_ ids: [String]) async throws {
    var worst = ExitStatus.success
    for id in ids {
      let status = try await wait(for: id)
      // Refused, given up, waiting: in this order.
      let order: [ExitStatus] = [.success, .tryAgain, .unavailable, .data]
      if (order.firstIndex(of: status) ?? 0) > (order.firstIndex(of: worst) ?? 0) { worst = status }
    }
    if worst != .success { throw CommandFailure(worst, "") }
  }

  private func wait(for id: String) async throws -> ExitStatus {
    var pause = Self.firstPause
    while true {
      do {
        let report: VerdictReport = try client.call("GET", AdminPath.verdict(AdminClient.escaped(id)))
        if !report.isQueued { return tell(report) }
        if let status = try stillQueued(id, report, isLast: SystemTime().now >= deadline) { return status }
      } catch let failure as CommandFailure where failure.status == .unavailable {
        // It may be restarting, and the message is in its queue. Only who has given up may be told that it did.
        guard SystemTime().now < deadline else {
          Terminal.complain("\(id) is queued, and what became of it cannot be asked: \(failure.description)")
          return .tryAgain
        }
      }
      try await Task.sleep(for: pause)
      pause = min(pause * 2, Self.longestPause)
    }
  }

  /// Of a message that has left the queue.
  private func tell(_ report: VerdictReport) -> ExitStatus {
    if report.recipients.isEmpty {
      Terminal.complain("\(report.id) has left the queue, and its verdict is not known any more: see the log")
      return .unavailable
    }
    for recipient in report.recipients { say(recipient) }
    return worst(report.recipients)
  }

  private func worst(_ recipients: [VerdictReport.Recipient]) -> ExitStatus {
    if recipients.contains(where: { $0.status == "bounced" }) { return .data }
    return recipients.allSatisfy { $0.status == "sent" } ? .success : .unavailable
  }

  private func say(_ recipient: VerdictReport.Recipient) {
    let words = ["sent": "delivered", "bounced": "refused", "expired": "given up", "deferred": "put off"]
    let name =
      recipient.recipient.lowercased() == recipient.address.lowercased()
      ? "<\(recipient.address)>" : "<\(recipient.recipient)> → <\(recipient.address)>"
    let place = recipient.upstream == "none" ? "" : " by \(recipient.upstream)"
    Terminal.say(
      TerminalText.clean("\(name) \(words[recipient.status] ?? recipient.status)\(place): \(recipient.reply)"))
  }

  /// nil while there is something to wait for.
  private func stillQueued(_ id: String, _ report: VerdictReport, isLast: Bool) throws -> ExitStatus? {
    let isUnsettled = report.recipients.isEmpty || report.recipients.contains { $0.status == "deferred" }
    guard isLast || !isUnsettled else { return nil }
    let response = try client.request("GET", AdminPath.message(AdminClient.escaped(id)))
    if response.status == 404 { return nil }
    let detail = try AdminClient.decoded(response, as: QueueDetail.self)
    if detail.item.state == "dead" {
      for recipient in report.recipients { say(recipient) }
      Terminal.complain("\(id) is dead: \(detail.item.reason ?? "its sender could not be told")")
      return worst(report.recipients)
    }
    guard isLast else { return nil }
    for recipient in report.recipients { say(recipient) }
    let reasons = detail.waiting.isEmpty ? "it has not been tried yet" : detail.waiting.joined(separator: "; ")
    Terminal.say(TerminalText.clean("\(id) still waits: \(reasons)"))
    return .tryAgain
  }
}
