// A sender outside is told of what failed, over the real binary, where a notification could die of what its message
// died of.

import Glibc
import Network
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct Notifications {
    private static let blocked =
      "552-5.7.0 This message was blocked because its content presents a potential\n552 5.7.0 security issue. gsmtp"

    /// Two upstreams and no `default_domain`; the other one comes first by its name, and nobody is there.
    @Test(.timeLimit(.minutes(2))) func outsideSenderIsToldWhateverTheMessageWasRefusedFor() async throws {
      let rules: [Rule] = [.noSMTPUTF8, .answer(.content, Self.blocked, times: 1)]
      try await Bench.run(rules: rules, starts: false) { bench in
        let other = "\(bench.folder)/etc/domains/another.conf"
        try Files.write(
          "[domain:another.test]\nsmtp_server = localhost\nsmtp_port = 1\nauth_method = NONE\n", to: other)
        chmod(other, 0o600)
        try await bench.start()
        let letters = [("RET=FULL", "secret body"), ("SMTPUTF8 RET=FULL", "another body")]
        for (number, (parameters, text)) in letters.enumerated() {
          let client = try Client(port: bench.port)
          #expect(try client.say("MAIL FROM:<jane@elsewhere.test> \(parameters)").hasPrefix("250"))
          #expect(try client.say("RCPT TO:<contact-sales@mailer.dreamlikelabs.com>").hasPrefix("250"))
          #expect(try client.say("DATA").hasPrefix("354"))
          try client.send("Subject: \(parameters)\r\n\r\n\(text)\r\n.\r\n")
          #expect(try client.reply().hasPrefix("250"))
          _ = try await bench.arrived(number + 1)
        }
        try await bench.emptied()
        let notices = bench.upstream.messages.filter { $0.reversePath.isEmpty }
        #expect(notices.count == 2 && notices.allSatisfy { $0.recipients == ["jane@elsewhere.test"] })
        #expect(notices.contains { $0.content.holds("Status: 5.7.0") && !$0.content.holds("secret body") })
        let own = notices.first { $0.content.holds("Status: 5.6.7") }
        #expect(own?.content.holds("another body") == false && own?.content.holds("Diagnostic-Code") == false)
        #expect(notices.allSatisfy { !$0.parameters.contains("SMTPUTF8") })
        let metrics = try await bench.command(
          "curl", ["-s", "--unix-socket", "\(bench.folder)/admin.sock", "http://localhost/metrics"])
        #expect(metrics.output.contains("ssmtp_mailer_notifications_total{kind=\"failure\"} 2\n"), "\(metrics.output)")
      }
    }
  }
}
