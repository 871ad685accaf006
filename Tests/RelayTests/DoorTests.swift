// The front door of the real binary: its certificate while it is replaced, its limits while they are reached.

import Glibc
import Network
import Primitives
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct DoorTests {
    /// Writes a certificate for `name`, as certbot does: a new pair, and then the links.
    private func issue(_ name: String, _ bench: Bench, _ stem: String, days: Int = 90) throws {
      let ssl = "\(bench.folder)/etc/ssl"
      mkdir(ssl, 0o755)
      try bench.authority.issue(names: [name], valid: .seconds(-3600) ... .seconds(86_400 * days)).write(
        certificateFile: "\(ssl)/\(stem)-cert.pem", keyFile: "\(ssl)/\(stem)-key.pem")
      for file in ["cert.pem", "key.pem"] {
        symlink("\(stem)-\(file)", "\(ssl)/\(file).new")
        rename("\(ssl)/\(file).new", "\(ssl)/\(file)")
      }
    }

    /// What a client sees with STARTTLS, as openssl(1) prints it.
    private func shown(_ bench: Bench, _ arguments: String...) async throws -> String {
      try await bench.command(
        "openssl",
        // Until the relay closes: a line with Q would end it at once, before the session tickets have come.
        [
          "s_client", "-ign_eof", "-starttls", "smtp", "-connect", "127.0.0.1:\(bench.port)", "-CAfile",
          "\(bench.folder)/ca.pem",
        ]
          + arguments, input: "QUIT\r\n"
      ).output
    }

    @Test(.timeLimit(.minutes(2))) func renewedCertificateIsShownAndNobodyIsDisconnected() async throws {
      try await Bench.run(starts: false) { bench in
        try issue("old.example", bench, "1")
        try await bench.start()
        try await bench.waitForLog("certificate: /CN=old.example, for old.example")
        let client = try Client(port: bench.port)
        #expect(try client.say("MAIL FROM:<jane@example.org>").hasPrefix("250"))
        let session = "\(bench.folder)/session"
        #expect(try await shown(bench, "-sess_out", session).contains("CN = old.example"))

        try issue("new.example", bench, "2", days: 10)
        try await bench.waitForLog("certificate: /CN=new.example, for new.example")
        let new = try await shown(bench)
        #expect(new.contains("CN = new.example") && new.contains("Verify return code: 0"), "\(new)")
        let resumed = try await shown(bench, "-sess_in", session)
        #expect(resumed.contains("Reused, TLSv1.3"), "\(resumed)")
        #expect(try client.say("RCPT TO:<contact-sales@mailer.dreamlikelabs.com>").hasPrefix("250"))
        #expect(try client.say("DATA").hasPrefix("354"))
        #expect(try client.say(Letter.text("kept") + ".").hasPrefix("250"))
        #expect(bench.log.contains("the certificate for new.example ends in"))

        let status = try await bench.relay("status").output
        #expect(
          status.contains("new.example, 9 days left") || status.contains("new.example, 10 days left"), "\(status)")
        #expect(try await bench.relay("status", "--json").output.contains("\"names\""))
        // A reload that meets half a pair is refused, and so is what watches the files.
        rename("\(bench.folder)/etc/ssl/1-key.pem", "\(bench.folder)/etc/ssl/key.pem")
        try await bench.waitForLog("the old one stays")
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("was not reloaded")
        #expect(try await shown(bench).contains("CN = new.example"))
        #expect(await bench.stop() == 0)
      }
    }

    @Test(.timeLimit(.minutes(2))) func limitsAreHeldSaidAndCounted() async throws {
      try await Bench.run(settings: [
        "trusted_networks = 192.0.2.1", "client_rate_limit_per_minute = 2", "max_client_connections_per_ip = 2",
        "max_client_commands = 30", "max_header_size = 16K", "client_timeout = 2s", "client_data_rate = 1M",
      ]) { bench in
        let to = "contact-sales@mailer.dreamlikelabs.com"
        do {
          let first = try Client(port: bench.port)
          let second = try Client(port: bench.port)
          let third = try Client(port: bench.port, hello: nil)
          #expect(try third.reply().hasPrefix("421 4.7.0"))
          #expect(try first.deliver(to: to, Letter.text("one")).hasPrefix("250"))
          let fields = String(repeating: "X-Filler: \(String(repeating: "x", count: 80))\r\n", count: 200)
          #expect(try second.deliver(to: to, fields + Letter.text("two")).hasPrefix("552 5.3.4"))
          #expect(try second.say("MAIL FROM:<jane@example.org>").hasPrefix("451 4.7.1"))
          for _ in 0..<40 {
            let reply = try first.say("NOOP")
            if reply.hasPrefix("421") { break }
            #expect(reply.hasPrefix("250"))
          }
        }
        try await until("there is room again") {
          do { return try Client(port: bench.port).say("NOOP").hasPrefix("250") } catch { return false }
        }
        let idle = try Client(port: bench.port)
        #expect(try idle.reply().hasPrefix("421 4.4.2"))
        let metrics = try await bench.command(
          "curl", ["-s", "--unix-socket", "\(bench.folder)/admin.sock", "http://localhost/metrics"])
        for limit in ["connections_per_address", "message_rate", "header_size", "commands", "command_time"] {
          let line = "ssmtp_mailer_client_limit_total{limit=\"\(limit)\"} "
          #expect(metrics.output.contains(line) && !metrics.output.contains(line + "0\n"), "\(limit)")
        }
        #expect(try await bench.relay("status").output.contains("message_rate 1"))
        #expect(await bench.stop() == 0)
      }
    }

    /// sslscan(1) of Debian, where it is installed: no old protocol, no weak cipher, no compression.
    @Test(.timeLimit(.minutes(3))) func scannerOfTLSFindsNothingOld() async throws {
      try await Bench.run(starts: false) { bench in
        let version: Outcome
        do { version = try await bench.command("sslscan", ["--version"]) } catch {
          print("SKIPPED scannerOfTLSFindsNothingOld: sslscan is not installed (apt-get install sslscan)")
          return try await skip(bench)
        }
        guard version.status == 0 else {
          print("SKIPPED scannerOfTLSFindsNothingOld: sslscan does not run: \(version.errors)")
          return try await skip(bench)
        }
        try issue("mx.example", bench, "1")
        try await bench.start()
        let scan = try await bench.command(
          "sslscan", ["--no-colour", "--starttls-smtp", "--no-heartbleed", "127.0.0.1:\(bench.port)"])
        let words = scan.output.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        #expect(scan.status == 0 && words.contains { $0.prefix(2) == ["Preferred", "TLSv1.3"] }, "\(scan.output)")
        for old in ["SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"] {
          #expect(words.contains([old, "disabled"]), "\(old): \(scan.output)")
        }
        for line in words where line.first == "Accepted" || line.first == "Preferred" {
          let cipher = line.count > 4 ? line[4] : ""
          #expect(
            cipher.hasPrefix("TLS_")
              || (cipher.hasPrefix("ECDHE-") && (cipher.contains("GCM") || cipher.contains("CHACHA"))),
            "\(line)")
        }
        #expect(
          !scan.output.contains("Compression enabled")
            && scan.output.contains("Session renegotiation not supported"))
        #expect(await bench.stop() == 0)
      }
    }

    /// The bench looks for the daemon's output in the end.
    private func skip(_ bench: Bench) async throws {
      try await bench.start()
      #expect(await bench.stop() == 0)
    }
  }
}
