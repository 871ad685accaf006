// Lists of clients in the DNS: what is asked, what an answer means, how long it is remembered, and that a list that is
// out of order is in nobody's way.

import Network
import Primitives
import TestSupport
import Testing

@testable import Filters

/// A DNS made of a table, which remembers what it was asked.
private final class Table: DNSSource {
  private struct State {
    var answers: [String: DNSAnswer] = [:]
    var asked: [String] = []
  }
  private let state = Mutex(State())
  var asked: [String] { state.withLock { $0.asked } }
  /// How often an address was asked for.
  var questions: Int { asked.filter { $0.hasPrefix("A ") }.count }

  func set(_ name: String, _ type: DNSType = .a, _ answer: DNSAnswer) {
    state.withLock { $0.answers["\(type.rawValue) \(name)"] = answer }
  }

  func list(_ name: String, _ addresses: String..., timeToLive: UInt32 = 300, text: String? = nil) {
    set(
      name, .a,
      DNSAnswer(
        .found, addresses.map { .init(name: name, value: .address(IPAddress($0)!), timeToLive: timeToLive) }))
    if let text { set(name, .txt, DNSAnswer(.found, [.init(name: name, value: .text(text))])) }
  }

  func ask(_ name: String, _ type: DNSType) async -> DNSAnswer {
    state.withLock { state in
      let key = "\(type.rawValue) \(name)"
      state.asked.append(key)
      return state.answers[key] ?? DNSAnswer(.noSuchName)
    }
  }
}

