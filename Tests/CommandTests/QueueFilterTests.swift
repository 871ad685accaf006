// Which messages a filter names, and how a queue is walked over in parts.

import FoundationEssentials
import Glibc
import Primitives
import Spool
import Testing

@testable import Daemon

/// A queue in a directory of its own.
final class TemporaryQueue {
  let path: String
  let spool: Spool
  let time: ManualTime

  init() throws {
    var template = Array("/tmp/ssmtp-queue.XXXXXX".utf8CString)
    path = String(cString: try #require(mkdtemp(&template)))
    time = ManualTime()
    spool = try Spool.open(directory: path, time: time, onFailure: { _ in })
  }

  var reports: QueueReports { QueueReports(store: spool, time: time) }

  @discardableResult
  func add(
    from sender: String = "jane@example.org", to recipients: [String] = ["sales@example.com"],
    account: String = "example.com", age: Duration = .zero, content: [UInt8] = Array("Subject: x\r\n\r\nx\r\n".utf8)
  ) async throws -> QueueID {
    let id = spool.nextID()
    let list = recipients.map { Recipient(address: $0, original: "alias-\($0)", account: account) }
    try await spool.append(
      id, Envelope(reversePath: sender, recipients: list, arrival: time.wallClock - age), .bytes(content))
    return id
  }

  func end() async {
    await spool.close()
    try? FileManager.default.removeItem(atPath: path)
  }
}

@Suite struct QueueFilterTests {
  @Test(arguments: [
    ("jane@example.org", "jane@example.org", true), ("Jane@Example.ORG", "jane@example.org", true),
    ("jane@example.org", "*@example.org", true), ("jane@example.org", "jane@*", true),
    ("jane@example.org", "*ane@*ample*", true), ("jane@example.org", "*", true), ("", "*", true),
    ("jane@example.org", "ane@example.org", false), ("jane@example.org", "*@example.com", false),
    ("aab", "*ab", true), ("aaab", "a*aab*", true), ("aaa", "a*ab", false), ("jane@example.org", "", false),
  ])
  func patterns(_ text: String, _ pattern: String, _ matches: Bool) {
    #expect(AddressGlob.matches(text, pattern) == matches)
  }

  @Test(
    arguments: [
      ("90", 90), ("30s", 30), ("15m", 900), ("2h", 7200), ("1d12h", 129_600), ("", nil), ("h", nil), ("2x", nil),
      ("2h5", nil), ("-1h", nil), ("99999999999999999999d", nil),
      ("99999999999999d", nil), ("9999999999h99999999999999h", nil), ("999999999d999999999d", nil),
    ] as [(String, Int64?)])
  func timeSpans(_ text: String, _ seconds: Int64?) {
    #expect(QueueFilter.duration(text) == seconds.map { .seconds($0) })
  }

  @Test func aFilterSurvivesItsWayThroughAQuery() throws {
    var filter = QueueFilter()
    filter.state = .deferred
    filter.account = "example.com"
    filter.recipient = "*@a&b=c.example"
    filter.sender = "<>"
    filter.olderThan = .seconds(7200)
    filter.youngerThan = .seconds(86_400)
    let pairs = Dictionary(filter.query.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 })
    #expect(try QueueFilter(query: pairs) == filter)
    #expect(throws: QueueFilter.Malformed.self) { try QueueFilter(query: ["state": "lost"]) }
    #expect(throws: QueueFilter.Malformed.self) { try QueueFilter(query: ["older_than": "soon"]) }
  }

