// Users that log in: on the submission ports they must, on port 25 they may; what a wrong password costs, and what
// becomes of their mail.

import Network
import Passwords
import Primitives
import Routing
import SMTP
import TestSupport
import Testing

@testable import Configuration
@testable import Server

@Suite struct LoginTests {
  static let user = "alice@gmail.test"
  static let password = "correct horse"
  static let plain = SASL.plain(username: user, password: password)
  static let wrong = SASL.plain(username: user, password: "wrong horse")

  static func router(trusting networks: [String] = [], withUsers: Bool = true) throws -> Router {
    var settings = Settings()
    settings.global.defaultHostname = "relay.test"
    settings.global.trustedNetworks = networks.map { IPNetwork($0)! }
    settings.global.defaultDomain = "gmail.test"
    var gmail = DomainSettings(name: "gmail.test")
    gmail.host = "smtp.gmail.test"
    settings.domains["gmail.test"] = gmail
    settings.mappings = [
      MappingSettings(
        name: "contact", from: try AddressPattern("contact@relay.test"), to: [try AddressPattern("owner@gmail.test")],
        domain: "gmail.test")
    ]
    if withUsers {
      var alice = UserSettings(address: try AddressPattern(user))
      // Few rounds: a test is to be fast, a login is not.
      alice.passwordHash = try PasswordHash("$5$rounds=1000$saltsalt$R6e4P8ccT9iMqkYg7Z8YtpId/lfsIfnuPkp8WXposU8")
      settings.users = [alice]
    }
    return Router(settings)
  }

  /// A door for users, whose certificate the returned context trusts.
  static func door(
    _ role: ListenerRole, trusting networks: [String] = [], withUsers: Bool = true, failures: Int = 10,
    headerSize: Int = 256 << 10
  ) throws -> (door: Door, tls: TLSContext) {
    let tls = try makeTLS()
    let router = try router(trusting: networks, withUsers: withUsers)
    let door = try Door(role: role) {
      $0.router = router
      $0.tls = tls.server
      $0.loginLimits = LoginLimits(maximumFailures: failures, banTime: .seconds(900))
      $0.limits.headerSize = headerSize
    }
    return (door, tls.client)
  }

  /// A client under TLS that has said EHLO.
  private func secured<Result: Sendable>(
    _ door: (door: Door, tls: TLSContext), _ role: ListenerRole,
    _ body: @Sendable (Client) async throws -> Result
  ) async throws -> Result {
    try await door.door.connect { client async throws in
      if role == .smtps {
        try await client.startTLS(door.tls)
        #expect(try await client.reply().hasPrefix("220 relay.test"))
      } else {
        #expect(try await client.reply().hasPrefix("220 relay.test"))
        #expect(try await client.say("EHLO client.test").contains("STARTTLS"))
        #expect(try await client.say("STARTTLS").hasPrefix("220"))
        try await client.startTLS(door.tls)
      }
      let ehlo = try await client.say("EHLO client.test")
      #expect(ehlo.contains("AUTH PLAIN LOGIN") && !ehlo.contains("STARTTLS"), "\(ehlo)")
      return try await body(client)
    }
  }

  /// Sends a line and moves the clock until it is answered: a refusal is kept back.
  private func patiently(_ door: Door, _ client: Client, _ line: String) async throws -> String {
    let answer = Task { try await client.say(line) }
    let isDone = Mutex(false)
    let watch = Task {
      _ = await answer.result
      isDone.withLock { $0 = true }
    }
    while !isDone.withLock({ $0 }) {
      if let end = door.time.nextDeadline { door.time.advance(by: end - door.time.now) }
      // Not a yield: the hash is computed meanwhile, and other tests want the processor too.
      try await Task.sleep(for: .milliseconds(1))
    }
    await watch.value
    return try await answer.value
  }

  // MARK: Who may do what

