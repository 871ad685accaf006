// `send`: a message from the command line, handed to the running daemon over SMTP like any other.

import ArgumentParser
import CommandLineTools
import Configuration
import Glibc
import Message
import Network
import Primitives
import SMTP

struct SendCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "send", abstract: "Submit a message to the running daemon.",
    discussion: """
      Without --body and --body-file the text is read from standard input. Prints `queued as ID`: from then on the \
      message is on disk, and `queue show ID` follows it. Exit status 77 when the daemon refuses a recipient, 75 when \
      it wants to be asked later, 69 when it does not run.

      With --wait the upstream's verdict is printed for each recipient: exit status 0 when all were delivered, 75 when \
      the message still waits (the reason is printed, and it stays queued), 65 when the upstream refused a recipient \
      for good, 69 when the message was given up.

      With both --server and --from no configuration is read.
      """)
  @OptionGroup var options: ConfigurationOptions
  @Option(help: ArgumentHelp("The sender, as a@b or 'Name <a@b>'. Default: default_from.", valueName: "address"))
  var from: String?
  @Option(parsing: .upToNextOption, help: ArgumentHelp("The recipients. May be repeated.", valueName: "address"))
  var to: [String] = []
  @Option(parsing: .upToNextOption, help: ArgumentHelp("Recipients of a copy.", valueName: "address"))
  var cc: [String] = []
  @Option(parsing: .upToNextOption, help: ArgumentHelp("Recipients whom nobody sees.", valueName: "address"))
  var bcc: [String] = []
  @Option(help: "The subject.")
  var subject = ""
  @Option(help: "The text.")
  var body: String?
  @Option(help: ArgumentHelp("A file with the text; - is standard input.", valueName: "file"))
  var bodyFile: String?
  @Option(
    help: ArgumentHelp(
      "The text as HTML: a file, or HTML itself. Without a text of its own, the plain text is made of it.",
      valueName: "file|text"))
  var html: String?
  @Option(help: ArgumentHelp("A file with the text as HTML.", valueName: "file"))
  var htmlFile: String?
  @Option(help: ArgumentHelp("A file to attach. May be repeated.", valueName: "file"))
  var attach: [String] = []
  @Option(help: ArgumentHelp("A further header field. May be repeated.", valueName: "name: value"))
  var header: [String] = []
  @Option(
    defaultAsFlag: "2m",
    help: ArgumentHelp("Wait for the upstream's verdict, 2m or so long: 90s, 15m.", valueName: "duration"))
  var wait: String?
  @Option(
    help: ArgumentHelp(
      "Another server than the daemon of this configuration, without TLS and AUTH.", valueName: "host:port"))
  var server: String?

  mutating func validate() throws {
    if let wait, Duration(configurationText: wait) ?? .zero <= .zero {
      throw ValidationError("--wait \(wait): write a duration such as 90s or 15m")
    }
    if wait != nil, server != nil { throw ValidationError("--wait and --server do not go together") }
    if to.isEmpty && cc.isEmpty { throw ValidationError("name a recipient with --to") }
    if body != nil && bodyFile != nil { throw ValidationError("--body and --body-file exclude each other") }
    if html != nil && htmlFile != nil { throw ValidationError("--html and --html-file exclude each other") }
    for field in header where !field.contains(":") {
      throw ValidationError("--header '\(field)': write 'Name: value'")
    }
  }

  func run() async throws {
    let global = server != nil && from != nil ? nil : try options.load().global
    let hostname = global?.defaultHostname ?? Machine.hostname
    let waiter = try wait.flatMap { Duration(configurationText: $0) }.map { (limit) throws(CommandFailure) in
      try VerdictWait(options.adminClient(), limit: limit)
    }
    guard let sender = from ?? global?.defaultFrom else {
      throw CommandFailure(.usage, "name a sender with --from, or set default_from in [global]")
    }
    let endpoint = try await destination(global)
    var message: MessageComposer
    let content: [UInt8]
    let copies: [MessageComposer.Address]
    do throws(ComposeError) {
      let from = try MessageComposer.Address(parsing: sender)
      copies = try Self.addresses(bcc)
      message = MessageComposer(
        from: from, to: try Self.addresses(to), subject: subject, text: "", date: SystemTime().wallClock,
        messageID: Machine.messageID(at: hostname))
      message.cc = try Self.addresses(cc)
    } catch { throw CommandFailure(.data, error.description) }
    let html = try htmlText()
    message.text = try text(html)
    message.html = html
    message.attachments = try attach.map { (path) throws(CommandFailure) in try Self.attachment(path) }
    message.headers = header.map(Self.field)
    message.utcOffsetSeconds = Machine.utcOffsetSeconds
    do throws(ComposeError) { content = try message.compose() } catch {
      throw CommandFailure(.data, error.description)
    }
    try await submit(message, copies, content, hostname, to: endpoint, waiter)
  }

  private func submit(
    _ message: MessageComposer, _ copies: [MessageComposer.Address], _ content: [UInt8], _ hostname: String,
    to endpoint: Endpoint, _ waiter: VerdictWait?
  ) async throws {
    var seen: Set<Mailbox> = []
    let recipients = (message.to + message.cc + copies).map(\.mailbox).filter { seen.insert($0).inserted }
    var submission = Submission(
      reversePath: message.from.mailbox.description, recipients: recipients.map(\.description), content: content,
      heloName: hostname)
    submission.smtpUTF8 = message.from.mailbox.needsSMTPUTF8 || recipients.contains { $0.needsSMTPUTF8 }
    let report = try await submission.submit(to: endpoint, on: EventLoop.ofCommand())
    // At once, and before any verdict: whoever reads a pipe wants the id also when the waiting is cut off.
    for id in report.queueIDs { Terminal.say("queued as \(TerminalText.clean(id))") }
    for result in report.results where !result.isAccepted {
      Terminal.complain(TerminalText.clean("<\(result.recipient)> refused: \(result.reply)"))
    }
    if let waiter { try await waiter.run(report.queueIDs) }
    if report.status != .success { throw CommandFailure(report.status, "") }
  }

  // MARK: Where to

  private func destination(_ global: GlobalSettings?) async throws(CommandFailure) -> Endpoint {
    if let server { return try await Self.resolve(server) }
    guard let endpoint = global?.listen.first else {
      throw CommandFailure(.configuration, "the daemon listens nowhere: set listen in [global], or name a --server")
    }
    return endpoint.onThisMachine
  }

  private static func resolve(_ text: String) async throws(CommandFailure) -> Endpoint {
    if let endpoint = Endpoint(text) { return endpoint }
    guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]),
      !text[..<colon].isEmpty
    else { throw CommandFailure(.usage, "--server \(text): write host:port") }
    do throws(NetworkError) {
      let answer = try await SystemNames().addresses(of: String(text[..<colon]))
      if let address = answer.addresses.first { return Endpoint(address: address, port: port) }
    } catch { throw CommandFailure(.unavailable, "--server \(text): \(error)") }
    throw CommandFailure(.unavailable, "--server \(text): the name has no address")
  }

  // MARK: What

  private static func addresses(_ texts: [String]) throws(ComposeError) -> [MessageComposer.Address] {
    var result: [MessageComposer.Address] = []
    for text in texts { result.append(try MessageComposer.Address(parsing: text)) }
    return result
  }

  private func htmlText() throws(CommandFailure) -> String? {
    if let htmlFile { return try Terminal.readText(htmlFile) }
    guard let html else { return nil }
    if html == "-" || access(html, F_OK) == 0 { return try Terminal.readText(html) }
    guard html.contains("<") else {
      throw CommandFailure(.data, "--html \(html): there is no such file, and it is no HTML either")
    }
    return html
  }

  private func text(_ html: String?) throws(CommandFailure) -> String {
    if let body { return body }
    if let bodyFile { return try Terminal.readText(bodyFile) }
    if let html { return PlainText.of(html: html) }
    return try Terminal.readText("-")
  }

  private static func attachment(_ path: String) throws(CommandFailure) -> MessageComposer.Attachment {
    let name = path.split(separator: "/").last.map(String.init) ?? path
    let suffix = name.lastIndex(of: ".").map { name[name.index(after: $0)...].lowercased() } ?? ""
    return MessageComposer.Attachment(
      name: name, contentType: contentTypes[suffix] ?? "application/octet-stream", content: try Terminal.read(path))
  }

  private static let contentTypes = [
    "txt": "text/plain", "log": "text/plain", "csv": "text/csv", "html": "text/html", "htm": "text/html",
    "json": "application/json", "xml": "application/xml", "pdf": "application/pdf", "zip": "application/zip",
    "gz": "application/gzip", "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif",
    "svg": "image/svg+xml", "ics": "text/calendar", "md": "text/markdown", "css": "text/css", "webp": "image/webp",
    "mp3": "audio/mpeg", "wav": "audio/wav", "mp4": "video/mp4", "webm": "video/webm", "tar": "application/x-tar",
    "tgz": "application/gzip", "xz": "application/x-xz", "bz2": "application/x-bzip2",
    "7z": "application/x-7z-compressed",
    "doc": "application/msword", "xls": "application/vnd.ms-excel", "ppt": "application/vnd.ms-powerpoint",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "odt": "application/vnd.oasis.opendocument.text", "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "rtf": "application/rtf", "vcf": "text/vcard", "js": "text/javascript", "yaml": "application/yaml",
    "yml": "application/yaml", "patch": "text/x-diff", "diff": "text/x-diff",
  ]

  private static func field(_ text: String) -> (name: String, value: String) {
    let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    let value = parts.count > 1 ? parts[1].drop { $0 == " " || $0 == "\t" } : ""
    return (String(parts[0]), String(value))
  }
}
