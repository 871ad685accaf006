// What guessing costs, by the clock, and that the tables of those who guess stay small.

import Primitives
import Testing

@testable import Server

@Suite struct LoginGuardTests {
  private let time = ManualTime()
  private let limits = LoginLimits(maximumFailures: 10, banTime: .seconds(900))
  private let attacker = IPAddress("192.0.2.1")!

  private func fail(
    _ guardian: LoginGuard, _ address: IPAddress, _ name: String = "alice", _ password: String, isTrusted: Bool = false
  ) -> LoginGuard.Penalty {
    _ = guardian.begin(address, limits: limits, isTrusted: isTrusted)
    return guardian.failed(address, name: name, password: Array(password.utf8), limits: limits, isTrusted: isTrusted)
  }

  @Test func tenthFailureBansAndTheBanEnds() {
    let guardian = LoginGuard(time: time)
    for index in 1...9 {
      #expect(!fail(guardian, attacker, "user\(index)", "x").isBan)
      time.advance(by: .seconds(10))
    }
    #expect(!guardian.isBanned(attacker))
    #expect(fail(guardian, attacker, "user10", "x").isBan)
    #expect(guardian.isBanned(attacker) && !guardian.isBanned(IPAddress("192.0.2.2")!))
    #expect(guardian.begin(attacker, limits: limits, isTrusted: false) == .banned)
    #expect(guardian.bans == [.init(address: attacker, left: .seconds(900))])
    time.advance(by: .seconds(900))
    #expect(!guardian.isBanned(attacker))
    #expect(guardian.begin(attacker, limits: limits, isTrusted: false) == .go)
    guardian.abandoned(attacker)
    // Of ten failures a quarter of an hour has forgotten two and a half: two more are enough.
    let bans = (0..<4).map { fail(guardian, attacker, "again", "y\($0)").isBan }
    #expect(bans == [false, true, false, false])
  }

  @Test func sixMinutesForgetAFailure() {
    let guardian = LoginGuard(time: time)
    for index in 0..<100 {
      #expect(!fail(guardian, attacker, "user\(index)", "x").isBan, "\(index)")
      time.advance(by: .seconds(360))
    }
  }

  @Test func forgottenDeviceWaitsButIsNoGuess() {
    let guardian = LoginGuard(time: time)
    for _ in 0..<50 {
      let penalty = fail(guardian, attacker, "alice", "old password")
      #expect(!penalty.isBan && penalty.delay == .seconds(1))
    }
    #expect(guardian.counters.failed == 50)
  }

  @Test func whoKnowsANameCannotLockItsOwnerOut() {
    let guardian = LoginGuard(time: time)
    var notable = 0
    for index in 0..<500 {
      let penalty = fail(guardian, IPAddress("198.51.\(index / 250).\(index % 250)")!, "alice", "guess \(index)")
      #expect(!penalty.isBan)
      if penalty.notableFailures != nil { notable += 1 }
      if index >= 4 { #expect(penalty.delay == LoginGuard.longestDelay) }
    }
    #expect(notable == 1, "said once")
    #expect(guardian.begin(IPAddress("203.0.113.5")!, limits: limits, isTrusted: false) == .go, "the owner is heard")
  }

  @Test func anIPv6SiteIsOneClient() {
    let guardian = LoginGuard(time: time)
    for index in 1...10 { _ = fail(guardian, IPAddress("2001:db8:1:2::\(index)")!, "user\(index)", "x") }
    #expect(guardian.isBanned(IPAddress("2001:db8:1:2:ffff::1")!))
    #expect(!guardian.isBanned(IPAddress("2001:db8:1:3::1")!))
    #expect(guardian.bans.map(\.address.description) == ["2001:db8:1:2::"])
  }

  @Test func guessesThatAreUnderWayCountAlready() {
    let guardian = LoginGuard(time: time)
    for _ in 0..<10 { #expect(guardian.begin(attacker, limits: limits, isTrusted: false) == .go) }
    #expect(guardian.begin(attacker, limits: limits, isTrusted: false) == .tooManyAtOnce)
    #expect(guardian.begin(attacker, limits: limits, isTrusted: true) == .go)
    guardian.succeeded(attacker)
    guardian.succeeded(attacker)
    #expect(guardian.begin(attacker, limits: limits, isTrusted: false) == .go)
  }

  @Test func zeroNeverBans() {
    let guardian = LoginGuard(time: time)
    let limits = LoginLimits(maximumFailures: 0)
    for index in 0..<100 {
      #expect(guardian.begin(attacker, limits: limits, isTrusted: false) == .go)
      let penalty = guardian.failed(
        attacker, name: "n\(index)", password: [UInt8(index)], limits: limits, isTrusted: false)
      #expect(!penalty.isBan && penalty.delay <= LoginGuard.longestDelay)
    }
  }

  @Test func tablesStayBoundedAndKeepBansLongest() {
    let guardian = LoginGuard(time: time, tableLimit: 100)
    for index in 0..<10 { _ = fail(guardian, attacker, "n\(index)", "x") }
    for index in 0..<5000 {
      time.advance(by: .milliseconds(10))
      _ = fail(guardian, IPAddress("10.0.\(index / 250).\(index % 250)")!, "m\(index)", "x")
      let sizes = guardian.tableSizes
      #expect(sizes.addresses <= 100 && sizes.names <= 100)
    }
    #expect(guardian.isBanned(attacker))
  }

  @Test func successLeavesNothingBehind() {
    let guardian = LoginGuard(time: time)
    #expect(guardian.begin(attacker, limits: limits, isTrusted: false) == .go)
    guardian.succeeded(attacker)
    #expect(guardian.tableSizes == (0, 0))
  }
}
