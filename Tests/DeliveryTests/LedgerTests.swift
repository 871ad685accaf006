// The ledger of 24 hours: what it lets through, what survives a restart, and what a wrong clock does to it.

import Primitives
import Testing

@testable import Delivery

/// A ledger with its disk and its clocks.
private struct Book {
  var ledger: DailyLedger
  var file: [UInt8]?
  var wall = Timestamp(seconds: 1_795_000_000)
  var now = MonotonicInstant(nanoseconds: 0)

  init(limit: Int) { ledger = DailyLedger(limit: limit, wall: wall, now: now) }

  mutating func pass(_ time: Duration) {
    wall = wall + time
    now = now + time
  }

  /// Sends to so many, writing whatever has to be written.
  mutating func send(_ count: Int) -> DailyLedger.Answer {
    if ledger.check(count, wall: wall, now: now) == .unwritten { write(for: count) }
    return ledger.reserve(count, wall: wall, now: now)
  }

  mutating func grants(_ count: Int) -> Bool { if case .granted = send(count) { true } else { false } }

  /// How long so many have to wait; nil when they need not.
  mutating func wait(_ count: Int) -> Duration? { if case .full(let wait) = send(count) { wait } else { nil } }

  mutating func write(for count: Int?) {
    let plan = ledger.plan(for: count)
    file = plan.bytes
    ledger.confirm(plan)
  }

  /// The process is gone; the next one has another monotonic clock.
  mutating func restart(after pause: Duration = .zero) throws {
    wall = wall + pause
    now = MonotonicInstant(nanoseconds: 5_000_000_000)
    ledger = DailyLedger(limit: ledger.limit, wall: wall, now: now)
    let isWhole = ledger.restore(try #require(file), wall: wall, now: now)
    #expect(isWhole)
  }
}

@Suite struct LedgerTests {
  @Test func limitHoldsInEveryWindowOf24Hours() {
    var book = Book(limit: 100)
    var sent: [Timestamp] = []
    // Somebody asks every two minutes for three days.
    for _ in 0..<2160 {
      if book.grants(1) { sent.append(book.wall) }
      book.pass(.seconds(120))
    }
    for (place, moment) in sent.enumerated() {
      #expect(sent[place...].prefix { $0 - moment < .seconds(86_400) }.count <= 100)
    }
    // Each day begins a little later, because an entry counts as long as its last moment.
    #expect(sent.count >= 290)
  }

  @Test func fullLedgerSaysWhenSoManyFitAgain() throws {
    var book = Book(limit: 10)
    _ = book.send(4)
    book.pass(.seconds(3600))
    _ = book.send(6)
    #expect(book.ledger.left == 0)
    let oneWait = book.wait(1)
    let one = try #require(oneWait)
    #expect(one == .seconds(86_400 + 300 - 3600))
    let fiveWait = book.wait(5)
    let five = try #require(fiveWait)
    #expect(five == .seconds(86_400 + 300))
    book.pass(one)
    #expect(book.wait(5) != nil)
    #expect(book.grants(4) == true)
  }

  @Test func nothingIsSentThatTheDiskHasNotPromised() throws {
    var book = Book(limit: 2000)
    #expect(book.ledger.reserve(1, wall: book.wall, now: book.now) == .unwritten)
    var real = 0
    for step in 0..<700 {
      if book.grants(1 + step % 3) { real += 1 + step % 3 }
      if step % 50 == 0 {
        // Whenever the process dies, the next one counts as much as was sent, and a block more at most.
        var copy = book
        try copy.restart()
        #expect(copy.ledger.used >= real && copy.ledger.used <= real + 2 + 2000 / 100)
      }
      book.pass(.seconds(7))
    }
  }

  @Test func cleanEndCountsExactly() throws {
    var book = Book(limit: 2000)
    for _ in 0..<33 { _ = book.send(1) }
    book.write(for: nil)
    try book.restart(after: .seconds(60))
    #expect(book.ledger.used == 33)
    try book.restart(after: .seconds(86_400 + 300))
    #expect(book.ledger.used == 0)
  }

  @Test func whatWasNotSentIsTakenOut() throws {
    var book = Book(limit: 10)
    guard case .granted(let reservation) = book.send(10) else {
      Issue.record("nothing was granted")
      return
    }
    #expect(book.wait(1) != nil)
    book.ledger.refund(reservation, 3)
    #expect(book.ledger.left == 3)
    #expect(book.grants(3) == true)
    #expect(book.ledger.left == 0)
    book.pass(.seconds(90_000))
    _ = book.send(1)
    // Its entry has gone, and with it all that could be taken out.
    book.ledger.refund(reservation, 7)
    #expect(book.ledger.used == 1)
  }

  @Test func messageWithMoreRecipientsThanTheLimitGoesAlone() {
    var book = Book(limit: 10)
    #expect(book.grants(50) == true)
    #expect(book.wait(1) != nil)
    book.pass(.seconds(86_700))
    _ = book.send(1)
    #expect(book.wait(50) != nil)
  }

