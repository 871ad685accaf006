// What the tests of notifications share beside the bench: messages with DSN parameters, reports as text, a restart.

import Delivery
import Network
import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

extension DeliverySettings {
  static func test(_ change: (inout DeliverySettings) -> Void = { _ in }) -> DeliverySettings {
    var settings = DeliverySettings(hostname: "mailer.example.test")
    change(&settings)
    return settings
  }
}

extension Recipient {
  static func test(
    _ address: String, as original: String? = nil, _ notify: RecipientParameters.Notify? = nil, orcpt: String? = nil
  ) -> Recipient {
    Recipient(
      address: address, original: original ?? address, account: "example.test", notify: notify?.rawValue,
      originalRecipient: orcpt)
  }
}

extension Bench {
  /// Queues a message as the front door does, with whatever the client has said.
  @discardableResult
  func submit(
    _ recipients: [Recipient], body: String = "Hello\r\n", _ change: (inout Envelope) -> Void = { _ in }
  ) async throws -> QueueID {
    let id = store.nextID()
    var envelope = Envelope(
      reversePath: "jane@example.org", recipients: recipients, arrival: time.wallClock, clientAddress: "127.0.0.1")
    change(&envelope)
    let content = Content.bytes(Array("Subject: test \(id)\r\n\r\n\(body)".utf8))
    try await store.append(id, envelope, content)
    delivery.submit(id, envelope, content)
    return id
  }

  /// The reports that the upstream has got, once there are that many.
  func reports(_ count: Int) async -> [String] {
    while true {
      let reports = upstream.messages.filter(\.reversePath.isEmpty)
      if reports.count >= count || Task.isCancelled {
        return reports.map { String(decoding: $0.content, as: UTF8.self) }
      }
      await Task.yield()
    }
  }

  func until(_ condition: () async -> Bool) async {
    while await !condition(), !Task.isCancelled { await Task.yield() }
  }

  /// Until the account sleeps, with nothing under way.
  func asleep() async {
    await until {
      let account = await delivery.snapshots()[0]
      return account.active == 0 && time.nextDeadline != nil
    }
  }

  static func resolver(_ time: ManualTime) -> Resolver { Resolver(source: FixedNames(), time: time) }

  func state(_ id: QueueID) -> MessageState? { store.messages[id]?.state }

  /// What a daemon reads from its queue when it starts.
  var entries: [QueueEntry] {
    store.messages.values.sorted { $0.id < $1.id }.map { message in
      let open = message.envelope.recipients.indices.filter { message.state.recipients[$0] == nil }
      let lanes = Set(open.map { message.envelope.recipients[$0].account }).map { name in
        let lane = message.state.lanes[name]
        return EntryLane(
          account: name, nextAttempt: lane?.nextAttempt ?? message.envelope.arrival, attempts: lane?.attempts ?? 0)
      }
      return QueueEntry(
        id: message.id, size: message.content.octets.count, arrival: message.envelope.arrival, lanes: lanes,
        isHeld: message.state.isHeld, isDead: message.state.deadReason != nil,
        isDelayReported: message.state.isDelayReported)
    }
  }

  /// The daemon ends, and another one finds the queue.
  func restart(_ settings: DeliverySettings = .test()) async throws -> Delivery {
    await delivery.stop(within: .seconds(30))
    let next = Delivery(
      store: store, resolver: Resolver(source: FixedNames(), time: time), loops: [try EventLoop(name: "delivery-next")],
      time: time, settings: settings, log: lines.logger, random: { 0.5 },
      routeBounce: { sender, _ in [(sender, "example.test")] })
    await next.configure([self.settings], settings)
    await next.recover(entries)
    return next
  }
}

extension Content {
  var octets: [UInt8] {
    switch self {
    case .bytes(let bytes): bytes
    case .file: []
    }
  }
}
