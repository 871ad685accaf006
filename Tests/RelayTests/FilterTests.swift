// Real programs around the relay: HAProxy in front of it, OpenDKIM and rspamd beside it, NSD with a list of clients.

import Glibc
import Network
import Primitives
import Sandbox
import TestSupport
import Testing

/// The first of the programs that is there; `variable` names one that was unpacked by scripts/test.
private func program(_ variable: String, _ paths: String...) -> String? {
  let named = getenv(variable).map { String(cString: $0) }
  return ([named].compactMap { $0 } + paths).first { access($0, X_OK) == 0 }
}

private let haproxy = program("SSMTP_MAILER_HAPROXY", "/usr/sbin/haproxy")
private let opendkim = program("SSMTP_MAILER_OPENDKIM", "/usr/sbin/opendkim")
private let nsd = program("SSMTP_MAILER_NSD", "/usr/sbin/nsd")
private let rspamd = program("SSMTP_MAILER_RSPAMD", "/usr/bin/rspamd")

extension EndToEnd {
  @Suite struct Filters {
    private static let recipient = "contact-sales@mailer.dreamlikelabs.com"

    private func freePort() throws -> UInt16 {
      let listener = try Listener(bindingTo: Endpoint("127.0.0.1:0")!)
      defer { listener.close() }
      return listener.endpoint.port
    }

    /// Waits until somebody listens there.
    private func listening(_ port: UInt16, _ program: Program) async throws {
      try await until("port \(port) is listened on") {
        try #require(program.isRunning, "it has ended")
        return (try? Client(port: port, hello: nil)) != nil
      }
    }

    // MARK: HAProxy

    @Test(
      .enabled(if: haproxy != nil, "HAProxy is not installed: apt-get install haproxy"), .timeLimit(.minutes(2)),
      arguments: ["send-proxy", "send-proxy-v2"])
    func clientBehindHAProxyKeepsItsAddress(version: String) async throws {
      let path = try #require(haproxy)
      // Only what comes from 127.0.0.2 is the load balancer; all else on this machine goes on as before.
      try await Bench.run(settings: ["proxy_protocol_networks = 127.0.0.2", "trusted_networks = 127.0.0.9"]) { bench in
        let front = try freePort()
        let configuration = """
          defaults
            mode tcp
            timeout connect 5s
            timeout client 60s
            timeout server 60s
          frontend smtp
            bind 127.0.0.1:\(front)
            default_backend relay
          backend relay
            source 127.0.0.2
            option tcp-check
            tcp-check expect rstring ^220
            server relay 127.0.0.1:\(bench.port) \(version) check check-send-proxy inter 200ms fall 1 rise 2

          """
        try Files.write(configuration, to: "\(bench.folder)/haproxy.cfg")
        let program = try Program(
          path, ["-db", "-f", "\(bench.folder)/haproxy.cfg"], output: "\(bench.folder)/haproxy.out",
          errors: "\(bench.folder)/haproxy.err")
        bench.ends(program)
        try await listening(front, program)
        // 127.0.0.9 may send to foreign domains, and 127.0.0.8 may not: the address in the header decides.
        for (address, status) in [("127.0.0.9", Int32(0)), ("127.0.0.8", 24)] {
          let answer = try await bench.command(
            "swaks",
            [
              "--server", "127.0.0.1:\(front)", "--local-interface", address, "--from", "jane@example.org", "--to",
              "bob@example.net", "--timeout", "30",
            ])
          #expect(answer.status == status, "\(answer.output)\(answer.errors)")
        }
        let message = try #require(try await bench.arrived(1).first)
        #expect(message.field("Received")?.contains("[127.0.0.9]") == true)
        try await bench.waitForLog("client=127.0.0.9")
        try await bench.waitForLog("127.0.0.8: refused from=<jane@example.org> to=<bob@example.net>: 550 5.7.1")
        // Its health checks speak for themselves, and are answered.
        #expect(!bench.log.contains("127.0.0.2"), "\(bench.log)")
        // Without a header nobody gets in through that address, and nobody else needs one.
        #expect(try Client(port: bench.port).say("NOOP").hasPrefix("250"))
      }
    }

    // MARK: OpenDKIM

