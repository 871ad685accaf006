// Ways in which mail could get stuck, be doubled or do harm, each of which has happened once.

import Delivery
import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(2))) struct FaultTests {  @Test func idleConnectionThatNeedsAResetIsResetOnceWithoutPipelining() async throws {
    let bench = try await Bench([.noChunking, .noPipelining, .recipient("slow@", "450 4.2.1 no", times: 1)]) {
      $0.maximumConnections = 1
    }
    let id = try await bench.submit(to: ["slow@example.test"])
    await bench.settled(id, attempts: 1)
    bench.time.advance(by: .seconds(31))
    try await bench.submit()
    #expect(await bench.upstream.messages(atLeast: 1).count == 1)
    #expect(bench.upstream.statistics.connections == 1)
    await bench.end()
  }

  @Test func secretThatTheUpstreamRepeatsIsNotLogged() async throws {
    let bench = try await Bench([.rejectAuth("535 5.7.8 wrong: correct horse", times: nil)])
    try await bench.submit()
    _ = await bench.lines.line(containing: "badCredentials")
    #expect(!bench.lines.all.contains { $0.contains("correct horse") })
    await bench.end()
  }
}
