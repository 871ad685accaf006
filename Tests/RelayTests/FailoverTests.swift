// Two accounts with the real binary: what one of them must not send any more today the other carries, what neither may
// send waits, and a kill in between changes nothing of that. And an account whose password is refused.

import Glibc
import Network
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct Failover {
    private static let spareAccount = "spare@other.test"

    /// A second account on an upstream of its own, which the sample's account falls back to.
    private func withSpare(
      limit: Int?, change: (Bench) throws -> Void = { _ in }, _ body: (Bench, Upstream) async throws -> Void
    ) async throws {
      try await Bench.run(starts: false) { bench in
        var options = UpstreamOptions(
          certificateFile: "\(bench.folder)/cert.pem", keyFile: "\(bench.folder)/key.pem")
        options.passwords = [Self.spareAccount: Bench.password]
        let spare = try await Upstream.start(options)
        let domains = "\(bench.folder)/etc/domains"
        let limits = limit.map { "daily_limit = \($0)\n" } ?? ""
        let main = Files.read("\(domains)/dreamlikelabs.com.conf") + "fallback_account = other.test\n" + limits
        try Files.write(main, to: "\(domains)/dreamlikelabs.com.conf")
        try Files.write(
          """
          [domain:other.test]
          smtp_server = localhost
          smtp_port = \(spare.endpoint.port)
          auth_method = PLAIN
          username = \(Self.spareAccount)
          password = \(Bench.password)
          use_starttls = true
          tls_ca_file = \(bench.folder)/ca.pem
          \(limits)
          """, to: "\(domains)/other.conf")
        for file in ["dreamlikelabs.com.conf", "other.conf"] { chmod("\(domains)/\(file)", 0o600) }
        try change(bench)
        do {
          try await bench.start()
          try await body(bench, spare)
        } catch {
          await spare.stop()
          throw error
        }
        await spare.stop()
      }
    }

    private func submit(_ count: Int, _ prefix: String, to bench: Bench) throws {
      let client = try Client(port: bench.port)
      for number in 1...count {
        let reply = try client.deliver(to: "contact-sales@mailer.dreamlikelabs.com", Letter.text("\(prefix)-\(number)"))
        #expect(reply.hasPrefix("250"), "\(reply)")
      }
    }

    private func status(_ bench: Bench, shows texts: [String]) async throws {
      try await until("status shows \(texts)") {
        let status = try await bench.relay("status").output
        return texts.allSatisfy(status.contains)
      }
    }

    private static func isFull(_ account: String) -> String { "\(account): 2 of 2 recipients in 24 hours, 0 left" }

    @Test(.timeLimit(.minutes(2))) func dailyLimitsHoldOverAKillAndTheNextAccountCarriesTheRest() async throws {
      try await withSpare(limit: 2) { bench, spare in
        try submit(5, "before", to: bench)
        try await status(
          bench, shows: [Self.isFull("dreamlikelabs.com"), Self.isFull("other.test"), "next slot", "1 message"])
        #expect(bench.upstream.statistics.messages == 2 && spare.statistics.messages == 2)
        #expect(bench.log.contains("carried_by=other.test"))

        // The count is on disk: another life of the daemon sends nothing beyond it.
        bench.daemon.signal(SIGKILL)
        _ = await bench.daemon.exit()
        try await bench.start()
        try submit(1, "after", to: bench)
        try await status(
          bench, shows: [Self.isFull("dreamlikelabs.com"), Self.isFull("other.test"), "2 messages"])
        #expect(bench.upstream.statistics.messages == 2 && spare.statistics.messages == 2)

        // A higher limit takes effect with a reload, and what waited goes.
        let path = "\(bench.folder)/etc/domains/dreamlikelabs.com.conf"
        var text = Files.read(path)
        text.replace("daily_limit = 2", with: "daily_limit = 10")
        try Files.write(text, to: path)
        bench.daemon.signal(SIGHUP)
        #expect(try await bench.arrived(4).count == 4)
        try await bench.emptied()
        let ids = (bench.upstream.messages + spare.messages).compactMap { $0.field("X-Test-ID") }
        #expect(ids.count == 6 && Set(ids).count == 6, "\(ids)")
        let senders = Set(spare.messages.compactMap(\.authenticatedUser))
        #expect(senders == [Self.spareAccount])
      }
    }

    @Test(.timeLimit(.minutes(2))) func mailOfAnAccountWithARefusedPasswordIsCarriedUntilThatIsMended() async throws {
      let path = "etc/domains/dreamlikelabs.com.conf"
      func change(_ bench: Bench, _ old: String, to new: String) throws {
        var text = Files.read("\(bench.folder)/\(path)")
        text.replace(old, with: new)
        try Files.write(text, to: "\(bench.folder)/\(path)")
      }
      func revoke(_ bench: Bench) throws { try change(bench, Bench.password, to: "revoked-last-week") }
      try await withSpare(limit: nil, change: revoke) { bench, spare in
        try submit(3, "carried", to: bench)
        try await until("the spare account has carried it") { spare.statistics.messages == 3 }
        try await status(bench, shows: ["carried by other.test", "not accepted", "app password"])
        try await bench.emptied()
        #expect(bench.upstream.statistics.messages == 0)

        // The operator has a new password.
        try change(bench, "revoked-last-week", to: Bench.password)
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("configuration reloaded")
        try submit(1, "home", to: bench)
        #expect(try await bench.arrived(1)[0].field("X-Test-ID") == "home-1")
        try await bench.emptied()
        #expect(spare.statistics.messages == 3)
        #expect(try await !bench.relay("status").output.contains("carried by"))
      }
    }
  }
}
