// Where an account meets its connections. Behind this line are sockets, or a simulated upstream.

import Network
import Primitives

/// A connection to an upstream, as its account sees it. It reports to the account through `opened`, `openingFailed`,
/// `finished`, `lost`, `unsent` and `closed`. All but ``run(resolver:context:)`` is called on the account's loop.
protocol UpstreamLink: Sendable {
  /// Names it within its account.
  var number: Int { get }
  /// Its whole life, from the opening on.
  func run(resolver: Resolver, context: TLSContext?) async
  /// Takes a job. Its outcome goes to the account.
  func hand(_ job: Job)
  /// Says goodbye once nothing is under way.
  func leave()
  /// Breaks off now; what is under way is reported as lost.
  func breakOff()
}

/// Where an account lives, and how it gets connections there.
struct Seat: Sendable {
  let loop: any WorkLoop
  let connect: @Sendable (Int, UpstreamSettings, Account) -> any UpstreamLink
}

extension Seat {
  init(_ loop: EventLoop, time: any Timekeeper) {
    self.init(loop: loop) { number, settings, account in
      UpstreamConnection(number: number, settings: settings, account: account, loop: loop, time: time)
    }
  }
}

extension UpstreamConnection: UpstreamLink {
  nonisolated func hand(_ job: Job) { assumeIsolated { $0.start(job) } }
  nonisolated func leave() { assumeIsolated { $0.quit() } }
  nonisolated func breakOff() { assumeIsolated { $0.abort() } }
}
