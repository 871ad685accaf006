// What operators are told about what they did, and about mail that is dead.

import Delivery
import Logging
import Network
import Primitives
import SMTP
import Spool
import Testing

@testable import Daemon

@Suite(.timeLimit(.minutes(1))) struct DeliveryOrderTests {
  private struct NoNames: AddressSource {
    func addresses(of name: String) async throws(NetworkError) -> AddressAnswer { throw .resolution(name) }
  }

  @Test func bounceSaysWhetherAnybodyWasTold() async throws {
    let queue = try TemporaryQueue()
    let delivery = Delivery(
      store: queue.spool, resolver: Resolver(source: NoNames(), time: queue.time),
      loops: [try EventLoop(name: "orders")], time: queue.time, settings: DeliverySettings(hostname: "relay.example"),
      log: Logger(label: "orders") { _ in SwiftLogNoOpLogHandler() },
      routeBounce: { sender, _ in [(sender, "example.com")] })
    let orders = QueueOrders(
      reports: queue.reports, taker: DeliveryOrders(store: queue.spool, delivery: delivery), log: nil)
    func add(_ notify: RecipientParameters.Notify?) async throws -> QueueID {
      let id = queue.spool.nextID()
      let recipient = Recipient(
        address: "a@example.com", original: "a@example.com", account: "example.com", notify: notify?.rawValue)
      try await queue.spool.append(
        id,
        Envelope(reversePath: "jane@example.org", recipients: [recipient], arrival: queue.time.wallClock),
        .bytes(Array("Subject: x\r\n\r\nx\r\n".utf8)))
      return id
    }
    let (told, untold) = (try await add(nil), try await add(.never))
    let named = try await orders.carryOut(.bounce, ids: ["\(told)", "\(untold)"], reason: nil)
    let words = "is removed; its sender did not want to be told, and was not"
    #expect(named.lines.map(\.text) == ["\(told) is returned to its sender", "\(untold) \(words)"])
    #expect(named.lines.map(\.status) == [0, 0] && named.done == 1)
    #expect(queue.spool.statistics.messages == 1, "the notification")
    // Of those that only a filter names it is said as well, and they are not counted among the returned.
    let other = try await add(.never)
    var filter = QueueFilter()
    filter.sender = "jane@example.org"
    let all = try await orders.carryOut(.bounce, filter, after: nil, until: nil, reason: nil)
    #expect(all.done == 0 && all.lines.map(\.text) == ["\(other) \(words)"])
    await delivery.stop(within: .seconds(10))
    await queue.end()
  }

  @Test(arguments: [("jane@example.org", true), ("", false)])
  func deadMailNamesTheWaysOut(sender: String, canBeReturned: Bool) async throws {
    let queue = try TemporaryQueue()
    let id = try await queue.add(from: sender)
    queue.spool.update(id) { state in
      state.recipients[0] = .failed("550 5.1.1 no")
      state.deadReason = "550 5.1.1 no; nobody was told: more than 20 notifications at once"
    }
    let detail = try #require(try await queue.reports.detail(id))
    let line = try #require(detail.waiting.first)
    #expect(line.hasPrefix("dead: ") && line.contains("nobody was told: more than 20 notifications"))
    #expect(line.contains("`ssmtp-mailer queue bounce \(id)`") == canBeReturned)
    #expect(line.contains("`ssmtp-mailer queue delete \(id)`"))
    await queue.end()
  }
}