  @Test(arguments: [ListenerRole.submission, .smtps]) func nothingGoesBeforeALoginNotEvenFromTrustedNetworks(
    _ role: ListenerRole
  ) async throws {
    let door = try Self.door(role, trusting: ["127.0.0.0/8"])
    if role == .submission {
      try await door.door.connect { client async throws in
        _ = try await client.reply()
        #expect(try await client.say("EHLO c").contains("AUTH") == false)
        for line in ["AUTH PLAIN \(Self.plain)", "MAIL FROM:<a@b.test>", "BDAT 0 LAST", "VRFY x"] {
          #expect(try await client.say(line).hasPrefix("530 5.7.0"), "\(line)")
        }
      }
    }
    try await secured(door, role) { client async throws in
      #expect(try await client.say("MAIL FROM:<\(Self.user)>").hasPrefix("530 5.7.0 Authentication required"))
      #expect(try await client.say("RCPT TO:<contact@relay.test>").hasPrefix("503"))
      #expect(try await client.say("AUTH PLAIN \(Self.plain)") == "235 2.7.0 Authentication successful")
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("503"), "once is enough")
      #expect(try await client.say("MAIL FROM:<owner@gmail.test>").hasPrefix("550 5.7.1 <owner@gmail.test> is not"))
      #expect(try await client.say("MAIL FROM:<alice+x@gmail.test> AUTH=<>").hasPrefix("250"))
      #expect(try await client.say("RCPT TO:<x@elsewhere.test>").hasPrefix("250"))
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("503"), "not inside a transaction")
      #expect(try await client.say("DATA").hasPrefix("354"))
      #expect(try await client.say("Subject: x\r\n\r\nbody\r\n.").hasPrefix("250"))
    }
    let line = await door.door.lines.line(containing: "nrcpt=1")
    #expect(line.hasSuffix("user=<alice@gmail.test>"), "\(line)")
    await door.door.close()
  }

  @Test func portForMailServersOffersALoginOnlyUnderTLSAndOnlyIfThereIsOne() async throws {
    let door = try Self.door(.smtp)
    try await door.door.greet { client async throws in
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("538 5.7.11"))
      #expect(try await client.say("MAIL FROM:<a@b.test>").hasPrefix("250"))
      #expect(try await client.say("RCPT TO:<x@elsewhere.test>").hasPrefix("550 5.7.1"))
      #expect(try await client.say("RCPT TO:<contact@relay.test>").hasPrefix("250"))
    }
    try await secured(door, .smtp) { client async throws in
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("235"))
      #expect(try await client.say("MAIL FROM:<\(Self.user)>").hasPrefix("250"))
      #expect(try await client.say("RCPT TO:<x@elsewhere.test>").hasPrefix("250"))
      _ = try await client.say("DATA")
      #expect(try await client.say("Subject: x\r\n\r\n.").hasPrefix("250"))
    }
    #expect(!(try await door.door.bodies()[0]).contains("Date:"), "only submission completes a message")
    await door.door.close()
    let without = try Self.door(.smtp, withUsers: false)
    try await without.door.connect { client async throws in
      _ = try await client.reply()
      _ = try await client.say("EHLO c")
      _ = try await client.say("STARTTLS")
      try await client.startTLS(without.tls)
      #expect(try await !client.say("EHLO c").contains("AUTH"))
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("502"))
    }
    await without.door.close()
  }

  // MARK: The exchange

  @Test func everyFormOfTheExchangeLeadsIn() async throws {
    let door = try Self.door(.smtps)
    let (name, secret) = (SASL.login("ALICE@Gmail.test"), SASL.login(Self.password))
    let forms = [
      (["AUTH PLAIN \(Self.plain)"], ["235"]), (["auth plain", Self.plain], ["334 ", "235"]),
      (["AUTH LOGIN", name, secret], ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235"]),
      (["AUTH LOGIN \(name)", secret], ["334 UGFzc3dvcmQ6", "235"]),
      (
        [
          "AUTH PLAIN "
            + SASL.plain(username: Self.user, password: Self.password, authorizationIdentity: "ALICE@gmail.test")
        ], ["235"]
      ),
    ]
    for (lines, expected) in forms {
      try await secured(door, .smtps) { client async throws in
        for (line, reply) in zip(lines, expected) { #expect(try await client.say(line).hasPrefix(reply), "\(line)") }
      }
      try await secured(door, .smtps) { client async throws in
        try await client.send(lines.joined(separator: "\r\n") + "\r\nNOOP\r\n")
        for reply in expected + ["250"] { #expect(try await client.reply().hasPrefix(reply), "pipelined \(lines)") }
      }
    }
    #expect(door.door.server.guardian.counters.succeeded == 2 * forms.count)
    await door.door.close()
  }

  @Test func exchangeThatGoesWrongLeavesTheSessionUsable() async throws {
    let door = try Self.door(.smtps)
    try await secured(door, .smtps) { client async throws in
      for (lines, reply) in [
        (["AUTH PLAIN", "*"], "501 5.7.0"), (["AUTH LOGIN", "*"], "501 5.7.0"),
        (["AUTH LOGIN", SASL.login(Self.user), "*"], "501 5.7.0"), (["AUTH PLAIN", "EHLO again"], "501 5.5.2"),
        (["AUTH PLAIN !!!"], "501 5.5.2"), (["AUTH PLAIN ="], "501 5.5.2"), (["AUTH PLAIN", ""], "501 5.5.2"),
        (["AUTH PLAIN " + SASL.login("no NUL at all")], "501 5.5.2"), (["AUTH LOGIN", "="], "501 5.5.2"),
        (["AUTH LOGIN", SASL.login("alice@gmail.test\0x")], "501 5.5.2"), (["AUTH CRAM-MD5"], "504 5.5.4"),
        (["AUTH PLAIN", String(repeating: "A", count: 12_284)], "501 5.5.2"),
        (["AUTH PLAIN", String(repeating: "A", count: 200_000)], "500 5.5.6"),
      ] {
        for line in lines.dropLast() { #expect(try await client.say(line).hasPrefix("334")) }
        #expect(try await client.say(lines[lines.count - 1]).hasPrefix(reply), "\(lines.map { $0.prefix(40) })")
      }
      #expect(try await client.say("NOOP").hasPrefix("250"))
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("235"))
      #expect(try await client.say("EHLO again").hasPrefix("250"))
      #expect(try await client.say("MAIL FROM:<\(Self.user)>").hasPrefix("250"), "EHLO does not log out")
    }
    #expect(door.door.server.guardian.counters.failed == 0, "nothing of this was a guess")
    await door.door.close()
  }

  @Test func wrongPasswordUnknownNameAndForeignIdentityAreRefusedAlike() async throws {
    let door = try Self.door(.smtps)
    try await secured(door, .smtps) { client async throws in
      for claim in [
        Self.wrong, SASL.plain(username: "nobody@gmail.test", password: Self.password),
        SASL.plain(username: "alice", password: Self.password),
        SASL.plain(username: Self.user, password: Self.password, authorizationIdentity: "owner@gmail.test"),
        SASL.plain(username: Self.user, password: String(repeating: "x", count: 600)),
      ] {
        let reply = try await patiently(door.door, client, "AUTH PLAIN \(claim)")
        #expect(reply == "535 5.7.8 Authentication credentials invalid")
      }
      #expect(try await client.say("MAIL FROM:<\(Self.user)>").hasPrefix("530"))
    }
    #expect(door.door.server.guardian.counters.failed == 5)
    await door.door.close()
  }

  @Test func refusalComesLaterWithEachFailure() async throws {
    let door = try Self.door(.smtps)
    try await secured(door, .smtps) { client async throws in
      for (index, seconds) in [1, 2, 4, 8, 10, 10].enumerated() {
        let before = door.door.time.now
        let claim = SASL.plain(username: Self.user, password: "guess \(index)")
        #expect(try await patiently(door.door, client, "AUTH PLAIN \(claim)").hasPrefix("535"))
        #expect(door.door.time.now - before == .seconds(seconds))
      }
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("235"), "the right one does not wait")
    }
    await door.door.close()
  }

  // MARK: Bans

  @Test func addressThatGuessesIsBannedForAWhile() async throws {
    let door = try Self.door(.submission, failures: 3)
    try await secured(door, .submission) { client async throws in
      for index in 1...2 {
        let claim = SASL.plain(username: "user\(index)@gmail.test", password: "x")
        #expect(try await patiently(door.door, client, "AUTH PLAIN \(claim)").hasPrefix("535"))
      }
      #expect(try await client.say("AUTH PLAIN \(Self.wrong)").hasPrefix("421 4.7.0 relay.test: too many failed"))
      #expect(try await client.reply() == "")
    }
    let log = await door.door.lines.line(containing: "banned")
    #expect(log == "warning: 127.0.0.1: banned from logging in for 900 s after too many failed logins")
    try await door.door.connect { client async throws in
      #expect(try await client.reply().hasPrefix("421 4.7.0"))
      #expect(try await client.reply() == "")
    }
    let guardian = door.door.server.guardian
    var settings = door.door.server.settings
    settings.router = try Self.router(trusting: ["127.0.0.0/8"])
    door.door.server.configure(settings)
    try await door.door.connect { client async throws in #expect(try await client.reply().hasPrefix("220")) }
    settings.router = try Self.router()
    door.door.server.configure(settings)
    #expect(guardian.bans.map(\.address.description) == ["127.0.0.1"])
    #expect(guardian.counters.bans == 1 && guardian.counters.turnedAway == 1)
    door.door.time.advance(by: .seconds(901))
    #expect(guardian.bans.isEmpty)
    try await secured(door, .submission) { client async throws in
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("235"))
    }
    await door.door.close()
  }

  @Test func bannedAddressStillDeliversToOurAliases() async throws {
    let door = try Self.door(.smtp, failures: 1)
    try await secured(door, .smtp) { client async throws in
      #expect(try await client.say("AUTH PLAIN \(Self.wrong)").hasPrefix("454 4.7.0"))
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("454 4.7.0"), "not even the right one")
      #expect(try await client.mail("hello").hasPrefix("250"))
    }
    try await door.door.greet { client async throws in #expect(try await client.mail("again").hasPrefix("250")) }
    await door.door.close()
  }

  @Test func bannedAddressIsToldSoUnderTLSWhereTLSIsSpokenFirst() async throws {
    let door = try Self.door(.smtps, failures: 1)
    try await secured(door, .smtps) { client async throws in
      #expect(try await client.say("AUTH PLAIN \(Self.wrong)").hasPrefix("421"))
    }
    try await door.door.connect { client async throws in
      try await client.startTLS(door.tls)
      #expect(try await client.reply().hasPrefix("421 4.7.0"))
    }
    await door.door.close()
  }

  @Test func trustedAddressIsNeverBanned() async throws {
    let door = try Self.door(.smtps, trusting: ["127.0.0.0/8"], failures: 1)
    try await secured(door, .smtps) { client async throws in
      for index in 0..<3 {
        let claim = SASL.plain(username: Self.user, password: "\(index)")
        #expect(try await patiently(door.door, client, "AUTH PLAIN \(claim)").hasPrefix("535"))
      }
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("235"))
    }
    await door.door.close()
  }

  // MARK: The log

  @Test(arguments: [
    ("alice@gmail.test", "alice@gmail.test"),
    ("a\r\n2026 WARNING 192.0.2.9: login failed", "a??2026?WARNING?192.0.2.9??login?failed"),
    ("\u{1b}[31m>, x=<é", "??31m???x=???"),
    (String(repeating: "x", count: 300), String(repeating: "x", count: 100) + "..."),
  ])
  func nameInTheLogIsHarmless(_ name: String, _ shown: String) async throws {
    let door = try Self.door(.smtps)
    try await secured(door, .smtps) { client async throws in
      let claim = SASL.plain(username: name, password: "x")
      #expect(try await patiently(door.door, client, "AUTH PLAIN \(claim)").hasPrefix("535"))
    }
    #expect(
      await door.door.lines.line(containing: "login failed")
        == "warning: 127.0.0.1: login failed, user=<\(shown)>, method=PLAIN, listener=smtps")
    for line in door.door.lines.all { #expect(!line.contains("horse")) }
    await door.door.close()
  }

  // MARK: Stop and reload

  @Test func stopDoesNotWaitForARefusalThatIsKeptBackNorForAResponse() async throws {
    let door = try Self.door(.smtps)
    try await secured(door, .smtps) { first async throws in
      try await first.send("AUTH PLAIN \(Self.wrong)\r\n")
      while door.door.time.nextDeadline == nil { try await Task.sleep(for: .milliseconds(1)) }
      try await secured(door, .smtps) { second async throws in
        #expect(try await second.say("AUTH LOGIN").hasPrefix("334"))
        await door.door.server.stop(within: .seconds(3600))
        #expect(try await first.reply().hasPrefix("535"))
        #expect(try await first.reply().hasPrefix("421 4.3.2"))
        #expect(try await second.reply().hasPrefix("421 4.3.2"))
      }
    }
    await door.door.close()
  }

  @Test func userThatIsTakenAwaySendsNothingMoreOnAnOpenConnection() async throws {
    let door = try Self.door(.smtps)
    try await secured(door, .smtps) { client async throws in
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("235"))
      #expect(try await client.say("MAIL FROM:<\(Self.user)>").hasPrefix("250"))
      _ = try await client.say("RSET")
      var settings = door.door.server.settings
      settings.router = try Self.router(withUsers: false)
      door.door.server.configure(settings)
      #expect(try await client.say("MAIL FROM:<\(Self.user)>") == "550 5.7.1 alice@gmail.test may not log in any more")
      #expect(try await client.say("MAIL FROM:<>").hasPrefix("550"))
    }
    await door.door.close()
  }

  // MARK: Date and Message-ID

  @Test(
    arguments: [
      ("Subject: x\r\n\r\nbody\r\n", ["Date: ", "Message-ID: <"]), ("date: now\r\n\r\nbody\r\n", ["Message-ID: <"]),
      ("Message-Id: <a@b>\r\n\r\nbody\r\n", ["Date: "]), ("MESSAGE-ID:<a@b>\r\nDate: x\r\n\r\nbody\r\n", []),
      ("Subject: no body\r\n", ["Date: ", "Message-ID: <"]),
    ] as [(String, [String])])
  func submittedMessageGetsWhatItMustHave(_ text: String, _ added: [String]) async throws {
    let door = try Self.door(.submission)
    // In memory, in chunks, and in a file.
    let fillers = ["", "", String(repeating: "0123456789\r\n", count: 30_000)]
    // Without an empty line the filler would belong to the header.
    for (index, filler) in fillers.enumerated() where filler.isEmpty || text.contains("\r\n\r\n") {
      let content = text + filler
      try await secured(door, .submission) { client async throws in
        #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("235"))
        try await client.send("MAIL FROM:<\(Self.user)>\r\nRCPT TO:<x@elsewhere.test>\r\n")
        #expect(try await client.codes(2) == ["250 2.1.0", "250 2.1.5"])
        if index == 1 {
          try await client.send("BDAT \(content.utf8.count) LAST\r\n\(content)")
          #expect(try await client.reply().hasPrefix("250"))
        } else {
          _ = try await client.say("DATA")
          #expect(try await client.say(content + ".").hasPrefix("250"))
        }
      }
      let message = try #require(door.door.queued.last)
      let whole = String(decoding: try await message.content.octets(), as: UTF8.self)
      #expect(whole.prefix(500).contains("with ESMTPSA"))
      var lines = try withoutTrace(whole).split(separator: "\r\n", omittingEmptySubsequences: false)[...]
      for field in added { #expect(lines.popFirst()?.hasPrefix(field) == true, "\(field) in \(whole.prefix(600))") }
      #expect(lines.joined(separator: "\r\n") == content, "the rest is as it came")
    }
    await door.door.close()
  }

  @Test func headerThatIsTooLongToBeSeenWholeIsLeftAlone() async throws {
    let door = try Self.door(.submission, headerSize: 1 << 20)
    let header = String(repeating: "X-Filler: 0123456789\r\n", count: 20_000)
    try await secured(door, .submission) { client async throws in
      #expect(try await client.say("AUTH PLAIN \(Self.plain)").hasPrefix("235"))
      try await client.send("MAIL FROM:<\(Self.user)>\r\nRCPT TO:<x@elsewhere.test>\r\nDATA\r\n")
      #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "354"])
      #expect(try await client.say(header + "\r\nbody\r\n.").hasPrefix("250"))
    }
    #expect(try await door.door.bodies() == [header + "\r\nbody\r\n"])
    await door.door.close()
  }
}