    @Test(
      .enabled(if: opendkim != nil, "OpenDKIM is not installed: apt-get install opendkim"), .timeLimit(.minutes(2)))
    func messageThatOpenDKIMSignsVerifiesAtTheUpstream() async throws {
      let path = try #require(opendkim)
      let port = try freePort()
      try await Bench.run(settings: ["milters = inet:\(port)@127.0.0.1"]) { bench in
        let folder = bench.folder
        let made = try await bench.command("openssl", ["genrsa", "-traditional", "-out", "\(folder)/dkim.pem", "2048"])
        try #require(made.status == 0, "\(made.errors)")
        chmod("\(folder)/dkim.pem", 0o600)
        let key = try await bench.command("openssl", ["rsa", "-in", "\(folder)/dkim.pem", "-pubout"])
        let text = key.output.split(whereSeparator: \.isNewline).filter { !$0.hasPrefix("-") }.joined()
        try Files.write("sel._domainkey.example.org v=DKIM1; k=rsa; p=\(text)\n", to: "\(folder)/dkim.keys")
        try Files.write(
          """
          Mode s
          Domain example.org
          Selector sel
          KeyFile \(folder)/dkim.pem
          Socket inet:\(port)@127.0.0.1
          Background no
          Syslog no
          Canonicalization relaxed/simple
          RequireSafeKeys no

          """, to: "\(folder)/sign.conf")
        try Files.write("Mode v\nSyslog no\nTestPublicKeys \(folder)/dkim.keys\n", to: "\(folder)/verify.conf")

        // Before it runs, nothing passes unsigned.
        let client = try Client(port: bench.port)
        #expect(try client.say("MAIL FROM:<jane@example.org>").hasPrefix("451 4.7.1"))
        #expect(try await bench.relay("status").output.contains("milter inet:\(port)@127.0.0.1: down"))

        let signer = try Program(
          path, ["-f", "-x", "\(folder)/sign.conf"], output: "\(folder)/sign.out", errors: "\(folder)/sign.err")
        bench.ends(signer)
        try await listening(port, signer)
        #expect(try client.deliver(to: Self.recipient, Letter.text("small")).hasPrefix("250"))
        let large = Array(Letter.text("large", bytes: 1 << 20).utf8)
        #expect(try client.deliver(to: Self.recipient, large, chunked: true).hasPrefix("250"))
        let messages = try await bench.arrived(2)
        for message in messages {
          let id = message.field("X-Test-ID") ?? "?"
          #expect(message.content.holds("DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple; d=example.org; s=sel;"))
          #expect(message.content.starts(with: Array("Received: ".utf8)), "our own field stays on top")
          let file = "\(folder)/\(id).eml"
          try Files.write(String(decoding: message.content, as: UTF8.self), to: file)
          let verdict = try await bench.command(path, ["-x", "\(folder)/verify.conf", "-t", file])
          #expect(verdict.status == 0 && verdict.output.contains("verification (s=sel"), "\(verdict)")
          #expect(verdict.output.contains("succeeded"), "\(id): \(verdict.output)\(verdict.errors)")
          // And a message that was touched does not verify.
          let touched = String(decoding: message.content, as: UTF8.self).replacing("0123456789", with: "0123456788")
          try Files.write(touched, to: file)
          let refusal = try await bench.command(path, ["-x", "\(folder)/verify.conf", "-t", file])
          #expect(!refusal.output.contains("succeeded"), "\(refusal.output)\(refusal.errors)")
        }
        let metrics = try await bench.command(
          "curl", ["-s", "--unix-socket", "\(folder)/admin.sock", "http://localhost/metrics"])
        let label = "{milter=\"inet:\(port)@127.0.0.1\"}"
        #expect(metrics.output.contains("ssmtp_mailer_milter_up\(label) 1"), "\(metrics.output)")
        #expect(metrics.output.contains("ssmtp_mailer_milter_changed_total\(label) 2"))
      }
    }

    // MARK: Quarantine

