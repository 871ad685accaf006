// The relay as its users have it: the real binary with the sample configuration on a port of its own, and behind it an
// upstream that behaves as Gmail does.

import Glibc
import Network
import Primitives
import SMTP
import Sandbox
import Testing

/// All tests of this target, one after the other: they measure, and each has several processes.
@Suite(.serialized) enum EndToEnd {}

final class Bench: Sendable {
  /// What must never be seen anywhere.
  static let password = "plum-gravel-lantern-47"
  static let account = "mail-relay@dreamlikelabs.com"

  let folder: String
  let upstream: Upstream
  let authority: CertificateAuthority
  let port: UInt16
  private let programs = Mutex<[Program]>([])
  private let serial = Mutex(0)

  var configuration: String { "\(folder)/etc/ssmtp-mailer.conf" }
  var mappings: String { "\(folder)/etc/mappings/relay-mappings.conf" }
  let queue: String
  var log: String { Files.read("\(folder)/relay.log") }
  var errors: String { Files.read("\(folder)/daemon.err") }

  /// The binary that was built beside the tests, or the one that `SSMTP_MAILER_BINARY` names.
  static let binary: String = {
    if let path = getenv("SSMTP_MAILER_BINARY") { return String(cString: path) }
    // The runner loads the bundle `.build/CONFIGURATION/ssmtp-mailerPackageTests.xctest`; the products lie beside it.
    let bundle = CommandLine.arguments.first { $0.hasSuffix(".xctest") } ?? CommandLine.arguments[0]
    let absolute = realpath(bundle, nil).map { pointer in
      defer { free(pointer) }
      return String(cString: pointer)
    }
    let folder = (absolute ?? bundle).split(separator: "/", omittingEmptySubsequences: false).dropLast()
    return folder.joined(separator: "/") + "/ssmtp-mailer"
  }()

  static let project: String = {
    #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(3).joined(separator: "/")
  }()

