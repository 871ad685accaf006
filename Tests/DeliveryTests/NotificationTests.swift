// What senders are told, and what they are not (RFC 3461, 3464).

import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

@testable import Delivery

@Suite(.timeLimit(.minutes(2))) struct NotificationTests {
  private static let nobody = Rule.recipient("nobody@", "550 5.1.1 The email account does not exist. gsmtp")

  // MARK: NOTIFY

  @Test(arguments: [RecipientParameters.Notify.never, .success, .delay, [.success, .delay]])
  func failureThatNobodyWantsToHearOfOnlyEndsTheMessage(notify: RecipientParameters.Notify) async throws {
    let bench = try await Bench([Self.nobody])
    let id = try await bench.submit([.test("nobody@example.test", notify)])
    let line = await bench.lines.line(containing: "does not want to hear")
    #expect(line.contains(id.description) && line.contains("nobody@example.test"))
    await bench.end()
    #expect(bench.store.messages.isEmpty && bench.upstream.messages.isEmpty)
  }

  @Test func failureIsReportedForThoseAloneWhoseReportIsWanted() async throws {
    let bench = try await Bench([Self.nobody, .recipient("noone@", "550 5.1.1 no such user")])
    try await bench.submit([
      .test("nobody@example.test", .never), .test("noone@example.test", .failure), .test("support@example.test"),
    ])
    let report = await bench.reports(1)[0]
    #expect(report.contains("noone@example.test") && !report.contains("nobody@example.test"))
    await bench.end()
    #expect(bench.store.messages.isEmpty && bench.upstream.messages.count == 2)
  }

  @Test func successIsReportedAsRelayedByUsWhenTheUpstreamWillNot() async throws {
    let bench = try await Bench()
    let id = try await bench.submit(
      [
        .test("a@example.test", as: "alias@here.test", [.success, .failure]),
        .test("b@example.test", .success, orcpt: "rfc822;bob@elsewhere.test"),
        .test("c@example.test", .failure), .test("d@example.test"),
      ], body: "the body\r\n"
    ) {
      $0.envelopeID = "QQ 1"
      $0.returnFull = true
    }
    let report = await bench.reports(1)[0]
    #expect(report.components("Action: relayed") == 2 && report.components("Status: 2.0.0") == 2)
    #expect(report.contains("Original-Recipient: rfc822; alias@here.test\r\nFinal-Recipient: rfc822; a@example.test"))
    #expect(report.contains("Original-Recipient: rfc822; bob@elsewhere.test"))
    #expect(report.contains("Original-Envelope-Id: QQ 1") && report.contains("Remote-MTA: dns; localhost\r\n"))
    #expect(!report.contains("c@example.test") && !report.contains("d@example.test"))
    #expect(report.contains("Subject: test \(id)") && !report.contains("the body"), "nobody has lost it")
    await bench.end()
    #expect(bench.store.messages.isEmpty && bench.upstream.messages.count == 2)
    #expect(bench.upstream.statistics.violations.isEmpty, "Gmail is given nothing that it does not offer")
  }

  @Test func upstreamThatOffersDSNIsToldAllAndReportsItself() async throws {
    let bench = try await Bench([.offersDSN])
    try await bench.submit([
      .test("a@example.test", as: "alias@here.test", [.success, .delay]), .test("b@example.test", .never),
      .test("c@example.test", nil, orcpt: "rfc822;c+x@elsewhere.test"),
    ]) {
      $0.envelopeID = "QQ 1"
      $0.returnFull = false
    }
    let message = await bench.upstream.messages(atLeast: 1)[0]
    #expect(message.parameters.contains("RET=HDRS") && message.parameters.contains("ENVID=QQ+201"))
    #expect(
      message.recipientParameters == [
        ["NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;alias@here.test"], ["NOTIFY=NEVER"],
        ["ORCPT=rfc822;c+2Bx@elsewhere.test"],
      ])
    await bench.end()
    #expect(bench.store.messages.isEmpty && bench.upstream.messages.count == 1)
  }

  @Test(arguments: [[], [Rule.offersDSN]])
  func aliasWithSeveralAddressesIsReportedAsExpandedByUsAlone(rules: [Rule]) async throws {
    let bench = try await Bench(rules)
    try await bench.submit([
      .test("a@example.test", as: "team@here.test", .success), .test("b@example.test", as: "team@here.test", .success),
    ])
    let report = await bench.reports(1)[0]
    #expect(report.components("Action: expanded") == 2)
    await bench.end()
    #expect(bench.store.messages.isEmpty && bench.upstream.messages.count == 2)
    if !rules.isEmpty {
      let parameters = try #require(bench.upstream.messages.first).recipientParameters
      #expect(parameters.allSatisfy { $0.first == "NOTIFY=NEVER" })
    }
  }

  @Test func nothingIsReportedToTheNullReversePath() async throws {
    let bench = try await Bench([Self.nobody])
    let id = try await bench.submit([.test("a@example.test", .success), .test("nobody@example.test")]) {
      $0.reversePath = ""
    }
    _ = await bench.lines.line(containing: "kept as dead")
    await bench.end()
    #expect(bench.upstream.messages.count == 1)
    #expect(bench.state(id)?.recipients[0] == .delivered)
    #expect(bench.state(id)?.deadReason?.contains("a notification itself") == true)
    #expect(bench.state(id)?.life.map(\.kind) == [.delivered, .failed, .dead])
  }

  // MARK: What a report holds

  @Test(arguments: [(true, 100, true), (true, 2_000_000, false), (false, 100, false), (nil, 100, false)])
  func wholeMessageComesBackWhenAskedForAndNotTooLarge(full: Bool?, size: Int, isReturned: Bool) async throws {
    let bench = try await Bench([Self.nobody])
    let body = "the body\r\n" + String(repeating: "0123456789\r\n", count: size / 12)
    let id = try await bench.submit([.test("nobody@example.test")], body: body) { $0.returnFull = full }
    let report = await bench.reports(1)[0]
    #expect(report.contains("Subject: test \(id)") && report.contains("the body") == isReturned)
    #expect(report.contains("Content-Type: message/rfc822") == isReturned)
    await bench.end()
  }

  @Test(arguments: [
    Rule.answer(
      .content, "552-5.7.0 This message was blocked because its content presents a\n552 5.7.0 risk", times: 1),
    .answer(.content, "550 not this", times: 1), .answer(.mail, "552 5.3.4 too large", times: 1),
    .recipient("nobody@", "550 5.7.1 blocked by policy"), .recipient("nobody@", "552 too much of it"),
  ])
  func whatWasRefusedIsNotRepeatedByTheNotification(rule: Rule) async throws {
    let bench = try await Bench([rule])
    let id = try await bench.submit([.test("nobody@example.test")], body: "the body\r\n") { $0.returnFull = true }
    let report = await bench.reports(1)[0]
    #expect(report.contains("Subject: test \(id)") && !report.contains("the body"))
    #expect(report.contains("Content-Type: text/rfc822-headers"))
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func messageThatIsPutOffForItsContentUntilTheEndIsNotRepeatedEither() async throws {
    let bench = try await Bench([.answer(.content, "451 4.3.0 scanner is busy", times: 1)])
    let id = try await bench.submit([.test("a@example.test")], body: "the body\r\n") { $0.returnFull = true }
    await bench.settled(id, attempts: 1)
    await bench.delivery.configure([bench.settings], .test { $0.queueLifetime = .zero })
    bench.upstream.follow([.answer(.content, "451 4.3.0 scanner is busy", times: 1)])
    bench.time.advance(by: .seconds(61))
    let report = await bench.reports(1)[0]
    #expect(report.contains("gave up after 2 attempts") && !report.contains("the body"))
    await bench.end()
  }

  @Test func contentThatEndsItsConnectionIsNotRepeated() async throws {
    let bench = try await Bench([.disconnectAfterDot(times: 1)])
    await bench.delivery.configure([bench.settings], .test { $0.queueLifetime = .zero })
    try await bench.submit([.test("a@example.test")], body: "the body\r\n") { $0.returnFull = true }
    _ = await bench.lines.line(containing: "is notified by")
    await bench.end()
    let queued = try #require(bench.store.messages.values.first { $0.envelope.reversePath.isEmpty })
    let report = String(decoding: queued.content.octets, as: UTF8.self)
    #expect(report.contains("it may have arrived") && !report.contains("the body"))
  }

  /// The upstream of the scenario `size`, which does not announce its limit.
  @Test(arguments: [(880_000, true), (950_000, false), (999_000, false)])
  func notificationStaysBelowAMillionOctets(size: Int, isReturned: Bool) async throws {
    let bench = try await Bench([Self.nobody, .maximumSize(1_000_000)])
    let body = "the body\r\n" + String(repeating: "0123456789\r\n", count: size / 12)
    try await bench.submit([.test("nobody@example.test")], body: body) { $0.returnFull = true }
    let report = await bench.reports(1)[0]
    #expect(report.contains("the body") == isReturned && report.contains("Status: 5.1.1"))
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func notificationFitsIntoWhatItsUpstreamHasAnnounced() async throws {
    let bench = try await Bench { $0.isEnabled = false }
    bench.delivery.services.bouncer.sizes.note(8_000, of: "example.test")
    for (size, type) in [(4_000, "message/rfc822"), (7_900, "text/rfc822-headers")] {
      let body = String(repeating: "x", count: size)
      let id = try await bench.submit([.test("a@example.test")], body: body) { $0.returnFull = true }
      #expect(await bench.delivery.bounce(id, by: "test") == .bounced)
      let report = try #require(bench.store.messages.values.first)
      #expect(String(decoding: report.content.octets, as: UTF8.self).contains("Content-Type: \(type)\r\n"))
      #expect(report.content.octets.count <= 8_000)
      #expect(try await bench.delivery.delete(report.id) == .deleted)
    }
    // A header alone may be too much.
    let header = String(repeating: "X-Field: \(String(repeating: "y", count: 60))\r\n", count: 300)
    let id = bench.store.nextID()
    let envelope = Envelope(
      reversePath: "jane@example.org", recipients: [.test("a@example.test")], arrival: bench.time.wallClock)
    try await bench.store.append(id, envelope, .bytes(Array("\(header)\r\n".utf8)))
    #expect(await bench.delivery.bounce(id, by: "test") == .bounced)
    let report = try #require(bench.store.messages.values.first).content.octets
    #expect(report.count <= 8_000 && String(decoding: report, as: UTF8.self).contains("The beginning of its header"))
    var enabled = bench.settings
    enabled.isEnabled = true
    await bench.delivery.configure([enabled], .test())
    _ = await bench.reports(1)
    #expect(bench.delivery.services.bouncer.sizes.limit(of: "example.test") ?? 0 > 1_000_000, "what it says itself")
    await bench.end()
  }

  // MARK: Addresses outside ASCII

  @Test func senderInASCIIIsToldByAnUpstreamWithoutSMTPUTF8() async throws {
    let bench = try await Bench([.noSMTPUTF8])
    try await bench.submit([.test("j\u{F6}rg@example.test")]) { $0.smtpUTF8 = true }
    let report = await bench.reports(1)[0]
    #expect(report.contains("Status: 5.6.7") && report.contains("Final-Recipient: utf-8; j\\x{F6}rg@example.test"))
    // The words are ours, and nobody else's.
    #expect(report.contains("    The next server cannot take addresses outside ASCII"))
    #expect(!report.contains("said:") && !report.contains("Remote-MTA") && !report.contains("Diagnostic-Code"))
    await bench.end()
    #expect(bench.store.messages.isEmpty && bench.upstream.statistics.violations.isEmpty)
    #expect(bench.upstream.messages.allSatisfy { !$0.parameters.contains("SMTPUTF8") })
  }

  @Test func senderOutsideASCIIIsToldWithSMTPUTF8() async throws {
    let bench = try await Bench([Self.nobody])
    try await bench.submit([.test("nobody@example.test")]) {
      $0.reversePath = "j\u{F6}rg@example.org"
      $0.smtpUTF8 = true
    }
    let report = await bench.reports(1)[0]
    #expect(report.contains("To: <j\u{F6}rg@example.org>\r\n"))
    await bench.end()
    #expect(bench.upstream.messages.first?.parameters.contains("SMTPUTF8") == true)
  }

  @Test func aliasOfSeveralIsToldAtAllItsAddresses() async throws {
    let bench = try await Bench([Self.nobody])
    try await bench.submit(to: ["nobody@example.test"], from: "team@here.test")
    let report = await bench.reports(1)[0]
    #expect(report.contains("To: <team@here.test>\r\n"))
    await bench.end()
    #expect(bench.upstream.messages.map(\.recipients) == [["anna@example.test", "bob@example.test"]])
  }

  @Test func reportSaysHowOftenDeliveryWasTriedAndWhatTheUpstreamSaidLast() async throws {
    let bench = try await Bench([
      .recipient("slow@", "450 4.2.1 too quickly", times: 2), .recipient("slow@", "550 5.2.1 disabled"),
    ])
    let id = try await bench.submit([.test("slow@example.test")])
    await bench.settled(id, attempts: 1)
    bench.time.advance(by: .seconds(60))
    await bench.settled(id, attempts: 2)
    #expect(bench.state(id)?.life.map(\.kind) == [.deferred, .deferred])
    #expect(bench.state(id)?.life.last?.text.contains("450 4.2.1 too quickly; attempt 2, next try") == true)
    bench.time.advance(by: .seconds(300))
    let report = await bench.reports(1)[0]
    #expect(report.contains("Delivery was tried 3 times:") && report.contains("Remote-MTA: dns; localhost\r\n"))
    #expect(report.contains("Diagnostic-Code: smtp; 550 5.2.1 disabled") && report.contains("Status: 5.2.1"))
    await bench.end()
  }

  // MARK: Nothing lost, nothing doubled

  @Test func deliveryIsWrittenDownBeforeTheFailureIsTold() async throws {
    let bench = try await Bench([Self.nobody])
    let seen = Mutex<[MessageState]>([])
    let store = bench.store
    let id = store.nextID()
    store.beforeAppending { report in
      if report != id, let state = store.messages[id]?.state { seen.withLock { $0.append(state) } }
    }
    let envelope = Envelope(
      reversePath: "jane@example.org", recipients: [.test("a@example.test"), .test("nobody@example.test")],
      arrival: bench.time.wallClock)
    try await store.append(id, envelope, .bytes(Array("\r\n".utf8)))
    bench.delivery.submit(id, envelope, .bytes(Array("\r\n".utf8)))
    _ = await bench.reports(1)
    await bench.end()
    // Told first, written down then: at that moment the one was delivered, and the other still pending.
    #expect(seen.withLock { $0.map(\.recipients) } == [[0: .delivered]])
    #expect(store.messages.isEmpty)
  }

  @Test func notificationThatTheQueueDoesNotTakeIsTriedAgainAndDeliveriesAreNot() async throws {
    let bench = try await Bench([Self.nobody])
    let id = bench.store.nextID()
    let envelope = Envelope(
      reversePath: "jane@example.org", recipients: [.test("a@example.test"), .test("nobody@example.test")],
      arrival: bench.time.wallClock)
    let content = Content.bytes(Array("\r\n".utf8))
    try await bench.store.append(id, envelope, content)
    bench.store.fail(with: .full)
    bench.delivery.submit(id, envelope, content)
    _ = await bench.lines.line(containing: "cannot queue the notification")
    await bench.asleep()
    #expect(bench.state(id)?.recipients == [0: .delivered] && bench.state(id)?.lanes["example.test"]?.attempts == 0)
    bench.store.fail(with: nil)
    bench.time.advance(by: .seconds(60))
    _ = await bench.reports(1)
    await bench.end()
    #expect(bench.upstream.messages.count == 2 && bench.store.messages.isEmpty)
  }

  @Test func doubtIsRecordedAndTheMessageGoesOnceMoreAsItWas() async throws {
    let bench = try await Bench([.disconnectAfterDot(times: 2)])
    let id = try await bench.submit()
    for count in 1...2 {
      await bench.until { bench.state(id)?.lanes["example.test"]?.inDoubt == count }
      await bench.asleep()
      #expect(bench.state(id)?.life.map(\.kind).suffix(2) == [.inDoubt, .deferred])
      if count == 1 {
        while bench.state(id)?.lanes["example.test"]?.inDoubt == 1 {
          bench.time.advance(by: .seconds(61))
          await bench.asleep()
        }
      }
    }
    while bench.store.messages[id] != nil {
      bench.time.advance(by: .seconds(61))
      await Task.yield()
    }
    #expect(Set(await bench.upstream.messages(atLeast: 3).map(\.content)).count == 1)
    #expect(await bench.account().counters.inDoubt == 2)
    await bench.end()
  }

  // MARK: Storms

  @Test func stormOfNotificationsIsBoundedAndNothingVanishes() async throws {
    let bench = try await Bench([Self.nobody])
    for _ in 0..<30 { try await bench.submit(to: ["nobody@example.test"]) }
    await bench.until { bench.store.messages.values.filter { $0.state.deadReason != nil }.count == 10 }
    let reports = await bench.reports(20)
    #expect(reports.count == NotificationLimiter.burst)
    let dead = bench.store.messages.values.filter { $0.state.deadReason != nil }
    #expect(dead.count == 10)
    #expect(
      dead.allSatisfy { $0.state.deadReason?.contains("more than 20 notifications to <jane@example.org>") == true })
    #expect(dead.allSatisfy { $0.state.deadReason?.contains("5.1.1") == true })
    #expect(bench.lines.all.filter { $0.contains("further ones are withheld") }.count == 1, "once, not ten times")
    // Somebody else is told; and so is the first one, a minute later.
    try await bench.submit(to: ["nobody@example.test"], from: "joe@example.org")
    _ = await bench.reports(21)
    bench.time.advance(by: .seconds(61))
    try await bench.submit(to: ["nobody@example.test"])
    _ = await bench.reports(22)
    // The operator's word counts more than the limit.
    for message in dead { #expect(await bench.delivery.bounce(message.id, by: "test") == .bounced) }
    let all = await bench.reports(32)
    #expect(all.allSatisfy { $0.contains("Status: 5.1.1") }, "what was the matter, not what the operator did")
    await bench.end()
    #expect(bench.store.messages.isEmpty)
  }

  @Test func reportsOfDeliveryBeyondTheLimitAreDroppedWithOneLine() async throws {
    let bench = try await Bench()
    for _ in 0..<14 { try await bench.submit([.test("a@example.test", .success)]) }
    await bench.until { bench.store.removed.count >= 24 }
    await bench.end()
    #expect(bench.lines.all.filter { $0.contains("further reports of delivery are dropped") }.count == 1)
    #expect(bench.upstream.messages.count == 24 && bench.store.messages.isEmpty)
    let counts = bench.delivery.notificationCounts
    #expect(counts.sent == [.delivery: 10] && counts.withheld == 4)
  }

  @Test func whatIsNoFailureLeavesHalfOfTheLimitsToFailures() {
    let start = MonotonicInstant(nanoseconds: 0)
    let limiter = NotificationLimiter(now: start)
    func grants(_ count: Int, _ kind: NotificationKind) -> Int {
      (0..<count).count { _ in limiter.ask("a@x", kind, now: start) == .granted(withheld: 0) }
    }
    #expect(grants(100, .delivery) == 10)
    #expect(grants(10, .failure) == 10, "those who lost mail are told all the same")
    #expect(grants(1, .failure) == 0)
  }

  @Test func stormIsSaidOnceOfEachKindAndWarningsOfDelayAreNotCounted() {
    let start = MonotonicInstant(nanoseconds: 0)
    let limiter = NotificationLimiter(now: start)
    func isFirst(_ kind: NotificationKind) -> Bool? {
      if case .refused(_, let isFirst) = limiter.ask("a@x", kind, now: start) { isFirst } else { nil }
    }
    for _ in 0..<10 { #expect(isFirst(.delivery) == nil) }
    #expect(isFirst(.delay) == true && isFirst(.delay) == false)
    #expect(isFirst(.delivery) == true && isFirst(.delivery) == false)
    for _ in 0..<10 { #expect(isFirst(.failure) == nil) }
    #expect(isFirst(.failure) == true && isFirst(.failure) == false)
    #expect(limiter.ask("a@x", .failure, now: start + .seconds(7200)) == .granted(withheld: 4))
    // The next one is told again.
    for _ in 0..<19 { _ = limiter.ask("a@x", .failure, now: start + .seconds(7200)) }
    guard case .refused(_, true) = limiter.ask("a@x", .delivery, now: start + .seconds(7200)) else {
      Issue.record("no line for the next storm")
      return
    }
  }

  @Test func limiterBoundsAllAddressesTogetherAndEndsAStormWhenItsBucketIsFull() {
    let start = MonotonicInstant(nanoseconds: 0)
    let limiter = NotificationLimiter(now: start)
    for number in 0..<100 { #expect(limiter.ask("a\(number)@x", .failure, now: start) == .granted(withheld: 0)) }
    func isFirst(_ now: MonotonicInstant) -> Bool? {
      if case .refused(_, let isFirst) = limiter.ask("b@x", .failure, now: now) { isFirst } else { nil }
    }
    #expect(isFirst(start) == true && isFirst(start) == false)
    // One is granted every 7.2 seconds, and that does not end the storm.
    #expect(isFirst(start + .seconds(8)) == nil && isFirst(start + .seconds(8)) == false)
    #expect(limiter.ask("b@x", .failure, now: start + .seconds(3600)) == .granted(withheld: 3))
    var granted = 0
    for second in 0..<3600 {
      if case .granted = limiter.ask("c\(second)@x", .failure, now: start + .seconds(7200 + second)) {
        granted += 1
      }
    }
    #expect((598...601).contains(granted))
  }
}

extension String {
  /// How often `part` occurs.
  func components(_ part: String) -> Int { split(separator: part, omittingEmptySubsequences: false).count - 1 }
}
