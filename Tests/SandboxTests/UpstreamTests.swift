// Dialogues with the stand-in for Gmail: what it offers, what it refuses, what it keeps.

import Glibc
import Network
import Primitives
import Sandbox
import Testing

@Suite(.timeLimit(.minutes(1))) struct UpstreamTests {
  private func words(_ reply: String) -> [String] {
    reply.split(separator: "\n").dropFirst().map { String($0.dropFirst(4)) }
  }

  @Test func extensionsBeforeAndAfterTLSAreGmails() async throws {
    let fixture = try await Fixture()
    let (banner, before, after) = try await fixture.run(loggedIn: false) { client async throws in
      let banner = try await client.reply()
      let before = try await client.say("EHLO client.test")
      #expect(try await client.say("STARTTLS") == "220 2.0.0 Ready to start TLS")
      try await client.startTLS(fixture.tls)
      #expect(try await client.say("MAIL FROM:<a@example.test>").hasPrefix("503 5.5.1"), "EHLO is forgotten")
      return (banner, before, try await client.say("EHLO client.test"))
    }
    #expect(banner.hasPrefix("220 smtp.gmail.com ESMTP ") && banner.hasSuffix(" - gsmtp"))
    #expect(
      words(before) == [
        "SIZE 35882577", "8BITMIME", "STARTTLS", "ENHANCEDSTATUSCODES", "PIPELINING", "CHUNKING", "SMTPUTF8",
      ])
    #expect(
      words(after) == [
        "SIZE 35882577", "8BITMIME", "AUTH LOGIN PLAIN XOAUTH2 PLAIN-CLIENTTOKEN OAUTHBEARER XOAUTH",
        "ENHANCEDSTATUSCODES", "PIPELINING", "CHUNKING", "SMTPUTF8",
      ])
    #expect(before.hasPrefix("250-smtp.gmail.com at your service, [127.0.0.1]\n"))
  }

  @Test func nothingIsAcceptedBeforeTLSAndCredentialsInClearAreCounted() async throws {
    let fixture = try await Fixture()
    try await fixture.run(loggedIn: false) { client async throws in
      _ = try await client.reply()
      _ = try await client.say("EHLO client.test")
      #expect(
        try await client.say("MAIL FROM:<a@example.test>").hasPrefix("530 5.7.0 Must issue a STARTTLS command first"))
      #expect(fixture.upstream.statistics.credentialsInClear == 0)
      #expect(try await client.say("AUTH PLAIN AGp1bGlhAHNlY3JldA==").hasPrefix("530 5.7.0"))
    }
    #expect(fixture.upstream.statistics.credentialsInClear == 1)
    #expect(fixture.upstream.statistics.authentications == 0)
  }

  @Test func mailBeforeAuthenticationIsRefused() async throws {
    let fixture = try await Fixture()
    try await fixture.run(loggedIn: false) { client async throws in
      _ = try await client.reply()
      _ = try await client.say("EHLO client.test")
      _ = try await client.say("STARTTLS")
      try await client.startTLS(fixture.tls)
      _ = try await client.say("EHLO client.test")
      #expect(try await client.say("MAIL FROM:<a@example.test>").hasPrefix("530-5.7.0 Authentication Required"))
    }
    #expect(fixture.upstream.statistics.violations == ["MAIL before AUTH"])
  }

  /// Lines, and how the reply to each begins.
  @Test(arguments: [
    [("AUTH PLAIN AGp1bGlhAHNlY3JldA==", "235 2.7.0 Accepted")],
    [("AUTH PLAIN", "334 "), ("AGp1bGlhAHNlY3JldA==", "235 2.7.0 Accepted")],
    [("AUTH PLAIN AGp1bGlhAHdyb25n", "535-5.7.8 Username and Password not accepted")],
    [("AUTH LOGIN", "334 VXNlcm5hbWU6"), ("anVsaWE=", "334 UGFzc3dvcmQ6"), ("c2VjcmV0", "235 2.7.0 Accepted")],
    [("AUTH LOGIN anVsaWE=", "334 UGFzc3dvcmQ6"), ("d3Jvbmc=", "535-5.7.8")],
    [("AUTH XOAUTH2 dXNlcj1qdWxpYQFhdXRoPUJlYXJlciB0b2tlbgEB", "235 2.7.0 Accepted")],
    [("AUTH XOAUTH2 dXNlcj1qdWxpYQFhdXRoPUJlYXJlciBzdGFsZQEB", "334 eyJzdGF0dXMiOiI0MDAi"), ("", "535-5.7.8")],
    [("AUTH PLAIN !!!", "501 5.5.2")],
    [("AUTH PLAIN", "334 "), ("*", "501 5.5.2")],
    [("AUTH CRAM-MD5", "504 5.7.4")],
  ])
  func authenticationSpeaksEveryMechanism(dialogue: [(String, String)]) async throws {
    let fixture = try await Fixture()
    let last = try await fixture.run(loggedIn: false) { client async throws in
      _ = try await client.reply()
      _ = try await client.say("EHLO client.test")
      _ = try await client.say("STARTTLS")
      try await client.startTLS(fixture.tls)
      _ = try await client.say("EHLO client.test")
      var last = ""
      for (line, expected) in dialogue {
        last = try await client.say(line)
        #expect(last.hasPrefix(expected), "\(line) → \(last)")
      }
      return last
    }
    if last.hasPrefix("535") { #expect(last.contains("BadCredentials") && last.hasSuffix("gsmtp")) }
    #expect(fixture.upstream.statistics.authentications == (last.hasPrefix("235") ? 1 : 0))
  }

  @Test func twoChunkedMessagesInOneFlightAreBothKept() async throws {
    let fixture = try await Fixture()
    let replies = try await fixture.run { client async throws in
      try await client.send(
        "MAIL FROM:<a@example.test> SIZE=9 BODY=8BITMIME\r\nRCPT TO:<b@example.test>\r\nBDAT 9 LAST\r\n.\r\nfirst\n"
          + "MAIL FROM:<>\r\nRCPT TO:<c@example.test>\r\nRCPT TO:<d@example.test>\r\nBDAT 3\r\nsecBDAT 3 LAST\r\nond"
          + "QUIT\r\n")
      return try await client.replies(9)
    }
    #expect(
      replies.map { $0.prefix(9) } == [
        "250 2.1.0", "250 2.1.5", "250 2.0.0", "250 2.1.0", "250 2.1.5", "250 2.1.5", "250 2.0.0", "250 2.0.0",
        "221 2.0.0",
      ])
    #expect(replies[2].hasPrefix("250 2.0.0 OK  ") && replies[2].hasSuffix(" - gsmtp"))
    let messages = fixture.upstream.messages
    #expect(messages.map { String(decoding: $0.content, as: UTF8.self) } == [".\r\nfirst\n", "second"])
    #expect(messages.map(\.reversePath) == ["a@example.test", ""])
    #expect(messages.map(\.recipients) == [["b@example.test"], ["c@example.test", "d@example.test"]])
    #expect(messages.map(\.number) == [1, 2])
    #expect(messages[0].parameters == ["SIZE=9", "BODY=8BITMIME"])
    #expect(messages[0].authenticatedUser == "julia")
    #expect(messages[0].tlsVersion == "TLSv1.3")
    #expect(messages[0].isChunked)
    #expect(fixture.upstream.statistics.violations.isEmpty)
  }

  @Test func dotStuffingIsUndoneAndOnlyTheProperDotEnds() async throws {
    let fixture = try await Fixture()
    try await fixture.run { client async throws in
      try await client.send("MAIL FROM:<a@example.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n")
      #expect(try await client.replies(3)[2].hasPrefix("354 Go ahead"))
      for byte in "..\r\n..x\r\n\n.\nstill\r\n.\n.\r\n.\r\nNOOP\r\n".unicodeScalars {
        try await client.send(String(byte))
      }
      #expect(try await client.replies(2).map { $0.prefix(13) } == ["250 2.0.0 OK ", "250 2.0.0 OK "])
    }
    let content = fixture.upstream.messages.first.map { String(decoding: $0.content, as: UTF8.self) }
    #expect(content == ".\r\n.x\r\n\n.\nstill\r\n\n.\r\n")
    #expect(fixture.upstream.statistics.violations == ["bare LF in the content"])
  }

  @Test(arguments: [true, false]) func messageBeyondTheSizeLimitIsRefusedAndTheConnectionLives(chunked: Bool)
    async throws
  {
    let fixture = try await Fixture { $0.maximumMessageSize = 1000 }
    try await fixture.run { client async throws in
      #expect(try await client.say("MAIL FROM:<a@example.test> SIZE=1001").hasPrefix("552-5.3.4"))
      let body = String(repeating: "0123456789abcdef\r\n", count: 100)
      _ = try await client.say("MAIL FROM:<a@example.test>")
      _ = try await client.say("RCPT TO:<b@example.test>")
      if chunked {
        try await client.send("BDAT \(body.utf8.count) LAST\r\n" + body)
      } else {
        _ = try await client.say("DATA")
        try await client.send(body + ".\r\n")
      }
      #expect(try await client.reply().hasPrefix("552-5.3.4"))
      #expect(try await client.say("NOOP").hasPrefix("250"))
    }
    #expect(fixture.upstream.messages.isEmpty)
  }

  @Test func recipientBeyondTheHundredthIsTemporary() async throws {
    let fixture = try await Fixture()
    try await fixture.run { client async throws in
      _ = try await client.say("MAIL FROM:<a@example.test>")
      for i in 1...100 { #expect(try await client.say("RCPT TO:<u\(i)@example.test>").hasPrefix("250")) }
      #expect(try await client.say("RCPT TO:<u101@example.test>").hasPrefix("452 4.5.3"))
    }
  }

  @Test func refusedRecipientInAFlightLeavesTheOthers() async throws {
    let fixture = try await Fixture([.recipient("nobody@", "550-5.1.1 No such user\n550 5.1.1 gsmtp")])
    let replies = try await fixture.run { client async throws in
      try await client.send(
        "MAIL FROM:<a@example.test>\r\nRCPT TO:<nobody@example.test>\r\nRCPT TO:<b@example.test>\r\nBDAT 2 LAST\r\nhi"
          + "MAIL FROM:<a@example.test>\r\nRCPT TO:<nobody@example.test>\r\nBDAT 2 LAST\r\nhi")
      return try await client.replies(7)
    }
    #expect(replies.map { $0.prefix(3) } == ["250", "550", "250", "250", "250", "550", "503"])
    #expect(replies[1] == "550-5.1.1 No such user\n550 5.1.1 gsmtp")
    #expect(fixture.upstream.messages.map(\.recipients) == [["b@example.test"]])
  }

  @Test func silentClientIsToldAndDisconnected() async throws {
    let fixture = try await Fixture { $0.idleTimeout = .milliseconds(1) }
    try await fixture.run(loggedIn: false) { client async throws in
      #expect(try await client.reply().hasPrefix("220 "))
      #expect(try await client.reply().hasPrefix("421 4.4.2"))
      #expect(try await client.reply() == "")
    }
  }

  @Test func implicitTLSBeginsWithTheHandshake() async throws {
    let fixture = try await Fixture { $0.implicitTLSEndpoint = Endpoint("127.0.0.1:0")! }
    let ehlo = try await RawClient.with(fixture.upstream.implicitTLSEndpoint) { client in
      try await client.startTLS(fixture.tls)
      #expect(try await client.reply().hasPrefix("220 "))
      return try await client.say("EHLO client.test")
    }
    #expect(ehlo.contains("AUTH LOGIN PLAIN"))
    await fixture.upstream.stop()
  }

  @Test func messagesAreKeptAsFilesExactlyAsReceived() async throws {
    let fixture = try await Fixture()
    let directory = fixture.directory
    let keeping = try await Fixture { $0.directory = directory }
    try await keeping.run { client async throws in
      try await client.send("MAIL FROM:<a@example.test>\r\nRCPT TO:<\"../x\"@example.test>\r\nBDAT 4 LAST\r\na\r\nb")
      #expect(try await client.replies(3)[2].hasPrefix("250 2.0.0 OK"))
    }
    func text(_ path: String) -> String? {
      guard let file = fopen(path, "r") else { return nil }
      defer {
        fclose(file)
        unlink(path)
      }
      var bytes = [UInt8](repeating: 0, count: 4096)
      let count = fread(&bytes, 1, 4096, file)
      return String(decoding: bytes.prefix(count), as: UTF8.self)
    }
    #expect(text(directory + "/0001-_.._x_@example.test.eml") == "a\r\nb")
    let envelope = try #require(text(directory + "/0001-_.._x_@example.test.json"))
    #expect(envelope.contains(#""recipients": ["\"../x\"@example.test"]"#))
    await fixture.upstream.stop()
  }
}
