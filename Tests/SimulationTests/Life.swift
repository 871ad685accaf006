// One process on the simulated machine, from its start to the moment it is killed, fails, or loses power.

import Logging
import Network
import Primitives

@testable import Delivery
@testable import Spool

/// What is in store for one process.
struct Fate {
  var faults = DiskFaults()
  var trouble = UpstreamTrouble()
  /// SIGKILL comes at this step.
  var killAt: Int?
  var clients = 3
  var operationsPerClient = 6
  var options = SpoolOptions()
  /// How long the process is left to itself.
  var patience = Duration.seconds(600)
  /// Of the first account.
  var dailyLimit: Int?
}

/// Belongs to its simulator's thread.
final class Life: @unchecked Sendable {
  let world: World
  let simulator: Simulator
  let fate: Fate
  let disk: SimulatedDisk
  let time: SimulatedTime
  var links: [SimulatedLink] = []
  private(set) var hasFailed = false
  private var isKilled = false
  /// Tasks of clients that are not done.
  private var running = 0
  private var isAnswered = false
  private static let accounts = ["a.test", "b.test"]

  init(_ world: World, _ fate: Fate) {
    self.world = world
    self.fate = fate
    simulator = world.simulator
    disk = SimulatedDisk(world.platter, simulator, fate.faults)
    time = SimulatedTime(simulator)
  }

  var isOver: Bool { disk.isOff || isKilled }

  func chance(_ kind: KeyPath<UpstreamTrouble, Double>) -> Bool { simulator.random.chance(fate.trouble[keyPath: kind]) }

  func pause(upTo limit: Duration) async {
    let wait = Duration.nanoseconds(Int64(simulator.random.below(Int(limit.nanoseconds))))
    try? await time.sleep(until: time.now + wait)
  }

  // MARK: Running

  /// Lives and dies. Returns false when the run makes no sense any more.
  func run(isLast: Bool) {
    defer { world.endLife(self) }
    let spool: Spool
    do throws(QueueError) {
      spool = try Spool.open(
        directory: "/q", disk: disk, time: time, options: fate.options,
        queues: { [simulator] _ in SimulatedQueue(simulator) }, onFailure: { [weak self] _ in self?.hasFailed = true })
    } catch {
      if case .corrupt = error { world.violate("the queue does not open: \(error)") }
      if isLast { world.violate("the queue does not open without any fault: \(error)") }
      return
    }
    let loop = simulator.makeLoop()
    // The look at what is there is the test's, not the process's: it costs nothing and meets no fault.
    disk.faults = DiskFaults()
    world.limited = fate.dailyLimit.map { (Self.accounts[0], $0) }
    runToEnd(on: loop) { await self.world.check(spool) }
    disk.faults = fate.faults
    let delivery = makeDelivery(spool)
    running = 1 + fate.clients
    Task(executorPreference: loop) {
      await self.begin(spool, delivery, isLast: isLast)
      // The door opens once delivery knows what was in the queue, as in the daemon.
      for _ in 0..<self.fate.clients {
        Task(executorPreference: self.simulator.makeLoop()) {
          await self.work(spool, delivery, isLast: isLast)
          self.running -= 1
        }
      }
      self.running -= 1
    }
    drive()
    if isLast, !isOver, !hasFailed {
      if running > 0 { world.violate("\(running) tasks hang") }
      runToEnd(on: loop) { await self.world.checkEnd(spool, delivery) }
    }
    end()
  }

  /// Takes steps until the process ends, or nothing more happens within its patience.
  private func drive() {
    let limit = simulator.now + fate.patience
    let firstStep = simulator.steps
    while !isOver, !hasFailed {
      if let moment = fate.killAt, simulator.steps - firstStep >= moment {
        isKilled = true
        return
      }
      if simulator.steps - firstStep > 400_000 { return world.violate("the process does not come to rest") }
      if simulator.step() { continue }
      if !simulator.advance(until: limit) { return }
    }
  }

  /// Runs something of the test's own to its end.
  private func runToEnd(on loop: SimulatedLoop, _ body: @escaping @Sendable () async -> Void) {
    isAnswered = false
    Task(executorPreference: loop) {
      await body()
      self.isAnswered = true
    }
    while !isAnswered {
      if simulator.step() { continue }
      guard simulator.advance(until: simulator.now + .seconds(60)) else {
        return world.violate("a question to the queue is never answered")
      }
    }
  }

  /// Lets everything that belonged to the process fall off.
  private func end() {
    isKilled = true
    disk.turnOff()
    for link in links { link.end() }
    links = []
    time.end()
    var steps = 0
    while steps < 100_000, simulator.step() { steps += 1 }
    simulator.dropTimers()
  }

  // MARK: What the process does

