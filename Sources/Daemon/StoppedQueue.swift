// The queue of a daemon that does not run, for the commands.

import Primitives
import Spool

/// A queue that this process has to itself, asked and changed in the words of the admin API.
public struct StoppedQueue: Sendable {
  private let spool: Spool
  private let api: QueueAPI

  /// Opens the queue of `directory`, as the daemon would.
  /// - Throws: ``QueueError/locked(pid:)`` when a daemon has it, and what else ``Spool/open(directory:disk:time:options:onFailure:)``
  ///   throws.
  public init(directory: String, time: any Timekeeper = SystemTime()) throws(QueueError) {
    spool = try Spool.open(directory: directory, time: time, onFailure: { _ in })
    let reports = QueueReports(store: spool, time: time)
    let orders = QueueOrders(reports: reports, taker: StoppedOrders(store: spool, time: time), log: nil)
    api = QueueAPI(reports: reports, orders: orders)
  }

  public func answer(_ request: AdminRequest) async throws -> AdminResponse { try await api.answer(request) }

  /// Makes everything durable and lets go of the queue.
  public func close() async { await spool.close() }
}
