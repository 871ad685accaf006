// The queue of a daemon that does not run, for the commands.

import Primitives
import Spool

/// A queue that this process has to itself, asked and changed in the words of the admin API.
public struct StoppedQueue: Sendable {
  /// Nil for one that is only read.
  private let spool: Spool?
  private let api: QueueAPI

  /// Opens the queue of `directory`, as the daemon would.
  /// - Throws: ``QueueError/locked(pid:)`` when a daemon has it, and what else `Spool.open` throws.
  public init(directory: String, time: any Timekeeper = SystemTime()) throws(QueueError) {
    let spool = try Spool.open(directory: directory, time: time, onFailure: { _ in })
    self.spool = spool
    api = Self.api(spool, time)
  }

  /// Reads a queue that may be damaged, and changes nothing in it.
  public init(salvaged queue: SalvagedQueue, time: any Timekeeper = SystemTime()) {
    spool = nil
    api = Self.api(queue, time)
  }

  private static func api(_ store: any QueueStore, _ time: any Timekeeper) -> QueueAPI {
    let reports = QueueReports(store: store, time: time)
    return QueueAPI(
      reports: reports,
      orders: QueueOrders(reports: reports, taker: StoppedOrders(store: store, time: time), log: nil))
  }

  public func answer(_ request: AdminRequest) async throws -> AdminResponse { try await api.answer(request) }

  /// Makes everything durable and lets go of the queue.
  public func close() async { await spool?.close() }
}
