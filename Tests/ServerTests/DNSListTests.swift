// Clients on a list in the DNS at the front door: who is refused, with which words, and who is not asked about.

import Filters
import Network
import Primitives
import TestSupport
import Testing

@testable import Server

/// Says of every client the same, once it may.
final class Oracle: DNSSource {
  private let answer: DNSAnswer
  private let isSilent: Bool
  private let asked = Mutex(0)
  var questions: Int { asked.withLock { $0 } }

  init(_ answer: String?, isSilent: Bool = false) {
    self.answer =
      answer.map { DNSAnswer(.found, [.init(name: "x", value: .address(IPAddress($0)!))]) } ?? DNSAnswer(.noSuchName)
    self.isSilent = isSilent
  }

  func ask(_ name: String, _ type: DNSType) async -> DNSAnswer {
    asked.withLock { $0 += 1 }
    if isSilent { try? await Task.sleep(for: .seconds(60)) }
    if type == .txt { return DNSAnswer(.found, [.init(name: "x", value: .text("ask bl.test"))]) }
    return answer
  }
}

@Suite(.timeLimit(.minutes(1))) struct DNSListTests {
  private func door(
    _ oracle: Oracle, time: ManualTime = ManualTime(), trusting networks: [String] = [],
    _ change: (inout ServerSettings) -> Void = { _ in }
  ) throws -> Door {
    try Door(trusting: networks) { settings in
      settings.dnsLists = DNSLists(
        [DNSListSettings(domain: "bl.test")], source: oracle, time: time, timeout: .seconds(5),
        log: LogLines().logger)
      change(&settings)
    }
  }

  @Test func listedClientIsRefusedAtEachRecipientButThePostmaster() async throws {
    let door = try door(Oracle("127.0.0.2"))
    try await door.greet { client async throws in
      #expect(try await client.say("MAIL FROM:<a@b.test>").hasPrefix("250"))
      #expect(
        try await client.say("RCPT TO:<contact@relay.test>")
          == "554 5.7.1 Service unavailable; client host [127.0.0.1] blocked using bl.test; ask bl.test")
      #expect(try await client.say("RCPT TO:<postmaster>").hasPrefix("250"))
      #expect(try await client.say("RCPT TO:<Postmaster@relay.test>").hasPrefix("250"))
      #expect(try await client.say("RCPT TO:<team@relay.test>").hasPrefix("554 5.7.1"))
      #expect(try await client.say("RCPT TO:<nobody@relay.test>").hasPrefix("550 5.1.1"))
    }
    #expect(door.server.counters.listed == 2)
    #expect(await door.lines.line(containing: "listed by bl.test").contains("127.0.0.2"))
    await door.close()
  }

  @Test func clientThatIsNotListedIsLetIn() async throws {
    let oracle = Oracle(nil)
    let door = try door(oracle)
    try await door.greet { client async throws in #expect(try await client.mail("x").hasPrefix("250")) }
    #expect(oracle.questions == 1)
    await door.close()
  }

  @Test func trustedClientIsNotAskedAbout() async throws {
    let oracle = Oracle("127.0.0.2")
    let door = try door(oracle, trusting: ["127.0.0.0/8"])
    try await door.greet { client async throws in #expect(try await client.mail("x").hasPrefix("250")) }
    #expect(oracle.questions == 0)
    await door.close()
  }

  @Test func clientBehindALoadBalancerIsAskedAboutByItsOwnAddress() async throws {
    let door = try door(Oracle("127.0.0.2")) {
      $0.proxyNetworks = [IPNetwork("127.0.0.1")!]
      $0.proxyPatience = .seconds(60)
    }
    try await door.connect { client async throws in
      try await client.send("PROXY TCP4 203.0.113.9 198.51.100.1 4711 25\r\nEHLO c\r\nMAIL FROM:<a@b.test>\r\n")
      #expect(try await client.codes(3).last == "250 2.1.0")
      #expect(try await client.say("RCPT TO:<contact@relay.test>").contains("client host [203.0.113.9] blocked"))
    }
    await door.close()
  }

  @Test func listingIsOnlyLoggedWhenSoConfigured() async throws {
    let door = try door(Oracle("127.0.0.2")) { $0.refusesListed = false }
    try await door.greet { client async throws in #expect(try await client.mail("x").hasPrefix("250")) }
    #expect(await door.lines.line(containing: "listed by bl.test").contains("let in all the same"))
    await door.close()
  }

  @Test func listThatIsSilentHoldsUpTheFirstRecipientForItsTimeAndNothingElse() async throws {
    let oracle = Oracle("127.0.0.2", isSilent: true)
    let time = ManualTime()
    let door = try door(oracle, time: time)
    try await door.greet { client async throws in
      #expect(try await client.say("MAIL FROM:<a@b.test>").hasPrefix("250"), "neither banner nor sender wait")
      while time.nextDeadline == nil { await Task.yield() }
      try await client.send("RCPT TO:<contact@relay.test>\r\n")
      time.advance(by: .seconds(6))
      #expect(try await client.codes(1) == ["250 2.1.5"])
      #expect(try await client.say("RCPT TO:<team@relay.test>").hasPrefix("250"), "and only once")
    }
    await door.close()
  }
}
