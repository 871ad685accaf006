// Every published form of SMTP smuggling through the real binary to an upstream that counts what it gets: exactly the
// messages that were accepted, whatever way they are sent on, and nothing of a client where it does not belong.

import Glibc
import Primitives
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct Smuggling {
    private static let recipient = "contact-sales@mailer.dreamlikelabs.com"
    private static let smuggled =
      "MAIL FROM:<evil@example.org>\r\nRCPT TO:<contact-legal@mailer.dreamlikelabs.com>\r\nDATA\r\n"
      + "Subject: smuggled\r\n\r\nevil"

    /// Longin's and others' (SEC Consult 2023, Postfix, Exim, Sendmail, Cisco, CVE-2023-51764 to 51766, CVE-2024-27305).
    static let ends = [
      "\n.\n", "\n.\r\n", "\r.\r\n", "\r\n.\n", "\r\n.\r", "\r.\r", "\r.\n", "\n.\r", "\r\n\0.\r\n", "\r\n.\0\r\n",
      "\r\n.\r\0\n", "\r\r\n.\n", "\n\n.\n\n", "\r\n.\n\r\n", "\r\n.\r\r\n", "\n..\n", "\r\n..\n", "\n..\r\n",
    ]

    /// How the upstream wants its mail: in chunks, pipelined with dots doubled, step by step.
    enum Way: String, Sendable, CaseIterable {
      case chunks, pipelined, steps
      var rules: [Rule] {
        switch self {
        case .chunks: []
        case .pipelined: [.noChunking]
        case .steps: [.noChunking, .noPipelining]
        }
      }
    }

    @Test(.timeLimit(.minutes(3)), arguments: Way.allCases)
    func upstreamSeesExactlyWhatWasAccepted(_ way: Way) async throws {
      try await Bench.run(rules: way.rules) { bench in
        var accepted: [String] = []
        for (number, end) in Self.ends.enumerated() {
          let text = "Subject: \(number)\r\n\r\ntext\(end)\(Self.smuggled)\r\n"
          let client = try Client(port: bench.port)
          #expect(try client.deliver(to: Self.recipient, text).hasPrefix("554 5.6.0"), "\(end.debugDescription)")
          let chunk = try client.deliver(to: Self.recipient, Array(text.utf8), chunked: true)
          #expect(chunk.hasPrefix("554 5.6.0"), "\(end.debugDescription)")
          #expect(try client.say("VRFY x").hasPrefix("252"), "\(end.debugDescription): the dialogue is out of step")
        }
        // What is no end of data for anybody goes through, dots and all.
        let client = try Client(port: bench.port)
        for (number, dots) in ["..", ". ", " .", "...", ".a", "..a"].enumerated() {
          let body = "X-Test-ID: dots-\(number)\r\n\r\n\(dots)\r\nMAIL FROM:<x@y>\r\n\(dots)\r\n"
          let reply = try client.deliver(to: Self.recipient, Array(body.utf8), chunked: true)
          #expect(reply.hasPrefix("250"), "\(reply)")
          accepted.append(body)
        }
        let messages = try await bench.arrived(accepted.count)
        try await bench.emptied()
        #expect(bench.upstream.statistics.messages == accepted.count)
        #expect(bench.upstream.statistics.violations == [])
        for message in messages {
          let text = String(decoding: message.content, as: UTF8.self)
          #expect(accepted.contains { text.hasSuffix($0) }, "\(text)")
          #expect(message.recipients == ["contact-sales@dreamlikelabs.com"])
          #expect(message.isChunked == (way == .chunks))
        }
      }
    }

    /// Everything that a client can choose, with everything in it that could be more than it is.
    @Test(.timeLimit(.minutes(2))) func nothingOfAClientBecomesACommandAHeaderOrALogLine() async throws {
      let said = Mutex<[String]>([])
      let listen: (inout UpstreamOptions) -> Void = { $0.log = { line in said.withLock { $0.append(line) } } }
      try await Bench.run(rules: [.offersDSN], upstream: listen) { bench in
        let client = try Client(port: bench.port, hello: "a;b(c)\\\"<x>")
        let bad = [
          "MAIL FROM:<\"a\r\nDATA\"@b>", "MAIL FROM:<a@b> ENVID=x+0D+0ARSET", "MAIL FROM:<a@b>\nRCPT TO:<c@d>",
          "MAIL FROM:<\u{1b}]0;evil\u{7}@b>", "EHLO \u{1b}[2J", "MAIL FROM:<a@b> SIZE=1\u{b}2", "VRFY \0x",
          "XCLIENT NAME=evil ADDR=127.0.0.1", "MAIL FROM:<a@b> AUTH=x", "RCPT TO:<a@b> ORCPT=rfc822;a+0Ab",
        ]
        for line in bad {
          try client.send(line + "\r\n")
          // A bare LF ends a line too, one that is refused.
          for _ in line.utf8.split(separator: 0x0a, omittingEmptySubsequences: false) {
            let reply = try client.reply()
            #expect("45".contains(reply.first ?? "2") || reply.hasPrefix("252"), "\(line.debugDescription): \(reply)")
          }
        }
        let commands = [
          "MAIL FROM:<\"x> SIZE=9 \\\"y\"@example.org> ENVID=a+2Bb+3Dc+20d RET=HDRS",
          "RCPT TO:<\(Self.recipient)> NOTIFY=FAILURE ORCPT=rfc822;x+20y+3E+40z",
        ]
        for command in commands { #expect(try client.say(command).hasPrefix("250"), "\(command)") }
        #expect(try client.say("DATA").hasPrefix("354"))
        #expect(try client.say("Subject: s\r\n\r\nx\r\n.").hasPrefix("250"))
        let message = try #require(try await bench.arrived(1).first)
        try await bench.emptied()
        let text = String(decoding: message.content, as: UTF8.self)
        let header = text.components(before: "\r\n\r\n").split(separator: "\r\n")
        #expect(
          header.filter { $0.first != "\t" && $0.first != " " }.map { $0.prefix { $0 != ":" } } == [
            "Received", "Subject",
          ], "\(text)")
        #expect(message.reversePath == "\"x> SIZE=9 \\\"y\"@example.org")
        #expect(message.parameters.contains("ENVID=a+2Bb+3Dc+20d"), "\(message.parameters)")
        #expect(bench.upstream.statistics.violations == [])
        let verbs = said.withLock { $0 }.compactMap { line -> String? in
          line.contains(" > ") ? line.split(separator: " ").dropFirst(2).first.map(String.init) : nil
        }
        #expect(Set(verbs).isSubset(of: ["EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "BDAT", "DATA", "QUIT", "RSET"]))
        #expect(verbs.filter { $0 == "MAIL" }.count == 1)
        // Each line of the log begins as ours do.
        for line in bench.log.split(separator: "\n") {
          #expect(line.prefix(2) == "20" && line.dropFirst(10).first == "T", "\(line.debugDescription)")
          #expect(line.unicodeScalars.allSatisfy { $0.value >= 0x20 && $0.value != 0x7f }, "\(line.debugDescription)")
        }
      }
    }

    /// What a browser sends when a page makes it post to this port, and what a client sends that never waits.
    @Test(.timeLimit(.minutes(2))) func whoeverDoesNotSpeakTheProtocolSendsNoMail() async throws {
      try await Bench.run { bench in
        let mail = "HELO x\r\n\(Self.smuggled)\r\n.\r\nQUIT\r\n"
        for request in ["POST / HTTP/1.1\r\nHost: relay\r\n\r\n", "CONNECT relay:25 HTTP/1.1\r\n\r\n"] {
          let client = try Client(port: bench.port, hello: nil)
          try client.send(request + mail)
          #expect(try client.reply().hasPrefix("220"))
          #expect(try client.reply().hasPrefix("554 5.5.1"))
          #expect(throws: Client.Broken.self) { try client.reply() }
        }
        // DATA is refused, and the content must not be what is obeyed next.
        let hasty = try Client(port: bench.port)
        try hasty.send("MAIL FROM:<a@b>\r\nRCPT TO:<nobody@mailer.dreamlikelabs.com>\r\nDATA\r\n" + mail)
        #expect(try hasty.reply().hasPrefix("250"))
        #expect(try hasty.reply().hasPrefix("550"))
        #expect(try hasty.reply().hasPrefix("554"))
        #expect(throws: Client.Broken.self) { try hasty.reply() }
        let honest = try Client(port: bench.port)
        #expect(try honest.deliver(to: Self.recipient, Letter.text("honest")).hasPrefix("250"))
        #expect(try await bench.arrived(1).map { $0.field("X-Test-ID") } == ["honest"])
        try await bench.emptied()
        #expect(bench.upstream.statistics.messages == 1)
      }
    }
  }
}

extension String {
  fileprivate func components(before mark: String) -> String {
    firstRange(of: mark).map { String(self[..<$0.lowerBound]) } ?? self
  }
}
