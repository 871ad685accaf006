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

      --scenario rehearses a bad day, in Google's own words; SIGUSR1 or --scenario-for ends it, and all is well again. \
      --list-scenarios shows what there is.
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
  @Flag(help: "Keep no message and print no line for it, only count them: for measurements.")
  var discard = false
  @Flag(help: "Print the dialogue with every client.")
  var verbose = false
  @Option(help: "A further name in the certificate. May be repeated.")
  var name: [String] = []
  @Option(
    help: ArgumentHelp("Something that goes wrong; see --list-scenarios. May be repeated.", valueName: "name[:n]"))
  var scenario: [String] = []
  @Option(
    help: ArgumentHelp("End the scenarios after so long, such as 30s or 5m. Default: at SIGUSR1.", valueName: "time"))
  var scenarioFor: String?
  @Option(
    help: ArgumentHelp(
      "The address that stays when the scenario drift takes --address away. Default: 127.0.0.2.", valueName: "ip"))
  var secondAddress = "127.0.0.2"
  @Flag(help: "Print the scenarios with Google's replies, and end.")
  var listScenarios = false

  func run() async throws {
    if listScenarios { return Terminal.print(Self.scenarioList()) }
    signal(SIGUSR1, SIG_IGN)  // one that comes too early must not be the end
    let choices = try scenario.map { text throws(CommandFailure) in
      do throws(ScenarioChoice.Mistake) { return try ScenarioChoice(parsing: text) } catch {
        throw CommandFailure(.usage, "--scenario: \(error)")
      }
    }
    let limit = try scenarioFor.map { text throws(CommandFailure) in try Self.duration(text) }
    guard limit == nil || !choices.isEmpty else { throw CommandFailure(.usage, "--scenario-for needs a --scenario") }
    guard let second = IPAddress(secondAddress) else {
      throw CommandFailure(.usage, "--second-address \(secondAddress) is not an IP address")
    }
    guard let ip = IPAddress(address) else {
      throw CommandFailure(.usage, "--address \(address) is not an IP address")
    }
    let authority = caFile ?? directory + "/ca.pem"
    let upstream: Upstream
    var places = ""
    do {
      try makeDirectory()
      upstream = try await start(on: ip, authority)
      if choices.contains(where: { $0.scenario == .drift }) {
        let place = Endpoint(address: second, port: upstream.endpoint.port)
        try upstream.listen(on: place)
        places = " and \(place)"
      }
    } catch let error as NetworkError {
      throw CommandFailure(.unavailable, "the sandbox cannot start: \(error); choose another port with --port")
    } catch let error as SandboxError {
      throw CommandFailure(.unavailable, "the sandbox cannot start: \(error)")
    }
    let rehearsal = Rehearsal(choices, on: upstream, dying: upstream.endpoint)
    // Before it is ready: the first connection belongs to the scenario.
    await rehearsal.begin()
    var line = "sandbox ready on \(upstream.endpoint)\(places)"
    if tlsPort != nil { line += ", with TLS from the first byte on \(upstream.implicitTLSEndpoint)" }
    let place = discard ? "messages are discarded" : "messages in \(directory)"
    Terminal.say("\(line); account \(username); trust \(authority); \(place)")
    if !choices.isEmpty {
      let end = limit == nil ? "" : " or for \(scenarioFor ?? "")"
      Terminal.say(
        "scenario \(choices.map(\.description).joined(separator: ", ")) until SIGUSR1\(end) (pid \(getpid()))")
    }
    await Self.untilSignalled(rehearsalEnds: limit) { await Self.end(rehearsal, choices) }
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
    options.directory = discard ? nil : directory
    options.keepsMessages = false
    options.loops = [try EventLoop.ofCommand()]
    if verbose { options.log = { Terminal.say("  \(TerminalText.clean($0))") } }
    if discard { return try await Upstream.start(options) }
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

  /// Waits for the end of the sandbox; SIGUSR1, or the time given, ends the scenarios before.
  private static func untilSignalled(rehearsalEnds limit: Duration?, _ end: @Sendable () async -> Void) async {
    enum Event { case stop, recover }
    let (events, post) = AsyncStream<Event>.makeStream()
    let sources = [(SIGINT, Event.stop), (SIGTERM, .stop), (SIGUSR1, .recover)].map { number, event in
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
      source.setEventHandler { post.yield(event) }
      source.activate()
      return source
    }
    let alarm = limit.map { limit in
      Task { if (try? await Task.sleep(for: limit)) != nil { post.yield(.recover) } }
    }
    for await event in events {
      if event == .stop { break }
      await end()
    }
    alarm?.cancel()
    for source in sources { source.cancel() }
  }

  private static func end(_ rehearsal: Rehearsal, _ choices: [ScenarioChoice]) async {
    if choices.isEmpty { return }
    if await rehearsal.isOver { return }
    do {
      try await rehearsal.end()
      Terminal.say("scenario over: all is well again")
    } catch { Terminal.say("scenario over, but \(error)") }
  }

  private static func duration(_ text: String) throws(CommandFailure) -> Duration {
    let units = ["s": 1, "m": 60, "h": 3600]
    let factor = text.last.flatMap { units[String($0)] }
    guard let number = Int(factor == nil ? text[...] : text.dropLast()), (1...86_400).contains(number) else {
      throw CommandFailure(.usage, "--scenario-for \(text) is not a time, such as 30s or 5m")
    }
    return .seconds(number * (factor ?? 1))
  }

  private static func scenarioList() -> [String] {
    Scenario.allCases.flatMap { scenario in
      var lines = [scenario.rawValue, "  \(scenario.summary)", "  N: \(scenario.countMeaning)"]
      lines += (scenario.reply ?? "").split(separator: "\n").map { "    \($0)" }
      return lines + [""]
    }
  }
}
