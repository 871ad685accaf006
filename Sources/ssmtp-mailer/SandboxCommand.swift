// `sandbox`: a stand-in for Gmail on this machine, to try things out without sending anything to anybody.

import ArgumentParser
import CommandLineTools
import Dispatch
import Glibc
import Network
import Primitives
import Sandbox

struct SandboxCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sandbox", abstract: "Run a local stand-in for Gmail (STARTTLS, AUTH, the same extensions).",
    discussion: """
      It makes a throw-away certificate authority, accepts mail from the account below, keeps each message as .eml \
      with its envelope as .json beside it, and never sends anything on. Point a [domain:] at it with \
      smtp_server = localhost, smtp_port and tls_ca_file. SIGINT or SIGTERM ends it.
      """)

  @Option(help: "The port that offers STARTTLS; 0 takes a free one.")
  var port: UInt16 = 5587
  @Option(help: "A port that begins with TLS; 0 takes a free one. Default: none.")
  var tlsPort: UInt16?
  @Option(help: ArgumentHelp("The address to listen on.", valueName: "ip"))
  var address = "127.0.0.1"
  @Option(
    help: ArgumentHelp("Where messages and the authority's certificate go; made if it is missing.", valueName: "dir"))
  var directory = "sandbox-mail"
  @Option(
    help: ArgumentHelp("Where to write the certificate to trust. Default: DIRECTORY/ca.pem.", valueName: "file"))
  var caFile: String?
  @Option(help: "The account that may log in.")
  var username = "mail-relay@dreamlikelabs.com"
  @Option(help: "Its password.")
  var password = "your_gmail_app_password_here"
  @Option(help: "The OAuth access token that XOAUTH2 and OAUTHBEARER take for the account. Default: none.")
  var token: String?
  @Flag(help: "Print the dialogue with every client.")
  var verbose = false
  @Option(help: "A further name in the certificate. May be repeated.")
  var name: [String] = []

  func run() async throws {
    guard let ip = IPAddress(address) else {
      throw CommandFailure(.usage, "--address \(address) is not an IP address")
    }
    let authority = caFile ?? directory + "/ca.pem"
    let upstream: Upstream
    do {
      try makeDirectory()
      upstream = try await start(on: ip, authority)
    } catch let error as NetworkError {
      throw CommandFailure(.unavailable, "the sandbox cannot start: \(error); choose another port with --port")
    } catch let error as SandboxError {
      throw CommandFailure(.unavailable, "the sandbox cannot start: \(error)")
    }
    var line = "sandbox ready on \(upstream.endpoint)"
    if tlsPort != nil { line += ", with TLS from the first byte on \(upstream.implicitTLSEndpoint)" }
    Terminal.say("\(line); account \(username); trust \(authority); messages in \(directory)")
    await Self.untilSignalled()
    await upstream.stop()
    Terminal.say("sandbox stopped after \(Quantity.count(upstream.statistics.messages, "message"))")
  }

  private func start(on ip: IPAddress, _ caFile: String) async throws -> Upstream {
    let authority = try CertificateAuthority(commonName: "ssmtp-mailer sandbox (throw-away)")
    try authority.writeCertificate(to: caFile)
    let identity = try authority.issue(names: ["localhost", "127.0.0.1", "::1", "smtp.gmail.com"] + name)
    var options = UpstreamOptions(certificateFile: directory + "/cert.pem", keyFile: directory + "/key.pem")
    try identity.write(certificateFile: options.certificateFile, keyFile: options.keyFile)
    options.endpoint = Endpoint(address: ip, port: port)
    options.implicitTLSEndpoint = tlsPort.map { Endpoint(address: ip, port: $0) }
    options.passwords = [username: password]
    if let token { options.accessTokens = [username: token] }
    options.directory = directory
    options.keepsMessages = false
    options.loops = [try EventLoop.ofCommand()]
    if verbose { options.log = { Terminal.say("  \(TerminalText.clean($0))") } }
    options.received = { message in
      let sender = message.reversePath.isEmpty ? "<>" : message.reversePath
      Terminal.say(
        TerminalText.clean(
          "message \(message.number): \(sender) → \(message.recipients.joined(separator: ", ")), "
            + "\(Quantity.size(message.content.count)), \(message.tlsVersion ?? "in clear"), id \(message.id)"))
    }
    return try await Upstream.start(options)
  }

  private func makeDirectory() throws(CommandFailure) {
    guard mkdir(directory, 0o700) == 0 || errno == EEXIST else {
      throw CommandFailure(.data, "the directory \(directory) cannot be made: \(String(cString: strerror(errno)))")
    }
  }

  private static func untilSignalled() async {
    let (signals, post) = AsyncStream<Void>.makeStream()
    let sources = [SIGINT, SIGTERM].map { number in
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
      source.setEventHandler { post.yield() }
      source.activate()
      return source
    }
    for await _ in signals { break }
    for source in sources { source.cancel() }
  }
}
