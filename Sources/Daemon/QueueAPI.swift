// The admin API of a queue, without the HTTP around it: the daemon serves it on its socket, and a command answers its
// own questions with it when no daemon runs, so that both say and do the same.

import Delivery
import FoundationEssentials
import Primitives
import SMTP
import Spool

/// A question or an order.
public struct AdminRequest: Sendable {
  public var method: String
  public var path: String
  public var query: [String: String]
  /// The pieces of the body.
  public var body: Body

  public typealias Body = any AsyncSequence<[UInt8], any Error> & Sendable

  public init(method: String, path: String, query: [String: String], body: Body = NoBody()) {
    self.method = method
    self.path = path
    self.query = query
    self.body = body
  }
}

/// The body of a request that has none.
public struct NoBody: AsyncSequence, AsyncIteratorProtocol, Sendable {
  public init() {}
  public func next() async throws -> [UInt8]? { nil }
  public func makeAsyncIterator() -> NoBody { self }
}

/// An answer: a status of HTTP, and what was asked for.
public struct AdminResponse: Sendable {
  public var status: Int
  public var contentType: String
  public var body: Content

  init(_ status: Int = 200, _ contentType: String, _ body: Content) {
    self.status = status
    self.contentType = contentType
    self.body = body
  }

  init(_ value: some Encodable, status: Int = 200) throws {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    self.init(status, "application/json", .bytes(Array(try encoder.encode(value))))
  }

  /// Why there is no answer.
  init(_ status: Int, _ message: String) throws {
    try self.init(AdminResult(ok: false, message: message), status: status)
  }
}

/// Answers what `/v1/queue` and all below is asked.
struct QueueAPI: Sendable {
  let reports: QueueReports
  let orders: QueueOrders
  /// The `max_message_size` of the front door, in octets; nil when there is nobody who keeps one.
  var maximumSize: @Sendable () -> Int? = { nil }
  private let given = GivenIDs()

  init(reports: QueueReports, orders: QueueOrders) {
    self.reports = reports
    self.orders = orders
  }

  private static let listLimit = 5000

  private var store: any QueueStore { reports.store }

  func answer(_ request: AdminRequest) async throws -> AdminResponse {
    do {
      let parts = request.path.split(separator: "/").map(String.init)
      guard parts.count >= 2, parts[0] == "v1", parts[1] == "queue" else {
        return try AdminResponse(404, "no such path")
      }
      switch (request.method, parts.count) {
      case ("GET", 2): return try await list(request)
      case ("GET", 3) where parts[2] == "count": return try await count(request)
      case ("GET", 3...4): return try await one(parts, request)
      case ("POST", 4) where parts[2] == "orders": return try await order(parts[3], request)
      case ("POST", 3) where parts[2] == "new-id": return try newID(request)
      case ("POST", 3) where parts[2] == "import": return try await importMessage(request)
      default: return try AdminResponse(404, "no such path")
      }
    } catch let error as QueueFilter.Malformed {
      return try AdminResponse(400, error.description)
    } catch let error as MessageDocument.Malformed {
      return try AdminResponse(422, error.description)
    } catch let error as QueueError {
      let status: Int =
        switch error {
        case .full: 507
        case .alreadyQueued: 409
        default: 500
        }
      return try AdminResponse(status, error.description)
    }
  }

  // MARK: Questions

  /// Refuses names that a path does not know: a condition that is misspelt must not mean everything.
  private func check(_ request: AdminRequest, allows names: Set<String> = []) throws {
    guard let unknown = request.query.keys.filter({ !names.contains($0) }).min() else { return }
    throw QueueFilter.Malformed(
      description: names.isEmpty
        ? "\(unknown) is not known here: nothing can be said behind this path"
        : "\(unknown) is not known here: write some of \(names.sorted().joined(separator: ", "))")
  }

  private func list(_ request: AdminRequest) async throws -> AdminResponse {
    try check(request, allows: QueueFilter.names.union(["after", "limit", "format"]))
    var limit = 100
    if let text = request.query["limit"] {
      guard let number = Int(text), number > 0 else { return try AdminResponse(400, "limit is a number from 1 on") }
      limit = min(number, Self.listLimit)
    }
    guard let format = QueueReports.Format(rawValue: request.query["format"] ?? "json") else {
      return try AdminResponse(400, "format is json, table or ids")
    }
    let lines = try await reports.lines(
      QueueFilter(query: request.query), after: try id("after", request), limit: limit, format)
    return AdminResponse(200, format == .json ? "application/x-ndjson" : "text/plain; charset=utf-8", .bytes(lines))
  }

