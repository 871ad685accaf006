// Thousands of seeded lives of a relay: the queue, the scheduler and delivery as they are, on a machine that fails in
// every way it can.
//
//   scripts/test --seed N       replays one schedule and tells its story
//   SSMTP_MAILER_SCHEDULES=N    runs so many instead of the usual number

import Dispatch
import Glibc
import Primitives
import Testing

@testable import Spool

/// What one seed led to.
struct Schedule: Sendable {
  var seed: UInt64
  var violations: [String] = []
  var lives = 0
  var acknowledged = 0
  var steps = 0
  var powerLosses = 0
  var failures = 0
  var kills = 0
  /// The daily limit of an account was reached.
  var reachedLimit = false
  var journal: [String] = []

  /// - Parameters:
  ///   - safeguards: what the spool does not leave out.
  ///   - forgetsLedgers: whether ledgers are not synced.
  static func run(seed: UInt64, safeguards: Safeguards = .all, forgetsLedgers: Bool = false) -> Schedule {
    var random = SeededRandom(seed: seed)
    let lives = 1 + random.below(4)
    let capacity = random.chance(0.2) ? 60_000 + random.below(60_000) : nil
    let dailyLimit = random.chance(0.25) ? 3 + random.below(12) : nil
    let simulator = Simulator(random: random)
    let world = World(simulator)
    world.platter.capacity = capacity
    var schedule = Schedule(seed: seed)
    for number in 0...lives where world.violations.isEmpty {
      let isLast = number == lives
      var fate = isLast ? Fate() : makeFate(&simulator.random)
      fate.options = SpoolOptions(
        segmentSize: capacity != nil ? 4096 : simulator.random.pick([4096, 4096, 8192, 20_000]),
        syncInterval: simulator.random.pick([.milliseconds(100), .seconds(3)]),
        batchSize: simulator.random.pick([2000, 1 << 20]), compactionStep: simulator.random.pick([500, 5000]))
      fate.options.safeguards = safeguards
      fate.dailyLimit = dailyLimit
      fate.faults.forgetsToSyncLedgers = forgetsLedgers
      if isLast {
        fate.clients = 1
        fate.patience = .seconds((dailyLimit == nil ? 4 : 40) * 86_400)
        simulator.wallClockShift = max(simulator.wallClockShift, .zero)
      } else if simulator.random.chance(0.1) {
        simulator.wallClockShift = .seconds(Int64(simulator.random.pick([-86_400, -60, 60, 86_400])))
        world.platter.isLedgerVoid = true
      }
      let life = Life(world, fate)
      life.run(isLast: isLast)
      schedule.journal += ["life \(number):"] + life.disk.journal
      schedule.lives += 1
    }
    simulator.end()
    schedule.violations = world.violations
    schedule.acknowledged = world.letters.count { $0.isAcknowledged }
    schedule.steps = simulator.steps
    schedule.powerLosses = world.powerLosses
    schedule.failures = world.failures
    schedule.kills = world.kills - 1
    schedule.reachedLimit = dailyLimit.map { world.mostInADay >= $0 } ?? false
    return schedule
  }

  private static func makeFate(_ random: inout SeededRandom) -> Fate {
    var fate = Fate()
    fate.clients = 1 + random.below(4)
    fate.operationsPerClient = 2 + random.below(8)
    switch random.below(4) {
    case 0: fate.killAt = 20 + random.below(1500)
    case 1, 2: fate.faults.powerLossAt = 5 + random.below(200)
    default: break
    }
    if random.chance(0.3) { fate.faults.failedSync = random.pick([0.01, 0.05, 0.2]) }
    if random.chance(0.15) { fate.faults.error = random.pick([0.002, 0.02]) }
    if random.chance(0.2) { fate.faults.full = random.pick([0.02, 0.2]) }
    if random.chance(0.3) { fate.faults.shortWrite = random.pick([0.1, 0.5]) }
    fate.patience = .seconds(Int64(random.pick([1, 30, 600])))
    if random.chance(0.7) {
      let most = random.pick([0.02, 0.1, 0.3])
      fate.trouble = UpstreamTrouble(
        refusesConnection: most, breaksBeforeContent: most / 2, breaksAfterTaking: most / 2, breaksInDoubt: most / 2,
        holdsAccount: most / 4, closes: most / 4, refusesRecipient: most / 2, defersRecipient: most)
    }
    return fate
  }

  /// Runs the seeds on all processors until `stop` says that it is enough, and gives the schedules to `look` in no
  /// particular order.
  static func runAll(
    _ seeds: Range<UInt64>, safeguards: Safeguards = .all, forgetsLedgers: Bool = false,
    until stop: @escaping @Sendable (Schedule) -> Bool
  ) async {
    let next = Mutex<(seed: UInt64, isOver: Bool)>((seeds.lowerBound, false))
    await withCheckedContinuation { (done: CheckedContinuation<Void, Never>) in
      DispatchQueue.global().async {
        DispatchQueue.concurrentPerform(iterations: max(2, Int(sysconf(CInt(_SC_NPROCESSORS_ONLN))))) { _ in
          while true {
            let seed: UInt64? = next.withLock { state in
              guard !state.isOver, state.seed < seeds.upperBound else { return nil }
              defer { state.seed += 1 }
              return state.seed
            }
            guard let seed else { return }
            let schedule = run(seed: seed, safeguards: safeguards, forgetsLedgers: forgetsLedgers)
            if stop(schedule) { next.withLock { $0.isOver = true } }
          }
        }
        done.resume()
      }
    }
  }

