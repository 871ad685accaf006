// The admin socket: HTTP with JSON on a Unix socket, for the command line and for scripts.

import Delivery
import Primitives
import Spool

import struct Logging.Logger

/// Answers what comes in on the admin socket.
struct AdminServer: Sendable {
  let queue: QueueAPI
  let verdicts: @Sendable (QueueID) async throws -> VerdictReport
  let status: @Sendable () async -> StatusReport

  init(
    store: any QueueStore, delivery: Delivery, time: any Timekeeper, log: Logger,
    maximumSize: @escaping @Sendable () -> Int?,
    status: @escaping @Sendable () async -> StatusReport
  ) {
    let reports = QueueReports(
      store: store, time: time, underWay: { await delivery.messagesUnderWay() },
      accounts: { await delivery.snapshots() })
    let orders = QueueOrders(reports: reports, taker: DeliveryOrders(store: store, delivery: delivery), log: log)
    var queue = QueueAPI(reports: reports, orders: orders)
    queue.maximumSize = maximumSize
    self.queue = queue
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

  func answer(_ request: HTTPRequest, _ body: AdminRequest.Body) async throws -> AdminResponse {
    switch request.path {
    case AdminPath.status, AdminPath.metrics:
      guard request.method == "GET" else { return try AdminResponse(405, "only GET") }
      let report = await status()
      return request.path == AdminPath.status ? try AdminResponse(report) : MonitorPages.metrics(report)
    case let path where path.hasPrefix(AdminPath.verdicts):
      guard request.method == "GET" else { return try AdminResponse(405, "only GET") }
      guard let id = QueueID(String(path.dropFirst(AdminPath.verdicts.count))) else {
        return try AdminResponse(404, "no such message")
      }
      return try AdminResponse(try await verdicts(id))
    default:
      var query: [String: String] = [:]
      for (name, value) in request.query {
        guard query.updateValue(value, forKey: name) == nil else {
          return try AdminResponse(400, "\(name) is given twice")
        }
      }
      return try await queue.answer(
        AdminRequest(method: request.method, path: request.path, query: query, body: body))
    }
  }
}
