// Users with a password and the mail clients they have: who gets in, as whom, and what becomes of who guesses.

import Glibc
import Network
import Primitives
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct SubmissionPorts {
    static let user = "jane@example.org"
    static let password = "velvet-harbour-91"

    /// The relay with both ports and a user, and their numbers.
    private static func run(
      _ settings: [String] = [], _ body: (Bench, _ submission: UInt16, _ smtps: UInt16) async throws -> Void
    ) async throws {
      try await Bench.run(starts: false) { bench in
        let listeners = try (0..<2).map { _ in try Listener(bindingTo: Endpoint("127.0.0.1:0")!) }
        let ports = listeners.map(\.endpoint.port)
        for listener in listeners { listener.close() }
        mkdir("\(bench.folder)/etc/ssl", 0o755)
        for name in ["cert.pem", "key.pem"] {
          #expect(
            try await bench.command("cp", ["\(bench.folder)/\(name)", "\(bench.folder)/etc/ssl/\(name)"]).status == 0)
        }
        let lines = ["listen_submission = 127.0.0.1:\(ports[0])", "listen_smtps = 127.0.0.1:\(ports[1])"] + settings
        try Files.write(
          Files.read(bench.configuration) + lines.joined(separator: "\n") + "\n", to: bench.configuration)
        try await setPassword(bench, password)
        try await bench.start()
        try await body(bench, ports[0], ports[1])
        #expect(!bench.log.contains(password) && !bench.log.contains("$y$"))
        let shown = try await bench.relay("config", "show").output
        #expect(shown.contains("password_hash = <redacted>") && !shown.contains("$y$"))
      }
    }

    private static func setPassword(_ bench: Bench, _ password: String) async throws {
      let outcome = try await bench.command(
        Bench.binary, ["user", "set-password", user, "--create", "--config", bench.configuration],
        input: password + "\n")
      #expect(outcome.status == 0 && outcome.errors.contains("systemctl reload"), "\(outcome)")
      #expect(outcome.output.isEmpty)
    }

    /// One login and one message of Python's own library, or the reply that refused it.
    private static func python(
      _ bench: Bench, _ port: UInt16, tls: Bool, user: String = user, password: String = password,
      from sender: String = user, to recipient: String = "contact-legal@mailer.dreamlikelabs.com",
      mechanism: String? = nil
    ) async throws -> String {
      let login =
        mechanism.map { "s.auth('\($0)', s.auth_\($0.lowercased()))" } ?? "s.login('\(user)', '\(password)')"
      let script = """
        import smtplib, ssl
        c = ssl.create_default_context(cafile="\(bench.folder)/ca.pem")
        try:
          if \(tls ? "True" : "False"):
            s = smtplib.SMTP_SSL("localhost", \(port), timeout=60, context=c)
          else:
            s = smtplib.SMTP("localhost", \(port), timeout=60)
            s.starttls(context=c)
          s.ehlo()
          s.user, s.password = "\(user)", "\(password)"
          \(login)
          s.sendmail("\(sender)", ["\(recipient)"], b"Subject: python\\r\\n\\r\\nhello\\r\\n")
          s.quit()
          print("sent")
        except smtplib.SMTPSenderRefused as e: print(e.smtp_code, e.smtp_error.decode())
        except smtplib.SMTPResponseException as e: print(e.smtp_code, e.smtp_error.decode())
        """
      let outcome = try await bench.command("python3", ["-c", script])
      #expect(outcome.status == 0, "\(outcome.errors)")
      return outcome.output.trimmingSuffix("\n")
    }

    @Test(.timeLimit(.minutes(4))) func usersLogInWithTheClientsTheyHave() async throws {
      try await Self.run { bench, submission, smtps in
        let (ca, file) = ("\(bench.folder)/ca.pem", "\(bench.folder)/message")
        let recipient = "someone@elsewhere.example"
        try Files.write("From: \(Self.user)\nTo: \(recipient)\nSubject: Test\n\nhello\n", to: file)
        var expected = 0
        func deliver(_ program: String, _ arguments: [String], input: String? = nil) async throws {
          guard try await bench.command("sh", ["-c", "command -v \(program)"]).status == 0 else {
            return print("SKIPPED: \(program) is not installed; scripts/test brings it")
          }
          let outcome = try await bench.command(program, arguments, input: input)
          if outcome.output.contains("requires Net::SSLeay") {
            return print("SKIPPED: swaks without libnet-ssleay-perl; scripts/test brings it")
          }
          #expect(outcome.status == 0, "\(program) \(arguments): \(outcome)")
          expected += 1
        }
        for (port, tls) in [(submission, ["-tls"]), (smtps, ["-tlsc"])] {
          for mechanism in ["PLAIN", "LOGIN"] {
            try await deliver(
              "swaks",
              ["--server", "localhost:\(port)", "--auth", mechanism, "--auth-user", Self.user, "--auth-password"]
                + [Self.password, "--from", Self.user, "--to", recipient, "--data", "Subject: swaks\n\nhello"] + tls)
          }
        }
        for url in ["smtp://localhost:\(submission)", "smtps://localhost:\(smtps)"] {
          for mechanism in ["PLAIN", "LOGIN"] {
            try await deliver(
              "curl",
              ["-sS", url, "--ssl-reqd", "--cacert", ca, "--user", "\(Self.user):\(Self.password)"]
                + ["--login-options", "AUTH=\(mechanism)", "--mail-from", Self.user, "--mail-rcpt", recipient]
                + ["-T", file, "--crlf"])
          }
        }
        for (port, starttls) in [(submission, "on"), (smtps, "off")] {
          for mechanism in ["plain", "login"] {
            try await deliver(
              "msmtp",
              [
                "--host=localhost", "--port=\(port)", "--tls=on", "--tls-starttls=\(starttls)",
                "--tls-trust-file=\(ca)",
              ]
                + ["--auth=\(mechanism)", "--user=\(Self.user)", "--passwordeval=echo \(Self.password)"]
                + ["--from=\(Self.user)", recipient], input: Files.read(file))
          }
        }
        for (port, tls) in [(submission, false), (smtps, true)] {
          for mechanism in ["PLAIN", "LOGIN"] {
            let said = try await Self.python(bench, port, tls: tls, to: recipient, mechanism: mechanism)
            #expect(said == "sent")
            expected += 1
          }
        }
        let messages = try await bench.arrived(expected)
        #expect(messages.count == expected && expected >= 4)
        for message in messages {
          #expect(message.recipients == [recipient])
          #expect(message.field("Date") != nil && message.field("Message-ID") != nil)
          let received = String(decoding: message.content.prefix(1000), as: UTF8.self)
          #expect(received.contains("with ESMTPSA"), "\(received)")
        }
        try await bench.emptied()
        #expect(bench.log.occurrences(of: ": logged in, user=<\(Self.user)>") == expected)
        let status = try await bench.relay("status").output
        #expect(status.contains("127.0.0.1:\(submission) (submission), 127.0.0.1:\(smtps) (smtps)"), "\(status)")
        #expect(status.contains("\(expected) in all, 0 failed"), "\(status)")
      }
    }

    @Test(.timeLimit(.minutes(2))) func userSendsAsItselfAlone() async throws {
      try await Self.run { bench, submission, smtps in
        #expect(
          try await Self.python(bench, submission, tls: false, from: "boss@example.org")
            == "550 5.7.1 <boss@example.org> is not an address of jane@example.org: send from your own address")
        let path = "\(bench.folder)/etc/users/\(Self.user).conf"
        try Files.write(Files.read(path) + "send_as = boss@example.org\n", to: path)
        let explained = try await bench.relay(
          "explain", "x@elsewhere.example", "--from", "boss@example.org", "--auth", Self.user)
        #expect(explained.status == 0, "\(explained)")
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("configuration reloaded")
        #expect(try await Self.python(bench, smtps, tls: true, from: "boss@example.org") == "sent")
        let messages = try await bench.arrived(1)
        #expect(messages.map(\.reversePath) == ["boss@example.org"])
        let refused = try await bench.relay(
          "explain", "x@elsewhere.example", "--from", "other@example.org", "--auth", Self.user)
        #expect(refused.status == 77 && refused.output.contains("is not an address of"), "\(refused)")
      }
    }

    @Test(.timeLimit(.minutes(3))) func whoGuessesIsBannedAndFail2banSeesIt() async throws {
      try await Self.run(["trusted_networks = ::1", "auth_max_failures = 3", "auth_ban_time = 1h"]) {
        bench, submission, smtps in
        let names = ["jane@example.org", "nobody@example.org", "x> \\r\\n192.0.2.9: login failed, user=<a>"]
        for (index, name) in names.enumerated() {
          // Left to itself, smtplib tries the same again with LOGIN.
          let said = try await Self.python(
            bench, smtps, tls: true, user: name, password: "guess-\(index)", mechanism: "PLAIN")
          #expect(said.hasPrefix(index < 2 ? "535 5.7.8" : "421 4.7.0"), "\(said)")
        }
        for (port, tls) in [(submission, false), (smtps, true)] {
          #expect(try await Self.python(bench, port, tls: tls).hasPrefix("421 4.7.0"), "not even with the right one")
        }
        let client = try Client(port: bench.port)
        #expect(try client.say("MAIL FROM:<\"192.0.2.8: login failed, user=<a>\"@x>").hasPrefix("250"))
        #expect(try client.say("RCPT TO:<\"192.0.2.7: login failed, user=<a>\"@x>").hasPrefix("550"))
        _ = try client.say("RSET")
        #expect(
          try client.deliver(to: "contact-sales@mailer.dreamlikelabs.com", Letter.text("1")).hasPrefix("250"))
        let status = try await bench.relay("status").output
        #expect(status.contains("0 in all, 3 failed") && status.contains("127.0.0.1 until 20"), "\(status)")
        let metrics = try await bench.command(
          "curl", ["-sS", "--unix-socket", "\(bench.folder)/admin.sock", "http://localhost/metrics"]
        ).output
        for line in ["login_failures_total 3", "login_bans_total 1", "login_banned_addresses 1"] {
          #expect(metrics.contains("ssmtp_mailer_\(line)\n"), "\(metrics)")
        }
        #expect(metrics.contains("ssmtp_mailer_login_banned_connections_total 2\n"))

        // The filter finds the three failures, all of the one address, whatever the clients have said.
        try await bench.waitForLog("banned from logging in")
        let filter = "\(Bench.project)/etc/fail2ban/filter.d/ssmtp-mailer.conf"
        let script = """
          import re, configparser
          f = configparser.RawConfigParser(); f.read("\(filter)")
          r = f["Definition"]["failregex"].replace("%(_prefix)s", f["Definition"]["_prefix"])
          r = re.compile(r.replace("<HOST>", "(?P<host>[0-9A-Fa-f:.]+)"))
          lines = [l.rstrip("\\n").split("Z", 1)[1] for l in open("\(bench.folder)/relay.log") if "Z " in l]
          print(*[m["host"] for m in map(r.search, lines) if m])
          lines = [re.sub("^ [A-Z]+", " host ssmtp-mailer[7]:", l) for l in lines]
          print(*[m["host"] for m in map(r.search, lines) if m])
          """
        let found = try await bench.command("python3", ["-c", script])
        #expect(found.output == String(repeating: "127.0.0.1 127.0.0.1 127.0.0.1\n", count: 2), "\(found)")
        let path = getenv("SSMTP_MAILER_FAIL2BAN_REGEX").map { String(cString: $0) } ?? "fail2ban-regex"
        guard try await bench.command("sh", ["-c", "command -v \(path)"]).status == 0 else {
          return print("SKIPPED: fail2ban-regex is not there; scripts/test brings it")
        }
        let real = try await bench.command(path, ["\(bench.folder)/relay.log", filter])
        #expect(real.output.contains(", 3 matched,"), "\(real)")
      }
    }

    @Test(.timeLimit(.minutes(2))) func newPasswordCountsAfterTheReload() async throws {
      try await Self.run { bench, submission, smtps in
        #expect(try await Self.python(bench, submission, tls: false) == "sent")
        try await Self.setPassword(bench, "another-secret-17")
        #expect(
          try await bench.command(
            Bench.binary, ["user", "check", Self.user, "--config", bench.configuration], input: "another-secret-17"
          ).status == 0)
        #expect(
          try await bench.command(
            Bench.binary, ["user", "check", Self.user, "--config", bench.configuration], input: Self.password
          ).status == 77)
        #expect(try await Self.python(bench, smtps, tls: true) == "sent", "the old one counts until the reload")
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("configuration reloaded")
        #expect(try await Self.python(bench, smtps, tls: true).hasPrefix("535 5.7.8"))
        #expect(try await Self.python(bench, smtps, tls: true, password: "another-secret-17") == "sent")
        #expect(!bench.log.contains("another-secret"))
        let list = try await bench.relay("user", "list").output
        #expect(list.contains("jane@example.org") && list.contains("set"), "\(list)")

        // Listeners stay until a restart, and the log says so.
        try Files.write(
          Files.read(bench.configuration).replacing("listen_smtps = ", with: "listen_smtps = 127.0.0.1:1, "),
          to: bench.configuration)
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("listen_smtps has changed: that takes effect with the next restart")
        #expect(bench.daemon.isRunning)
        #expect(await bench.stop() == 0)
      }
    }

    @Test(.timeLimit(.minutes(2))) func socketsOfSystemdHaveTheirRoles() async throws {
      try await Self.run { bench, submission, smtps in
        #expect(await bench.stop() == 0)
        guard try await bench.command("sh", ["-c", "command -v systemd-socket-activate"]).status == 0 else {
          return print("SKIPPED: systemd-socket-activate is not installed; scripts/test brings it")
        }
        // Other ports than those of the configuration, and in another order.
        let listeners = try (0..<2).map { _ in try Listener(bindingTo: Endpoint("127.0.0.1:0")!) }
        let ports = listeners.map(\.endpoint.port)
        for listener in listeners { listener.close() }
        func launch(_ names: String) throws -> Program {
          let program = try Program(
            "systemd-socket-activate",
            ["-l", "127.0.0.1:\(ports[0])", "-l", "127.0.0.1:\(ports[1])", "--fdname=\(names)", Bench.binary, "serve"]
              + ["--config", bench.configuration], output: "\(bench.folder)/activated.out",
            errors: "\(bench.folder)/activated.err")
          bench.ends(program)
          return program
        }
        let before = bench.log.occurrences(of: "is ready on")
        let daemon = try launch("smtps:smtp")
        // It starts with the first connection, which then waits for it.
        try await until("systemd listens") { (try? Client(port: ports[1], hello: nil)) != nil }
        try await until("the daemon is ready") { bench.log.occurrences(of: "is ready on") > before }
        #expect(try await Self.python(bench, ports[0], tls: true) == "sent")
        #expect(try await Self.python(bench, submission, tls: false) == "sent", "this role was not handed over")
        let status = try await bench.relay("status").output
        #expect(
          status.contains(
            "127.0.0.1:\(ports[0]) (smtps), 127.0.0.1:\(ports[1]), 127.0.0.1:\(submission) (submission) as"),
          "\(status)")
        daemon.signal(SIGTERM)
        #expect(await daemon.exit() == 0)
        let other = try launch("smtp:imap")
        try await until("systemd listens") { (try? Client(port: ports[0], hello: nil)) != nil }
        #expect(await other.exit() != 0)
        #expect(Files.read("\(bench.folder)/activated.err").contains("a socket named imap: set FileDescriptorName="))
      }
    }

    @Test(.timeLimit(.minutes(1))) func submissionWithoutACertificateDoesNotStart() async throws {
      try await Bench.run(settings: ["listen_submission = 127.0.0.1:1"], starts: false) { bench in
        let daemon = try bench.launch()
        #expect(await daemon.exit(within: 30) == 78)
        #expect(bench.errors.contains("listen_submission needs a certificate"), "\(bench.errors)")
      }
    }
  }
}

extension String {
  fileprivate func trimmingSuffix(_ suffix: String) -> String {
    hasSuffix(suffix) ? String(dropLast(suffix.count)) : self
  }
}
