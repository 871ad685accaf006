// The bad days of a Gmail account, end to end: the real relay in front of the real `sandbox --scenario`. Nothing is lost,
// nothing is bounced that need not be, `status` says what is wrong and what to do, and it recovers without a restart.

import Glibc
import Network
import Primitives
import Sandbox
import Testing

/// `ssmtp-mailer sandbox` as a user starts it.
private final class LocalGmail: Sendable {
  struct Message: Sendable {
    var id: String?
    var isBounce: Bool
    var text: String
  }

  let program: Program
  let directory: String
  private let output: String

  init(in folder: String, _ arguments: [String]) throws {
    directory = "\(folder)/gmail"
    output = "\(folder)/sandbox.out"
    program = try Program(
      Bench.binary,
      [
        "sandbox", "--port", "0", "--directory", directory, "--username", Bench.account, "--password", Bench.password,
      ] + arguments, output: output, errors: "\(folder)/sandbox.err")
  }

  var said: String { Files.read(output) }

  /// The port, once it is ready.
  func port() async throws -> String {
    try await until("the sandbox is ready") {
      try #require(program.isRunning, "the sandbox has ended")
      return said.contains("sandbox ready on") && said.contains("\n")
    }
    let place = try #require(
      said.split(separator: "sandbox ready on ").last?.prefix { $0 != "," && $0 != ";" && $0 != " " })
    return String(try #require(place.split(separator: ":").last))
  }

  /// What it has kept. The envelope is written behind the message, so a message with one is whole.
  var messages: [Message] {
    Files.all(below: directory).filter { $0.hasSuffix(".json") }.compactMap { path in
      let envelope = Files.read(path)
      guard envelope.hasSuffix("}\n") else { return nil }
      let text = Files.read(String(path.dropLast(5)) + ".eml")
      let header = text.split(separator: "\r\n\r\n", maxSplits: 1).first ?? ""
      let id = header.split(separator: "\r\n").first { $0.hasPrefix("X-Test-ID: ") }?.dropFirst(11)
      let isBounce = envelope.contains("\"reverse_path\": \"\"")
      return Message(id: isBounce ? nil : id.map(String.init), isBounce: isBounce, text: text)
    }
  }

  func recover() async throws {
    let before = said.occurrences(of: "scenario over")
    program.signal(SIGUSR1)
    try await until("the scenario is over") { said.occurrences(of: "scenario over") > before }
  }
}

/// A relay and its sandbox, and what they say about each other.
private struct Stage {
  let bench: Bench
  let gmail: LocalGmail
  let overrides: [String]

  static func run(
    _ scenario: String, _ arguments: [String] = [], _ body: (Stage) async throws -> Void
  ) async throws {
    try await Bench.run(starts: false) { bench in
      let gmail = try LocalGmail(in: bench.folder, ["--scenario", scenario] + arguments)
      do {
        let port = try await gmail.port()
        let overrides = [
          "--set", "domain:dreamlikelabs.com.smtp_port=\(port)",
          "--set", "domain:dreamlikelabs.com.tls_ca_file=\(gmail.directory)/ca.pem",
        ]
        try await bench.start(overrides)
        let pid = bench.daemon.pid
        let stage = Stage(bench: bench, gmail: gmail, overrides: overrides)
        try await body(stage)
        #expect(bench.daemon.pid == pid && bench.daemon.isRunning, "the relay was restarted or has ended")
        stage.tell(scenario)
      } catch {
        Issue.record("the sandbox said:\n\(gmail.said.suffix(3000))")
        gmail.program.signal(SIGKILL)
        _ = await gmail.program.exit()
        throw error
      }
      gmail.program.signal(SIGTERM)
      #expect(await gmail.program.exit(within: 20) == 0)
    }
  }

  /// Hands messages to the relay, each to another alias, and returns their ids.
  func submit(_ count: Int, bytes: Int = 200, as prefix: String = "m") throws -> [String] {
    let client = try Client(port: bench.port)
    return try (1...count).map { number in
      let id = "\(prefix)-\(number)"
      let alias = ["sales", "support", "legal", "privacy"][(number - 1) % 4]
      let reply = try client.deliver(to: "contact-\(alias)@mailer.dreamlikelabs.com", Letter.text(id, bytes: bytes))
      #expect(reply.hasPrefix("250"), "\(reply)")
      return id
    }
  }

  /// Waits until `status` shows all of these, and returns it.
  @discardableResult
  func status(shows texts: String..., sourceLocation: SourceLocation = #_sourceLocation) async throws -> String {
    var status = ""
    try await until("status shows \(texts)", sourceLocation: sourceLocation) {
      status = try await bench.relay("status").output
      return texts.allSatisfy(status.contains)
    }
    return status
  }