  private init(
    _ names: [String], _ rules: [Rule], _ queue: String?, _ change: (inout UpstreamOptions) -> Void
  ) async throws {
    var template = Array("/tmp/ssmtp-mailer-relay.XXXXXX".utf8CString)
    folder = String(cString: try #require(mkdtemp(&template)))
    self.queue = queue ?? "\(folder)/queue"
    authority = try CertificateAuthority(commonName: "tests")
    try authority.writeCertificate(to: "\(folder)/ca.pem")
    try authority.issue(names: names).write(certificateFile: "\(folder)/cert.pem", keyFile: "\(folder)/key.pem")
    var options = UpstreamOptions(certificateFile: "\(folder)/cert.pem", keyFile: "\(folder)/key.pem")
    options.passwords = [Self.account: Self.password]
    options.script = rules
    change(&options)
    upstream = try await Upstream.start(options)
    let listener = try Listener(bindingTo: Endpoint("127.0.0.1:0")!)
    port = listener.endpoint.port
    listener.close()
  }

  /// Sets up, runs `body`, ends everything, and looks for the password in all that was written.
  static func run(
    certificateFor names: [String] = ["localhost"], rules: [Rule] = [], settings: [String] = [], starts: Bool = true,
    queue: String? = nil, upstream change: (inout UpstreamOptions) -> Void = { _ in },
    _ body: (Bench) async throws -> Void
  ) async throws {
    let bench = try await Bench(names, rules, queue, change)
    do {
      try await bench.configure(settings)
      if starts { try await bench.start() }
      try await body(bench)
      await bench.ask()
      await bench.end()
    } catch {
      await bench.end()
      Issue.record("the relay's log:\n\(bench.log.suffix(6000))\n\(bench.errors.suffix(2000))")
      bench.removeFolder()
      throw error
    }
    bench.expectNoSecret()
    bench.removeFolder()
  }

  /// The sample configuration, with other paths and ports and the upstream of the test.
  private func configure(_ settings: [String]) async throws {
    let copied = try await command("cp", ["-r", "\(Self.project)/etc/ssmtp-mailer", "\(folder)/etc"])
    try #require(copied.status == 0)
    var text = Files.read(configuration)
    text.replace("/etc/ssmtp-mailer", with: "\(folder)/etc")
    text.replace("/var/log/ssmtp-mailer.log", with: "\(folder)/relay.log")
    text.replace("log_level = INFO", with: "log_level = DEBUG")
    text.replace("enable_rate_limiting = true", with: "enable_rate_limiting = false")
    text += "listen = 127.0.0.1:\(port)\nqueue_dir = \(queue)\nadmin_socket = \(folder)/admin.sock\n"
    // Root may serve loopback only, and has to say that it means it.
    if geteuid() == 0, !settings.contains(where: { $0.hasPrefix("user") }) { text += "user = root\n" }
    text += settings.map { $0 + "\n" }.joined()
    try Files.write(text, to: configuration)
    let domain = "\(folder)/etc/domains/dreamlikelabs.com.conf"
    var upstream = Files.read(domain)
    upstream.replace("smtp_server = smtp.gmail.com", with: "smtp_server = localhost")
    upstream.replace("smtp_port = 587", with: "smtp_port = \(self.upstream.endpoint.port)")
    upstream.replace("your_gmail_app_password_here", with: Self.password)
    upstream += "tls_ca_file = \(folder)/ca.pem\n"
    try Files.write(upstream, to: domain)
    chmod(domain, 0o600)
  }

  // MARK: The daemon

  /// Starts the daemon and waits until it says that it is ready.
  @discardableResult
  func start(_ arguments: [String] = []) async throws -> Program {
    let before = log.occurrences(of: "is ready on")
    let daemon = try launch(arguments)
    try await until("the daemon is ready") {
      try #require(daemon.isRunning, "the daemon has ended: \(errors)")
      return log.occurrences(of: "is ready on") > before
    }
    return daemon
  }

  /// Starts the daemon and does not wait.
  func launch(_ arguments: [String] = [], errors: String = "daemon.err") throws -> Program {
    let daemon = try Program(
      Self.binary, ["serve", "--config", configuration] + arguments, output: "\(folder)/daemon.out",
      errors: "\(folder)/\(errors)")
    programs.withLock { $0.append(daemon) }
    return daemon
  }

  /// The daemon that was started last.
  var daemon: Program { programs.withLock { $0[$0.count - 1] } }

  /// Stops the daemon as systemd does.
  func stop() async -> Int32 {
    daemon.signal(SIGTERM)
    return await daemon.exit(within: 45)
  }

  func waitForLog(_ text: String, sourceLocation: SourceLocation = #_sourceLocation) async throws {
    try await until("the log says \(text)", sourceLocation: sourceLocation) { log.contains(text) }
  }

  // MARK: Commands

  /// One of the relay's own commands.
  func relay(_ arguments: String...) async throws -> Outcome {
    try await command(Self.binary, arguments + ["--config", configuration])
  }

  /// Any program, until it ends.
  func command(_ path: String, _ arguments: [String], input: String? = nil) async throws -> Outcome {
    let number = serial.withLock { number in
      number += 1
      return number
    }
    return try await Program.run(path, arguments, files: "\(folder)/command-\(number)", input: input) { ends($0) }
  }

  /// Ends the program with the test.
  func ends(_ program: Program) { programs.withLock { $0.insert(program, at: 0) } }

  /// Waits until the upstream has that many messages.
  func arrived(_ count: Int, sourceLocation: SourceLocation = #_sourceLocation) async throws -> [ReceivedMessage] {
    try await until("\(count) messages have arrived", sourceLocation: sourceLocation) {
      upstream.statistics.messages >= count
    }
    return upstream.messages
  }

  /// Waits until the queue is empty, as the command shows it.
  func emptied() async throws {
    try await until("the queue is empty") { try await relay("queue", "list").output.contains("no messages") }
  }

  // MARK: The end

  private func end() async {
    for program in programs.withLock({ $0 }) where program.isRunning {
      program.signal(SIGKILL)
      _ = await program.exit()
    }
    await upstream.stop()
  }

  /// Has a daemon that still runs say all that it says about itself, for the look at what was written.
  private func ask() async {
    guard programs.withLock({ $0.last?.isRunning }) == true else { return }
    for words in [["status", "--json"], ["config", "show"], ["queue", "list", "--json"]] {
      _ = try? await command(Self.binary, words + ["--config", configuration])
    }
  }

  /// What must never be seen anywhere: every secret that the suite uses, which is why they are so peculiar.
  static let secrets = Files.read("\(project)/Tests/secrets.txt").split(separator: "\n").map(String.init)

  /// A text, and what stands for it in base64 wherever it begins in a group.
  static func forms(of secret: String) -> [String] {
    [secret]
      + (0..<3).map { shift in
        let bytes = [UInt8](repeating: 0, count: shift) + Array(secret.utf8)
        return String(Base64.encode(bytes).prefix(bytes.count * 8 / 6).dropFirst((shift * 8 + 5) / 6))
      }
  }

  /// In the log, in the output of every command, in the queue, in the mail: nowhere, neither in clear nor encoded.
  private func expectNoSecret() {
    let forms = Self.secrets.flatMap(Self.forms)
    #expect(forms.contains(Self.password) && forms.contains("cGx1bS1ncmF2ZWwtbGFudGVybi00N"), "nothing is looked for")
    // The configuration holds them, and so does the file that tokens are kept in.
    let files = Files.all(below: folder).filter { !$0.hasPrefix("\(folder)/etc/") && !$0.hasSuffix("/refresh-token") }
    #expect(files.contains("\(folder)/daemon.out"), "there is nothing to look through")
    let configured = Files.bytes("\(folder)/etc/domains/dreamlikelabs.com.conf")
    #expect(configured.holds(Self.password), "the password is not looked for as it is written")
    for file in files {
      let bytes = Files.bytes(file)
      for form in forms { #expect(!bytes.holds(form), "\(file) shows a secret, \(form)") }
    }
    // What users type is in the files of their clients, but not in those of the daemon.
    let own = files.filter { file in
      file.hasPrefix(queue) || ["/relay.log", "/daemon.out", "/daemon.err"].contains { file.hasSuffix($0) }
    }
    for file in own {
      let bytes = Files.bytes(file)
      for form in Self.forms(of: EndToEnd.SubmissionPorts.password) {
        #expect(!bytes.holds(form), "\(file) shows the password of a user, \(form)")
      }
    }
    for message in upstream.messages {
      for form in forms { #expect(!message.content.holds(form), "a message shows a secret, \(form)") }
    }
  }

  private func removeFolder() {
    _ = try? Program("rm", ["-rf", folder], output: "/dev/null", errors: "/dev/null")
  }
}

extension [UInt8] {
  func holds(_ text: String) -> Bool {
    let wanted = Array(text.utf8)
    return withUnsafeBytes { bytes in
      guard var place = bytes.baseAddress else { return false }
      let end = place + bytes.count
      while let hit = memchr(place, CInt(wanted[0]), end - place).map({ UnsafeRawPointer($0) }) {
        if end - hit < wanted.count { return false }
        if memcmp(hit, wanted, wanted.count) == 0 { return true }
        place = hit + 1
      }
      return false
    }
  }
}

extension String {
  /// How often `text` occurs.
  func occurrences(of text: String) -> Int { ranges(of: text).count }
}

extension ReceivedMessage {
  /// The value of a header field that lies within the first 4 KiB.
  func field(_ name: String) -> String? {
    for line in content.prefix(4096).split(separator: 0x0a, omittingEmptySubsequences: false) {
      let text = String(decoding: line.last == 0x0d ? line.dropLast() : line, as: UTF8.self)
      if text.isEmpty { return nil }
      guard text.lowercased().hasPrefix(name.lowercased() + ":") else { continue }
      return String(text.dropFirst(name.count + 1).drop { $0 == " " })
    }
    return nil
  }
}
