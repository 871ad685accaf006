// The admin socket: HTTP with JSON on a Unix socket, for the command line and for scripts.

import Delivery
import FlyingFox
import FlyingSocks
import FoundationEssentials
import Glibc
import Message
import Primitives
import SMTP
import Spool
import Telemetry

import struct Logging.Logger

/// Answers questions about the queue and carries out orders on it.
struct AdminServer: Sendable {
  let store: any QueueStore
  let delivery: Delivery
  let time: any Timekeeper
  let log: Logger
  let status: @Sendable () async -> StatusReport

  private static let pageLimit = 1000

  /// Serves until the task is cancelled; `whenListening` is called once clients can connect.
  func run(path: String, whenListening: @escaping @Sendable () -> Void) async throws {
    unlink(path)
    let server = HTTPServer(address: .unix(path: path), logger: .disabled)
    await addRoutes(to: server)
    let task = Task { try await server.run() }
    try await withTaskCancellationHandler {
      try await server.waitUntilListening()
      chmod(path, 0o660)
      whenListening()
      try await task.value
    } onCancel: {
      task.cancel()
    }
  }

  private func addRoutes(to server: HTTPServer) async {
    await server.appendRoute(HTTPRoute("GET \(AdminPath.status)")) { _ in try Self.json(await status()) }
    await server.appendRoute(HTTPRoute("GET \(AdminPath.queue)")) { try Self.json(await list($0)) }
    await server.appendRoute(HTTPRoute("POST \(AdminPath.retryAll)")) { _ in
      await delivery.retry(nil)
      log.notice("operator: all messages are tried now")
      return try Self.json(AdminResult(ok: true, message: "all messages are tried now"))
    }
    await server.appendRoute(HTTPRoute("GET /v1/queue/:id")) { request in
      guard let id = Self.id(request), let detail = try await show(id) else { return try Self.unknown(request) }
      return try Self.json(detail)
    }
    await server.appendRoute(HTTPRoute("POST /v1/queue/:id/retry")) { request in
      guard let id = Self.id(request), try await store.readEnvelope(id) != nil else { return try Self.unknown(request) }
      await delivery.retry(id)
      log.notice("\(id): operator: tried now")
      return try Self.json(AdminResult(ok: true, message: "\(id) is tried now"))
    }
    await server.appendRoute(HTTPRoute("DELETE /v1/queue/:id")) { request in
      guard let id = Self.id(request), try await store.readEnvelope(id) != nil else { return try Self.unknown(request) }
      guard await delivery.delete(id) else {
        let result = AdminResult(ok: false, message: "\(id) is being delivered at this moment: try again")
        return try Self.json(result, .conflict)
      }
      log.notice("\(id): operator: deleted")
      return try Self.json(AdminResult(ok: true, message: "\(id) is deleted"))
    }
  }

  // MARK: The queue

  private func list(_ request: HTTPRequest) async throws -> QueuePage {
    func query(_ name: String) -> String? { request.query.first { $0.name == name }?.value }
    let limit = min(max(query("limit").flatMap { Int($0) } ?? 100, 1), Self.pageLimit)
    let account = query("account")
    let state = query("state")
    let entries = await store.entries(startingAfter: query("after").flatMap { QueueID($0) }, limit: limit)
    let active = await delivery.messagesUnderWay()
    var items: [QueueItem] = []
    for entry in entries {
      if let account, !entry.lanes.contains(where: { $0.account == account }) { continue }
      guard let (envelope, message) = try await store.readEnvelope(entry.id) else { continue }
      let item = item(entry.id, entry.size, envelope, message, isActive: active.contains(entry.id))
      if let state, state != item.state { continue }
      items.append(item)
    }
    return QueuePage(messages: items, next: entries.count == limit ? entries.last?.id.description : nil)
  }

  private func item(_ id: QueueID, _ size: Int, _ envelope: Envelope, _ state: MessageState, isActive: Bool)
    -> QueueItem
  {
    let open = envelope.recipients.indices.filter { state.recipients[$0] == nil }
    let lane = state.lanes.values.min { $0.nextAttempt < $1.nextAttempt }
    let word =
      if isActive { "active" } else if state.deadReason != nil { "dead" } else if state.isHeld {
        "held"
      } else if lane != nil { "deferred" } else {
        "queued"
      }
    return QueueItem(
      id: id.description, state: word, arrival: ISOTime.format(envelope.arrival),
      ageSeconds: Int((time.wallClock - envelope.arrival).components.seconds), size: size,
      sender: envelope.reversePath, recipients: open.map { envelope.recipients[$0].address },
      accounts: Set(open.map { envelope.recipients[$0].account }).sorted(),
      attempts: state.lanes.values.map(\.attempts).max() ?? 0, nextAttempt: lane.map { ISOTime.format($0.nextAttempt) },
      reason: state.deadReason ?? lane?.lastReply)
  }

  private func show(_ id: QueueID) async throws -> QueueDetail? {
    guard let message = try await store.read(id) else { return nil }
    let size: Int
    let beginning: [UInt8]
    switch message.content {
    case .bytes(let bytes): (size, beginning) = (bytes.count, bytes)
    case .file(let file): (size, beginning) = (file.count, try await file.read(at: 0, count: min(file.count, 65536)))
    }
    let header = beginning.withUnsafeBytes { bytes in
      String(decoding: bytes[HeaderView(bytes).headerRange], as: UTF8.self)
    }
    let envelope = message.envelope
    return QueueDetail(
      item: item(id, size, envelope, message.state, isActive: await delivery.messagesUnderWay().contains(id)),
      client: envelope.clientAddress, helo: envelope.helo,
      recipients: envelope.recipients.enumerated().map { index, recipient in
        let (word, reply): (String, String?) =
          switch message.state.recipients[index] {
          case .none: ("pending", nil)
          case .delivered: ("delivered", nil)
          case .failed(let reply): ("failed", reply)
          }
        return .init(
          address: recipient.address, original: recipient.original, account: recipient.account, state: word,
          reply: reply)
      },
      lanes: message.state.lanes.map { name, lane in
        .init(
          account: name, attempts: lane.attempts, nextAttempt: ISOTime.format(lane.nextAttempt),
          lastReply: lane.lastReply)
      }.sorted { $0.account < $1.account },
      header: header)
  }

  // MARK: HTTP

  private static func id(_ request: HTTPRequest) -> QueueID? { request.routeParameters["id"].flatMap { QueueID($0) } }

  private static func unknown(_ request: HTTPRequest) throws -> HTTPResponse {
    let id = request.routeParameters["id"] ?? "?"
    return try json(AdminResult(ok: false, message: "there is no message \(id) in the queue"), .notFound)
  }

  private static func json(_ value: some Encodable, _ status: HTTPStatusCode = .ok) throws -> HTTPResponse {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return HTTPResponse(
      statusCode: status, headers: [.contentType: "application/json"], body: try encoder.encode(value))
  }
}