    @Test(.timeLimit(.minutes(2))) func quarantinedMessageWaitsForTheOperatorAlsoThroughARestart() async throws {
      let port = try freePort()
      try await Bench.run(settings: ["milters = inet:127.0.0.1:\(port)", "milter_default_action = quarantine"]) {
        bench in
        let reply = try Client(port: bench.port).deliver(to: Self.recipient, Letter.text("odd"))
        let id = String(try #require(reply.split(separator: " ").last))
        #expect(reply == "250 2.0.0 Queued as \(id)")
        #expect(try await bench.relay("queue", "list", "--state", "held").output.contains(id))
        let shown = try await bench.relay("queue", "show", id)
        #expect(shown.output.contains("by milter inet:127.0.0.1:\(port) does not answer"), "\(shown.output)")
        #expect(await bench.stop() == 0)
        try await bench.start()
        #expect(try await bench.relay("queue", "list", "--state", "held").output.contains(id))
        #expect(bench.upstream.statistics.messages == 0)
        #expect(try await bench.relay("queue", "release", id).status == 0)
        #expect(try await bench.arrived(1)[0].field("X-Test-ID") == "odd")
        try await bench.emptied()
      }
    }

    // MARK: rspamd

    @Test(
      .enabled(if: rspamd != nil, "rspamd is not installed: apt-get install rspamd"), .timeLimit(.minutes(3)))
    func rspamdRefusesSpamMarksTheDoubtfulAndLetsTheRestPass() async throws {
      let path = try #require(rspamd)
      let (port, normal) = (try freePort(), try freePort())
      try await Bench.run(settings: ["milters = inet:127.0.0.1:\(port)"]) { bench in
        let folder = bench.folder
        try Files.write(
          """
          .include "$CONFDIR/common.conf"
          options {
            .include "$CONFDIR/options.inc"
            pidfile = "\(folder)/rspamd.pid";
            enable_test_patterns = true;
            dns { nameserver = ["127.0.0.1:1"]; timeout = 0.1s; retransmits = 1; }
          }
          logging { type = "file"; filename = "\(folder)/rspamd.log"; level = "info"; }
          worker "rspamd_proxy" {
            bind_socket = "127.0.0.1:\(port)"; milter = yes; timeout = 60s; count = 1;
            upstream "local" { default = yes; self_scan = yes; }
          }
          worker "normal" { bind_socket = "127.0.0.1:\(normal)"; count = 1; }

          """, to: "\(folder)/rspamd.conf")
        let program = try Program(
          path,
          [
            "-i", "-f", "-c", "\(folder)/rspamd.conf", "--var=DBDIR=\(folder)", "--var=RUNDIR=\(folder)",
            "--var=LOGDIR=\(folder)",
          ], output: "\(folder)/rspamd.out", errors: "\(folder)/rspamd.err")
        bench.ends(program)
        try await listening(port, program)
        let client = try Client(port: bench.port)
        let gtube = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
        let reply = try client.deliver(
          to: Self.recipient, Letter.text("spam").replacing("0123456789", with: gtube + "\r\n", maxReplacements: 1))
        #expect(reply.hasPrefix("554 5.7.1") && reply.contains("Gtube"), "\(reply)")
        #expect(try client.deliver(to: Self.recipient, Letter.text("ham")).hasPrefix("250"))
        // rspamd's own test pattern for the action "add header".
        let doubtful = "YJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
        #expect(
          try client.deliver(
            to: Self.recipient,
            Letter.text("odd").replacing("0123456789", with: doubtful + "\r\n", maxReplacements: 1)
          ).hasPrefix("250"))
        let messages = try await bench.arrived(2)
        let fields = Dictionary(
          messages.map { ($0.field("X-Test-ID") ?? "?", $0.field("X-Spam")) }, uniquingKeysWith: { $1 })
        #expect(fields.keys.sorted() == ["ham", "odd"])
        #expect(fields["ham"] == .some(nil), "nothing is added to what is fine")
        #expect(fields["odd"] == "Yes")
      }
    }

    // MARK: DNS lists

    @Test(.enabled(if: nsd != nil, "NSD is not installed: apt-get install nsd"), .timeLimit(.minutes(2)))
    func listInTheDNSKeepsAClientOutAndABrokenOneDoesNot() async throws {
      let head = "$TTL 300\n@ IN SOA ns.test. hostmaster.test. 1 3600 600 86400 60\n@ IN NS ns.test.\n"
      let server = try await NameServer.start(
        path: #require(nsd),
        zones: [
          "bl.test": head + "1.0.0.127 IN A 127.0.0.3\n1.0.0.127 IN TXT \"https://bl.test/why\"",
          "empty.test": head, "broken.test": nil,
        ])
      defer { server.stop() }
      for (lists, isRefused) in [
        ("broken.test, empty.test, bl.test=127.0.0.[2..4]", true),
        ("broken.test, bl.test=127.0.0.2, empty.test", false),
      ] {
        try await Bench.run(
          settings: ["trusted_networks = 192.0.2.0/24", "dnsbl = \(lists)", "dnsbl_server = \(server.endpoint)"]
        ) { bench in
          let client = try Client(port: bench.port)
          let reply = try client.deliver(to: Self.recipient, Letter.text("1"))
          if isRefused {
            #expect(
              reply
                == "554 5.7.1 Service unavailable; client host [127.0.0.1] blocked using bl.test; https://bl.test/why")
          } else {
            #expect(reply.hasPrefix("250"), "\(reply)")
          }
          try await bench.waitForLog("dnsbl broken.test: the name server failed (SERVFAIL)")
          let status = try await bench.relay("status")
          #expect(status.output.contains("dnsbl bl.test: ok, 1 asked"), "\(status.output)")
        }
      }
    }
  }
}
