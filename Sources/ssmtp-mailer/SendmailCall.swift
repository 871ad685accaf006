// The binary under another name: `sendmail`, `mailq` and `newaliases` for cron, PHP, git and whoever else expects a mail
// system of Unix. Mail goes to the daemon over SMTP like any other; nothing is kept here, so a daemon that is down is
// an exit status, never mail that is lost in silence.

import CommandLineTools
import Configuration
import Daemon
import FoundationEssentials
import Glibc
import Message
import Network
import Primitives
import SMTP

struct SendmailCall {
  private let name: String
  private let arguments: [String]

  /// nil when the binary was called by its own name.
  init?(_ commandLine: [String]) {
    let name = commandLine.first.map { String($0.split(separator: "/").last ?? "") } ?? ""
    guard ["sendmail", "mailq", "newaliases"].contains(name) else { return nil }
    self.name = name
    arguments = Array(commandLine.dropFirst())
  }

  func run() async throws {
    let call = try SendmailArguments(name: name, arguments)
    let path =
      call.configuration ?? Terminal.environment("SSMTP_MAILER_CONFIG") ?? ConfigurationOptions.defaultPath
    switch call.mode {
    case .nothing: return
    case .list: try await Self.list(call.configuration)
    case .smtp: try SMTPProxy.run(to: try Self.place(path).endpoint, input: STDIN_FILENO, output: STDOUT_FILENO)
    case .message: try await send(call, path)
    }
  }

  private static func place(_ path: String) throws(CommandFailure) -> (endpoint: Endpoint, hostname: String) {
    let place = Settings.submissionPlace(path: path)
    guard let endpoint = place.listen else {
      throw CommandFailure(.configuration, "the daemon listens nowhere: set listen in [global] of \(path)")
    }
    return (endpoint.onThisMachine, place.hostname ?? Machine.hostname)
  }

  // MARK: A message

  private func send(_ call: SendmailArguments, _ path: String) async throws {
    let (endpoint, hostname) = try Self.place(path)
    let user = Machine.user
    guard let own = try? Mailbox(localPart: user.name, domain: hostname) else {
      throw CommandFailure(.configuration, "\(user.name)@\(hostname) is no address: set default_hostname in \(path)")
    }
    let sender = try Self.sender(call.sender, own: own, hostname)
    var recipients: [Mailbox] = []
    for text in call.recipients { recipients += try Self.mailboxes(text, hostname) }

    var message = LocalMessage(try Self.read(ignoresDots: call.ignoresDots))
    if call.readsRecipients {
      let (found, faults) = message.recipients(defaultDomain: hostname)
      if let fault = faults.first { throw CommandFailure(.data, "not all of this is addresses: \(fault)") }
      recipients += found
    }
    var seen: Set<Mailbox> = []
    recipients = recipients.filter { seen.insert($0).inserted }
    if recipients.isEmpty {
      throw CommandFailure(.usage, "nobody to send to: the header has no To, Cc or Bcc, and no recipient was named")
    }
    let author = AddressList.Member(name: call.fullName ?? user.fullName, mailbox: sender ?? own)
    message.complete(
      author: author, defaultDomain: hostname, date: SystemTime().wallClock,
      utcOffsetSeconds: Machine.utcOffsetSeconds, messageID: Machine.messageID(at: hostname))

    var submission = Submission(
      reversePath: sender?.description ?? "", recipients: recipients.map(\.description), content: message.content,
      heloName: hostname)
    submission.smtpUTF8 = sender?.needsSMTPUTF8 == true || recipients.contains { $0.needsSMTPUTF8 }
    (submission.notify, submission.ret, submission.envelopeID) = (call.notify, call.ret, call.envelopeID)
    try await submit(submission, to: endpoint, isVerbose: call.isVerbose)
  }

