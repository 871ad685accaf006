// An upstream that cannot prove who it is gets no password and no mail; once it can, the mail that waited leaves.

import Glibc
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct Trust {
    enum Trouble: String, Sendable, CaseIterable {
      case wrongName, unknownAuthority, strippedSTARTTLS

      /// What the log has to say about it.
      var reason: String {
        switch self {
        case .wrongName: "name"
        case .unknownAuthority: "issuer"
        case .strippedSTARTTLS: "STARTTLS"
        }
      }
    }

    @Test(.timeLimit(.minutes(2)), arguments: Trouble.allCases)
    func untrustworthyUpstreamGetsNothing(_ trouble: Trouble) async throws {
      let names = trouble == .wrongName ? ["mail.elsewhere.example"] : ["localhost"]
      try await Bench.run(
        certificateFor: names, rules: trouble == .strippedSTARTTLS ? [.stripSTARTTLS] : [], starts: false
      ) { bench in
        let (certificate, key) = ("\(bench.folder)/other.pem", "\(bench.folder)/other.key")
        if trouble == .unknownAuthority {
          try CertificateAuthority(commonName: "unknown").issue(names: ["localhost"]).write(
            certificateFile: certificate, keyFile: key)
          try bench.upstream.show(certificateFile: certificate, keyFile: key)
        }
        try await bench.start()
        let client = try Client(port: bench.port)
        #expect(try client.deliver(to: "contact-sales@mailer.dreamlikelabs.com", Letter.text("1")).hasPrefix("250"))
        try await bench.waitForLog("no connection (")
        let line = bench.log.split(whereSeparator: \.isNewline).first { $0.contains("no connection (") } ?? ""
        #expect(line.contains(trouble.reason), "\(line)")
        let list = try await bench.relay("queue", "list")
        #expect(list.output.contains("contact-sales@dreamlikelabs.com"))
        #expect(list.output.contains("1 message,"))
        let status = try await bench.relay("status")
        #expect(status.output.contains("on hold"), "\(status.output)")

        let before = bench.upstream.statistics
        #expect(before.connections > 0)
        #expect(before.authentications + before.authenticationFailures + before.credentialsInClear == 0)
        #expect(before.messages == 0)

        switch trouble {
        case .wrongName, .unknownAuthority:
          try bench.authority.issue(names: ["localhost"]).write(certificateFile: certificate, keyFile: key)
          try bench.upstream.show(certificateFile: certificate, keyFile: key)
        case .strippedSTARTTLS: bench.upstream.follow([])
        }
        #expect(try await bench.relay("queue", "retry", "--all").status == 0)
        let messages = try await bench.arrived(1)
        #expect(messages[0].field("X-Test-ID") == "1")
        #expect(messages[0].tlsVersion == "TLSv1.3")
        try await bench.emptied()
        #expect(bench.upstream.statistics.authentications == 1)
        #expect(bench.upstream.statistics.credentialsInClear == 0)
      }
    }

    @Test(.timeLimit(.minutes(2))) func reloadReadsTheCertificateOfTheAuthorityAnew() async throws {
      try await Bench.run(starts: false) { bench in
        try CertificateAuthority(commonName: "of before").writeCertificate(to: "\(bench.folder)/ca.pem")
        try await bench.start()
        let client = try Client(port: bench.port)
        #expect(try client.deliver(to: "contact-sales@mailer.dreamlikelabs.com", Letter.text("1")).hasPrefix("250"))
        try await bench.waitForLog("no connection (certificate)")
        try bench.authority.writeCertificate(to: "\(bench.folder)/ca.pem")
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("configuration reloaded")
        #expect(try await bench.relay("queue", "retry", "--all").status == 0)
        #expect(try await bench.arrived(1).count == 1)
      }
    }
  }
}