@Suite(.timeLimit(.minutes(1))) struct DNSListTests {
  private let table = Table()
  private let time = ManualTime()
  private let lines = LogLines()
  private static let client = IPAddress("192.0.2.7")!
  private static let name = "7.2.0.192.bl.test"

  private func lists(_ domains: String...) -> DNSLists { lists(domains.map { DNSListSettings(domain: $0) }) }

  private func lists(_ settings: [DNSListSettings]) -> DNSLists {
    DNSLists(settings, source: table, time: time, timeout: .seconds(5), log: lines.logger)
  }

  @Test func questionsHaveTheNumbersBackwards() {
    #expect(DNSLists.name(of: Self.client, on: "bl.test") == Self.name)
    #expect(
      DNSLists.name(of: IPAddress("2001:db8::1")!, on: "bl.test")
        == "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.test")
  }

  @Test func listedClientIsFoundWithTheWordsOfTheList() async throws {
    table.list(Self.name, "127.0.0.2", "127.0.0.10", text: "See https://bl.test/\r\n550 forged \u{e9}")
    let listing = try #require(await lists("bl.test").listing(of: Self.client))
    #expect(listing.domain == "bl.test")
    #expect(listing.answers.map(\.description) == ["127.0.0.2", "127.0.0.10"])
    #expect(listing.text == "See https://bl.test/ 550 forged")
    #expect(await lists("bl.test").listing(of: IPAddress("192.0.2.8")!) == nil)
  }

  @Test func onlyAnswersOfThePatternCount() async {
    let pattern: [[ClosedRange<UInt8>]] = [[127...127], [0...0], [0...0], [2...3, 10...11]]
    for (answer, isListed) in [("127.0.0.2", true), ("127.0.0.4", false), ("127.0.0.11", true), ("127.0.1.2", false)] {
      let table = Table()
      table.list(Self.name, answer)
      let lists = DNSLists(
        [DNSListSettings(domain: "bl.test", pattern: pattern)], source: table, time: time, timeout: .seconds(5),
        log: lines.logger)
      #expect(await (lists.listing(of: Self.client) != nil) == isListed, "\(answer)")
    }
  }

  @Test func answersAreKeptAsLongAsTheyAreGood() async {
    let lists = lists("bl.test")
    table.list(Self.name, "127.0.0.2", timeToLive: 300)
    for _ in 0..<3 { #expect(await lists.listing(of: Self.client) != nil) }
    #expect(table.questions == 1)
    time.advance(by: .seconds(299))
    _ = await lists.listing(of: Self.client)
    #expect(table.questions == 1)
    time.advance(by: .seconds(2))
    var absence = DNSAnswer(.noSuchName)
    absence.negativeTimeToLive = 120
    table.set(Self.name, .a, absence)
    #expect(await lists.listing(of: Self.client) == nil)
    #expect(table.questions == 2)
    time.advance(by: .seconds(119))
    _ = await lists.listing(of: Self.client)
    #expect(table.questions == 2, "that it is not there is remembered too")
    time.advance(by: .seconds(2))
    _ = await lists.listing(of: Self.client)
    #expect(table.questions == 3)
    #expect(await lists.health[0].health.cacheHits == 4)
  }

  @Test(arguments: [
    DNSAnswer(.failed(.serverFailure)), DNSAnswer(.failed(.timedOut)), DNSAnswer(.failed(.refused)),
    DNSAnswer(.found, [.init(name: name, value: .address(IPAddress("127.255.255.254")!))]),
    DNSAnswer(.found, [.init(name: name, value: .address(IPAddress("203.0.113.1")!))]),
    DNSAnswer(
      .found,
      [
        .init(name: name, value: .address(IPAddress("127.0.0.2")!)),
        .init(name: name, value: .address(IPAddress("203.0.113.1")!)),
      ]),
  ]) func listThatIsOutOfOrderIsPassedBy(answer: DNSAnswer) async {
    let lists = lists("bl.test")
    table.set(Self.name, .a, answer)
    for _ in 0..<3 { #expect(await lists.listing(of: Self.client) == nil) }
    #expect(table.questions == 3, "nothing of it is remembered")
    #expect(lines.all.count == 1 && lines.all[0].hasPrefix("warning: dnsbl bl.test: "), "said once: \(lines.all)")
    #expect(await lists.health[0].health.failures == 3)
    time.advance(by: .seconds(3601))
    _ = await lists.listing(of: Self.client)
    #expect(lines.all.count == 2, "and again an hour later")
  }

  @Test func listThatFailsAgainAndAgainIsSkippedForAWhile() async {
    let lists = lists("bl.test")
    table.set(Self.name, .a, DNSAnswer(.failed(.timedOut)))
    for _ in 0..<10 { _ = await lists.listing(of: Self.client) }
    #expect(table.questions == 5)
    #expect(await lists.health[0].health.isSkipped)
    time.advance(by: .seconds(121))
    for _ in 0..<3 { _ = await lists.listing(of: Self.client) }
    #expect(table.questions == 6, "one finds out whether it is back")
    time.advance(by: .seconds(121))
    table.list(Self.name, "127.0.0.2")
    #expect(await lists.listing(of: Self.client) != nil)
    #expect(await !lists.health[0].health.isSkipped)
    #expect(lines.all.last?.contains("it answers again") == true)
  }

  @Test func oneListOutOfOrderLeavesTheOthers() async {
    table.set(Self.name, .a, DNSAnswer(.failed(.serverFailure)))
    table.list("7.2.0.192.other.test", "127.0.0.3")
    #expect(await lists("bl.test", "other.test").listing(of: Self.client)?.domain == "other.test")
    #expect(table.asked.contains("A \(Self.name)"))
  }

  @Test func questionsToASlowListWaitForEachOtherAndEndWithIt() async {
    let slow = Slow()
    let lists = DNSLists(
      [DNSListSettings(domain: "bl.test")], source: slow, time: time, timeout: .seconds(5), log: lines.logger)
    let all = Task {
      await withTaskGroup(of: Bool.self) { group in
        for i in 0..<50 {
          group.addTask { await lists.listing(of: IPAddress(bytes: [192, 0, 2, UInt8(i)])!) != nil }
        }
        return await group.reduce(into: 0) { $0 += $1 ? 1 : 0 }
      }
    }
    while slow.waiting < 10 { await Task.yield() }
    for _ in 0..<1000 { await Task.yield() }
    #expect(slow.waiting == 10, "not a thread for each client")
    slow.fail()
    #expect(await all.value == 0)
    #expect(slow.asked == 10, "those that waited were not asked in vain")
    #expect(await lists.health[0].health.isSkipped)
  }
}

/// Answers nobody until it fails for all.
private final class Slow: DNSSource {
  private struct State {
    var waiters: [CheckedContinuation<Void, Never>] = []
    var asked = 0
    var hasFailed = false
  }
  private let state = Mutex(State())
  var waiting: Int { state.withLock { $0.waiters.count } }
  var asked: Int { state.withLock { $0.asked } }

  func fail() {
    let waiters = state.withLock { state in
      state.hasFailed = true
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.resume() }
  }

  func ask(_ name: String, _ type: DNSType) async -> DNSAnswer {
    await withCheckedContinuation { wake in
      let hasFailed = state.withLock { state in
        state.asked += 1
        if !state.hasFailed { state.waiters.append(wake) }
        return state.hasFailed
      }
      if hasFailed { wake.resume() }
    }
    return DNSAnswer(.failed(.timedOut))
  }
}
