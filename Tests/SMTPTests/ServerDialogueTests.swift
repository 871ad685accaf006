// The server's dialogue, line by line.

import Testing

@testable import SMTP

/// Drives a machine with text; everything asked is granted unless the address begins with `no`.
struct Dialogue {
  var machine: ServerStateMachine

  init(_ settings: ServerStateMachine.Settings, isTLS: Bool = false) {
    machine = ServerStateMachine(settings: settings, isTLS: isTLS)
  }

  /// A line's result: the reply's code and enhanced code, or the name of the action.
  mutating func say(_ line: String) -> String {
    let bytes = Array(line.utf8)
    let action = bytes.withUnsafeBytes { machine.receive(line: $0) }
    func show(_ reply: Reply) -> String { "\(reply.code)" + (reply.enhanced.map { " \($0)" } ?? "") }
    switch action {
    case .reply(let reply): return show(reply)
    case .close(let reply): return "close \(show(reply))"
    case .checkSender(let path, _):
      let accepted = !path.text.hasPrefix("no")
      machine.senderAnswered(accepted: accepted)
      return accepted ? "sender" : "sender refused"
    case .checkRecipient(let path, _):
      let accepted = !path.text.hasPrefix("no")
      machine.recipientAnswered(accepted: accepted)
      return accepted ? "recipient" : "recipient refused"
    case .startTLS:
      machine.tlsStarted()
      return "tls"
    case .receiveData(let reply):
      machine.contentFinished()
      return "data \(reply.code)"
    case .receiveChunk(let count, let last):
      if last { machine.contentFinished() } else { machine.chunkAccepted() }
      return "chunk \(count)\(last ? " last" : "")"
    case .discardChunk(let count, let reply): return "discard \(count) \(show(reply))"
    case .authenticate(let mechanism, let response):
      machine.authenticated("user")
      return "auth \(mechanism) \(response ?? "-")"
    }
  }
}

@Suite struct ServerDialogueTests {
  static let plain = ServerStateMachine.Settings(hostname: "mx.example", maximumMessageSize: 1000, maximumRecipients: 2)
  static let submission = ServerStateMachine.Settings(
    hostname: "mx.example", offersStartTLS: true, offersDSN: true, authMechanisms: ["PLAIN", "LOGIN"],
    requiresTLS: true,
    requiresAuthentication: true)

  func run(_ steps: [(String, String)], sourceLocation: SourceLocation = #_sourceLocation) {
    run(Self.plain, steps, sourceLocation: sourceLocation)
  }

  func run(
    _ settings: ServerStateMachine.Settings, isTLS: Bool = false, _ steps: [(String, String)],
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    var dialogue = Dialogue(settings, isTLS: isTLS)
    for (line, expected) in steps {
      let got = dialogue.say(line)
      #expect(got == expected, "after \(line)", sourceLocation: sourceLocation)
    }
  }

  @Test func aMessageGoesThrough() {
    run([
      ("EHLO c.example", "250"), ("MAIL FROM:<a@b>", "sender"), ("RCPT TO:<c@d>", "recipient"),
      ("rcpt to:<e@f>", "recipient"),
      ("DATA", "data 354"), ("MAIL FROM:<>", "sender"), ("RCPT TO:<Postmaster>", "recipient"), ("DATA", "data 354"),
      ("QUIT", "close 221 2.0.0"),
    ])
  }

  @Test func commandsOutOfOrderAreRefused() {
    run([
      ("MAIL FROM:<a@b>", "503 5.5.1"), ("RCPT TO:<a@b>", "503 5.5.1"), ("DATA", "503 5.5.1"), ("EHLO x", "250"),
      ("RCPT TO:<a@b>", "503 5.5.1"), ("DATA", "503 5.5.1"), ("MAIL FROM:<a@b>", "sender"),
      ("MAIL FROM:<a@b>", "503 5.5.1"),
      ("DATA", "503 5.5.1"), ("RCPT TO:<no@b>", "recipient refused"), ("DATA", "554 5.5.1"), ("RSET", "250 2.0.0"),
      ("RCPT TO:<a@b>", "503 5.5.1"), ("MAIL FROM:<no@b>", "sender refused"), ("RCPT TO:<a@b>", "503 5.5.1"),
    ])
  }

