// Ways to bring more past a server than it has judged: a second message inside the first, commands inside content,
// lines inside lines. docs/security.md lists them with what the relay does; each has its place here.

import Network
import SMTP
import Testing

@Suite struct SmugglingTests {
  static let open = "MAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\n"
  static let smuggled = "MAIL FROM:<evil@b.test>\r\nRCPT TO:<contact@relay.test>\r\nDATA\r\nevil\r\n.\r\n"

  /// What a client sends at once, what it is told, and what is queued of it.
  struct Attempt: Sendable, CustomTestStringConvertible {
    var testDescription: String
    var input: String
    var codes: [String]
    var bodies: [String] = []
    /// Whether the server hangs up.
    var closes = false
  }

  private static let opened = ["250 2.1.0", "250 2.1.5"]
  /// A reply to each command of ``smuggled`` and to its content, for attempts whose octets are commands indeed.
  private static let taken = ["250 2.1.0", "250 2.1.5", "354", "250 2.0.0"]

  static let attempts: [Attempt] = [
    // Commands before their time.
    Attempt(
      testDescription: "content pipelined behind DATA is content", input: open + "DATA\r\n" + "text\r\n.\r\n",
      codes: opened + ["354", "250 2.0.0"], bodies: ["text\r\n"]),
    Attempt(
      testDescription: "content behind a refused DATA is not run",
      input: "MAIL FROM:<a@b.test>\r\nRCPT TO:<nobody@relay.test>\r\nDATA\r\n" + smuggled,
      codes: ["250 2.1.0", "550 5.1.1", "554 5.5.1"], closes: true),
    Attempt(
      testDescription: "content behind DATA without a transaction is not run", input: "DATA\r\n" + smuggled,
      codes: ["503 5.5.1"], closes: true),
    Attempt(
      testDescription: "QUIT in the content is content", input: open + "DATA\r\nQUIT\r\nRSET\r\n.\r\nNOOP\r\n",
      codes: opened + ["354", "250 2.0.0", "250 2.0.0"], bodies: ["QUIT\r\nRSET\r\n"]),
    // The counts of BDAT.
    Attempt(
      testDescription: "commands behind a chunk are commands", input: open + "BDAT 6 LAST\r\ntext\r\n" + smuggled,
      codes: opened + ["250 2.0.0"] + taken, bodies: ["text\r\n", "evil\r\n"]),
    Attempt(
      testDescription: "a count that is too large makes content of commands",
      input: open + "BDAT 12 LAST\r\ntext\r\nQUIT\r\nNOOP\r\n", codes: opened + ["250 2.0.0", "250 2.0.0"],
      bodies: ["text\r\nQUIT\r\n"]),
    Attempt(
      testDescription: "a count that is too small leaves a line that is no command",
      input: open + "BDAT 6 LAST\r\ntext\r\nmore\r\nNOOP\r\n", codes: opened + ["250 2.0.0", "500 5.5.1", "250 2.0.0"],
      bodies: ["text\r\n"]),
    Attempt(
      testDescription: "the end of data means nothing in a chunk",
      input: open + "BDAT 17 LAST\r\na\r\n.\r\nQUIT\r\nb\r\n\r\n" + "NOOP\r\n",
      codes: opened + ["250 2.0.0", "250 2.0.0"], bodies: ["a\r\n.\r\nQUIT\r\nb\r\n\r\n"]),
    Attempt(
      testDescription: "a count that is no number ends the session", input: open + "BDAT 0x6 LAST\r\n" + smuggled,
      codes: opened + ["501 5.5.4"], closes: true),
    Attempt(
      testDescription: "a negative count ends the session", input: open + "BDAT -6 LAST\r\n" + smuggled,
      codes: opened + ["501 5.5.4"], closes: true),
    Attempt(
      testDescription: "a count that overflows ends the session",
      input: open + "BDAT 18446744073709551622 LAST\r\n" + smuggled, codes: opened + ["501 5.5.4"], closes: true),
    Attempt(
      testDescription: "a chunk that is refused is not run",
      input: "BDAT \(smuggled.utf8.count) LAST\r\n" + smuggled + "NOOP\r\n", codes: ["503 5.5.1", "250 2.0.0"]),
    // Line ends and NUL in commands.
    Attempt(
      testDescription: "a bare LF ends no command", input: "NOOP\nMAIL FROM:<evil@b.test>\r\nRSET\r\n",
      codes: ["500 5.5.2", "250 2.1.0", "250 2.0.0"]),
    Attempt(
      testDescription: "a bare CR ends no command", input: "NOOP\rMAIL FROM:<evil@b.test>\r\nNOOP\r\n",
      codes: ["500 5.5.2", "250 2.0.0"]),
    Attempt(
      testDescription: "NUL ends no command", input: "NOOP\0QUIT\r\nMAIL FROM:<a\0@b.test>\r\nEHLO a\0b\r\nNOOP\r\n",
      codes: ["500 5.5.1", "501 5.5.2", "501 5.5.2", "250 2.0.0"]),
    // Other protocols.
    Attempt(
      testDescription: "a browser that posts mail is sent away",
      input: "POST / HTTP/1.1\r\nHost: relay.test:25\r\nContent-Length: 99\r\n\r\n" + smuggled, codes: ["554 5.5.1"],
      closes: true),
    Attempt(
      testDescription: "a proxy that connects is sent away", input: "connect relay.test:25 HTTP/1.0\r\n\r\n" + smuggled,
      codes: ["554 5.5.1"], closes: true),
    // Parameters.
    Attempt(
      testDescription: "line ends in xtext are refused",
      input: "MAIL FROM:<a@b.test> ENVID=x+0D+0AQUIT\r\n"
        + open.replacing("<contact@relay.test>", with: "<contact@relay.test> ORCPT=rfc822;a+0D+0ARCPT")
        + "RSET\r\n", codes: ["501 5.5.4", "250 2.1.0", "501 5.5.4", "250 2.0.0"]),
    Attempt(
      testDescription: "AUTH= of a stranger is refused",
      input: "MAIL FROM:<a@b.test> AUTH=admin@relay.test\r\nNOOP\r\n",
      codes: ["555 5.5.4", "250 2.0.0"]),
    Attempt(
      testDescription: "a SIZE that is no number is refused",
      input: "MAIL FROM:<a@b.test> SIZE=1e9\r\nMAIL FROM:<a@b.test> SIZE=-1\r\nMAIL FROM:<a@b.test> SIZE=1 SIZE=2\r\n",
      codes: ["501 5.5.4", "501 5.5.4", "501 5.5.4"]),
    Attempt(
      testDescription: "eight bits in an address need SMTPUTF8",
      input: "MAIL FROM:<ü@b.test>\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<ü@relay.test>\r\nRSET\r\n",
      codes: ["553 5.6.7", "250 2.1.0", "553 5.6.7", "250 2.0.0"]),
    Attempt(
      testDescription: "a quoted > does not end the path",
      input: "MAIL FROM:<\"a> SIZE=1\"@b.test>\r\nRCPT TO:<\"contact>,evil\"@relay.test>\r\nRSET\r\n",
      codes: ["250 2.1.0", "550 5.1.1", "250 2.0.0"]),
    Attempt(
      testDescription: "a control character in a quoted string is refused",
      input: "MAIL FROM:<\"a\u{1}b\"@b.test>\r\nMAIL FROM:<\"a\\\tb\"@b.test>\r\nNOOP\r\n",
      codes: ["501 5.5.2", "501 5.1.3", "250 2.0.0"]),
  ]

