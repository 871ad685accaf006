// A machine in which nothing happens by itself: all queues, loops and clocks belong to one scheduler that takes the
// next step on one thread, in an order that a seed decides. The same seed gives the same run, to the last step.

import Glibc
import Network
import Primitives

/// SplitMix64: small, fast, and the same on every machine.
struct SeededRandom: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 &+ 0x1234_5678_9ABC_DEF1 }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  /// Below `bound`.
  mutating func below(_ bound: Int) -> Int { Int(truncatingIfNeeded: next() % UInt64(max(bound, 1))) }
  mutating func chance(_ probability: Double) -> Bool { Double(next() >> 11) * 0x1p-53 < probability }
  mutating func pick<T>(_ choices: [T]) -> T { choices[below(choices.count)] }
}

/// `@unchecked Sendable` because a simulator and all that belongs to it live on the one thread that runs it.
final class Simulator: @unchecked Sendable {
  var random: SeededRandom
  private var lines: [Line] = []
  /// Places in ``lines`` that have something to do.
  private var ready: [Int] = []
  private(set) var now = MonotonicInstant(nanoseconds: 1_000_000_000)
  /// What a clock that somebody sets would show, relative to one that nobody does.
  var wallClockShift = Duration.zero
  private(set) var steps = 0
  fileprivate var current: SimulatedLoop?
  /// Executors are not kept alive by the tasks that run on them.
  private var loops: [SimulatedLoop] = []

  init(random: SeededRandom) { self.random = random }

  /// Work in the order in which it came.
  private final class Line {
    var work: [() -> Void] = []
    var head = 0
    var isReady = false
  }

  private struct Timer {
    var when: MonotonicInstant
    var number: Int
    var fire: () -> Void
  }
  private var timers: [Timer] = []
  private var nextTimer = 0

  fileprivate func makeLine() -> Int {
    lines.append(Line())
    return lines.count - 1
  }

  func makeLoop() -> SimulatedLoop {
    let loop = SimulatedLoop(self)
    loops.append(loop)
    return loop
  }

  /// Lets go of the loops, which hold the simulator.
  func end() { loops = [] }

  private let thread = pthread_self()

  fileprivate func put(_ work: @escaping () -> Void, in place: Int) {
    precondition(pthread_equal(thread, pthread_self()) != 0, "something has left the simulated machine")
    let line = lines[place]
    line.work.append(work)
    if !line.isReady {
      line.isReady = true
      ready.append(place)
    }
  }

  func after(_ wait: Duration, _ fire: @escaping () -> Void) { at(now + wait, fire) }

  fileprivate func at(_ when: MonotonicInstant, _ fire: @escaping () -> Void) {
    nextTimer += 1
    timers.append(Timer(when: when, number: nextTimer, fire: fire))
  }

  /// Takes one step; `false` when there is nothing to do at this moment.
  func step() -> Bool {
    guard !ready.isEmpty else { return false }
    steps += 1
    let choice = random.below(ready.count)
    let line = lines[ready[choice]]
    let work = line.work[line.head]
    line.head += 1
    if line.head == line.work.count {
      line.work.removeAll(keepingCapacity: true)
      line.head = 0
      line.isReady = false
      ready.swapAt(choice, ready.count - 1)
      ready.removeLast()
    }
    work()
    return true
  }

  /// Moves the clock to the next timer; `false` when there is none before `limit`.
  func advance(until limit: MonotonicInstant) -> Bool {
    var best: Int?
    for (place, timer) in timers.enumerated() {
      guard let known = best else {
        best = place
        continue
      }
      if (timer.when, timer.number) < (timers[known].when, timers[known].number) { best = place }
    }
    guard let best, timers[best].when <= limit else { return false }
    let timer = timers.remove(at: best)
    now = max(now, timer.when)
    timer.fire()
    return true
  }

  /// The end of a process: nothing that it planned will happen.
  func dropTimers() { timers = [] }
}

/// A serial queue of the simulated machine.
final class SimulatedQueue: WorkQueue {
  private let simulator: Simulator
  private let place: Int

  init(_ simulator: Simulator) {
    self.simulator = simulator
    place = simulator.makeLine()
  }

  func async(_ work: @escaping @Sendable () -> Void) { simulator.put(work, in: place) }

  func async(after wait: Duration, _ work: @escaping @Sendable () -> Void) {
    simulator.after(wait) { [simulator, place] in simulator.put(work, in: place) }
  }
}

/// An event loop of the simulated machine, without sockets.
final class SimulatedLoop: WorkLoop {
  private let simulator: Simulator
  private let place: Int

  fileprivate init(_ simulator: Simulator) {
    self.simulator = simulator
    place = simulator.makeLine()
  }

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    put { [self] in
      job.runSynchronously(isolatedTo: asUnownedSerialExecutor(), taskExecutor: asUnownedTaskExecutor())
    }
  }

  func execute(_ body: @escaping @Sendable () -> Void) { put(body) }

  private func put(_ work: @escaping () -> Void) {
    simulator.put(
      { [simulator, self] in
        simulator.current = self
        work()
        simulator.current = nil
      }, in: place)
  }

  func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
  func asUnownedTaskExecutor() -> UnownedTaskExecutor { UnownedTaskExecutor(ordinary: self) }
  func checkIsolated() { precondition(simulator.current === self, "not on this loop") }
  func isIsolatingCurrentContext() -> Bool? { simulator.current === self }
}

/// The clocks of one simulated process: who sleeps when it ends never wakes to do anything.
final class SimulatedTime: Timekeeper, @unchecked Sendable {
  private let simulator: Simulator
  private var sleepers: [Int: CheckedContinuation<Void, any Error>] = [:]
  private var nextSleeper = 0
  private var hasEnded = false
  private static let epoch = Timestamp(seconds: 1_795_000_000)

  init(_ simulator: Simulator) { self.simulator = simulator }

  var now: MonotonicInstant { simulator.now }
  var wallClock: Timestamp {
    Self.epoch + .nanoseconds(simulator.now.nanoseconds) + simulator.wallClockShift
  }

  func sleep(until deadline: MonotonicInstant) async throws {
    nextSleeper += 1
    let number = nextSleeper
    try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
        if hasEnded || Task.isCancelled { return continuation.resume(throwing: CancellationError()) }
        sleepers[number] = continuation
        simulator.at(deadline) { [weak self] in self?.sleepers.removeValue(forKey: number)?.resume() }
      }
    } onCancel: {
      sleepers.removeValue(forKey: number)?.resume(throwing: CancellationError())
    }
  }

  func end() {
    hasEnded = true
    let waiting = sleepers.sorted { $0.key < $1.key }
    sleepers = [:]
    for (_, sleeper) in waiting { sleeper.resume(throwing: CancellationError()) }
  }
}
