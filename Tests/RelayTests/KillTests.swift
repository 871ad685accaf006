// What the relay is for: a message that was answered 250 arrives, whatever happens to the daemon.

import Dispatch
import Glibc
import Primitives
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct Durability {
    @Test(.timeLimit(.minutes(8))) func killedDaemonLosesNothingItAcknowledged() async throws {
      let messages = 2000
      let clients = 20
      let kills = [400, 900, 1400]
      try await Bench.run { bench in
        let flood = Flood(messages, port: bench.port)
        let begin = SystemTime().now
        for _ in 0..<clients { DispatchQueue(label: "client").async { flood.work() } }
        for count in kills {
          try await until("\(count) are acknowledged", within: 120) { flood.acknowledged >= count }
          bench.daemon.signal(SIGKILL)
          #expect(await bench.daemon.exit() == 128 + SIGKILL)
          try await bench.start()
        }
        try await until("all clients are done", within: 240) { flood.answered >= messages }
        let accepted = SystemTime().now
        #expect(flood.refused == [:])
        try await bench.emptied()
        let arrived = SystemTime().now
        let arrivals = bench.upstream.messages.compactMap { $0.field("X-Test-ID") }
        let distinct = Set(arrivals)
        let lost = Set((0..<messages).map(String.init)).subtracting(distinct)
        #expect(lost.isEmpty, "\(lost.count) acknowledged messages are lost")
        #expect(bench.upstream.messages.allSatisfy { $0.recipients == ["contact-sales@dreamlikelabs.com"] })
        let duplicates = arrivals.count - distinct.count
        let statistics = bench.upstream.statistics
        print(
          "kill -9 ×\(kills.count): \(messages) messages of 10 KiB from \(clients) clients accepted in \(accepted - begin),",
          "all arrived after \(arrived - begin); \(duplicates) duplicates, \(flood.inDoubt) in doubt at the client;",
          "\(statistics.connections) upstream connections, \(statistics.authentications) AUTH,",
          "\(statistics.mostOpenConnections) at once")
        // A client in doubt sends again; so does the relay with what each of its 10 connections had under way.
        #expect(duplicates <= flood.inDoubt + kills.count * 10 * 2)
        #expect(statistics.mostOpenConnections <= 10)
        #expect(statistics.authentications < 100)
        #expect(statistics.violations == [])
        #expect(statistics.credentialsInClear == 0)
      }
    }
  }
}

/// Clients that send numbered messages and begin again with what was not acknowledged.
private final class Flood: Sendable {
  private struct State {
    var next = 0
    var acknowledged = 0
    var inDoubt = 0
    var refused: [String: Int] = [:]
  }
  private let state = Mutex(State())
  private let count: Int
  private let port: UInt16

  init(_ count: Int, port: UInt16) {
    self.count = count
    self.port = port
  }

  var acknowledged: Int { state.withLock { $0.acknowledged } }
  var answered: Int { state.withLock { $0.refused.values.reduce($0.acknowledged, +) } }
  var inDoubt: Int { state.withLock { $0.inDoubt } }
  var refused: [String: Int] { state.withLock { $0.refused } }

  /// One client, until there is no message left.
  func work() {
    let deadline = SystemTime().now + .seconds(240)
    var client: Client?
    while let id = take() {
      let text = Letter.text("\(id)", bytes: 10_240)
      var isDone = false
      while !isDone, SystemTime().now < deadline {
        var isDoubtful = false
        do {
          if client == nil { client = try Client(port: port) }
          let reply = try client!.deliver(to: "contact-sales@mailer.dreamlikelabs.com", text) { isDoubtful = true }
          state.withLock { state in
            if reply.hasPrefix("250") { state.acknowledged += 1 } else { state.refused[reply, default: 0] += 1 }
          }
          isDone = true
        } catch {
          // Killed: connect again until the new daemon listens.
          client = nil
          if isDoubtful { state.withLock { $0.inDoubt += 1 } }
          usleep(20_000)
        }
      }
    }
    _ = try? client?.say("QUIT")
  }

  private func take() -> Int? {
    state.withLock { state in
      guard state.next < count else { return nil }
      defer { state.next += 1 }
      return state.next
    }
  }
}