  private func count(_ request: AdminRequest) async throws -> AdminResponse {
    try check(request, allows: QueueFilter.names.union(["after"]))
    return try AdminResponse(
      try await reports.count(QueueFilter(query: request.query), after: try id("after", request)))
  }

  private func id(_ name: String, _ request: AdminRequest) throws -> QueueID? {
    guard let text = request.query[name] else { return nil }
    guard let id = QueueID(text) else { throw QueueFilter.Malformed(description: "\(text) is no id of a message") }
    return id
  }

  /// A message, its document or its content.
  private func one(_ parts: [String], _ request: AdminRequest) async throws -> AdminResponse {
    try check(request)
    let unknown = "there is no message \(parts[2]) in the queue"
    guard let id = QueueID(parts[2]) else { return try AdminResponse(404, unknown) }
    if parts.count == 3 {
      guard let detail = try await reports.detail(id) else { return try AdminResponse(404, unknown) }
      return try AdminResponse(detail)
    }
    guard let message = try await store.read(id) else { return try AdminResponse(404, unknown) }
    switch parts[3] {
    case "document":
      var document = MessageDocument(id, message.envelope, message.state)
      document.content = .init(octets: message.content.count)
      return AdminResponse(200, "application/json", .bytes(document.json))
    case "content": return AdminResponse(200, "message/rfc822", message.content)
    default: return try AdminResponse(404, "no such path")
    }
  }

  // MARK: Orders

  private func order(_ name: String, _ request: AdminRequest) async throws -> AdminResponse {
    guard let order = QueueOrder(rawValue: name) else { return try AdminResponse(404, "there is no order \(name)") }
    let reason = request.query["reason"].flatMap { $0.isEmpty ? nil : $0 }
    if let ids = request.query["ids"] {
      try check(request, allows: ["ids", "reason"])
      let list = ids.split(separator: ",").map(String.init)
      return try AdminResponse(try await orders.carryOut(order, ids: list, reason: reason))
    }
    try check(request, allows: QueueFilter.names.union(["ids", "all", "after", "until", "reason"]))
    let filter = try QueueFilter(query: request.query)
    switch request.query["all"] {
    case nil where filter.isEmpty:
      return try AdminResponse(400, "name messages by ids=, or by a filter, or say all=true for all of them")
    case nil: break
    case "true" where filter.isEmpty: break
    case "true": return try AdminResponse(400, "all=true and a filter: one of the two")
    default: return try AdminResponse(400, "all is true or not there")
    }
    return try AdminResponse(
      try await orders.carryOut(
        order, filter, after: try id("after", request), until: try id("until", request), reason: reason))
  }

  // MARK: Messages from outside

  private func newID(_ request: AdminRequest) throws -> AdminResponse {
    try check(request)
    let id = store.nextID()
    given.add(id)
    return try AdminResponse(["id": id.description])
  }

  /// Queues a message from outside. The answer comes once it is durable with its state.
  private func importMessage(_ request: AdminRequest) async throws -> AdminResponse {
    guard let id = request.query["id"].flatMap({ QueueID($0) }) else {
      return try AdminResponse(400, "id is missing: ask for a new one first")
    }
    try check(request, allows: ["id"])
    // An identifier of the client's own making could be that of a message that is being received, or run the numbers
    // of the queue to their end.
    guard given.take(id) else {
      if try await store.readEnvelope(id) != nil { throw QueueError.alreadyQueued(id) }
      return try AdminResponse(409, "\(id) was not given out for an import, or has been used: ask for a new one")
    }
    let accounts = await reports.accounts().map { all in Set(all.filter(\.isConfigured).map { $0.name.lowercased() }) }
    var intake = MessageIntake(
      id: id, store: store, now: reports.time.wallClock, accounts: accounts, maximumSize: maximumSize())
    let content: Content
    do {
      // Who hangs up in the middle of a body is not heard: what is refused is read to its end all the same.
      var refusal: (any Error)?
      for try await piece in request.body where refusal == nil {
        do { try await intake.take(piece) } catch { refusal = error }
      }
      if let refusal { throw refusal }
      content = try await intake.finish()
    } catch {
      await intake.discard()
      throw error
    }
    guard let document = intake.document, let (envelope, state) = intake.message else {
      return try AdminResponse(422, "there is no document")
    }
    try await store.append(id, envelope, content, state)
    await orders.taker.take(reports.entry(id, content.count, envelope, state))
    orders.log?.notice("\(id): operator: imported from=<\(envelope.reversePath)>, was=\(document.id ?? "a file")")
    return try AdminResponse(AdminResult(ok: true, message: "\(document.id ?? "it") is queued as \(id)"))
  }
}