  @Test func aSecondGreetingEndsTheTransaction() {
    run([
      ("EHLO x", "250"), ("MAIL FROM:<a@b>", "sender"), ("RCPT TO:<c@d>", "recipient"), ("EHLO x", "250"),
      ("DATA", "503 5.5.1"),
      ("MAIL FROM:<a@b>", "sender"), ("HELO x", "250"), ("RCPT TO:<c@d>", "503 5.5.1"),
    ])
  }

  @Test(arguments: [
    ("FOO", "500 5.5.1"), ("", "500 5.5.1"), ("MAILFROM:<a@b>", "500 5.5.1"), ("VRFY a", "252 2.5.2"),
    ("VRFY", "501 5.5.4"),
    ("EXPN list", "502 5.5.1"), ("HELP", "214 2.0.0"), ("NOOP anything", "250 2.0.0"), ("RSET x", "501 5.5.4"),
    ("DATA x", "501 5.5.4"), ("QUIT now", "501 5.5.4"), ("STARTTLS", "502 5.5.1"), ("STARTTLS x", "501 5.5.4"),
    ("AUTH PLAIN", "502 5.5.1"), ("EHLO", "501 5.5.4"), ("EHLO a b", "501 5.5.2"), ("EHLO é", "501 5.5.2"),
    ("EHLO a\0", "501 5.5.2"),
    ("NOOP \u{1b}[2J", "501 5.5.2"), ("RSET  ", "250 2.0.0"),
    ("MAIL FROM: <a@b>", "sender"), ("mail from:<a@b>", "sender"), ("MAIL FROM:<a@b> SIZE=1000", "sender"),
    ("MAIL FROM:<a@b> SIZE=1001", "552 5.3.4"), ("MAIL FROM:<a@b> SIZE=", "501 5.5.4"),
    ("MAIL FROM:<a@b> SIZE=-1", "501 5.5.4"),
    ("MAIL FROM:<a@b> SIZE=99999999999999999999999", "501 5.5.4"), ("MAIL FROM:<a@b> SIZE=1 SIZE=1", "501 5.5.4"),
    ("MAIL FROM:<a@b> BODY=8bitmime", "sender"), ("MAIL FROM:<a@b> BODY=BINARYMIME", "504 5.5.4"),
    ("MAIL FROM:<a@b> BODY=9BIT", "501 5.5.4"), ("MAIL FROM:<a@b> SMTPUTF8", "sender"),
    ("MAIL FROM:<a@b> SMTPUTF8=1", "501 5.5.4"),
    ("MAIL FROM:<a@b> FOO=1", "555 5.5.4"), ("MAIL FROM:<a@b> RET=HDRS", "555 5.5.4"),
    ("MAIL FROM:<a@b> AUTH=<>", "555 5.5.4"),
    ("MAIL FROM:<é@b>", "553 5.6.7"), ("MAIL FROM:<é@b> SMTPUTF8", "sender"), ("MAIL FROM:<a@b>SIZE=1", "501 5.5.2"),
    ("MAIL FROM:a@b", "501 5.5.2"), ("MAIL FROM:", "501 5.5.2"), ("MAIL FROM:<a@b", "501 5.5.2"),
    ("MAIL a@b", "501 5.5.2"),
    ("MAIL FROM:<a>", "501 5.1.3"), ("MAIL FROM:<a@b..c>", "501 5.1.3"), ("MAIL FROM:<\">\"@b>", "sender"),
    ("MAIL FROM:<@hop:a@b>", "sender"), ("MAIL FROM:<a@b>\tSIZE=1", "sender"), ("BDAT x", "close 501 5.5.4"),
    ("BDAT 5 FIRST", "close 501 5.5.4"), ("BDAT", "close 501 5.5.4"), ("BDAT 5", "discard 5 503 5.5.1"),
    ("BDAT 99999999999999999999999", "close 501 5.5.4"), ("BDAT -5", "close 501 5.5.4"),
  ])
  func eachLineHasItsAnswer(_ line: String, _ expected: String) { run([("EHLO x", "250"), (line, expected)]) }