  @Test(arguments: [-86_400 * 400, -86_400, -7200, 7200, 86_400, 86_400 * 400])
  func clockThatIsSetNeitherForgetsNorKeeps(jump: Int64) throws {
    var book = Book(limit: 10)
    _ = book.send(10)
    book.pass(.seconds(600))
    book.wall = book.wall + .seconds(jump)
    #expect(book.wait(1) == .seconds(86_400 + 300 - 600))
    book.write(for: nil)
    try book.restart()
    #expect(book.ledger.left == 0)
    book.pass(.seconds(86_400 + 300 - 600))
    #expect(book.grants(10) == true)
  }

  @Test func fileFromTheFutureCountsAsWrittenNow() throws {
    var book = Book(limit: 10)
    _ = book.send(10)
    try book.restart(after: .seconds(-86_400 * 1000))
    #expect(book.ledger.left == 0)
    book.pass(.seconds(86_400 + 300))
    #expect(book.grants(10) == true)
  }

  /// A machine without a clock of its own begins in 1970, until somebody tells it the time.
  @Test func clockThatBeganIn1970DoesNotMakeTheFileUseless() throws {
    var book = Book(limit: 10)
    _ = book.send(10)
    book.pass(.seconds(3600))
    try book.restart(after: .seconds(60 - book.wall.seconds))
    #expect(book.ledger.left == 0)
    book.write(for: nil)
    try book.restart()
    #expect(book.ledger.left == 0)
  }

  @Test func clockThatIsSetBackWithinASecondDoesNotMakeTheFileUseless() throws {
    var book = Book(limit: 10)
    book.wall = Timestamp(seconds: 1_795_000_000)
    _ = book.send(10)
    book.wall = book.wall - .milliseconds(61_900)
    book.ledger.advance(wall: book.wall, now: book.now)
    book.write(for: nil)
    try book.restart()
    #expect(book.ledger.left == 0)
  }

  @Test(arguments: [
    "", "x", "ssmtp-mailer ledger 1\n", "ssmtp-mailer ledger 1\nwritten x\n",
    "ssmtp-mailer ledger 1\nwritten 1795000000\n1795000000 -5\n",
    "ssmtp-mailer ledger 1\nwritten 1795000000\n1795000001 5\n",
    "ssmtp-mailer ledger 1\nwritten 1795000000\n1795000000 5", "ssmtp-mailer ledger 2\nwritten 1795000000\n",
    "ssmtp-mailer ledger 1\nwritten 99999999999999\n", "ssmtp-mailer ledger 1\nwritten 1795000000\n1 2 3\n",
  ])
  func damagedFileIsRefusedAsAWhole(text: String) {
    var book = Book(limit: 10)
    #expect(book.ledger.restore(Array(text.utf8), wall: book.wall, now: book.now) == false)
    #expect(book.ledger.used == 0)
  }
}

@Suite struct PaceTests {
  private let start = MonotonicInstant(nanoseconds: 0)

  @Test func complaintHalvesRateAndConnectionsDownToOne() {
    var pace = Pace()
    var now = start
    var seen: [[Int]] = []
    for _ in 0..<9 {
      _ = pace.slowDown(configured: 100, observed: 100, connections: 10, now: now)
      seen.append([pace.limits?.perMinute ?? 0, pace.limits?.connections ?? 0])
      now = now + Pace.settling
    }
    #expect(seen == [[50, 5], [25, 2], [12, 1], [6, 1], [3, 1], [1, 1], [1, 1], [1, 1], [1, 1]])
  }

  @Test func complaintsOfOneMomentCountOnce() {
    var pace = Pace()
    #expect(pace.slowDown(configured: 100, observed: 0, connections: 10, now: start) == true)
    #expect(pace.slowDown(configured: 100, observed: 0, connections: 10, now: start + .seconds(29)) == false)
    #expect(pace.limits?.perMinute == 50)
  }

  @Test func successRecoversSlowlyAndNeverBeyondWhatIsConfigured() {
    var pace = Pace()
    _ = pace.slowDown(configured: 100, observed: 100, connections: 10, now: start)
    #expect(pace.succeed(configured: 100, connections: 10, now: start + .seconds(299)) == false)
    var now = start
    var rates: [Int] = []
    while let limits = pace.limits, rates.count < 50 {
      rates.append(limits.perMinute)
      now = now + Pace.step
      #expect(pace.succeed(configured: 100, connections: 10, now: now) == true)
    }
    #expect(rates == [50, 60, 70, 80, 90])
    #expect(rates.allSatisfy { $0 <= 100 })
  }

  @Test func withoutARateTheObservedOneIsLearntAndLetGoInTheEnd() {
    var pace = Pace()
    _ = pace.slowDown(configured: nil, observed: 40, connections: 2, now: start)
    #expect(pace.limits?.perMinute == 20)
    #expect(pace.succeed(configured: nil, connections: 2, now: start + .seconds(300)) == true)
    #expect(pace.limits?.perMinute == 24)
    _ = pace.succeed(configured: nil, connections: 2, now: start + .seconds(3000))
    #expect(pace.limits == nil)
  }

  @Test func meterForgetsWhatIsOlderThanTwoMinutes() {
    var meter = RateMeter()
    for second in 0..<30 { meter.count(start + .seconds(second)) }
    #expect(meter.perMinute(start + .seconds(59)) == 30)
    #expect(meter.perMinute(start + .seconds(90)) == 30)
    #expect(meter.perMinute(start + .seconds(180)) == 0)
  }
}