  static func number(_ variable: String) -> UInt64? { getenv(variable).flatMap { UInt64(String(cString: $0)) } }
}

@Suite struct ScheduleTests {
  @Test func nothingAcknowledgedIsLostInAnySchedule() async {
    struct Sums {
      var schedules = 0, lives = 0, acknowledged = 0, powerLosses = 0, failures = 0, kills = 0, limits = 0, steps = 0
      var bad: [Schedule] = []
    }
    let sums = Mutex(Sums())
    let seeds =
      Schedule.number("SSMTP_MAILER_SEED").map { $0..<$0 + 1 }
      ?? 1..<(Schedule.number("SSMTP_MAILER_SCHEDULES") ?? 10_000) + 1
    await Schedule.runAll(seeds) { schedule in
      sums.withLock { sums in
        sums.schedules += 1
        sums.lives += schedule.lives
        sums.acknowledged += schedule.acknowledged
        sums.powerLosses += schedule.powerLosses
        sums.failures += schedule.failures
        sums.kills += schedule.kills
        sums.limits += schedule.reachedLimit ? 1 : 0
        sums.steps += schedule.steps
        if !schedule.violations.isEmpty { sums.bad.append(schedule) }
        return sums.bad.count >= 3
      }
    }
    let total = sums.withLock { $0 }
    print(
      "\(total.schedules) schedules: \(total.lives) lives, \(total.powerLosses) power failures, \(total.failures) failed",
      "disks, \(total.kills) kills or quiet ends; \(total.acknowledged) messages acknowledged;",
      "\(total.limits) with a daily limit that was reached; \(total.steps) steps; \(total.bad.count) with violations")
    for schedule in total.bad {
      Issue.record(
        "seed \(schedule.seed): \(schedule.violations.joined(separator: "; "))\nreplay: scripts/test --seed \(schedule.seed)"
      )
      if seeds.count == 1 { print(schedule.journal.joined(separator: "\n")) }
    }
    #expect(total.acknowledged > 0)
  }

  /// The order of a dictionary depends on where it lies in memory, unless the environment forbids that.
  @Test(.enabled(if: getenv("SWIFT_DETERMINISTIC_HASHING") != nil, "scripts/test sets SWIFT_DETERMINISTIC_HASHING=1"))
  func sameSeedGivesTheSameRun() {
    for seed in UInt64(1)...20 {
      let (first, second) = (Schedule.run(seed: seed), Schedule.run(seed: seed))
      #expect(first.steps == second.steps && first.journal == second.journal && first.lives == second.lives)
    }
  }

  /// The simulation is worth something only if it finds what is missing: each safeguard left out must show.
  @Test(arguments: PlantedBug.all) func plantedBugIsFound(_ bug: PlantedBug) async {
    let found = Mutex<Schedule?>(nil)
    await Schedule.runAll(
      1..<5001, safeguards: Safeguards.all.subtracting(bug.missing), forgetsLedgers: bug.forgetsLedgers
    ) { schedule in
      if schedule.violations.isEmpty { return false }
      found.withLock { if $0.map({ $0.seed > schedule.seed }) ?? true { $0 = schedule } }
      return true
    }
    let schedule = found.withLock { $0 }
    #expect(schedule != nil, "5,000 schedules do not notice: \(bug)")
    if let schedule { print("planted: \(bug): found by seed \(schedule.seed): \(schedule.violations[0])") }
  }
}

struct PlantedBug: CustomTestStringConvertible, CustomStringConvertible, Sendable {
  var description: String
  var missing = Safeguards()
  var forgetsLedgers = false
  var testDescription: String { description }

  static let all = [
    PlantedBug(description: "messages are acknowledged before the sync", missing: .syncBeforeAcknowledging),
    PlantedBug(description: "the directory of a new segment is not synced", missing: .syncOfNewNames),
    PlantedBug(description: "a segment is unlinked before its copies are synced", missing: .syncBeforeUnlinking),
    PlantedBug(description: "a failed sync is ignored", missing: .endAfterFailedSync),
    PlantedBug(description: "content files are not synced", missing: .syncOfContents),
    PlantedBug(description: "the uncertain tail is not written again", missing: .rewritingOfUncertainTail),
    PlantedBug(description: "records with a wrong checksum are believed", missing: .checksums),
    PlantedBug(description: "a content file goes before the removal is durable", missing: .removalBeforeContent),
    PlantedBug(description: "a copy of a message forgets its state", missing: .stateInCopies),
    PlantedBug(description: "the ledger of the day is not synced", forgetsLedgers: true),
  ]
}