  @Test(arguments: [
    ("RCPT TO:<c@d>", "recipient"), ("RCPT TO: <c@d>", "recipient"), ("RCPT TO:<>", "501 5.1.3"),
    ("RCPT TO:c@d", "501 5.5.2"),
    ("RCPT TO:<postmaster>", "recipient"), ("RCPT TO:<c@d> NOTIFY=NEVER", "555 5.5.4"),
    ("RCPT TO:<c@d> X=1", "555 5.5.4"),
    ("RCPT TO:<é@d>", "553 5.6.7"), ("RCPT FROM:<c@d>", "501 5.5.2"), ("BDAT 10", "discard 10 503 5.5.1"),
    ("STARTTLS", "502 5.5.1"),
  ])
  func eachLineInATransactionHasItsAnswer(_ line: String, _ expected: String) {
    run([("EHLO x", "250"), ("MAIL FROM:<a@b>", "sender"), (line, expected)])
  }

  @Test func octetsThatAreNotUTF8AreRefusedInPaths() {
    var machine = ServerStateMachine(settings: Self.plain, isTLS: false)
    _ = machine.receive(.ehlo("x"))
    let line = Array("MAIL FROM:<".utf8) + [0xff] + Array("@b> SMTPUTF8".utf8)
    guard case .reply(let reply) = line.withUnsafeBytes({ machine.receive(line: $0) }) else {
      Issue.record("accepted")
      return
    }
    #expect(reply.code == 501)
  }

  @Test func recipientsBeyondTheLimitComeAgainLater() {
    run([
      ("EHLO x", "250"), ("MAIL FROM:<a@b>", "sender"), ("RCPT TO:<c@d>", "recipient"),
      ("RCPT TO:<no@d>", "recipient refused"),
      ("RCPT TO:<e@d>", "recipient"), ("RCPT TO:<f@d>", "452 4.5.3"), ("DATA", "data 354"),
    ])
  }

  @Test func chunksMakeAMessage() {
    run([
      ("EHLO x", "250"), ("MAIL FROM:<a@b>", "sender"), ("RCPT TO:<c@d>", "recipient"), ("BDAT 400", "chunk 400"),
      ("DATA", "503 5.5.1"), ("RCPT TO:<e@d>", "503 5.5.1"), ("BDAT 600 LAST", "chunk 600 last"),
      ("BDAT 5 LAST", "discard 5 503 5.5.1"), ("MAIL FROM:<a@b>", "sender"), ("RCPT TO:<c@d>", "recipient"),
      ("bdat 0 last", "chunk 0 last"),
    ])
  }

  @Test func chunksBeyondTheSizeAreSwallowedAndEndTheTransaction() {
    run([
      ("EHLO x", "250"), ("MAIL FROM:<a@b>", "sender"), ("RCPT TO:<c@d>", "recipient"), ("BDAT 600", "chunk 600"),
      ("BDAT 401", "discard 401 552 5.3.4"), ("BDAT 1 LAST", "discard 1 503 5.5.1"), ("MAIL FROM:<a@b>", "sender"),
      ("RCPT TO:<no@b>", "recipient refused"), ("BDAT 3 LAST", "discard 3 554 5.5.1"),
    ])
  }

  @Test func heloHasNoExtensions() {
    run([
      ("HELO x", "250"), ("MAIL FROM:<a@b> SIZE=1", "555 5.5.4"), ("MAIL FROM:<a@b>", "sender"),
      ("RCPT TO:<c@d>", "recipient"),
      ("BDAT 1", "discard 1 555 5.5.4"), ("DATA", "data 354"),
    ])
  }

  @Test func nothingSaidBeforeTLSCountsAfterIt() {
    run(
      Self.submission,
      [
        ("EHLO x", "250"), ("MAIL FROM:<a@b>", "530 5.7.0"), ("AUTH PLAIN AA==", "530 5.7.0"),
        ("BDAT 7", "discard 7 530 5.7.0"),
        ("STARTTLS", "tls"), ("MAIL FROM:<a@b>", "503 5.5.1"), ("AUTH PLAIN AA==", "503 5.5.1"), ("EHLO x", "250"),
        ("STARTTLS", "503 5.5.1"), ("MAIL FROM:<a@b>", "530 5.7.0"), ("AUTH CRAM-MD5", "504 5.5.4"),
        ("AUTH", "501 5.5.4"),
        ("auth plain =", "auth PLAIN "), ("AUTH LOGIN", "503 5.5.1"),
        ("MAIL FROM:<a@b> RET=FULL ENVID=x+2By AUTH=u@v", "sender"), ("STARTTLS", "503 5.5.1"),
        ("RCPT TO:<c@d> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;o+40p", "recipient"), ("DATA", "data 354"),
      ])
  }

