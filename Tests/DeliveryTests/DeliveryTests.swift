// Delivery through an upstream that behaves as Gmail does: real sockets, real TLS, a queue in memory, and a clock
// that stands still.

import Delivery
import Glibc
import Network
import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

/// A delivery with its upstream.
struct Bench {
  let store = MemoryStore()
  let time = ManualTime()
  let lines = LogLines()
  let upstream: Upstream
  let delivery: Delivery
  let settings: UpstreamSettings
  private let folder: String

  init(
    _ rules: [Rule] = [], names: [String] = ["localhost"], trusts: Bool = true,
    upstreamTime: (any Timekeeper)? = nil, change: (inout UpstreamSettings) -> Void = { _ in },
    departure: (@Sendable (String, String, Envelope) -> Departure?)? = nil
  ) async throws {
    var template = Array("/tmp/delivery-XXXXXX".utf8CString)
    folder = String(cString: try #require(mkdtemp(&template)))
    let authority = try CertificateAuthority(commonName: "test CA")
    try authority.writeCertificate(to: "\(folder)/ca.pem")
    try CertificateAuthority(commonName: "another CA").writeCertificate(to: "\(folder)/other.pem")
    try authority.issue(names: names).write(certificateFile: "\(folder)/cert.pem", keyFile: "\(folder)/key.pem")
    var options = UpstreamOptions(certificateFile: "\(folder)/cert.pem", keyFile: "\(folder)/key.pem")
    options.passwords = ["relay@example.test": "correct horse"]
    options.script = rules
    if let upstreamTime { options.time = upstreamTime }
    upstream = try await Upstream.start(options)

    var settings = UpstreamSettings(
      name: "example.test", account: "relay@example.test", host: "localhost", port: upstream.endpoint.port,
      security: .startTLS,
      credential: Credential(mechanism: .plain, username: "relay@example.test", secret: "correct horse"),
      heloName: "mailer.example.test")
    settings.caFile = "\(folder)/\(trusts ? "ca" : "other").pem"
    change(&settings)
    self.settings = settings
    let source = FixedNames()
    delivery = Delivery(
      store: store, resolver: Resolver(source: source, time: time),
      loops: [try EventLoop(name: "delivery-test")], time: time,
      settings: DeliverySettings(hostname: "mailer.example.test"), log: lines.logger, random: { 0.5 },
      departure: departure ?? { _, _, _ in nil },
      routeBounce: { sender, _ in
        if sender.hasSuffix("@nowhere.test") { return [] }
        if sender != "team@here.test" { return [(sender, "example.test")] }
        return [("anna@example.test", "example.test"), ("bob@example.test", "example.test")]
      })
    await delivery.configure([settings], DeliverySettings(hostname: "mailer.example.test"))
  }

  /// Queues a message and hands it over, as the front door does.
  @discardableResult
  func submit(
    to recipients: [String] = ["support@example.test"], from sender: String = "jane@example.org",
    body: String = "Hello\r\n"
  ) async throws -> QueueID {
    let id = store.nextID()
    let envelope = Envelope(
      reversePath: sender, recipients: recipients.map { Recipient(address: $0, original: $0, account: "example.test") },
      arrival: time.wallClock, clientAddress: "127.0.0.1", helo: "test", is8Bit: false, smtpUTF8: false)
    let content = Content.bytes(Array("From: \(sender)\r\nMessage-ID: <\(id)@test>\r\n\r\n\(body)".utf8))
    try await store.append(id, envelope, content)
    delivery.submit(id, envelope, content)
    return id
  }

  func account() async -> AccountSnapshot { await delivery.snapshots()[0] }

  func end() async {
    // The clock stands still, so this waits for what is under way and for nothing else.
    await delivery.stop(within: .seconds(30))
    await upstream.stop()
  }
}

struct FixedNames: AddressSource {
  func addresses(of name: String) async throws(NetworkError) -> AddressAnswer {
    if name != "localhost" { throw .resolution("the name \(name) does not exist") }
    return AddressAnswer(addresses: [IPAddress("127.0.0.1")].compactMap { $0 }, timeToLive: .seconds(60))
  }
}

@Suite(.timeLimit(.minutes(2))) struct DeliveryTests {
  @Test func messagesLeaveOverOneAuthenticatedConnection() async throws {
    let bench = try await Bench { $0.maximumConnections = 1 }
    for _ in 0..<20 { try await bench.submit() }
    let messages = await bench.upstream.messages(atLeast: 20)
    #expect(Set(messages.map(\.id)).count == 20)
    #expect(messages.allSatisfy { $0.tlsVersion == "TLSv1.3" && $0.authenticatedUser == "relay@example.test" })
    let statistics = bench.upstream.statistics
    #expect(statistics.connections == 1 && statistics.authentications == 1)
    #expect(statistics.violations.isEmpty && statistics.credentialsInClear == 0)
    _ = await bench.lines.line(containing: "status=sent")
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test(arguments: [[], [Rule.noChunking], [.noChunking, .noPipelining]])
  func contentArrivesAsItIsWhateverTheUpstreamOffers(rules: [Rule]) async throws {
    let bench = try await Bench(rules)
    let body = "line\r\n.\r\n..two\r\n.three\r\n" + String(repeating: "x", count: 70_000) + "\r\n"
    try await bench.submit(to: ["a@example.test", "b@example.test"], body: body)
    let message = try #require(await bench.upstream.messages(atLeast: 1).first)
    #expect(message.recipients == ["a@example.test", "b@example.test"])
    #expect(String(decoding: message.content, as: UTF8.self).hasSuffix("\r\n\r\n" + body))
    await bench.end()
    #expect(bench.store.messages.isEmpty && bench.upstream.statistics.violations.isEmpty)
  }

  @Test(arguments: [Credential.Mechanism.plain, .login, .xoauth2])
  func eachMechanismLogsIn(mechanism: Credential.Mechanism) async throws {
    let bench = try await Bench {
      $0.credential = Credential(mechanism: mechanism, username: "relay@example.test", secret: "correct horse")
    }
    // XOAUTH2 takes a token, and there is none of that name: it must end in a held account, not in a bounce.
    try await bench.submit()
    if mechanism == .xoauth2 {
      #expect(await bench.lines.line(containing: "no connection").contains("badCredentials"))
      #expect(bench.store.messages.count == 1)
    } else {
      #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    }
    await bench.end()
  }

  // MARK: Faults of the account

  @Test func wrongPasswordHoldsTheMailAndOneLoginTriesAgainLater() async throws {
    let bench = try await Bench {
      $0.credential = Credential(mechanism: .login, username: "relay@example.test", secret: "wrong")
    }
    for _ in 0..<5 { try await bench.submit() }
    let line = await bench.lines.line(containing: "badCredentials")
    #expect(line.contains("app password") && !line.contains("wrong"))
    let account = await bench.account()
    #expect(account.hold?.fault == .badCredentials && account.queued == 5)
    #expect(bench.store.messages.count == 5, "nothing bounced, nothing lost")
    #expect(bench.upstream.statistics.authenticationFailures == 1)
    bench.time.advance(by: .seconds(80))
    _ = await bench.upstream.wait { $0.authenticationFailures == 2 }
    await bench.end()
  }

  @Test func wrongCertificateNameSendsNoCredential() async throws {
    let bench = try await Bench(names: ["smtp.other.test"])
    try await bench.submit()
    let line = await bench.lines.line(containing: "no connection (certificate)")
    #expect(line.contains("wanted localhost") && line.contains("smtp.other.test"))
    try await expectNothingLeft(bench)
  }

  @Test func unknownAuthoritySendsNoCredential() async throws {
    let bench = try await Bench(trusts: false)
    try await bench.submit()
    _ = await bench.lines.line(containing: "no connection (certificate)")
    try await expectNothingLeft(bench)
  }

  @Test func strippedSTARTTLSSendsNoCredential() async throws {
    let bench = try await Bench([.stripSTARTTLS])
    try await bench.submit()
    #expect(await bench.lines.line(containing: "no connection (insecure)").contains("STARTTLS"))
    try await expectNothingLeft(bench)
  }

  /// The other direction of CVE-2011-0411: replies that somebody has slipped in behind the 220, in clear, as if they were
  /// of the upstream under TLS. They would offer a mechanism that gives the password away, or say that all is well.
  @Test func repliesSlippedInBehindSTARTTLSAreDropped() async throws {
    let injected =
      "220 2.0.0 Ready to start TLS\n250-evil.test\n250-AUTH PLAIN\n250 SIZE 1\n235 2.7.0 Accepted\n250 2.0.0 Sent"
    let bench = try await Bench([.answer(.startTLS, injected)])
    try await bench.submit()
    _ = await bench.upstream.messages(atLeast: 1)
    let message = try #require(bench.upstream.messages.first)
    #expect(message.tlsVersion != nil && message.authenticatedUser == "relay@example.test")
    #expect(message.isChunked, "what the upstream says under TLS counts, which is CHUNKING among other things")
    #expect(bench.upstream.statistics.credentialsInClear == 0)
    #expect(bench.upstream.statistics.violations == [])
    await bench.end()
  }

  private func expectNothingLeft(_ bench: Bench) async throws {
    #expect(bench.store.messages.count == 1)
    let statistics = bench.upstream.statistics
    #expect(statistics.credentialsInClear == 0 && statistics.authentications == 0)
    #expect(statistics.authenticationFailures == 0 && statistics.messages == 0)
    await bench.end()
  }

  @Test func dailyLimitHoldsTheAccountAndACanaryEndsTheHold() async throws {
    let bench = try await Bench([.answer(.mail, "550 5.4.5 Daily user sending limit exceeded. - gsmtp", times: 1)]) {
      $0.maximumConnections = 1
    }
    try await bench.submit()
    _ = await bench.lines.line(containing: "on hold (dailyLimit)")
    try await bench.submit()
    #expect(await bench.account().hold?.fault == .dailyLimit)
    #expect(bench.store.messages.count == 2 && bench.upstream.messages.isEmpty)
    bench.time.advance(by: .seconds(70))
    #expect(await bench.upstream.messages(atLeast: 2).count == 2)
    _ = await bench.lines.line(containing: "sends again")
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  // MARK: Recipients and messages

  @Test func unknownRecipientBouncesAndTheOthersGetTheirMail() async throws {
    let bench = try await Bench([.recipient("nobody@", "550 5.1.1 The email account does not exist. gsmtp", times: nil)]
    )
    try await bench.submit(to: ["support@example.test", "nobody@example.test"])
    let messages = await bench.upstream.messages(atLeast: 2)
    #expect(messages[0].recipients == ["support@example.test"])
    #expect(messages[1].reversePath.isEmpty && messages[1].recipients == ["jane@example.org"])
    let report = String(decoding: messages[1].content, as: UTF8.self)
    #expect(report.contains("nobody@example.test") && report.contains("Status: 5.1.1"))
    #expect(!report.contains("Final-Recipient: rfc822; support@example.test"))
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func bounceThatCannotBeDeliveredIsKeptAsDead() async throws {
    let bench = try await Bench([.recipient("nobody@", "550 5.1.1 no", times: nil)])
    let id = try await bench.submit(to: ["nobody@example.test"], from: "")
    _ = await bench.lines.line(containing: "kept as dead")
    await bench.end()
    #expect(bench.store.messages[id]?.state.deadReason?.contains("5.1.1") == true)
  }

  @Test func senderWithoutRouteLeavesADeadMessage() async throws {
    let bench = try await Bench([.recipient("nobody@", "550 5.1.1 no", times: nil)])
    let id = try await bench.submit(to: ["nobody@example.test"], from: "x@nowhere.test")
    _ = await bench.lines.line(containing: "kept as dead")
    await bench.end()
    #expect(bench.store.messages[id] != nil && bench.upstream.messages.isEmpty)
  }

  @Test func deferredRecipientIsTriedAgainOnSchedule() async throws {
    let bench = try await Bench([.recipient("slow@", "450 4.2.1 too quickly", times: 2)])
    let id = try await bench.submit(to: ["slow@example.test"])
    _ = await bench.lines.line(containing: "status=deferred")
    await bench.settled(id, attempts: 1)
    bench.time.advance(by: .seconds(59))
    #expect(bench.upstream.messages.isEmpty)
    bench.time.advance(by: .seconds(1))
    await bench.settled(id, attempts: 2)
    bench.time.advance(by: .seconds(300))
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func messageIsGivenUpWhenItsPatienceEnds() async throws {
    let bench = try await Bench([.recipient("never@", "450 4.2.1 no", times: nil)])
    let id = try await bench.submit(to: ["never@example.test"])
    var attempts = 1
    await bench.settled(id, attempts: attempts)
    while bench.store.messages[id] != nil, attempts < 100 {
      bench.time.advance(by: .seconds(4 * 3600))
      attempts += 1
      await bench.settled(id, attempts: attempts)
    }
    let reports = await bench.upstream.messages(atLeast: 2).map { String(decoding: $0.content, as: UTF8.self) }
    #expect(reports[0].contains("Action: delayed"))
    #expect(reports[1].contains("gave up after \(attempts) attempts") && reports[1].contains("Status: 5.4.7"))
    #expect(reports[1].contains("Diagnostic-Code: smtp; 450 4.2.1 no"))
    // Seven steps make 28,260 seconds, the rest are four hours each, the 36th is what is left of five days.
    #expect(attempts == 37)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func connectionLostAfterTheDotLeavesTheMessageInDoubtAndRepeatsIt() async throws {
    let bench = try await Bench([.disconnectAfterDot(times: 1)])
    let id = try await bench.submit()
    #expect(await bench.lines.line(containing: "in doubt").contains(id.description))
    // The log line comes before the record.
    await bench.settled(id, attempts: 1)
    while bench.upstream.messages.count < 2, !Task.isCancelled {
      bench.time.advance(by: .seconds(61))
      await Task.yield()
    }
    let messages = bench.upstream.messages
    #expect(messages[0].content == messages[1].content, "the same Message-ID, the same bytes")
    #expect(await bench.account().counters.inDoubt == 1)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func connectionLostInTheMiddleIsNoDoubt() async throws {
    let bench = try await Bench([.disconnectInData(afterBytes: 10, times: 1)])
    try await bench.submit(body: String(repeating: "0123456789\r\n", count: 20_000))
    bench.time.advance(by: .seconds(2))
    while bench.upstream.messages.isEmpty {
      bench.time.advance(by: .seconds(60))
      await Task.yield()
    }
    await bench.end()
    #expect(bench.upstream.messages.count == 1 && bench.store.messages.isEmpty)
  }

  // MARK: Limits

  @Test func rateLimitMakesMessagesWait() async throws {
    let bench = try await Bench {
      $0.rate = .init(perMinute: 60, burst: 3)
      $0.maximumConnections = 1
    }
    for _ in 0..<10 { try await bench.submit() }
    #expect(await bench.upstream.messages(atLeast: 3).count == 3)
    for count in 4...10 {
      while bench.time.nextDeadline == nil { await Task.yield() }
      bench.time.advance(by: .milliseconds(1001))
      #expect(await bench.upstream.messages(atLeast: count).count == count)
    }
    await bench.end()
  }

  @Test func connectionIsGivenUpAfterItsShareOfMessages() async throws {
    let bench = try await Bench {
      $0.messagesPerConnection = 4
      $0.maximumConnections = 1
    }
    for _ in 0..<10 { try await bench.submit() }
    _ = await bench.upstream.messages(atLeast: 10)
    #expect(bench.upstream.statistics.connections == 3)
    await bench.end()
  }

  @Test func messagesOverlapOnASlowLine() async throws {
    // The upstream answers for a message when the test turns its clock, and not before.
    let clock = ManualTime()
    let bench = try await Bench([.delay(.content, .milliseconds(30))], upstreamTime: clock) {
      $0.maximumConnections = 1
    }
    try await bench.submit()
    await bench.until { clock.nextDeadline != nil }
    // Lines are measured by the machine's clock: the first answer comes late enough for a slow one.
    let late = SystemTime().now + .milliseconds(20)
    await bench.until { SystemTime().now > late }
    clock.advance(by: .milliseconds(30))
    await bench.until { bench.store.messages.isEmpty }

    for _ in 0..<29 { try await bench.submit() }
    // While none of them is answered for, six are under way.
    await bench.until { await bench.account().active == 6 }
    #expect(bench.store.messages.count == 29 && bench.upstream.messages.count == 1)
    await bench.until {
      if clock.nextDeadline != nil { clock.advance(by: .milliseconds(30)) }
      return bench.store.messages.isEmpty
    }
    let messages = await bench.upstream.messages(atLeast: 30)
    #expect(Set(messages.map(\.id)).count == 30)
    #expect(bench.upstream.statistics.connections == 1 && bench.upstream.statistics.violations.isEmpty)
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func disabledAccountKeepsItsMailUntilItIsEnabled() async throws {
    let bench = try await Bench { $0.isEnabled = false }
    try await bench.submit()
    #expect(await bench.account().queued == 1)
    var enabled = bench.settings
    enabled.isEnabled = true
    await bench.delivery.configure([enabled], DeliverySettings(hostname: "mailer.example.test"))
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    await bench.end()
  }

  @Test func deletedMessageIsNotSent() async throws {
    let bench = try await Bench { $0.isEnabled = false }
    let id = try await bench.submit()
    let kept = try await bench.submit()
    #expect(await bench.account().queued == 2)
    #expect(try await bench.delivery.delete(id) == .deleted)
    var enabled = bench.settings
    enabled.isEnabled = true
    await bench.delivery.configure([enabled], DeliverySettings(hostname: "mailer.example.test"))
    let messages = await bench.upstream.messages(atLeast: 1)
    await bench.end()
    #expect(messages.count == 1 && bench.store.removed.contains(kept))
  }
}

extension Bench {
  /// Waits until the queue has recorded that many attempts, or has let go of the message.
  func settled(_ id: QueueID, attempts: Int) async {
    while let message = store.messages[id], (message.state.lanes["example.test"]?.attempts ?? 0) < attempts {
      await Task.yield()
    }
    // And until the account sleeps for the next one.
    while store.messages[id] != nil, time.nextDeadline == nil { await Task.yield() }
  }
}
