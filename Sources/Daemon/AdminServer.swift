// The admin socket: HTTP with JSON on a Unix socket, for the command line and for scripts.

import Delivery
import FlyingFox
import FlyingSocks
import FoundationEssentials
import Glibc
import Primitives
import Spool

import struct Logging.Logger

/// Puts the admin API and the metrics on sockets.
struct AdminServer: Sendable {
  let queue: QueueAPI
  let verdicts: @Sendable (QueueID) async throws -> VerdictReport
  let status: @Sendable () async -> StatusReport

  /// An import of the largest message through a slow disk takes its time.
  private static let timeout = 300.0

  init(
    store: any QueueStore, delivery: Delivery, time: any Timekeeper, log: Logger,
    status: @escaping @Sendable () async -> StatusReport
  ) {
    let reports = QueueReports(
      store: store, time: time, underWay: { await delivery.messagesUnderWay() },
      accounts: { await delivery.snapshots() })
    let orders = QueueOrders(reports: reports, taker: DeliveryOrders(store: store, delivery: delivery), log: log)
    queue = QueueAPI(reports: reports, orders: orders)
    verdicts = { id in
      // In this order: what leaves the queue between the two has got its verdict before.
      let isQueued = try await store.readEnvelope(id) != nil
      let recipients = delivery.verdicts(id).map {
        VerdictReport.Recipient(
          recipient: $0.recipient, address: $0.address, status: $0.status, reply: "\($0.reply)", upstream: $0.upstream)
      }
      return VerdictReport(id: id.description, isQueued: isQueued, recipients: recipients)
    }
    self.status = status
  }

  /// Serves until the task is cancelled; `whenListening` is called once clients can connect.
  func run(path: String, whenListening: @escaping @Sendable () -> Void) async throws {
    unlink(path)
    let server = HTTPServer(
      address: .unix(path: path), timeout: Self.timeout, logger: .disabled)
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
    await server.appendRoute(HTTPRoute("GET \(AdminPath.status)")) { _ in
      Self.http(try AdminResponse(await status()))
    }
    await server.appendRoute(HTTPRoute("GET \(AdminPath.metrics)")) { _ in MetricsServer.metrics(await status()) }
    await server.appendRoute(HTTPRoute("GET /v1/verdicts/*")) { request in
      guard let id = QueueID(request.path.split(separator: "/").last.map(String.init) ?? "") else {
        return Self.http(try AdminResponse(404, "no such message"))
      }
      return Self.http(try AdminResponse(try await verdicts(id)))
    }
    for path in ["/v1/queue", "/v1/queue/*"] {
      await server.appendRoute(HTTPRoute("GET,POST \(path)")) { try await answer($0) }
    }
  }

  private func answer(_ request: HTTPRequest) async throws -> HTTPResponse {
    var query: [String: String] = [:]
    for item in request.query { query[item.name] = item.value }
    return Self.http(
      try await queue.answer(
        AdminRequest(
          method: request.method.rawValue, path: request.path, query: query,
          body: request.bodySequence.map { Array($0) })))
  }

  private static func http(_ response: AdminResponse) -> HTTPResponse {
    let body =
      switch response.body {
      case .bytes(let bytes): HTTPBodySequence(data: Data(bytes), suggestedBufferSize: 1 << 16)
      case .file(let file):
        HTTPBodySequence(from: ContentSequence(content: file), count: file.count, suggestedBufferSize: 1 << 18)
      }
    return HTTPResponse(
      statusCode: HTTPStatusCode(response.status, phrase: response.status == 200 ? "OK" : "See body"),
      headers: [.contentType: response.contentType], body: body)
  }
}

/// A content that is not in memory, as the body of a response.
private struct ContentSequence: AsyncBufferedSequence {
  typealias Element = UInt8
  let content: any StoredContent

  struct Iterator: AsyncBufferedIteratorProtocol {
    let content: any StoredContent
    var offset = 0

    mutating func next() async throws -> UInt8? { try await nextBuffer(suggested: 1)?.first }

    mutating func nextBuffer(suggested count: Int) async throws -> [UInt8]? {
      let bytes = try await content.read(at: offset, count: count)
      offset += bytes.count
      return bytes.isEmpty ? nil : bytes
    }
  }

  func makeAsyncIterator() -> Iterator { Iterator(content: content) }
}