  @Test func messageThatSomebodyStillGetsIsNotDead() async throws {
    let queue = try TemporaryQueue()
    let id = try await queue.add(to: ["gone@example.com", "waits@example.com"])
    let later = queue.time.wallClock + .seconds(60)
    queue.spool.update(id) {
      $0.recipients[0] = .failed("550 5.1.1 nobody")
      $0.deadReason = "550 5.1.1 nobody; nobody was told: it has no sender"
      $0.lanes["example.com"] = Lane(nextAttempt: later, attempts: 1, lastReply: "451 4.3.0 later")
    }
    func ids(_ query: [String: String]) async throws -> [QueueID] {
      let filter = try QueueFilter(query: query)
      return try await queue.reports.walk(filter, after: nil, limit: 9, withEnvelopes: false).matches.map(\.entry.id)
    }
    func item() async throws -> QueueItem { try #require(try await queue.reports.detail(id)).item }
    #expect(try await ids(["state": "dead"]) == [])
    #expect(try await ids(["state": "deferred"]) == [id])
    #expect(try await item().reason == "451 4.3.0 later")
    #expect(try await item().recipients == ["waits@example.com"])
    // Who has failed is no longer waited for.
    #expect(try await ids(["recipient": "alias-gone@*"]) == [])
    #expect(try await ids(["recipient": "waits@*"]) == [id])
    queue.spool.update(id) { $0.isHeld = true }
    #expect(try await ids(["state": "held"]) == [id])
    queue.spool.update(id) {
      $0.isHeld = false
      $0.recipients[1] = .delivered
    }
    #expect(try await ids(["state": "dead"]) == [id])
    #expect(try await item().recipients == ["gone@example.com"])
    #expect(try await item().reason?.contains("nobody was told") == true)
    #expect(try await ids(["recipient": "waits@*"]) == [], "it has been delivered")
    #expect(try await ids(["recipient": "gone@*"]) == [id])
    // An operator may keep back what is dead as well.
    queue.spool.update(id) { $0.isHeld = true }
    #expect(try await ids(["state": "held"]) == [id])
    await queue.end()
  }

  @Test func eachConditionNamesTheMessagesItShould() async throws {
    let queue = try TemporaryQueue()
    let plain = try await queue.add()
    let bounce = try await queue.add(from: "", to: ["jane@example.org"])
    let old = try await queue.add(account: "other.example", age: .seconds(7200))
    let held = try await queue.add()
    let deferred = try await queue.add(to: ["a@example.com", "Legal@Example.com"])
    queue.spool.update(held) { $0.isHeld = true }
    let later = queue.time.wallClock + .seconds(60)
    queue.spool.update(deferred) {
      $0.lanes["example.com"] = Lane(nextAttempt: later, attempts: 1, lastReply: "451 no")
    }
    func ids(_ query: [String: String]) async throws -> [QueueID] {
      let part = try await queue.reports.walk(
        try QueueFilter(query: query), after: nil, limit: 100, withEnvelopes: false)
      #expect(part.next == nil)
      return part.matches.map(\.entry.id)
    }
    #expect(try await ids([:]) == [plain, bounce, old, held, deferred])
    #expect(try await ids(["state": "queued"]) == [plain, bounce, old])
    #expect(try await ids(["state": "held"]) == [held])
    #expect(try await ids(["state": "deferred"]) == [deferred])
    #expect(try await ids(["account": "OTHER.example"]) == [old])
    #expect(try await ids(["older_than": "1h"]) == [old])
    #expect(try await ids(["younger_than": "1h", "state": "queued"]) == [plain, bounce])
    #expect(try await ids(["sender": "<>"]) == [bounce])
    #expect(try await ids(["sender": "*"]) == [plain, old, held, deferred])
    #expect(try await ids(["recipient": "legal@example.com"]) == [deferred])
    #expect(try await ids(["recipient": "alias-jane@*"]) == [bounce])
    #expect(try await ids(["recipient": "alias-*", "sender": "jane@*", "state": "held"]) == [held])
    let count = try await queue.reports.count(QueueFilter(), after: nil)
    #expect(count.messages == 5)
    #expect(count.states.first { $0.name == "held" }?.messages == 1)
    #expect(count.accounts.first { $0.name == "other.example" }?.messages == 1)
    await queue.end()
  }

  @Test func pagesMissNothingAndRepeatNothingWhileMailComesAndGoes() async throws {
    let queue = try TemporaryQueue()
    var expected: [QueueID] = []
    for number in 0..<25 { expected.append(try await queue.add(from: "s\(number % 2)@example.org")) }
    var filter = QueueFilter()
    filter.sender = "s0@*"
    expected = expected.enumerated().filter { $0.offset % 2 == 0 }.map(\.element)
    var seen: [QueueID] = []
    var after: QueueID?
    repeat {
      let part = try await queue.reports.walk(filter, after: after, limit: 4, withEnvelopes: true)
      #expect(part.matches.count <= 4)
      seen += part.matches.map(\.entry.id)
      // What was shown leaves, and something new comes that does not match.
      if let gone = part.matches.first { queue.spool.remove(gone.entry.id) }
      try await queue.add(from: "s1@example.org")
      after = part.next
    } while after != nil
    #expect(seen == expected)
    await queue.end()
  }

  @Test func linesEndWithWhereToGoOnAndAreJSONWhateverAnAddressHolds() async throws {
    let queue = try TemporaryQueue()
    let strange = "\"a\\\\\t\u{1}b\"@example.org"
    for _ in 0..<3 { try await queue.add(from: strange) }
    let text = String(
      decoding: try await queue.reports.lines(QueueFilter(), after: nil, limit: 2, .json), as: UTF8.self)
    let lines = text.split(separator: "\n")
    #expect(lines.count == 3)
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    let items = try lines.dropLast().map { try decoder.decode(QueueItem.self, from: Data($0.utf8)) }
    #expect(items.map(\.sender) == [strange, strange])
    #expect(lines.last == "next \(items[1].id)")
    let rest = try await queue.reports.lines(QueueFilter(), after: QueueID(items[1].id), limit: 2, .ids)
    #expect(String(decoding: rest, as: UTF8.self).hasSuffix("\nend\n"))
    await queue.end()
  }
}
