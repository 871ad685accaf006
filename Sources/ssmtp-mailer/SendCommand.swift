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
  @Option(help: "The text as HTML, beside the plain one.")
  var html: String?
  @Option(help: ArgumentHelp("A file with the text as HTML.", valueName: "file"))
  var htmlFile: String?
  @Option(help: ArgumentHelp("A file to attach. May be repeated.", valueName: "file"))
  var attach: [String] = []
  @Option(help: ArgumentHelp("A further header field. May be repeated.", valueName: "name: value"))
  var header: [String] = []
  @Option(
    help: ArgumentHelp(
      "Another server than the daemon of this configuration, without TLS and AUTH.", valueName: "host:port"))
  var server: String?

  mutating func validate() throws {
    if to.isEmpty && cc.isEmpty { throw ValidationError("name a recipient with --to") }
    if body != nil && bodyFile != nil { throw ValidationError("--body and --body-file exclude each other") }
    if html != nil && htmlFile != nil { throw ValidationError("--html and --html-file exclude each other") }
    for field in header where !field.contains(":") {
      throw ValidationError("--header '\(field)': write 'Name: value'")
    }
  }

  func run() async throws {
    let global = server != nil && from != nil ? nil : try options.load().global
    let hostname = global?.defaultHostname ?? Self.hostname()
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
        messageID: Self.messageID(at: hostname))
      message.cc = try Self.addresses(cc)
    } catch { throw CommandFailure(.data, error.description) }
    message.text = try text()
    message.html = try htmlFile.map { (path) throws(CommandFailure) in try Terminal.readText(path) } ?? html
    message.attachments = try attach.map { (path) throws(CommandFailure) in try Self.attachment(path) }
    message.headers = header.map(Self.field)
    message.utcOffsetSeconds = Self.utcOffset()
    do throws(ComposeError) { content = try message.compose() } catch {
      throw CommandFailure(.data, error.description)
    }
    try await submit(message, copies, content, hostname, to: endpoint)
  }

  private func submit(
    _ message: MessageComposer, _ copies: [MessageComposer.Address], _ content: [UInt8], _ hostname: String,
    to endpoint: Endpoint
  ) async throws {
    var seen: Set<Mailbox> = []
    let recipients = (message.to + message.cc + copies).map(\.mailbox).filter { seen.insert($0).inserted }
    var submission = Submission(
      reversePath: message.from.mailbox.description, recipients: recipients.map(\.description), content: content,
      heloName: hostname)
    submission.smtpUTF8 = message.from.mailbox.needsSMTPUTF8 || recipients.contains { $0.needsSMTPUTF8 }
    let report = try await submission.submit(to: endpoint, on: EventLoop.ofCommand())
    for id in report.queueIDs { print("queued as \(TerminalText.clean(id))") }
    for result in report.results where !result.isAccepted {
      Terminal.complain("<\(result.recipient)> refused: \(result.reply)")
    }
    if report.status != .success { throw CommandFailure(report.status, "") }
  }

  // MARK: Where to

  private func destination(_ global: GlobalSettings?) async throws(CommandFailure) -> Endpoint {
    if let server { return try await Self.resolve(server) }
    guard var endpoint = global?.listen.first else {
      throw CommandFailure(.configuration, "the daemon listens nowhere: set listen in [global], or name a --server")
    }
    if endpoint.address.isUnspecified, let loopback = IPAddress(endpoint.address.isIPv4 ? "127.0.0.1" : "::1") {
      endpoint.address = loopback
    }
    return endpoint
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

  private func text() throws(CommandFailure) -> String {
    if let body { return body }
    if let bodyFile { return try Terminal.readText(bodyFile) }
    if html != nil || htmlFile != nil { return "This message is in HTML." }
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
    "svg": "image/svg+xml", "ics": "text/calendar",
  ]

  private static func field(_ text: String) -> (name: String, value: String) {
    let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    let value = parts.count > 1 ? parts[1].drop { $0 == " " || $0 == "\t" } : ""
    return (String(parts[0]), String(value))
  }

  // MARK: The machine

  private static func messageID(at hostname: String) -> String {
    var generator = SystemRandomNumberGenerator()
    let random = String(UInt64.random(in: 0 ... .max, using: &generator), radix: 36)
    return "\(String(SystemTime().wallClock.microseconds, radix: 36)).\(random)@\(hostname)"
  }

  private static func hostname() -> String {
    var name = [CChar](repeating: 0, count: 256)
    guard gethostname(&name, name.count - 1) == 0 else { return "localhost" }
    return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  private static func utcOffset() -> Int {
    var now = time(nil)
    var local = tm()
    return localtime_r(&now, &local) == nil ? 0 : local.tm_gmtoff
  }
}
