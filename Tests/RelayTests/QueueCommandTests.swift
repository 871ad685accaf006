// The queue commands of the real binary, with the daemon and without it.

import Glibc
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct QueueCommands {
    /// Puts messages into the queue whose every attempt is put off, and waits until each has been tried.
    func fill(
      _ bench: Bench, _ letters: [String], to alias: String = "contact-sales"
    ) async throws -> [String] {
      let client = try Client(port: bench.port)
      for letter in letters {
        let reply = try client.deliver(to: "\(alias)@mailer.dreamlikelabs.com", letter)
        #expect(reply.hasPrefix("250"), "\(reply)")
      }
      try await until("all are deferred") {
        let count = try await bench.relay("queue", "list", "--state", "deferred").output
        return count.contains("\(letters.count) message")
      }
      let json = try await bench.relay("queue", "list", "--json").output
      return json.split(separator: "\n").compactMap { line in
        line.split(separator: "\"").drop { $0 != "id" }.dropFirst(2).first.map(String.init)
      }
    }

    static let later = Rule.answer(.mail, "451 4.3.0 try later")

    @Test(.timeLimit(.minutes(2))) func ordersReachTheMessagesThatAreNamed() async throws {
      try await Bench.run(rules: [Self.later]) { bench in
        let ids = try await fill(bench, (0..<4).map { Letter.text("m\($0)") })
        try #require(ids.count == 4)
        let held = try await bench.relay("queue", "hold", ids[0], "nonsense", ids[1], "--reason", "wait for Jane")
        #expect(held.status == 65)
        #expect(held.output.contains("\(ids[1]) is held"))
        #expect(held.errors.contains("nonsense is no id of a message"))
        let shown = try await bench.relay("queue", "show", ids[0])
        #expect(shown.output.contains("by the operator: wait for Jane"), "\(shown.output)")
        #expect(shown.output.contains("451 4.3.0 try later"))
        #expect(try await bench.relay("status").output.contains("4 messages"))
        #expect(try await bench.relay("status").output.contains("2 held"))

        #expect(try await bench.relay("queue", "list", "--state", "held").output.contains("2 messages"))
        #expect(
          try await bench.relay("queue", "list", "--recipient", "*@nowhere.example").output.contains("no messages"))
        #expect(
          try await bench.relay("queue", "list", "--recipient", "CONTACT-sales@mailer.*", "--limit", "3").output
            .contains("3 messages"))
        #expect(try await bench.relay("queue", "list", "--older-than", "1h").output.contains("no messages"))
        #expect(try await bench.relay("queue", "list", "--older-than", "soon").status == 64)
        let count = try await bench.relay("queue", "list", "--count")
        #expect(count.output.contains("held"), "\(count.output)")
        #expect(count.output.contains("in all"))

        // What is held stays, whatever is tried.
        bench.upstream.follow([])
        #expect(try await bench.relay("queue", "retry", ids[0]).status == 65)
        #expect(try await bench.relay("queue", "retry", "--all").output.contains("2 messages to be tried now"))
        _ = try await bench.arrived(2)
        #expect(try await bench.relay("queue", "release", "--all").output.contains("2 messages released"))
        _ = try await bench.arrived(4)
        try await bench.emptied()
        #expect(bench.log.contains("\(ids[0]): on hold: by the operator: wait for Jane"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func whatCannotBeUndoneToAllIsAskedFor() async throws {
      try await Bench.run(rules: [Self.later]) { bench in
        let ids = try await fill(bench, [Letter.text("a"), Letter.text("b")])
        for order in ["delete", "bounce"] {
          let refused = try await bench.relay("queue", order, "--all")
          #expect(refused.status == 64)
          #expect(refused.errors.contains("--yes"))
          #expect(try await bench.relay("queue", order).status == 64)
          #expect(try await bench.relay("queue", order, ids[0], "--all").status == 64)
        }
        #expect(try await bench.relay("queue", "delete", "--all", "--yes").output.contains("2 messages deleted"))
        try await bench.emptied()
        #expect(bench.log.contains("\(ids[1]): operator: is deleted"))
        let client = try Client(port: bench.port)
        let sent = try client.deliver(
          from: "contact-sales@mailer.dreamlikelabs.com", to: "contact-legal@mailer.dreamlikelabs.com",
          Letter.text("c"))
        #expect(sent.hasPrefix("250"), "\(sent)")
        try await until("it is deferred") {
          try await bench.relay("queue", "list", "--state", "deferred").output.contains("1 message")
        }
        let bounced = try await bench.relay("queue", "bounce", "--all", "--yes", "--reason", "wrong list")
        #expect(bounced.status == 0, "\(bounced.errors)")
        #expect(bounced.output.contains("1 message returned"))
        // The notification itself has nobody to be returned to.
        let notification = try await bench.relay("queue", "bounce", "--sender", "<>")
        #expect(notification.status == 65)
        #expect(notification.errors.contains("cannot be returned"), "\(notification.errors)")
        bench.upstream.follow([])
        #expect(try await bench.relay("queue", "retry", "--all").status == 0)
        let notice = try await bench.arrived(1)[0]
        #expect(notice.reversePath == "")
        #expect(notice.content.holds("wrong list"))
      }
    }

    @Test(.timeLimit(.minutes(3)), arguments: [true, false]) func exportAndImportKeepEveryOctetAndEverythingKnown(
      _ isRunning: Bool
    ) async throws {
      try await Bench.run(rules: [Self.later]) { bench in
        let letters = [Letter.text("small"), Letter.text("large", bytes: 3_000_000)]
        let ids = try await fill(bench, letters)
        #expect(try await bench.relay("queue", "hold", ids[0], "--reason", "look").status == 0)
        let copy = "\(bench.folder)/copy"
        if !isRunning { #expect(await bench.stop() == 0) }
        let body = try await bench.relay("queue", "show", ids[1], "--body").output
        #expect(body.hasSuffix(String(letters[1].suffix(2_900_000))))
        #expect(try await bench.relay("queue", "export", copy, ids[0]).output.contains("1 message exported"))
        // A run that was interrupted has left parts, and a file that was damaged since.
        try Files.write("half", to: "\(copy)/.\(ids[1]).eml.partial")
        try Files.write("half", to: "\(copy)/\(ids[1]).eml")
        let again = try await bench.relay("queue", "export", copy)
        #expect(again.output.contains("1 message exported"), "\(again.output) \(again.errors)")
        #expect(again.output.contains("1 were there already"))
        #expect(Files.bytes("\(copy)/\(ids[1]).eml") == Array(body.utf8))
        #expect(!Files.all(below: copy).contains { $0.hasSuffix(".partial") })
        #expect(try await bench.relay("queue", "export", copy, "nonsense").status == 65)
        #expect(try await bench.relay("queue", "delete", "--all", "--yes").status == 0)

        try Files.write("Subject: lost\r\n\r\n", to: "\(copy)/lonely.eml")
        try Files.write(
          #"{"sender":"a@b.c","account":"dreamlikelabs.com","recipients":["d@dreamlikelabs.com"]}"#,
          to: "\(copy)/bare.json")
        try Files.write("Subject: bare\n\nx\n", to: "\(copy)/bare.eml")
        try Files.write(Files.read("\(copy)/\(ids[1]).json"), to: "\(copy)/hurt.json")
        try Files.write("damaged", to: "\(copy)/hurt.eml")
        let imported = try await bench.relay("queue", "import", copy)
        #expect(imported.status == 65)
        #expect(imported.output.contains("2 messages imported"), "\(imported.output) \(imported.errors)")
        for words in ["lonely.eml: there is no lonely.json", "line 1 of bare.eml", "hurt.eml has 7 octets"] {
          #expect(imported.errors.contains(words), "\(imported.errors)")
        }
        let second = try await bench.relay("queue", "import", copy)
        #expect(second.output.contains("0 messages imported"))
        let list = try await bench.relay("queue", "list").output
        #expect(list.contains("2 messages"), "\(list)")
        #expect(list.contains("held"))
        let id = try #require(list.split(separator: "\n").dropFirst().first?.split(separator: " ").first)
        let shown = try await bench.relay("queue", "show", String(id)).output
        #expect(shown.contains("by the operator: look"), "\(shown)")
        #expect(shown.contains("it was \(ids[0]) before"), "\(shown)")
        #expect(shown.contains("451 4.3.0 try later"))

        #expect(try await bench.relay("queue", "release", "--all").status == 0)
        bench.upstream.follow([])
        if !isRunning { try await bench.start() }
        #expect(try await bench.relay("queue", "retry", "--all").status == 0)
        let messages = try await bench.arrived(2)
        try await bench.emptied()
        #expect(Set(messages.compactMap { $0.field("X-Test-ID") }) == ["small", "large"])
        #expect(messages.contains { $0.content.count == body.utf8.count })
        #expect(try await bench.relay("queue", "verify").status == 0)
      }
    }

    @Test(.timeLimit(.minutes(2))) func theQueueOfAStoppedDaemonIsListedHeldAndKeptForItsUser() async throws {
      try await Bench.run(rules: [Self.later]) { bench in
        let ids = try await fill(bench, [Letter.text("one"), Letter.text("large", bytes: 400_000)])
        #expect(await bench.stop() == 0)
        // As a package has it: the queue is the service's, the operator is root.
        let isRoot = geteuid() == 0
        if isRoot {
          chmod(bench.folder, 0o711)
          _ = try await bench.command("chown", ["-R", "65534:65534", bench.queue])
        }
        #expect(try await bench.relay("queue", "list").output.contains("2 messages"))
        #expect(try await bench.relay("queue", "hold", ids[0], "--reason", "stopped").status == 0)
        let shown = try await bench.relay("queue", "show", ids[0]).output
        #expect(shown.contains("by the operator: stopped"), "\(shown)")
        let bounce = try await bench.relay("queue", "bounce", ids[0])
        #expect(bounce.status == 69)
        #expect(bounce.errors.contains("only the daemon can return mail"))
        #expect(try await bench.relay("queue", "retry", ids[1]).status == 0)
        let copy = "\(bench.folder)/copy"
        #expect(try await bench.relay("queue", "export", copy).status == 0)
        #expect(try await bench.relay("queue", "import", copy).output.contains("2 messages imported"))
        if isRoot {
          for path in Files.all(below: bench.queue) {
            var status = stat()
            #expect(stat(path, &status) == 0)
            #expect(status.st_uid == 65534, "\(path) belongs to user \(status.st_uid)")
          }
          var status = stat()
          #expect(stat("\(copy)/imported/\(ids[0]).eml", &status) == 0)
          #expect(status.st_uid == 0)
          _ = try await bench.command("chown", ["-R", "0:0", bench.queue])
        }
        bench.upstream.follow([])
        try await bench.start()
        _ = try await bench.arrived(2)
        #expect(try await bench.relay("queue", "list", "--state", "held").output.contains("2 messages"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func aBrokenConfigurationOrALostSocketLeavesTheOperatorAWay() async throws {
      try await Bench.run(rules: [Self.later]) { bench in
        _ = try await fill(bench, [Letter.text("one")])
        let good = Files.read(bench.configuration)
        try Files.write(good + "retry_shedule = 1m\n", to: bench.configuration)
        let status = try await bench.relay("status")
        #expect(status.status == 0)
        #expect(status.errors.contains("the configuration has 1 mistake"), "\(status.errors)")
        #expect(try await bench.relay("queue", "list").output.contains("1 message,"))
        try Files.write(good, to: bench.configuration)
        unlink("\(bench.folder)/admin.sock")
        let locked = try await bench.relay("queue", "list")
        #expect(locked.status == 75)
        #expect(locked.errors.contains("process \(bench.daemon.pid) has the queue"), "\(locked.errors)")
        #expect(try await bench.relay("queue", "verify").status == 0)
      }
    }

    @Test(.timeLimit(.minutes(2))) func verifyNamesADamagedContent() async throws {
      try await Bench.run(rules: [Self.later]) { bench in
        let ids = try await fill(bench, [Letter.text("large", bytes: 400_000)])
        #expect(await bench.stop() == 0)
        let nowhere = try await bench.relay("queue", "verify", "--directory", "\(bench.folder)/nowhere")
        #expect(nowhere.status == 69 && nowhere.errors.contains("there is no queue in \(bench.folder)/nowhere"))
        let whole = try await bench.relay("queue", "verify")
        #expect(whole.status == 0)
        #expect(whole.output.contains("nothing is damaged"), "\(whole.output)")
        let path = "\(bench.queue)/content/\(ids[0])"
        let file = try #require(fopen(path, "r+"))
        fseek(file, 1000, SEEK_SET)
        fputc(0x7f, file)
        fclose(file)
        let damaged = try await bench.relay("queue", "verify")
        #expect(damaged.status == 65)
        #expect(damaged.output.contains(path))
        #expect(damaged.output.contains("concerns \(ids[0])"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func damagedQueueIsSavedAndImportedIntoAFreshOne() async throws {
      try await Bench.run(rules: [Self.later]) { bench in
        let letters = (0..<4).map { Letter.text("m\($0)", bytes: 600) }
        let ids = try await fill(bench, letters)
        let saved = "\(bench.folder)/saved"
        let early = try await bench.relay("queue", "export", "--salvage", saved)
        #expect(early.status == 69 && early.errors.contains("export without --salvage"), "\(early.errors)")
        #expect(await bench.stop() == 0)
        // A bit falls over in the middle of the second content.
        let path = "\(bench.queue)/spool/00000001.seg"
        let text = Files.bytes(path)
        let mark = Array("X-Test-ID: m1".utf8)
        let place = try #require((0..<text.count - mark.count).first { text[$0..<$0 + mark.count].elementsEqual(mark) })
        let file = try #require(fopen(path, "r+"))
        fseek(file, place + 200, SEEK_SET)
        fputc(Int32(text[place + 200] ^ 1), file)
        fclose(file)

        let refused = try await bench.relay("serve")
        #expect(refused.status == 73)
        #expect(refused.errors.contains("queue export DIR --salvage"), "\(refused.errors)")
        let export = try await bench.relay("queue", "export", "--salvage", saved)
        #expect(export.status == 65)
        #expect(export.output.contains("4 messages exported"), "\(export.output)")
        #expect(export.errors.contains("concerns \(ids[1])"), "\(export.errors)")
        try #require(rename(bench.queue, bench.queue + ".old") == 0)
        bench.upstream.follow([])
        _ = try await bench.start()
        let taken = try await bench.relay("queue", "import", saved)
        #expect(taken.status == 0 && taken.output.contains("4 messages imported"), "\(taken.output) \(taken.errors)")
        _ = try await bench.relay("queue", "retry", "--all")
        let arrived = try await bench.arrived(3)
        #expect(Set(arrived.compactMap { $0.field("X-Test-ID") }) == ["m0", "m2", "m3"])
        let held = try await bench.relay("queue", "list")
        #expect(held.output.contains("damaged in the queue"), "\(held.output)")
        #expect(held.output.contains("1 message,"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func metricsAreServedToMonitors() async throws {
      let port = UInt16.random(in: 20_000..<30_000)
      try await Bench.run(rules: [Self.later], settings: ["metrics_listen = 127.0.0.1:\(port)"]) { bench in
        _ = try await fill(bench, [Letter.text("one")])
        func get(_ path: String) async throws -> String {
          try await bench.command("curl", ["-sS", "-i", "http://127.0.0.1:\(port)\(path)"]).output
        }
        let metrics = try await get("/metrics")
        for line in [
          "ssmtp_mailer_queue_messages 1", "ssmtp_mailer_messages_accepted_total 1", "ssmtp_mailer_ready 1",
          "ssmtp_mailer_account_deferred_total{account=\"dreamlikelabs.com\"} 1",
          "# TYPE ssmtp_mailer_queue_free_bytes gauge",
        ] {
          #expect(metrics.contains(line + "\n"), "\(metrics)")
        }
        #expect(try await get("/healthz").contains("200 OK"))
        #expect(try await get("/readyz").hasSuffix("ready\n"))
        #expect(!bench.log.contains("has no effect in this version"))
      }
    }
  }
}
