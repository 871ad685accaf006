// Orders on a queue without a daemon, and messages on their way out of a queue and into another one.

import FoundationEssentials
import Glibc
import Primitives
import Spool
import Testing

@testable import Daemon
@testable import Delivery

extension AccountSnapshot {
  fileprivate static func named(_ name: String, upstream: String) -> AccountSnapshot {
    AccountSnapshot(
      name: name, account: "", upstream: upstream, isEnabled: true, queued: 0, active: 0, connections: 0,
      maximumConnections: 1, counters: AccountCounters())
  }
}

private struct Pieces: AsyncSequence, AsyncIteratorProtocol, Sendable {
  typealias Failure = any Error
  var pieces: [[UInt8]]
  mutating func next() async throws -> [UInt8]? { pieces.isEmpty ? nil : pieces.removeFirst() }
  func makeAsyncIterator() -> Pieces { self }
}

@Suite struct QueueTransferTests {
  private func api(_ queue: TemporaryQueue) -> QueueAPI {
    QueueAPI(
      reports: queue.reports,
      orders: QueueOrders(
        reports: queue.reports, taker: StoppedOrders(store: queue.spool, time: queue.time), log: nil))
  }

  private func decoded<T: Decodable>(_ response: AdminResponse, _ type: T.Type = T.self) async throws -> T {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    return try decoder.decode(T.self, from: Data(try await response.body.read(at: 0, count: .max / 2)))
  }

  private func words(_ response: AdminResponse) async throws -> String {
    String(decoding: try await response.body.read(at: 0, count: 1 << 20), as: UTF8.self)
  }

  /// An identifier for an import, as a client gets it.
  private func newID(_ door: QueueAPI) async throws -> QueueID {
    let fresh: [String: String] = try await decoded(
      try await door.answer(AdminRequest(method: "POST", path: AdminPath.newID, query: [:])))
    return try #require(fresh["id"].flatMap { QueueID($0) })
  }

  private func rich(_ time: ManualTime) -> (Envelope, MessageState) {
    let envelope = Envelope(
      reversePath: "jane@example.org",
      recipients: [
        Recipient(
          address: "a@example.com", original: "b@local.example", account: "example.com", notify: 3,
          originalRecipient: "rfc822;b@local.example"),
        Recipient(address: "c@example.com", original: "c@example.com", account: "example.com", notify: 0),
        Recipient(address: "d@example.com", original: "d@example.com", account: "other.example"),
      ], arrival: time.wallClock - .microseconds(5_432_101), clientAddress: "192.0.2.1", helo: "client.example",
      is8Bit: true, smtpUTF8: true, envelopeID: "x+2By", returnFull: false)
    var state = MessageState(
      recipients: [1: .delivered, 2: .failed("550 5.1.1 no such user")],
      lanes: [
        "example.com": Lane(
          nextAttempt: time.wallClock + .microseconds(60_000_001), attempts: 4, lastReply: "451 4.3.0 later",
          inDoubt: 1)
      ], isHeld: true, isDelayReported: true)
    state.note(LifeEvent(time: time.wallClock, kind: .deferred, account: "example.com", text: "451 4.3.0 later"))
    return (envelope, state)
  }

  @Test func aDocumentKeepsEverythingOfAMessage() throws {
    let time = ManualTime()
    let (envelope, state) = rich(time)
    let id = QueueID(rawValue: 1_795_000_000_000_000)
    let document = MessageDocument(id, envelope, state)
    #expect(try MessageDocument(json: document.json) == document)
    #expect(document.jsonLine.filter { $0 == 0x0a }.count == 1)
    let (again, newState) = try document.message(now: time.wallClock)
    #expect(again == envelope)
    var expected = state
    expected.note(LifeEvent(time: time.wallClock, kind: .imported, text: "it was \(id) before"))
    #expect(newState == expected)
  }