/// The identifiers that were given out for imports and that nobody has used yet.
private final class GivenIDs: Sendable {
  private let ids = Mutex<Set<QueueID>>([])
  /// Whoever asks for more than he uses loses the oldest.
  private static let limit = 10_000

  func add(_ id: QueueID) {
    ids.withLock { ids in
      if ids.count >= Self.limit, let oldest = ids.min() { ids.remove(oldest) }
      ids.insert(id)
    }
  }

  /// Uses an identifier up. Returns false when it is not to be had.
  func take(_ id: QueueID) -> Bool { ids.withLock { $0.remove(id) != nil } }
}

/// Takes a message from outside piece by piece: a line with its document, then its content.
private struct MessageIntake {
  let id: QueueID
  let store: any QueueStore
  let now: Timestamp
  /// The names of all `[domain:]`; nil when they are not known.
  let accounts: Set<String>?
  /// In octets; nil when it is not known.
  let maximumSize: Int?
  private(set) var document: MessageDocument?
  private(set) var message: (envelope: Envelope, state: MessageState)?
  private var wanted = 0
  private var count = 0
  private var gathered: [UInt8] = []
  private var writer: (any ContentWriter)?
  private var scanner = BareLineBreakScanner()

  private static let lineLimit = 4 << 20
  /// Contents above this size go into a file of their own, as those of the front door do.
  private static let memoryLimit = 256 << 10
  private static let pieceSize = 1 << 20
  /// What the relay and its filters may have put on top of a message that came in by the front door.
  private static let ownFields = 64 << 10

  init(id: QueueID, store: any QueueStore, now: Timestamp, accounts: Set<String>?, maximumSize: Int?) {
    self.id = id
    self.store = store
    self.now = now
    self.accounts = accounts
    self.maximumSize = maximumSize
  }

  mutating func take(_ piece: [UInt8]) async throws {
    if document == nil {
      // What came before has no end of a line.
      let end = piece.firstIndex(of: 0x0a).map { gathered.count + $0 }
      gathered += piece
      guard let end else {
        if gathered.count > Self.lineLimit { throw MessageDocument.Malformed(description: "the document is too long") }
        return
      }
      let rest = Array(gathered[(end + 1)...])
      try begin(Array(gathered[..<end]))
      gathered = []
      if wanted > Self.memoryLimit { writer = try await store.makeContentWriter(for: id) }
      return try await take(content: rest)
    }
    try await take(content: piece)
  }

  private mutating func begin(_ line: [UInt8]) throws {
    let document = try MessageDocument(json: line)
    let (envelope, state) = try document.message(now: now)
    for (index, lost) in envelope.recipients.enumerated() where state.recipients[index] == nil {
      // It would wait, and nobody would know what for.
      guard let accounts, !accounts.contains(lost.account) else { continue }
      throw MessageDocument.Malformed(
        description: "\(lost.address) is for the account \(lost.account), and there is no [domain:\(lost.account)]")
    }
    message = (envelope, state)
    guard let octets = document.content?.octets else {
      throw MessageDocument.Malformed(description: "the size of the content is missing")
    }
    if let maximumSize, octets > maximumSize + Self.ownFields {
      throw MessageDocument.Malformed(
        description: "the content has \(octets) octets, and max_message_size in [global] is \(maximumSize)")
    }
    if !store.admits(octets) { throw QueueError.full }
    wanted = octets
    self.document = document
  }

  private mutating func take(content piece: [UInt8]) async throws {
    count += piece.count
    guard count <= wanted else { throw wrongSize }
    piece.withUnsafeBytes { scanner.scan($0) }
    if scanner.sawBareLineBreak { throw Self.bareLineBreak }
    if piece.contains(0) {
      throw MessageDocument.Malformed(description: "the content has a NUL, which no mail may have (RFC 2045 2.8)")
    }
    gathered += piece
    guard let writer, gathered.count >= Self.pieceSize else { return }
    try await writer.write(gathered)
    gathered = []
  }

  private static let bareLineBreak = MessageDocument.Malformed(
    description: "the content has a CR or a LF alone: its lines are to end in CRLF")

  private var wrongSize: MessageDocument.Malformed {
    .init(description: "\(count) octets of content came, and it should be \(wanted)")
  }

  mutating func finish() async throws -> Content {
    guard document != nil else { throw MessageDocument.Malformed(description: "there is no document") }
    guard count == wanted else { throw wrongSize }
    scanner.finish()
    if scanner.sawBareLineBreak { throw Self.bareLineBreak }
    guard let writer else { return .bytes(gathered) }
    try await writer.write(gathered)
    return try await writer.finish()
  }

  func discard() async { await writer?.discard() }
}