  func retryAll() async throws { #expect(try await bench.relay("queue", "retry", "--all").status == 0) }

  /// Waits until the sandbox has every id and the queue is empty. Nothing may have come back, and nothing twice.
  func arrived(
    _ ids: [String], atMost copies: Int = 1, bounces: Int = 0, sourceLocation: SourceLocation = #_sourceLocation
  ) async throws {
    try await until("all of \(ids) have arrived", sourceLocation: sourceLocation) {
      Set(ids).isSubset(of: gmail.messages.compactMap(\.id))
    }
    try await bench.emptied()
    let messages = gmail.messages
    for id in ids {
      let count = messages.count { $0.id == id }
      #expect((1...copies).contains(count), "\(id) arrived \(count) times", sourceLocation: sourceLocation)
    }
    #expect(messages.count { $0.isBounce } == bounces, "bounces", sourceLocation: sourceLocation)
  }

  /// For the record, where `SSMTP_MAILER_SCENARIOS` names a file.
  func note(_ text: String) {
    guard let path = getenv("SSMTP_MAILER_SCENARIOS"), let file = fopen(path, "a") else { return }
    fputs(text.hasSuffix("\n") ? text : text + "\n", file)
    fclose(file)
  }

  private func tell(_ scenario: String) {
    let messages = gmail.messages
    let copies = Dictionary(grouping: messages.compactMap(\.id)) { $0 }.values.map(\.count)
    note(
      "== \(scenario): \(copies.count) messages arrived, \(copies.count { $0 > 1 }) of them twice, "
        + "\(messages.count { $0.isBounce }) bounces\n")
  }
}

private let hasIPv6: Bool = {
  guard let endpoint = Endpoint("[::1]:0"), let listener = try? Listener(bindingTo: endpoint) else { return false }
  listener.close()
  return true
}()

extension EndToEnd {
  @Suite struct Scenarios {
    @Test(
      .timeLimit(.minutes(2)),
      arguments: [
        ("bad-credentials", "Username and Password not accepted", "app password"),
        ("too-many-logins", "Too many login attempts", "wait"),
      ])
    func refusedLoginsHoldTheMailAndSayWhy(scenario: String, words: String, advice: String) async throws {
      try await Stage.run(scenario) { stage in
        let ids = try stage.submit(3)
        let status = try await stage.status(shows: "on hold", words)
        #expect(status.contains("→") && status.contains(advice), "\(status)")
        stage.note(status)
        let test = try await stage.bench.command(
          Bench.binary, ["test", "--config", stage.bench.configuration] + stage.overrides)
        #expect(test.status == (scenario == "bad-credentials" ? 78 : 75), "\(test.output)")
        #expect(test.output.contains("ends at auth"), "\(test.output)")
        #expect(stage.gmail.messages.isEmpty)
        try await stage.gmail.recover()
        try await stage.retryAll()
        try await stage.arrived(ids)
        #expect(try await !stage.bench.relay("status").output.contains("on hold"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func whatExceedsTheDailyLimitWaits() async throws {
      try await Stage.run("daily-limit:2") { stage in
        let ids = try stage.submit(5)
        let status = try await stage.status(shows: "daily limit", "Daily user sending limit exceeded", "5.4.5")
        stage.note(status)
        #expect(stage.gmail.messages.count <= 2)
        try await stage.gmail.recover()
        try await stage.retryAll()
        try await stage.arrived(ids)
        #expect(try await !stage.bench.relay("status").output.contains("daily limit"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func aSlowServerIsWaitedFor() async throws {
      try await Stage.run("tarpit:1") { stage in
        let slow = try stage.submit(3)
        try await until("the relay is in the tar") { stage.gmail.messages.count >= 1 }
        stage.note(try await stage.status(shows: "dreamlikelabs.com"))
        #expect(try await !stage.bench.relay("status").output.contains("on hold"))
        try await stage.arrived(slow)
        try await stage.gmail.recover()
        let start = SystemTime().now
        try await stage.arrived(slow + stage.submit(3, as: "fast"))
        stage.note("afterwards 3 messages took \(SystemTime().now - start)")
      }
    }

    @Test(.timeLimit(.minutes(2))) func aGreylistedRecipientIsTriedAgain() async throws {
      try await Stage.run("greylist:1") { stage in
        let ids = try stage.submit(3)
        var list = ""
        try await until("all three are put off") {
          list = try await stage.bench.relay("queue", "list", "--state", "deferred").output
          return list.contains("3 messages")
        }
        #expect(list.contains("450 4.2.1"), "\(list)")
        stage.note(list)
        // It is about a recipient: the account goes on sending.
        #expect(try await !stage.bench.relay("status").output.contains("on hold"))
        try await stage.retryAll()
        try await stage.arrived(ids)
      }
    }

    @Test(.timeLimit(.minutes(2))) func aMessageInDoubtIsSentAgainRatherThanLost() async throws {
      try await Stage.run("drop-after-dot:1") { stage in
        let ids = try stage.submit(3)
        try await stage.bench.waitForLog("in doubt")
        stage.note(try await stage.status(shows: "IN DOUBT"))
        try await until("everything has been sent, and what is in doubt again") {
          try await stage.retryAll()
          return try await stage.bench.relay("queue", "list").output.contains("no messages")
        }
        try await stage.arrived(ids, atMost: 2)
        #expect(stage.gmail.messages.count > ids.count, "nothing was in doubt")
      }
    }

    @Test(.timeLimit(.minutes(2))) func onlyWhatIsTooLargeComesBack() async throws {
      try await Stage.run("size:20000") { stage in
        let small = try stage.submit(2, as: "small")
        _ = try stage.submit(1, bytes: 50_000, as: "large")
        try await until("the sender is told") { stage.gmail.messages.contains { $0.isBounce } }
        try await stage.arrived(small, bounces: 1)
        let bounce = try #require(stage.gmail.messages.first { $0.isBounce })
        let words = bounce.text.split(whereSeparator: \.isWhitespace).joined(separator: " ")
        #expect(words.contains("Your message exceeded Google's message size limits"), "\(bounce.text)")
        #expect(words.contains("Status: 5.3.4"))
        #expect(!stage.gmail.messages.contains { $0.id == "large-1" })
        let status = try await stage.status(shows: "dreamlikelabs.com")
        #expect(!status.contains("on hold"), "\(status)")
        stage.note(status)
        try await stage.gmail.recover()
        try await stage.arrived(stage.submit(1, bytes: 50_000, as: "again"), bounces: 1)
      }
    }

    @Test(.timeLimit(.minutes(2)), .enabled(if: hasIPv6, "this machine has no ::1"))
    func anAddressThatDiesIsReplacedByTheOther() async throws {
      // The name of the sandbox is localhost, which is ::1 and 127.0.0.1.
      try await Stage.run("drift:3", ["--second-address", "::1"]) { stage in
        try await stage.arrived(stage.submit(3))
        #expect(stage.bench.log.contains(" to localhost[127.0.0.1]:"), "there was no connection that could die")
        func addresses() async throws -> String {
          try await stage.bench.command(
            Bench.binary, ["test", "--config", stage.bench.configuration] + stage.overrides
          ).output
        }
        var test = ""
        try await until("the first address is dead") {
          test = try await addresses()
          return test.contains("! tcp")
        }
        #expect(test.contains("all well: 1 upstream can send, with 1 warning"), "\(test)")
        stage.note(test)
        // Several, so that connections to both addresses would be tried.
        for round in 1...3 { try await stage.arrived(stage.submit(4, as: "round\(round)")) }
        #expect(stage.bench.log.contains("relay=localhost[::1]:"), "mail did not go by the other address")
        stage.note(try await stage.status(shows: "dreamlikelabs.com"))
        try await stage.gmail.recover()
        #expect(try await !addresses().contains("! tcp"))
        try await stage.arrived(stage.submit(4, as: "after"))
      }
    }

    @Test(.timeLimit(.minutes(1))) func scenariosAreListedAndEndByThemselves() async throws {
      try await Bench.run { bench in
        let list = try await bench.command(Bench.binary, ["sandbox", "--list-scenarios"])
        #expect(list.status == 0)
        for scenario in Scenario.allCases { #expect(list.output.contains("\(scenario.rawValue)\n")) }
        #expect(list.output.contains("https://support.google.com/mail/?p=BadCredentials"))
        for wrong in [
          ["--scenario", "bad-credential"], ["--scenario", "tarpit:slow"], ["--scenario-for", "30s"],
          ["--scenario", "drift", "--scenario-for", "soon"],
        ] {
          let answer = try await bench.command(Bench.binary, ["sandbox", "--port", "0"] + wrong)
          #expect(answer.status == 64, "\(wrong): \(answer.errors)")
        }
        let gmail = try LocalGmail(in: bench.folder, ["--scenario", "bad-credentials", "--scenario-for", "1s"])
        _ = try await gmail.port()
        try await until("it is over by itself") { gmail.said.contains("all is well again") }
        gmail.program.signal(SIGTERM)
        #expect(await gmail.program.exit(within: 20) == 0)
      }
    }
  }
}
