// `ssmtp-mailer dns` against a real name server: the sample configuration with a zone that is right, and one that falls
// into the traps.

import Glibc
import Network
import TestSupport
import Testing

private let nsd: String? = {
  let named = getenv("SSMTP_MAILER_NSD").map { String(cString: $0) }
  return ([named].compactMap { $0 } + ["/usr/sbin/nsd"]).first { access($0, X_OK) == 0 }
}()

extension EndToEnd {
  @Suite(.enabled(if: nsd != nil, "NSD is not installed: apt-get install nsd")) struct DNSCommand {
    private static let head = """
      $TTL 300
      @ IN SOA ns.example. hostmaster.example. 1 3600 600 86400 60
      @ IN NS ns.example.

      """
    private static let key = (0..<2).map { _ in "\"\(String(repeating: "A", count: 196))\"" }.joined(separator: " ")
    private static let good: [String: String?] = [
      "dreamlikelabs.com": head + """
        @ IN MX 1 smtp.google.com.
        @ IN TXT "v=spf1 include:_spf.google.com ~all"
        google._domainkey IN TXT "v=DKIM1; k=rsa; p=" \(key)
        _dmarc IN TXT "v=DMARC1; p=none; rua=mailto:postmaster@dreamlikelabs.com"
        mailer IN A 192.0.2.10
        mailer IN MX 10 mailer
        mailer IN TXT "v=spf1 include:_spf.google.com ~all"
        """,
      "2.0.192.in-addr.arpa": head + "10 IN PTR mailer.dreamlikelabs.com.",
      "google.com": head + "_spf IN TXT \"v=spf1 ip4:74.125.0.0/16 ~all\"",
      "gmail.com": head + "smtp IN A 142.250.1.108",
    ]

    /// Runs `dns` on the sample configuration as it is installed, and asks `zones`.
    private func dns(
      _ zones: [String: String?], _ arguments: [String] = [], _ body: (Outcome) async throws -> Void
    ) async throws {
      try await Bench.run { bench in
        let server = try await NameServer.start(path: #require(nsd), zones: zones)
        defer { server.stop() }
        let answer = try await bench.command(
          Bench.binary,
          [
            "dns", "--config", bench.configuration, "--server", "\(server.endpoint)", "--set",
            "domain:dreamlikelabs.com.smtp_server=smtp.gmail.com",
          ] + arguments)
        try await body(answer)
      }
    }

    @Test(.timeLimit(.minutes(2))) func aZoneThatIsRightIsAllWell() async throws {
      try await dns(Self.good) { answer in
        #expect(answer.status == 0, "\(answer.output)\(answer.errors)")
        #expect(answer.output.hasSuffix("all well: 10 right\n"), "\(answer.output)")
        #expect(answer.output.contains("✓ PTR      192.0.2.10 is mailer.dreamlikelabs.com, and back"))
        #expect(answer.output.contains("TTL 300 s"))
      }
    }

    @Test(.timeLimit(.minutes(2))) func theTrapsOfTheGuideAreRecognised() async throws {
      var zones = Self.good
      zones["2.0.192.in-addr.arpa"] = Self.head
      zones["dreamlikelabs.com"] =
        Self.head + """
          @ IN MX 10 mail
          @ IN TXT "v=spf1 ip4:192.0.2.10 ~all"
          mail IN A 192.0.2.10
          smtp IN CNAME smtp.gmail.com.
          mailer IN A 104.21.3.4
          mailer IN MX 10 mailer
          """
      try await dns(zones) { answer in
        #expect(answer.status == 65, "\(answer.output)\(answer.errors)")
        for line in [
          "Cloudflare", "dreamlikelabs.com. IN MX 1 smtp.google.com.",
          "dreamlikelabs.com. IN TXT \"v=spf1 ip4:192.0.2.10 include:_spf.google.com ~all\"",
          "google._domainkey.dreamlikelabs.com. IN TXT", "_dmarc.dreamlikelabs.com. IN TXT",
          "whose certificate is not good for smtp.dreamlikelabs.com",
        ] { #expect(answer.output.contains(line), "\(line) is not in\n\(answer.output)") }
      }
    }

    /// Bounces come back there, and receivers ask there whether the relay may send.
    @Test(.timeLimit(.minutes(2))) func theDomainOfRewrittenSendersIsLookedAt() async throws {
      let srs = [
        "global.srs_secret=0123456789abcdef0123", "global.srs_domain=return.dreamlikelabs.com",
        "domain:dreamlikelabs.com.envelope_sender=srs",
      ].flatMap { ["--set", $0] }
      try await dns(Self.good, srs) { answer in
        #expect(answer.status == 65, "\(answer.output)\(answer.errors)")
        #expect(answer.output.contains("return.dreamlikelabs.com. IN MX 10 mailer.dreamlikelabs.com."))
        #expect(answer.output.contains("return.dreamlikelabs.com. IN TXT \"v=spf1 include:_spf.google.com ~all\""))
      }
    }

    @Test(.timeLimit(.minutes(2))) func silenceIsNotTakenForAbsence() async throws {
      var zones = Self.good
      // NSD answers SERVFAIL for a zone that it cannot read.
      zones["google.com"] = .some(nil)
      try await dns(zones, ["--json"]) { answer in
        #expect(answer.status == 75, "\(answer.output)\(answer.errors)")
        #expect(answer.output.contains("\"level\" : \"unanswered\""))
        #expect(answer.output.contains("SERVFAIL"))
        #expect(!answer.output.contains("\"level\" : \"wrong\""))
      }
    }

    @Test(.timeLimit(.minutes(1))) func aServerThatIsNoAddressIsWrongUsage() async throws {
      try await Bench.run { bench async throws in
        for server in ["dns.example", "::1", "127.0.0.1:0", "127.0.0.1:x"] {
          #expect(try await bench.relay("dns", "--server", server).status == 64)
        }
      }
    }
  }
}