  private func makeDelivery(_ spool: Spool) -> Delivery {
    let seats = (0..<2).map { _ in
      Seat(loop: simulator.makeLoop()) { [self] number, _, account in
        SimulatedLink(number: number, account: account, life: self)
      }
    }
    return Delivery(
      store: spool, resolver: Resolver(source: NoNames(), time: time), seats: seats, time: time,
      settings: Self.settings, log: Logger(label: "simulation") { _ in SwiftLogNoOpLogHandler() },
      random: { [simulator] in Double(simulator.random.below(1000)) / 1000 },
      ledgers: LedgerFiles(directory: Platter.ledger, disk: disk, queue: SimulatedQueue(simulator)),
      routeBounce: { sender, _ in [(sender, Self.accounts[0])] })
  }

  private static let settings: DeliverySettings = {
    var settings = DeliverySettings(hostname: "relay.test")
    settings.retrySchedule = RetrySchedule([.seconds(1), .seconds(5), .seconds(30)])
    settings.queueLifetime = .seconds(3600)
    return settings
  }()

  private func begin(_ spool: Spool, _ delivery: Delivery, isLast: Bool) async {
    let upstreams = Self.accounts.map { name in
      var upstream = UpstreamSettings(
        name: name, account: name, host: "upstream.test", port: 25, security: .none, credential: nil,
        heloName: "relay.test")
      upstream.maximumConnections = 2
      upstream.messagesPerConnection = 5
      if name == Self.accounts[0] {
        upstream.fallbacks = [Self.accounts[1]]
        upstream.dailyLimit = fate.dailyLimit
      }
      return upstream
    }
    await delivery.configure(upstreams, Self.settings)
    await delivery.recover(await spool.entries(startingAfter: nil, limit: .max))
    guard isLast else { return }
    for entry in await spool.entries(startingAfter: nil, limit: .max) where entry.isHeld {
      world.released(entry.id)
      _ = try? await delivery.release(entry.id, by: "test")
    }
  }

  /// A client, and now and then an operator.
  private func work(_ spool: Spool, _ delivery: Delivery, isLast: Bool) async {
    for _ in 0..<fate.operationsPerClient {
      if isOver || hasFailed { return }
      switch simulator.random.below(10) {
      case 0: await sync(spool)
      case 1 where !isLast: await order(spool, delivery)
      case 2: await pause(upTo: .seconds(20))
      default: await send(spool, delivery)
      }
    }
  }

  private func send(_ spool: Spool, _ delivery: Delivery) async {
    let letter = world.write(Self.accounts)
    let id = spool.nextID()
    world.name(letter, id)
    let envelope = Envelope(
      reversePath: "sender@example.test", recipients: letter.recipients, arrival: time.wallClock)
    guard spool.admits(letter.content.count) else { return await pause(upTo: .seconds(5)) }
    var writer: (any ContentWriter)?
    do throws(QueueError) {
      var content = Content.bytes(letter.content)
      if letter.content.count > 1000, simulator.random.chance(0.6) {
        let made = try await spool.makeContentWriter(for: id)
        writer = made
        var rest = letter.content[...]
        while !rest.isEmpty {
          try await made.write(Array(rest.prefix(700)))
          rest = rest.dropFirst(700)
        }
        content = try await made.finish()
      }
      try await spool.append(id, envelope, content)
      guard !isOver else { return }
      letter.isAcknowledged = true
      delivery.submit(id, envelope, content)
    } catch {
      if case .full = error, !isOver, !hasFailed { letter.isRefusedForSpace = true }
      await writer?.discard()
    }
  }

  private func sync(_ spool: Spool) async {
    let promises = world.beginSync()
    do throws(QueueError) { try await spool.flush() } catch { return }
    if !isOver { for promise in promises { promise() } }
  }

  private func order(_ spool: Spool, _ delivery: Delivery) async {
    let open = world.letters.filter { $0.isOpen && $0.id != nil }
    guard let letter = open.isEmpty ? nil : simulator.random.pick(open), let id = letter.id else { return }
    letter.orders += 1
    letter.isHeldForGood = false
    let mine = letter.orders
    // Of two at once either may be the last.
    let isAlone = letter.ordersUnderWay == 0
    letter.ordersUnderWay += 1
    defer { letter.ordersUnderWay -= 1 }
    switch simulator.random.below(6) {
    case 0:
      letter.isDeleted = true
      if (try? await delivery.delete(id)) == .deleted, !isOver { letter.isRemoved = true }
    case 1:
      guard (try? await delivery.hold(id, by: "test")) == true else { break }
      do throws(QueueError) { try await spool.flush() } catch { return }
      if !isOver, !hasFailed, letter.orders == mine, isAlone { letter.isHeldForGood = true }
    case 2: _ = try? await delivery.release(id, by: "test")
    case 3:
      // Two orders at once must not lose each other's entries.
      letter.refused.formUnion(letter.recipients.indices)
      async let first = delivery.bounce(id, by: "test")
      async let second = delivery.bounce(id, by: "test")
      _ = await (first, second)
    default: _ = try? await delivery.retry(id)
    }
  }
}

/// No name is ever asked for.
struct NoNames: AddressSource {
  func addresses(of name: String) async throws(NetworkError) -> AddressAnswer {
    throw .resolution("\(name): nobody asks")
  }
}