  @Test(arguments: [
    (#"{"recipients":["a@b.c"],"account":"x"}"#, "there is no sender"),
    (#"{"sender":"a@b.c","account":"x"}"#, "there is no recipients"),
    (#"{"sender":"a@b.c","account":"x","recipients":[]}"#, "there are no recipients"),
    (#"{"sender":"a@b.c","recipients":["d@e.f"]}"#, "no account is given for d@e.f"),
    (#"{"sender":"a@b.c","account":"x","recipients":["d@e.f>\r\nDATA"]}"#, "not an address"),
    (#"{"sender":"a b@b.c","account":"x","recipients":["d@e.f"]}"#, "not an address"),
    (#"{"sender":"a@b.c","account":"x","recipients":["d@e.f"],"arrival":"yesterday"}"#, "yesterday is no time"),
    (#"{"sender":"a@b.c","account":"x","recipients":[{"address":"d@e.f","state":"delivered"}]}"#, "nobody is left"),
    (#"{"sender":"a@b.c","account":"x","recipients":["d@e.f"],"format":2}"#, "later release"),
    (#"{"sender":"a@b.c","account":"x","recipients":[{"address":"d@e.f","orcpt":"rfc822 X=1;a@b.c"}]}"#, "orcpt is"),
    (#"{"sender":"a@b.c","account":"x","recipients":[{"address":"d@e.f","orcpt":"a@b.c"}]}"#, "orcpt is"),
    (#"{"sender":"a@b.c","account":"x","recipients":[{"address":"d@e.f","orcpt":"rfc822;a\r\nb"}]}"#, "orcpt is"),
    (#"{"sender":"a@b.c","account":"x","recipients":["d@e.f"],"envid":"a\r\nb"}"#, "envid is"),
    (#"{"sender":5,"recipients":[]}"#, "wrong kind in sender"), ("{", "the text is broken"),
    (#"{"sender":"a@b.c","account":"x","recipients":["d@e.f"],"hold":true}"#, #""hold"; did you mean held?"#),
    (#"{"sendr":"a@b.c","account":"x","recipients":["d@e.f"]}"#, #""sendr"; did you mean sender?"#),
    (#"{"sender":"a@b.c","account":"x","recipients":[{"adress":"d@e.f"}]}"#, "in recipients; did you mean address?"),
    (#"{"sender":"a@b.c","recipients":[],"lanes":[null,{"attempt":1}]}"#, "in lanes; did you mean attempts?"),
    (#"{"sender":"a@b.c","account":"x","recipients":["d@e.f"],"content":{"sz":3}}"#, "in content; known keys: octets"),
    (#"{"sender":"a@b.c","account":"x","recipients":["d@e.f"],"format":2,"hold":true}"#, "later release"),
    (#"{"sender":"jü@b.c","account":"x","recipients":["d@e.f"]}"#, #""smtp_utf8": true"#),
    (
      #"{"sender":"a@b.c","account":"x","recipients":[{"address":"d@e.f","original":"dü@e.f"}]}"#,
      "dü@e.f is not ASCII"
    ),
  ])
  func aBadDocumentIsRefusedInWords(_ json: String, _ words: String) {
    let error = #expect(throws: MessageDocument.Malformed.self) {
      _ = try MessageDocument(json: Array(json.utf8)).message(now: Timestamp(seconds: 0))
    }
    #expect(error?.description.contains(words) == true, "\(String(describing: error))")
  }

  @Test func whatAMappingMakesOfAnAddressNeedsNoWordOfTheClient() throws {
    let json = #"{"sender":"a@b.c","account":"x","recipients":[{"address":"dü@e.f","original":"d@e.f"}]}"#
    let message = try MessageDocument(json: Array(json.utf8)).message(now: Timestamp(seconds: 0))
    #expect(!message.envelope.smtpUTF8)
  }

  @Test func aMarkerSaysWhichMessageItIsOf() throws {
    let time = ManualTime()
    let (envelope, state) = rich(time)
    let id = QueueID(rawValue: 1_795_000_000_000_000)
    let document = MessageDocument(id, envelope, state)
    let marker = ImportMarker(id, document, .init(octets: 17, crc32c: 0xabc))
    #expect(try ImportMarker(Array(marker.text.utf8)) == marker)
    #expect(marker.text.hasPrefix("id \(id)\noctets 17\ncrc32c 00000abc\nsender jane@example.org\n"))
    var other = document
    other.recipients.removeLast()
    #expect(ImportMarker(id, other, marker.content) != marker)
    other = document
    other.arrival = nil
    #expect(ImportMarker(id, other, marker.content) != marker)
    #expect(ImportMarker(id, document, .init(octets: 17, crc32c: 0xabd)) != marker)
    var bounce = document
    (bounce.sender, bounce.arrival) = ("", nil)
    let bare = ImportMarker(id, bounce, marker.content)
    #expect(try ImportMarker(Array(bare.text.utf8)) == bare)
  }

  @Test(arguments: [
    ("", "no id"), ("\n", "no id"), ("id nonsense\n", "no id"), ("316pmr2xzyx\n", "no id"),
    ("id 316pmr2xzyx\noctets 1\n", "not the message"),
  ])
  func aMarkerWithoutAMessageIsNone(_ text: String, _ words: String) {
    let error = #expect(throws: MessageDocument.Malformed.self) { _ = try ImportMarker(Array(text.utf8)) }
    #expect(error?.description.contains(words) == true, "\(String(describing: error))")
  }

  @Test(arguments: [100, 1_200_000]) func aMessageGoesFromOneQueueIntoAnother(_ size: Int) async throws {
    let (source, target) = (try TemporaryQueue(), try TemporaryQueue())
    let (envelope, state) = rich(source.time)
    // An odd number of octets again and again: pieces that change places are noticed.
    let pattern = (1..<254).map { UInt8($0) }.filter { $0 != 0x0a && $0 != 0x0d }
    let content = Array((0...size / pattern.count).flatMap { _ in pattern }.prefix(size))
    let old = source.spool.nextID()
    try await source.spool.append(old, envelope, .bytes(content))
    source.spool.update(old) { $0 = state }
    let out = try await api(source).answer(
      AdminRequest(method: "GET", path: AdminPath.document(old.description), query: [:]))
    let document = try MessageDocument(json: try await out.body.read(at: 0, count: 1 << 20))
    let copy = try await api(source).answer(
      AdminRequest(method: "GET", path: AdminPath.content(old.description), query: [:]))
    #expect(try await copy.body.read(at: 0, count: size + 1) == content)

    let door = api(target)
    let id = try await newID(door)
    let body = document.jsonLine + content
    let pieces = stride(from: 0, to: body.count, by: 70_000).map { Array(body[$0..<min($0 + 70_000, body.count)]) }
    let answer = try await door.answer(
      AdminRequest(
        method: "POST", path: AdminPath.importing, query: ["id": id.description], body: Pieces(pieces: pieces)))
    #expect(answer.status == 200)
    let twice = try await door.answer(
      AdminRequest(
        method: "POST", path: AdminPath.importing, query: ["id": id.description], body: Pieces(pieces: pieces)))
    #expect(twice.status == 409)
    #expect(try await words(twice).contains("\(id) is queued already"))

    let message = try #require(try await target.spool.read(id))
    #expect(message.envelope == envelope)
    #expect(message.state.isHeld)
    #expect(message.state.lanes == state.lanes)
    #expect(message.state.life.last?.kind == .imported)
    #expect(message.state.life.last?.text.contains(old.description) == true)
    #expect(try await message.content.read(at: 0, count: size + 1) == content)
    await source.end()
    await target.end()
  }

  @Test(arguments: [-1, 1, 400_000]) func contentOfAnotherSizeThanPromisedIsNotQueued(_ difference: Int) async throws {
    let queue = try TemporaryQueue()
    var document = MessageDocument(queue.spool.nextID(), rich(queue.time).0, MessageState())
    let content = [UInt8](repeating: 0x61, count: 300_000)
    document.content = .init(octets: content.count + difference)
    let door = api(queue)
    let answer = try await door.answer(
      AdminRequest(
        method: "POST", path: AdminPath.importing, query: ["id": try await newID(door).description],
        body: Pieces(pieces: [document.jsonLine, content])))
    #expect(answer.status == 422)
    #expect(queue.spool.statistics.messages == 0)
    #expect(try FileManager.default.contentsOfDirectory(atPath: "\(queue.path)/content") == [])
    await queue.end()
  }

  @Test func onlyAnIdentifierThatWasGivenOutNamesAnImportAndOnlyOnce() async throws {
    let queue = try TemporaryQueue()
    let door = api(queue)
    let content = [UInt8](repeating: 0x61, count: 300_000)
    var document = MessageDocument(queue.spool.nextID(), rich(queue.time).0, MessageState())
    document.content = .init(octets: content.count)
    let line = document.jsonLine
    @Sendable func importing(_ id: QueueID, _ content: [UInt8]) async throws -> Int {
      try await door.answer(
        AdminRequest(
          method: "POST", path: AdminPath.importing, query: ["id": id.description],
          body: Pieces(pieces: [line, content]))
      ).status
    }
    let greatest = try #require(QueueID("zzzzzzzzzzz"))
    let received = queue.spool.nextID()
    #expect(try await importing(greatest, content) == 409)
    #expect(try await importing(received, content) == 409, "it is being received by somebody else")
    #expect(queue.spool.nextID() < greatest)
    let id = try await newID(door)
    async let one = importing(id, content)
    async let other = importing(id, content)
    #expect(try await [one, other].sorted() == [200, 409])
    #expect(try await queue.spool.read(id)?.content.read(at: 0, count: 1 << 20) == content)
    let used = try await newID(door)
    #expect(try await importing(used, [1]) == 422)
    #expect(try await importing(used, content) == 409)
    #expect(queue.spool.statistics.messages == 1)
    await queue.end()
  }

  @Test(arguments: [("", 200), ("sales.example", 422)]) func whileTheDaemonRunsAnAccountHasToBeThere(
    _ account: String, _ status: Int
  ) async throws {
    let queue = try TemporaryQueue()
    let known = AccountSnapshot.named("example.com", upstream: "smtp.gmail.com:587")
    // One that the configuration no longer has; mail of before still waits for it.
    let gone = AccountSnapshot.named("sales.example", upstream: ":0")
    var reports = queue.reports
    reports.accounts = { [known, gone] }
    let door = QueueAPI(
      reports: reports,
      orders: QueueOrders(reports: reports, taker: StoppedOrders(store: queue.spool, time: queue.time), log: nil))
    let line =
      #"{"sender":"a@b.c","account":"\#(account.isEmpty ? "Example.com" : account)","#
      + #""recipients":["d@e.f"],"content":{"octets":3}}"# + "\n"
    let answer = try await door.answer(
      AdminRequest(
        method: "POST", path: AdminPath.importing, query: ["id": try await newID(door).description],
        body: Pieces(pieces: [Array(line.utf8), Array("x\r\n".utf8)])))
    #expect(answer.status == status)
    if status == 422 { #expect(try await words(answer).contains("there is no [domain:\(account)]")) }
    await queue.end()
  }

  @Test(arguments: [70_000 + 65_536, 70_001 + 65_536]) func whileTheDaemonRunsWhatIsTooLargeForItIsRefused(
    _ size: Int
  ) async throws {
    let queue = try TemporaryQueue()
    var door = api(queue)
    door.maximumSize = { 70_000 }
    var document = MessageDocument(queue.spool.nextID(), rich(queue.time).0, MessageState())
    document.content = .init(octets: size)
    let answer = try await door.answer(
      AdminRequest(
        method: "POST", path: AdminPath.importing, query: ["id": try await newID(door).description],
        body: Pieces(pieces: [document.jsonLine, [UInt8](repeating: 0x61, count: size)])))
    #expect(answer.status == (size > 70_000 + 65_536 ? 422 : 200))
    if answer.status == 422 { #expect(try await words(answer).contains("max_message_size in [global] is 70000")) }
    await queue.end()
  }

  @Test(arguments: [
    ("a\nb\r\n", "CRLF"), ("a\rb\r\n", "CRLF"), ("a\r\nb\r", "CRLF"), ("\n", "CRLF"), ("a\0\r\n", "NUL"),
  ])
  func contentThatTheFrontDoorRefusesIsNotQueued(_ text: String, _ word: String) async throws {
    let queue = try TemporaryQueue()
    let door = api(queue)
    var document = MessageDocument(queue.spool.nextID(), rich(queue.time).0, MessageState())
    document.content = .init(octets: text.utf8.count)
    let answer = try await door.answer(
      AdminRequest(
        method: "POST", path: AdminPath.importing, query: ["id": try await newID(door).description],
        body: Pieces(pieces: [document.jsonLine] + text.utf8.map { [$0] })))
    #expect(answer.status == 422)
    #expect(try await words(answer).contains(word))
    #expect(queue.spool.statistics.messages == 0)
    await queue.end()
  }

  @Test(arguments: [
    ("POST", "orders/delete", ["recipent": "x@example.com"], "recipent"), ("POST", "orders/delete", [:], "all=true"),
    ("POST", "orders/delete", ["all": "yes"], "all"), ("POST", "orders/hold", ["reason": "x"], "all=true"),
    ("POST", "orders/retry", ["all": "true", "state": "held"], "one of the two"),
    ("POST", "orders/delete", ["ids": "x", "sender": "a"], "sender"), ("GET", "", ["stat": "held"], "stat"),
    ("GET", "", ["limit": "many"], "limit"), ("GET", "count", ["limit": "1"], "limit"),
    ("POST", "new-id", ["x": "1"], "x"),
  ])
  func aNameThatIsNotKnownIsRefusedAndDoesNothing(
    _ method: String, _ path: String, _ query: [String: String], _ word: String
  ) async throws {
    let queue = try TemporaryQueue()
    let id = try await queue.add()
    let answer = try await api(queue).answer(
      AdminRequest(method: method, path: "/v1/queue/\(path)", query: query))
    #expect(answer.status == 400)
    #expect(try await words(answer).contains(word))
    #expect(try await queue.spool.readEnvelope(id)?.1 == MessageState())
    let all = try await api(queue).answer(
      AdminRequest(method: "POST", path: AdminPath.order(.delete), query: ["all": "true"]))
    #expect(all.status == 200)
    #expect(queue.spool.statistics.messages == 0)
    await queue.end()
  }

  @Test func ordersWithoutADaemonChangeTheQueueAndSayWhatTheyDid() async throws {
    let queue = try TemporaryQueue()
    var ids: [QueueID] = []
    for _ in 0..<4 { ids.append(try await queue.add()) }
    func order(_ order: QueueOrder, _ query: [String: String]) async throws -> OrderReport {
      try await decoded(
        try await api(queue).answer(AdminRequest(method: "POST", path: AdminPath.order(order), query: query)))
    }
    let held = try await order(.hold, ["ids": "\(ids[0]),\(ids[1]),nonsense", "reason": "look\r\nat it"])
    #expect(held.done == 2)
    #expect(held.lines.map(\.status) == [0, 0, 65])
    let state = try #require(try await queue.spool.readEnvelope(ids[0])?.1)
    #expect(state.isHeld)
    #expect(state.life.last?.kind == .held)
    #expect(state.life.last?.text == "by the operator: look at it")
    #expect(try await order(.hold, ["ids": "\(ids[0])"]).lines.map(\.status) == [0])
    #expect(try await order(.retry, ["ids": "\(ids[0])"]).lines.map(\.status) == [65])
    #expect(try await order(.release, ["state": "held"]).done == 2)
    #expect(try await queue.spool.readEnvelope(ids[0])?.1.isHeld == false)

    let later = queue.time.wallClock + .seconds(3600)
    queue.spool.update(ids[2]) { $0.lanes["example.com"] = Lane(nextAttempt: later, attempts: 2, lastReply: "451") }
    #expect(try await order(.retry, ["state": "deferred"]).done == 1)
    let lane = try #require(try await queue.spool.readEnvelope(ids[2])?.1.lanes["example.com"])
    #expect(lane == Lane(nextAttempt: queue.time.wallClock, attempts: 2, lastReply: "451"))
    queue.spool.update(ids[2]) {
      $0.isHeld = true
      $0.lanes["example.com"]?.nextAttempt = later
    }
    #expect(try await order(.release, ["ids": "\(ids[2])"]).done == 1)
    #expect(try await queue.spool.readEnvelope(ids[2])?.1.lanes["example.com"] == lane, "it is tried at once")
    #expect(try await order(.bounce, ["ids": "\(ids[3])"]).lines.map(\.status) == [75])
    #expect(try await order(.delete, ["ids": "\(ids[3])"]).done == 1)
    #expect(try await order(.delete, ["ids": "\(ids[3])"]).lines.map(\.status) == [65])
    #expect(queue.spool.statistics.messages == 3)
    await queue.end()
  }

  @Test func metricsFollowTheConventionsOfPrometheus() throws {
    var text = MetricsText()
    text.add("a_total", .counter, "What it is.", [([("account", "a\"b\\c\nd")], 3), ([("account", "e")], 2.5)])
    #expect(
      text.text == """
        # HELP ssmtp_mailer_a_total What it is.
        # TYPE ssmtp_mailer_a_total counter
        ssmtp_mailer_a_total{account="a\\"b\\\\c\\nd"} 3
        ssmtp_mailer_a_total{account="e"} 2.5

        """)
  }
}