  @Test(arguments: attempts) func whatIsSentAtOnceIsReadInOneWay(_ attempt: Attempt) async throws {
    let door = try Door()
    try await door.greet { client async throws in
      try await client.send(attempt.input)
      #expect(try await client.codes(attempt.codes.count) == attempt.codes)
      if attempt.closes {
        #expect(try await client.reply() == "", "the server goes on")
      } else {
        #expect(try await client.say("VRFY x").hasPrefix("252"), "nothing else was answered")
      }
    }
    #expect(try await door.bodies() == attempt.bodies)
    await door.close()
  }

  /// The octets are the same, the pieces are not: each must give the same replies and the same mail.
  @Test(arguments: [1, 2, 3, 5, 7]) func piecesOfAnySizeAreReadAsTheWhole(_ size: Int) async throws {
    let door = try Door()
    let input = Array(
      (Self.open + "DATA\r\n..dot\r\n.\r\n" + Self.open + "DATA\r\na\n.\nb\r\n.\r\n" + Self.open
        + "BDAT 6\r\n.\r\n..x\(Self.bdatRest)").utf8)
    try await door.greet { client async throws in
      for start in stride(from: 0, to: input.count, by: size) {
        try await client.send(Array(input[start..<min(start + size, input.count)]))
      }
      #expect(
        try await client.codes(13) == [
          "250 2.1.0", "250 2.1.5", "354", "250 2.0.0", "250 2.1.0", "250 2.1.5", "354", "554 5.6.0", "250 2.1.0",
          "250 2.1.5", "250 2.0.0", "250 2.0.0", "250 2.0.0",
        ])
    }
    #expect(try await door.bodies() == [".dot\r\n", ".\r\n..x\r\n.\r\n"])
    await door.close()
  }
  private static let bdatRest = "BDAT 5 LAST\r\n\r\n.\r\nNOOP\r\n"

  /// Ends of data for those that take NUL for nothing, or for the end of a string.
  @Test(arguments: ["\r\n\0.\r\n", "\r\n.\0\r\n", "\r\n.\r\0\n", "\r\0\n.\r\n", "\0\r\n.\0\r\n", "\0"])
  func nulInTheContentIsRefusedAndTheConnectionUsable(_ form: String) async throws {
    let door = try Door()
    try await door.greet { client async throws in
      #expect(try await client.mail("text\(form)\(Self.smuggled.dropLast(5))").hasPrefix("554 5.6.0"))
      let text = "text\(form)more\r\n"
      try await client.send(Self.open + "BDAT \(text.utf8.count) LAST\r\n\(text)")
      #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "554 5.6.0"])
      #expect(try await client.mail("honest").hasPrefix("250"))
    }
    #expect(try await door.bodies() == ["honest\r\n"])
    await door.close()
  }

  /// What looks like an end and is none for anybody: it stays, and nothing behind it is a command.
  @Test(arguments: ["\r\n..\r\n", "\r\n. \r\n", "\r\n.\t\r\n", "\r\n .\r\n", "\r\n.a\r\n", "\r\n...\r\n", ".\r\n"])
  func dotThatIsNotAloneIsContent(_ form: String) async throws {
    let door = try Door()
    let text = "text\(form)MAIL FROM:<evil@b.test>"
    try await door.greet { client async throws in
      #expect(try await client.mail(text).hasPrefix("250"))
      #expect(try await client.say("VRFY x").hasPrefix("252"))
    }
    let lines = (text + "\r\n").split(separator: "\r\n", omittingEmptySubsequences: false)
    let content = lines.map { $0.hasPrefix(".") ? $0.dropFirst() : $0 }.joined(separator: "\r\n")
    #expect(try await door.bodies() == [content])
    await door.close()
  }

  @Test func whoTalksBeforeTheBannerIsReadLikeAnybodyElse() async throws {
    let door = try Door()
    try await door.connect { client async throws in
      // The server's banner cannot have come yet, and changes nothing.
      try await client.send("EHLO early.test\r\n" + Self.open + "DATA\r\nx\r\n.\r\nPOST / HTTP/1.1\r\n" + Self.smuggled)
      #expect(try await client.reply().hasPrefix("220 "))
      #expect(try await client.reply().hasPrefix("250-relay.test"))
      #expect(try await client.codes(5) == ["250 2.1.0", "250 2.1.5", "354", "250 2.0.0", "554 5.5.1"])
      #expect(try await client.reply() == "")
    }
    #expect(try await door.bodies() == ["x\r\n"])
    await door.close()
  }

  @Test func lineOfExactlyTheLimitIsTakenAndOneMoreIsNotRunInParts() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      #expect(try await client.say("NOOP " + String(repeating: "x", count: 2048 - 7)).hasPrefix("250"))
      // Behind the limit stands what would be a command of its own.
      let long = "NOOP " + String(repeating: "x", count: 2048 - 5) + "QUIT"
      #expect(try await client.say(long).hasPrefix("500 5.5.2"))
      #expect(try await client.say(String(repeating: "x", count: 70_000) + " QUIT").hasPrefix("500 5.5.2"))
      #expect(try await client.say("NOOP").hasPrefix("250"))
    }
    await door.close()
  }

  @Test func octetsThatAreNotUTF8AreRefusedInAddresses() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      // Overlong, a surrogate, cut off, beyond Unicode, C1 and the separators of lines and paragraphs.
      for octets: [UInt8] in [
        [0xc0, 0x8d], [0xe0, 0x80, 0x8d], [0xed, 0xa0, 0x80], [0xc3], [0xf4, 0x90, 0x80, 0x80], [0xff], [0xc2, 0x85],
        [0xe2, 0x80, 0xa8], [0xe2, 0x80, 0xa9],
      ] {
        try await client.send(Array("MAIL FROM:<a".utf8) + octets + Array("@b.test> SMTPUTF8\r\n".utf8))
        #expect(try await client.reply().hasPrefix("501"), "\(octets)")
      }
    }
    await door.close()
  }

  /// Names and addresses that try to be more than one, where they are written down.
  @Test func whatAClientSaysStaysOneFieldAndOneLogLine() async throws {
    let door = try Door(trusting: ["127.0.0.0/8"])
    try await door.connect { client async throws in
      _ = try await client.reply()
      #expect(try await client.say("EHLO a;b(c)\\\"<x>,d").hasPrefix("250"))
      try await client.send(
        "MAIL FROM:<\"x\\\" y (z); by evil\"@b.test>\r\nRCPT TO:<\"a b; <c>\"@gmail.test>\r\nDATA\r\n")
      #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "354"])
      #expect(try await client.say("Subject: s\r\n\r\nx\r\n.").hasPrefix("250"))
      _ = try await client.say("MAIL FROM:<\u{1b}[31m@b.test>")
      _ = try await client.say("RCPT TO:<x\u{7f}@b.test>")
    }
    let text = String(decoding: try await #require(door.queued.first).content.octets(), as: UTF8.self)
    let fields = text.split(separator: "\r\n\r\n").first?.split(separator: "\r\n").filter { $0.first != "\t" } ?? []
    #expect(fields.map { $0.prefix { $0 != ":" } } == ["Received", "Subject"], "\(text)")
    #expect(text.hasPrefix("Received: from abcxd ([127.0.0.1])"), "\(text)")
    for line in door.lines.all {
      #expect(line.unicodeScalars.allSatisfy { $0.value >= 0x20 && $0.value != 0x7f }, "\(line.debugDescription)")
    }
    await door.close()
  }
}