  private func submit(_ submission: Submission, to endpoint: Endpoint, isVerbose: Bool) async throws {
    let report: Submission.Report
    do throws(CommandFailure) {
      report = try await submission.submit(to: endpoint, on: EventLoop.ofCommand())
    } catch {
      // Callers try again after 75, and give up after 69.
      guard error.status == .unavailable else { throw error }
      throw CommandFailure(
        .tryAgain,
        "the mail is NOT sent and not queued: nobody answers at \(endpoint); start the daemon with "
          + "`systemctl start ssmtp-mailer` and send it again")
    }
    if isVerbose { for id in report.queueIDs { Terminal.say("queued as \(TerminalText.clean(id))") } }
    for result in report.results where !result.isAccepted {
      Terminal.complain(TerminalText.clean("<\(result.recipient)> refused: \(result.reply)"))
    }
    let status = Submission.sendmailStatus(report)
    if status != .success { throw CommandFailure(status, "") }
  }

  /// nil for the null reverse-path.
  private static func sender(_ text: String?, own: Mailbox, _ hostname: String) throws(CommandFailure) -> Mailbox? {
    guard let text else { return own }
    if text.isEmpty { return nil }
    let list = AddressList(parsing: text.utf8, defaultDomain: hostname)
    guard list.isWellFormed, list.members.count == 1, let member = list.members.first else {
      throw CommandFailure(.usage, "-f \(text): that is no address")
    }
    return member.mailbox
  }

  private static func mailboxes(_ text: String, _ hostname: String) throws(CommandFailure) -> [Mailbox] {
    let list = AddressList(parsing: text.utf8, defaultDomain: hostname)
    guard list.isWellFormed, !list.members.isEmpty else {
      throw CommandFailure(.usage, "recipient \(text): that is no address")
    }
    return list.members.map(\.mailbox)
  }

  private static func read(ignoresDots: Bool) throws(CommandFailure) -> [UInt8] {
    var reader = DotReader(ignoresDots: ignoresDots)
    var piece = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = Glibc.read(STDIN_FILENO, &piece, piece.count)
      if count < 0, errno == EINTR { continue }
      guard count >= 0 else {
        throw CommandFailure(.data, "standard input cannot be read: \(String(cString: strerror(errno)))")
      }
      if count == 0 { return reader.finish() }
      if reader.take(piece[..<count]) { return reader.bytes }
    }
  }

  // MARK: The queue

  /// The queue as mailq prints it everywhere, for the eye and for the scripts that count its lines.
  private static func list(_ named: String?) async throws {
    let options = try ConfigurationOptions.parse(named.map { ["--config", $0] } ?? [])
    try await QueueChannel.use(options) { channel in
      var pages = QueuePages(filter: QueueFilter(), format: "json")
      var messages = 0
      var octets = 0
      while let lines = try await pages.next(channel) {
        for line in lines {
          let item = try decoder.decode(QueueItem.self, from: Data(Array(line)))
          if messages == 0 {
            Terminal.say("-Queue ID-  --Size-- ----Arrival Time---- -Sender/Recipient-------")
          }
          messages += 1
          octets += item.size
          for line in Self.lines(item) { Terminal.say(TerminalText.clean(line)) }
          Terminal.say("")
        }
      }
      Terminal.say(
        messages == 0
          ? "Mail queue is empty"
          : "-- \((octets + 1023) / 1024) Kbytes in \(messages) Request\(messages == 1 ? "" : "s").")
    }
    try Terminal.finish()
  }

  private static var decoder: JSONDecoder {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    return decoder
  }

  private static func lines(_ item: QueueItem) -> [String] {
    let mark = item.state == "active" ? "*" : item.state == "held" || item.state == "dead" ? "!" : " "
    let size = String(item.size)
    let padding = String(repeating: " ", count: max(8 - size.count, 0))
    let time = item.arrival.replacing("T", with: " ").replacing("Z", with: " ").prefix(20)
    var lines = ["\(item.id)\(mark) \(padding)\(size) \(time) \(item.sender.isEmpty ? "MAILER-DAEMON" : item.sender)"]
    if let reason = item.reason { lines.append("(\(reason))") }
    let indent = String(repeating: " ", count: 41)
    return lines + item.recipients.map { indent + $0 }
  }
}