  @Test func passwordsDoNotTravelInTheClear() {
    var settings = Self.submission
    settings.requiresTLS = false
    run(settings, [("EHLO x", "250"), ("AUTH PLAIN AA==", "538 5.7.11")])
    settings.allowsAuthenticationWithoutTLS = true
    run(settings, [("EHLO x", "250"), ("AUTH PLAIN AA==", "auth PLAIN AA==")])
  }

  @Test func extensionsAreListed() {
    func lines(_ settings: ServerStateMachine.Settings, isTLS: Bool) -> [String] {
      var machine = ServerStateMachine(settings: settings, isTLS: isTLS)
      guard case .reply(let reply) = machine.receive(.ehlo("x")) else { return [] }
      return reply.lines
    }
    let base = ["8BITMIME", "SMTPUTF8", "PIPELINING", "CHUNKING", "ENHANCEDSTATUSCODES"]
    #expect(lines(Self.plain, isTLS: false) == ["mx.example", "SIZE 1000"] + base)
    #expect(lines(Self.submission, isTLS: false) == ["mx.example", "SIZE 35882577"] + base + ["STARTTLS", "DSN"])
    #expect(
      lines(Self.submission, isTLS: true) == ["mx.example", "SIZE 35882577"] + base + ["AUTH PLAIN LOGIN", "DSN"])
  }

  @Test func tooManyErrorsCloseTheSession() {
    var settings = Self.plain
    settings.maximumErrors = 3
    run(
      settings,
      [("A", "500 5.5.1"), ("EHLO x", "250"), ("B", "500 5.5.1"), ("C", "500 5.5.1"), ("D", "close 421 4.7.0")])
    run(
      settings,
      [("BDAT 1", "discard 1 503 5.5.1"), ("B", "500 5.5.1"), ("C", "500 5.5.1"), ("BDAT 1", "close 421 4.7.0")])
  }

  @Test func tooManyTransactionsCloseTheSession() {
    var settings = Self.plain
    settings.maximumTransactionsPerSession = 1
    run(
      settings,
      [("EHLO x", "250"), ("MAIL FROM:<a@b>", "sender"), ("RSET", "250 2.0.0"), ("MAIL FROM:<a@b>", "close 421 4.7.0")])
  }

  @Test func parametersArriveDecoded() throws {
    let mail = try Command(parsing: "MAIL FROM:<a@b> SIZE=5 BODY=7BIT RET=hdrs ENVID=q+2B1")
    guard case .mail(.mailbox, let parameters) = mail else {
      Issue.record("not MAIL")
      return
    }
    #expect(parameters.size == 5 && parameters.body == .sevenBit && parameters.ret == .headers)
    #expect(parameters.envelopeID == "q+1")
    let rcpt = try Command(parsing: "RCPT TO:<a@b> NOTIFY=delay,FAILURE ORCPT=rfc822;a+2Bb@c")
    guard case .rcpt(_, let recipient) = rcpt else {
      Issue.record("not RCPT")
      return
    }
    #expect(recipient.notify == [.delay, .failure])
    #expect(recipient.originalRecipient == .init(addressType: "rfc822", address: "a+b@c"))
  }

  @Test(arguments: [
    "MAIL FROM:<a@b> ENVID=a+0Db", "MAIL FROM:<a@b> ENVID=+ZZ", "MAIL FROM:<a@b> ENVID=a=b", "MAIL FROM:<a@b> RET=X",
    "MAIL FROM:<a@b> ENVID=+C3+A9", "MAIL FROM:<a@b> SMTPUTF8 ENVID=\u{E9}",
    "RCPT TO:<a@b> NOTIFY=NEVER,DELAY", "RCPT TO:<a@b> NOTIFY=", "RCPT TO:<a@b> ORCPT=x",
    "RCPT TO:<a@b> ORCPT=rfc822;+0A",
    "RCPT TO:<a@b> ORCPT=rfc822;", "RCPT TO:<a@b> ORCPT=rfc@822;a",
  ])
  func malformedParametersAreRefused(_ line: String) {
    do throws(CommandError) {
      _ = try Command(parsing: line)
      Issue.record("accepted")
    } catch {
      #expect(error.reply.code == 501)
    }
  }
}
