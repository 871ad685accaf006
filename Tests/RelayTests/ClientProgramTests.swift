// The clients that people have: each hands over a message as it does everywhere, and it arrives rewritten.

import Glibc
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct RealClients {
    struct Case: Sendable, CustomTestStringConvertible {
      var program: String
      /// `PORT`, `FILE`, `FROM` and `TO` stand for what the test knows.
      var arguments: [String]
      var readsMessage = false
      var testDescription: String { program }
    }

    static let cases = [
      Case(
        program: "curl",
        arguments: ["-sS", "smtp://127.0.0.1:PORT", "--mail-from", "FROM", "--mail-rcpt", "TO", "-T", "FILE"]),
      Case(
        program: "swaks",
        arguments: ["--server", "127.0.0.1:PORT", "--from", "FROM", "--to", "TO", "--data", "@FILE", "--hide-all"]),
      Case(
        program: "msmtp",
        arguments: ["--host=127.0.0.1", "--port=PORT", "--auth=off", "--tls=off", "--from=FROM", "TO"],
        readsMessage: true),
      Case(
        program: "python3",
        arguments: [
          "-c",
          """
          import smtplib
          with smtplib.SMTP("127.0.0.1", PORT, timeout=30) as server:
            server.sendmail("FROM", ["TO"], open("FILE", "rb").read())
          """,
        ]),
      Case(
        program: "smtp-source",
        arguments: ["-c", "-s", "4", "-m", "20", "-l", "4000", "-f", "FROM", "-t", "TO", "127.0.0.1:PORT"]),
    ]

    @Test(.timeLimit(.minutes(2)), arguments: cases)
    func messageOfARealClientArrivesRewritten(_ client: Case) async throws {
      try await Bench.run { bench in
        guard let program = try await find(client.program, bench) else { return }
        let file = "\(bench.folder)/message"
        let text = Letter.text(client.program).replacing("\r\n", with: client.readsMessage ? "\n" : "\r\n")
        try Files.write(text, to: file)
        let arguments = client.arguments.map {
          // The file comes last: its random name may hold one of the other words.
          $0.replacing("PORT", with: "\(bench.port)").replacing("FROM", with: "jane@example.org")
            .replacing("TO", with: "contact-legal@mailer.dreamlikelabs.com").replacing("FILE", with: file)
        }
        let outcome = try await bench.command(program, arguments, input: client.readsMessage ? text : nil)
        #expect(outcome.status == 0, "\(outcome)")
        let count = client.program == "smtp-source" ? 20 : 1
        let messages = try await bench.arrived(count)
        #expect(messages.count == count)
        for message in messages {
          #expect(message.recipients == ["contact-legal@dreamlikelabs.com"])
          #expect(message.reversePath.hasSuffix("@example.org") || message.reversePath == Bench.account)
          #expect(message.tlsVersion == "TLSv1.3")
          #expect(message.authenticatedUser == Bench.account)
          #expect(message.field("Received") != nil)
        }
        if count == 1 { #expect(messages[0].field("X-Test-ID") == client.program) }
        try await bench.emptied()
        #expect(bench.upstream.statistics.violations == [])
      }
    }

    /// The path of a program, or nil and a line that says what was left out. `SSMTP_MAILER_SMTP_SOURCE` is what
    /// scripts/test has unpacked: installing postfix would start a mail server.
    private func find(_ name: String, _ bench: Bench) async throws -> String? {
      if name == "smtp-source", let path = getenv("SSMTP_MAILER_SMTP_SOURCE") { return String(cString: path) }
      if try await bench.command("sh", ["-c", "command -v \(name)"]).status == 0 { return name }
      print("SKIPPED: \(name) is not installed; scripts/test brings it")
      return nil
    }
  }
}
