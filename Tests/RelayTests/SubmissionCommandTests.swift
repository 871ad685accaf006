// Mail from programs of this machine: `send`, and the binary called as sendmail, mailq and newaliases.

import Glibc
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct SubmissionCommands {
    private static let host = "mailer.dreamlikelabs.com"
    private static let support = "contact-support@mailer.dreamlikelabs.com"

    /// A folder with the links that an installation makes.
    private func links(_ bench: Bench) throws -> String {
      let folder = "\(bench.folder)/bin"
      mkdir(folder, 0o755)
      for name in ["sendmail", "mailq", "newaliases"] {
        try #require(symlink(Bench.binary, "\(folder)/\(name)") == 0)
      }
      return folder
    }

    private func sendmail(
      _ bench: Bench, _ arguments: [String], _ input: String, program: String = "sendmail"
    ) async throws -> Outcome {
      let path = "\(bench.folder)/bin/\(program)"
      if access(path, F_OK) != 0 { _ = try links(bench) }
      return try await bench.command(path, ["-C", bench.configuration] + arguments, input: input)
    }

    private static func text(_ message: ReceivedMessage) -> String { String(decoding: message.content, as: UTF8.self) }

    // MARK: From and envelope

    @Test(.timeLimit(.minutes(2))) func repliesReachTheAuthorAndBouncesComeHome() async throws {
      try await Bench.run(settings: ["srs_secret = hazel-copper-meadow-88"], starts: false) { bench in
        let file = "\(bench.folder)/etc/domains/dreamlikelabs.com.conf"
        try Files.write(Files.read(file) + "from_header = via\nenvelope_sender = srs\n", to: file)
        chmod(file, 0o600)
        chmod(bench.configuration, 0o640)
        try await bench.start()
        let client = try Client(port: bench.port)
        let large = String(repeating: "0123456789\r\n", count: 60_000)
        for body in ["short\r\n.\r\n", large] {
          let content = "From: =?UTF-8?Q?J=C3=B6rg?= <joerg@example.org>\r\nSubject: x\r\n\r\n" + body
          let stuffed = content.replacing("\r\n.", with: "\r\n..")
          #expect(try client.deliver(from: "joerg@example.org", to: Self.support, stuffed).hasPrefix("250"))
        }
        let messages = try await bench.arrived(2)
        for message in messages {
          // Jörg via Support.
          let from = "\r\nFrom: =?UTF-8?B?SsO2cmcgdmlhIFN1cHBvcnQ=?= <\(Bench.account)>\r\nReply-To: "
          #expect(Self.text(message).contains(from))
          #expect(message.field("Reply-To")?.hasSuffix("<joerg@example.org>") == true)
          #expect(message.field("X-Original-From") == "=?UTF-8?Q?J=C3=B6rg?= <joerg@example.org>")
          #expect(message.reversePath.hasPrefix("SRS0=") && message.reversePath.hasSuffix("@\(Self.host)"))
          #expect(message.parameters.contains("SIZE=\(message.content.count)"))
        }
        let bodies = messages.map { Self.text($0).split(separator: "\r\n\r\n", maxSplits: 1)[1] }
        #expect(bodies.contains("short\r\n.\r\n") && bodies.contains { $0 == large })
        let home = messages[0].reversePath
        #expect(try client.deliver(from: "", to: home, "Subject: bounce\r\n\r\n").hasPrefix("250"))
        #expect(try await bench.arrived(3)[2].recipients == ["joerg@example.org"])
        #expect(bench.upstream.messages[2].reversePath == "")
        #expect(try client.say("RSET").hasPrefix("250"))
        let forged = home.replacing("=joerg@", with: "=victim@")
        #expect(try client.deliver(from: "", to: forged, "x\r\n").hasPrefix("550 5.7.1"))
        #expect(try client.say("RSET").hasPrefix("250"))
        #expect(try client.deliver(from: "a@b.test", to: home, "x\r\n").hasPrefix("550 5.7.1"))
        try await bench.emptied()
        #expect(bench.upstream.statistics.violations == [])
      }
    }

    // MARK: send

    @Test(.timeLimit(.minutes(2))) func sendWaitsForTheVerdictOfTheUpstream() async throws {
      let rules: [Rule] = [
        .recipient("nobody@", "550 5.1.1 The email account does not exist. gsmtp"),
        .recipient("later@", "451 4.3.0 try again later gsmtp"),
      ]
      try await Bench.run(rules: rules) { bench in
        let send = ["send", "--from", "ops@dreamlikelabs.com", "--subject", "Grüße", "--body", "x"]
        func relay(_ arguments: [String]) async throws -> Outcome {
          try await bench.command(Bench.binary, send + arguments + ["--config", bench.configuration])
        }
        let good = try await relay(["--to", Self.support, "--wait"])
        #expect(good.status == 0, "\(good)")
        // The id comes first, also through a pipe: the waiting may be cut off.
        #expect(good.output.hasPrefix("queued as "), "\(good)")
        #expect(
          good.output.contains("<contact-support@dreamlikelabs.com> delivered by ")
            && good.output.contains(": 250 2.0.0"))
        let bad = try await relay(["--to", "nobody@example.org", "--wait", "1m"])
        #expect(bad.status == 65 && bad.output.contains("refused by") && bad.output.contains("550 5.1.1"), "\(bad)")
        let late = try await relay(["--wait", "1s", "--to", "later@example.org"])
        #expect(
          late.status == 75 && late.output.contains("put off by") && late.output.contains("still waits"), "\(late)")
        #expect(try await relay(["--to", Self.support, "--wait", "soon"]).status == 64)
        // A daemon that ends while the verdict is waited for has the message all the same.
        func tries() -> Int { bench.log.split(separator: "\n").count { $0.contains("to=<later@example.org>") } }
        let before = tries()
        let waiting = send + ["--wait", "5s", "--to", "later@example.org", "--config", bench.configuration]
        async let orphan = bench.command(Bench.binary, waiting)
        try await until("it is tried") { tries() > before }
        #expect(await bench.stop() == 0)
        let left = try await orphan
        #expect(left.status == 75 && left.errors.contains("is queued, and what became of it"), "\(left)")
        #expect(try await relay(["--to", Self.support, "--wait"]).status == 69)
      }
    }

    @Test(.timeLimit(.minutes(2))) func sendMakesAMessageOfTextHTMLAndFiles() async throws {
      try await Bench.run { bench in
        let report = "\(bench.folder)/Übersicht 2026.pdf"
        try Files.write("%PDF", to: report)
        let html = "\(bench.folder)/page.html"
        try Files.write("<p>Hello <b>J&ouml;rg</b></p><a href=\"https://a.test\">here</a>", to: html)
        let outcome = try await bench.relay(
          "send", "--from", "Jörg <j@dreamlikelabs.com>", "--to", Self.support, "--cc", "ops@example.org", "--bcc",
          "secret@example.org", "--subject", "Grüße", "--html", html, "--attach", report, "--header", "X-Job: 7")
        #expect(outcome.status == 0, "\(outcome)")
        let message = try await bench.arrived(1)[0]
        let text = Self.text(message)
        #expect(message.recipients.contains("secret@example.org") && !text.contains("secret@example.org"))
        #expect(text.contains("Hello J=C3=B6rg") && text.contains("here <https://a.test>"))
        #expect(text.contains("Content-Type: application/pdf") && text.contains("filename*=UTF-8''%C3%9Cbersicht"))
        #expect(text.contains("multipart/alternative") && message.field("X-Job") == "7")
        #expect(try await bench.relay("send", "--to", Self.support, "--html", "no such file").status == 65)
      }
    }

    // MARK: sendmail

    @Test(.timeLimit(.minutes(2))) func cronsMailArrivesComplete() async throws {
      try await Bench.run { bench in
        let input = """
          From: root (Cron Daemon)
          To: contact-support
          Subject: Cron <root@host> /usr/bin/backup
          MIME-Version: 1.0
          Content-Type: text/plain; charset=UTF-8
          X-Cron-Env: <LOGNAME=root>

          10 %\r20 %
          .
          done
          """
        // As Debian's cron calls it.
        let arguments = ["-FCronDaemon", "-i", "-B8BITMIME", "-oem", "contact-support"]
        let outcome = try await sendmail(bench, arguments, input)
        #expect(outcome.status == 0 && outcome.output.isEmpty && outcome.errors.isEmpty, "\(outcome)")
        let message = try await bench.arrived(1)[0]
        #expect(message.recipients == ["contact-support@dreamlikelabs.com"])
        #expect(message.reversePath == "root@\(Self.host)" || message.reversePath.hasSuffix("@\(Self.host)"))
        #expect(message.field("From") == "Cron Daemon <root@\(Self.host)>")
        #expect(message.field("To") == "contact-support@\(Self.host)")
        #expect(message.field("Date") != nil && message.field("Message-ID") != nil)
        #expect(Self.text(message).hasSuffix("\r\n\r\n10 %\r\n20 %\r\n.\r\ndone\r\n"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func phpAndGitHandOverMail() async throws {
      try await Bench.run { bench in
        let php =
          "To: \(Self.support), Ops <ops@example.org>\nSubject: Form\nX-PHP-Originating-Script: 33:form.php\n"
          + "Bcc: hidden@example.org\nFrom: Web <www@dreamlikelabs.com>\n\nHi\n"
        #expect(try await sendmail(bench, ["-t", "-i"], php).status == 0)
        let first = try await bench.arrived(1)[0]
        #expect(
          Set(first.recipients) == ["contact-support@dreamlikelabs.com", "ops@example.org", "hidden@example.org"])
        #expect(!Self.text(first).contains("hidden@") && Self.text(first).hasSuffix("\r\n\r\nHi\r\n"))

        let patch =
          "From: Jane <jane@dreamlikelabs.com>\nTo: list@example.org\nSubject: [PATCH] x\n"
          + "Message-Id: <1@host>\nDate: Tue, 24 Nov 2026 10:00:00 +0100\n\n---\n file | 1 +\n"
        let git = try await sendmail(bench, ["-i", "-f", "jane@dreamlikelabs.com", "list@example.org"], patch)
        #expect(git.status == 0, "\(git)")
        let second = try await bench.arrived(2)[1]
        #expect(second.reversePath == "jane@dreamlikelabs.com" && second.recipients == ["list@example.org"])
        #expect(second.field("Message-Id") == "<1@host>")
        #expect(Self.text(second).occurrences(of: "Date:") == 1)
        try await bench.emptied()
      }
    }

    @Test(.timeLimit(.minutes(2))) func loneDotEndsInputAndTheHeaderMayBeMissing() async throws {
      try await Bench.run { bench in
        let outcome = try await sendmail(bench, ["-v", "-F", "Ops, Team", Self.support], "hello\n.\nnot this\n")
        #expect(outcome.status == 0 && outcome.output.hasPrefix("queued as "), "\(outcome)")
        let message = try await bench.arrived(1)[0]
        #expect(Self.text(message).hasSuffix("\r\n\r\nhello\r\n"))
        #expect(message.field("From")?.hasPrefix("\"Ops, Team\" <") == true)
        #expect(message.field("To") == "undisclosed-recipients:;")
      }
    }

    @Test(.timeLimit(.minutes(2))) func eachFailureHasItsExitStatus() async throws {
      try await Bench.run { bench in
        #expect(try await sendmail(bench, ["nobody-here"], "x\n").status == 67)
        #expect(try await sendmail(bench, [], "x\n").status == 64)
        #expect(try await sendmail(bench, ["-t"], "Subject: x\n\n").status == 64)
        #expect(try await sendmail(bench, ["-t"], "To: <<a b>\n\n").status == 65)
        let daemon = try await sendmail(bench, ["-bd"], "")
        #expect(daemon.status == 64 && daemon.errors.contains("systemctl start"))
        #expect(try await sendmail(bench, [], "", program: "newaliases").status == 0)
        #expect(try await sendmail(bench, [], "", program: "mailq").output == "Mail queue is empty\n")
        #expect(await bench.stop() == 0)
        let down = try await sendmail(bench, [Self.support], "x\n")
        #expect(down.status == 75 && down.errors.contains("NOT sent"), "\(down)")
        #expect(try await sendmail(bench, ["-bs"], "").status == 75)
      }
    }

    @Test(.timeLimit(.minutes(2))) func queueIsListedAsMailqDoes() async throws {
      try await Bench.run(rules: [.recipient("later@", "451 4.3.0 try again later gsmtp")]) { bench in
        #expect(try await sendmail(bench, ["-f", "a@dreamlikelabs.com", "later@example.org"], "x\n").status == 0)
        try await bench.waitForLog("status=deferred")
        try await until("the list shows the reason") {
          try await sendmail(bench, ["-bp"], "").output.contains("(451 4.3.0 try again later gsmtp)\n")
        }
        let lines = try await sendmail(bench, [], "", program: "mailq").output.split(separator: "\n")
        #expect(lines[0].hasPrefix("-Queue ID-") && lines[1].hasSuffix(" a@dreamlikelabs.com"))
        #expect(lines[3].hasSuffix("  later@example.org") && lines[4] == "-- 1 Kbytes in 1 Request.")
      }
    }

    @Test(.timeLimit(.minutes(2))) func smtpOnStandardInputIsTheDaemons() async throws {
      try await Bench.run { bench in
        let input =
          "EHLO me\r\nMAIL FROM:<a@dreamlikelabs.com>\r\nRCPT TO:<\(Self.support)>\r\nDATA\r\n"
          + "Subject: x\r\n\r\nHi\r\n.\r\nQUIT\r\n"
        let outcome = try await sendmail(bench, ["-bs"], input)
        #expect(outcome.status == 0 && outcome.output.hasPrefix("220 "), "\(outcome)")
        #expect(outcome.output.contains("250 2.0.0 Queued as ") && outcome.output.contains("\r\n221 "))
        #expect(try await bench.arrived(1)[0].recipients == ["contact-support@dreamlikelabs.com"])
      }
    }
  }
}
