// Signals, reloads, bad starts, and the commands that an operator has.

import Glibc
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct Life {
    @Test(.timeLimit(.minutes(2))) func reloadReachesSessionsThatAreOpenAndABrokenOneIsRefused() async throws {
      try await Bench.run { bench in
        let good = Files.read(bench.mappings)
        let client = try Client(port: bench.port)
        _ = try client.say("MAIL FROM:<jane@example.org>")
        #expect(try client.say("RCPT TO:<contact-jobs@mailer.dreamlikelabs.com>").hasPrefix("550"))

        try Files.write(good + "\n[mapping:broken]\nfrom_patern = x\n", to: bench.mappings)
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("the configuration was not reloaded, the old one stays in force")
        #expect(bench.log.contains("from_patern"))
        #expect(try client.say("RCPT TO:<contact-sales@mailer.dreamlikelabs.com>").hasPrefix("250"))

        let jobs = """

          [mapping:jobs]
          from_pattern = contact-jobs@mailer.dreamlikelabs.com
          to_pattern = people@dreamlikelabs.com
          smtp_account = mail-relay@dreamlikelabs.com
          domain = dreamlikelabs.com
          """
        try Files.write(good + jobs, to: bench.mappings)
        rename("\(bench.folder)/relay.log", "\(bench.folder)/relay.log.1")
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("configuration reloaded")
        #expect(Files.read("\(bench.folder)/relay.log.1").contains("was not reloaded"))
        // A transaction keeps the rules it began with; the next one has the new.
        #expect(try client.say("RCPT TO:<contact-jobs@mailer.dreamlikelabs.com>").hasPrefix("550"))
        _ = try client.say("RSET")
        _ = try client.say("MAIL FROM:<jane@example.org>")
        #expect(try client.say("RCPT TO:<contact-sales@mailer.dreamlikelabs.com>").hasPrefix("250"))
        #expect(try client.say("RCPT TO:<contact-jobs@mailer.dreamlikelabs.com>").hasPrefix("250"))
        #expect(try client.say("DATA").hasPrefix("354"))
        #expect(
          try {
            try client.send(Letter.text("reload") + ".\r\n")
            return try client.reply()
          }().hasPrefix("250"))
        let message = try await bench.arrived(1)[0]
        #expect(Set(message.recipients) == ["contact-sales@dreamlikelabs.com", "people@dreamlikelabs.com"])
        #expect(bench.daemon.isRunning)
      }
    }

    @Test(.timeLimit(.minutes(2))) func terminationInTheMiddleOfAMessageLetsItFinish() async throws {
      try await Bench.run { bench in
        let client = try Client(port: bench.port)
        let text = Letter.text("half", bytes: 100_000)
        for command in ["MAIL FROM:<jane@example.org>", "RCPT TO:<contact-sales@mailer.dreamlikelabs.com>", "DATA"] {
          _ = try client.say(command)
        }
        try client.send(String(text.prefix(text.count / 2)))
        bench.daemon.signal(SIGTERM)
        try await bench.waitForLog("stopping")
        try await until("nobody else is let in") {
          do { _ = try Client(port: bench.port) } catch { return true }
          return false
        }
        #expect(bench.daemon.isRunning)
        try client.send(String(text.dropFirst(text.count / 2)) + ".\r\n")
        #expect(try client.reply().hasPrefix("250"))
        #expect(await bench.daemon.exit(within: 40) == 0)
        #expect(bench.errors == "")
        try await bench.start()
        #expect(try await bench.arrived(1)[0].field("X-Test-ID") == "half")
        #expect(await bench.stop() == 0)
      }
    }

    @Test(.timeLimit(.minutes(2))) func commandsShowAndChangeTheQueue() async throws {
      try await Bench.run(rules: [.answer(.mail, "451 4.3.0 try later")]) { bench in
        let client = try Client(port: bench.port)
        for id in ["one", "two"] {
          #expect(try client.deliver(to: "contact-sales@mailer.dreamlikelabs.com", Letter.text(id)).hasPrefix("250"))
        }
        try await until("both are deferred") {
          try await bench.relay("queue", "list", "--state", "deferred").output.contains("2 messages")
        }
        let list = try await bench.relay("queue", "list").output.split(whereSeparator: \.isNewline)
        let ids = list.dropFirst().prefix(2).compactMap { $0.split(separator: " ").first.map(String.init) }
        try #require(ids.count == 2)
        let shown = try await bench.relay("queue", "show", ids[0])
        #expect(shown.status == 0)
        #expect(shown.output.contains("contact-sales@mailer.dreamlikelabs.com → contact-sales@dreamlikelabs.com"))
        #expect(shown.output.contains("451 4.3.0 try later"))
        #expect(shown.output.contains("X-Test-ID: "))
        #expect(try await bench.relay("queue", "show", "nonsense").status == 65)
        #expect(try await bench.relay("queue", "delete", ids[0]).status == 0)
        #expect(try await bench.relay("queue", "delete", ids[0]).status == 65)
        let status = try await bench.relay("status")
        #expect(status.status == 0)
        #expect(status.output.contains("1 message,"), "\(status.output)")
        bench.upstream.follow([])
        #expect(try await bench.relay("queue", "retry", ids[1]).status == 0)
        let messages = try await bench.arrived(1)
        try await bench.emptied()
        #expect(messages.count == 1)
        #expect(try await bench.relay("queue").output.contains("no messages in the queue"))

        let explained = try await bench.relay("explain", "contact-legal@mailer.dreamlikelabs.com")
        #expect(explained.status == 0)
        #expect(explained.output.contains("contact-legal@dreamlikelabs.com"))
        #expect(try await bench.relay("explain", "nobody@mailer.dreamlikelabs.com").status == 77)
        #expect(try await bench.relay("test").status == 0)
        let sent = try await bench.relay(
          "send", "--from", "jane@example.org", "--to", "contact-privacy@mailer.dreamlikelabs.com", "--subject", "Hi",
          "--body", "Hello")
        #expect(sent.status == 0)
        #expect(try await bench.arrived(2).last?.recipients == ["contact-privacy@dreamlikelabs.com"])
        for arguments in [
          ["queue", "list"], ["status"], ["config", "show"], ["explain", "contact-legal@mailer.dreamlikelabs.com"],
        ] {
          let answer = try await bench.command(Bench.binary, arguments + ["--json", "--config", bench.configuration])
          #expect(answer.status == 0)
          #expect(answer.output.hasPrefix("{") || answer.output.hasPrefix("["), "\(answer.output)")
        }
        #expect(try await bench.relay("config", "check").status == 0)
        let show = try await bench.relay("config", "show")
        #expect(show.output.contains("password = "))
        #expect(try await bench.relay("queue", "frobnicate").status == 64)
        #expect(await bench.stop() == 0)
        #expect(try await bench.relay("status").status == 69)
        #expect(try await bench.relay("queue", "list").status == 0)
        try Files.write(Files.read(bench.configuration) + "retry_shedule = 1m\n", to: bench.configuration)
        let check = try await bench.relay("config", "check")
        #expect(check.status == 78)
        #expect(check.errors.contains("retry_schedule"), "\(check.errors)")
        let daemon = try bench.launch(errors: "broken.err")
        #expect(await daemon.exit(within: 20) == 78)
        #expect(Files.read("\(bench.folder)/broken.err").contains("retry_schedule"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func aStartWaitsForACommandThatHasTheQueue() async throws {
      try await Bench.run { bench in
        #expect(await bench.stop() == 0)
        // As a command has it whose output a pager holds up.
        let lock = open("\(bench.queue)/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        try #require(lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) == 0)
        let daemon = try bench.launch()
        try await bench.waitForLog("has the queue \(bench.queue): waiting")
        #expect(daemon.isRunning)
        let before = bench.log.occurrences(of: "is ready on")
        close(lock)
        try await until("the daemon is ready") { bench.log.occurrences(of: "is ready on") > before }
        #expect(await bench.stop() == 0)
      }
    }

    @Test(.timeLimit(.minutes(2))) func badStartsSayWhatIsWrong() async throws {
      try await Bench.run { bench in
        let first = bench.daemon
        func attempt(_ name: String, _ arguments: [String]) async throws -> (status: Int32, errors: String) {
          let daemon = try bench.launch(arguments, errors: "\(name).err")
          return (await daemon.exit(within: 50), Files.read("\(bench.folder)/\(name).err"))
        }
        let port = try await attempt("port", ["--set", "global.queue_dir=\(bench.folder)/queue2"])
        #expect(port.status == 71)
        #expect(port.errors.contains("127.0.0.1:\(bench.port)"), "\(port.errors)")

        let free = ["--set", "global.listen=127.0.0.1:0", "--set", "global.admin_socket=\(bench.folder)/second.sock"]
        let locked = try await attempt("locked", free)
        #expect(locked.status == 73)
        #expect(locked.errors.contains("the queue is in use by process \(first.pid)"), "\(locked.errors)")
        #expect(bench.log.contains("process \(first.pid) has the queue"))
        #expect(try await bench.relay("status").status == 0)

        // Root may write everywhere, so the read-only case is tested under systemd.
        try Files.write("", to: "\(bench.folder)/file")
        for (name, path) in [("file", "\(bench.folder)/file"), ("nowhere", "\(bench.folder)/missing/queue")] {
          let unusable = try await attempt(name, free + ["--set", "global.queue_dir=\(path)"])
          #expect(unusable.status == 73)
          #expect(unusable.errors.contains("cannot use \(path)"), "\(unusable.errors)")
        }
        #expect(first.isRunning)
      }
    }
  }
}
