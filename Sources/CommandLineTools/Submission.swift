// Handing a message to the running daemon, as any mail program would: over SMTP.

import Delivery
import Network
import Primitives
import SMTP

/// A message and whom it is for.
public struct Submission: Sendable {
  /// What the server said about one recipient.
  public struct Result: Sendable, Hashable {
    public var recipient: String
    public var reply: Reply
    public var isAccepted: Bool
  }

  /// What became of the message.
  public struct Report: Sendable, Hashable {
    /// The queue ids, one for each transaction in which anybody was accepted.
    public var queueIDs: [String] = []
    public var results: [Result] = []

    /// `refused` when somebody was refused for good, else `tryAgain` when somebody was put off, else `success`.
    public var status: ExitStatus {
      let refused = results.filter { !$0.isAccepted }
      if refused.isEmpty { return .success }
      return refused.contains { $0.reply.isPermanent } ? .refused : .tryAgain
    }
  }

  /// Without `<>`; empty for the null reverse-path.
  public var reversePath: String
  public var recipients: [String]
  /// With CRLF line ends.
  public var content: [UInt8]
  public var smtpUTF8 = false
  /// NOTIFY for each recipient, RET and ENVID (RFC 3461).
  public var notify: RecipientParameters.Notify?
  public var ret: MailParameters.Return?
  public var envelopeID: String?
  /// What we say in EHLO.
  public var heloName: String
  public var timeout = Duration.seconds(60)
  /// More recipients than this go in transactions of their own: a server need not take more (RFC 5321 4.5.3.1.8).
  public static let recipientsPerTransaction = 100

  public init(reversePath: String, recipients: [String], content: [UInt8], heloName: String) {
    self.reversePath = reversePath
    self.recipients = recipients
    self.content = content
    self.heloName = heloName
  }

  /// Submits the message to the server at `endpoint`.
  /// - Throws: ``CommandFailure`` when there is nobody to talk to, or the server turns everything away.
  public func submit(to endpoint: Endpoint, on loop: EventLoop) async throws(CommandFailure) -> Report {
    let connection = SMTPConnection(on: loop)
    do throws(NetworkError) { try await connection.connect(to: endpoint, within: timeout) } catch {
      throw CommandFailure(
        .unavailable,
        "nobody answers at \(endpoint) (\(error)): start the daemon with `systemctl start ssmtp-mailer`, "
          + "or name another server with --server")
    }
    do {
      let report = try await converse(on: connection)
      await connection.quit()
      return report
    } catch {
      await connection.close()
      throw error as? CommandFailure
        ?? CommandFailure(
          .tryAgain, "the connection to \(endpoint) failed (\(error)): it is not known that it was queued")
    }
  }

  private func converse(on connection: SMTPConnection) async throws -> Report {
    try Self.check(await connection.exchange(nil, within: timeout))
    let hello = try await connection.exchange("EHLO \(heloName)", within: timeout)
    try Self.check(hello)
    let capabilities = Capabilities(ehlo: hello)
    if let obstacle = ClientTransaction.obstacle(size: content.count, smtpUTF8: smtpUTF8, capabilities: capabilities) {
      throw CommandFailure(.refused, "the server cannot take the message: \(obstacle)")
    }
    var report = Report()
    var open = recipients[...]
    var mustReset = false
    while !open.isEmpty {
      let part = Array(open.prefix(Self.recipientsPerTransaction))
      open = open.dropFirst(part.count)
      if mustReset { try Self.check(await connection.exchange("RSET", within: timeout)) }
      let transaction = ClientTransaction(
        reversePath: reversePath, recipients: part, size: content.count, is8Bit: content.contains { $0 >= 0x80 },
        smtpUTF8: smtpUTF8, capabilities: capabilities, dsn: dsn(part.count))
      let outcome: ClientTransaction.Outcome
      do { outcome = try await connection.send(content, through: transaction, within: timeout) } catch {
        // What other transactions have achieved must be told all the same.
        let lost = Reply(451, "4.4.2", "The connection failed (\(error)): it is not known whether this was queued")
        for recipient in part + open {
          report.results.append(Result(recipient: recipient, reply: lost, isAccepted: false))
        }
        break
      }
      mustReset = outcome.needsReset
      let isQueued = outcome.recipients.contains(where: \.isAccepted)
      var rest: [String] = []
      for (recipient, fate) in zip(part, outcome.recipients) {
        // Too many for this server at once (RFC 5321 4.5.3.1.10). Nobody else must get the message again for them.
        if isQueued, case .refused(let reply, .rcpt) = fate, ReplyMeaning(of: reply, at: .recipient) == .nextTransaction
        {
          rest.append(recipient)
          continue
        }
        report.results.append(Result(recipient: recipient, reply: fate.reply, isAccepted: fate.isAccepted))
      }
      if let accepted = outcome.recipients.first(where: \.isAccepted) {
        report.queueIDs.append(Self.queueID(in: accepted.reply))
      }
      open = rest + open
      if outcome.mustClose {
        for recipient in open {
          report.results.append(
            Result(recipient: recipient, reply: ClientTransaction.connectionLost, isAccepted: false))
        }
        break
      }
    }
    return report
  }

  private func dsn(_ count: Int) -> ClientTransaction.DSNOptions? {
    guard notify != nil || ret != nil || envelopeID != nil else { return nil }
    let parameters = RecipientParameters(notify: notify, originalRecipient: nil)
    return .init(ret: ret, envelopeID: envelopeID, recipients: Array(repeating: parameters, count: count))
  }

  private static func check(_ reply: Reply) throws(CommandFailure) {
    if reply.isPositive { return }
    throw CommandFailure(reply.isPermanent ? .refused : .tryAgain, "the server answers: \(reply)")
  }

  /// What a refused recipient means for the caller of sendmail: 67 when nobody of a name is there.
  public static func sendmailStatus(_ report: Report) -> ExitStatus {
    guard report.status == .refused else { return report.status }
    let refusals = report.results.filter { !$0.isAccepted && $0.reply.isPermanent }
    return refusals.allSatisfy { $0.reply.enhanced.map { $0.subject == 1 } ?? false } ? .noUser : .refused
  }

  /// The id in `250 2.0.0 Ok: queued as ID`; the whole text when it says it otherwise.
  static func queueID(in reply: Reply) -> String {
    let words = reply.text.split(separator: " ")
    for (index, word) in words.enumerated() where word.lowercased() == "as" && index + 1 < words.count {
      if index > 0, words[index - 1].lowercased() == "queued" { return String(words[index + 1]) }
    }
    return reply.text
  }
}
