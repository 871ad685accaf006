// The other side of delivery: connections that open or do not, take messages or not, and break off at the worst moment.

import Network
import Primitives

@testable import Delivery
@testable import SMTP
@testable import Spool

/// How likely an upstream is to make trouble, in each of its ways.
struct UpstreamTrouble {
  var refusesConnection = 0.0
  var breaksBeforeContent = 0.0
  /// The message is taken and the reply never comes.
  var breaksAfterTaking = 0.0
  /// Neither is the message taken nor does a reply come.
  var breaksInDoubt = 0.0
  var holdsAccount = 0.0
  var closes = 0.0
  var refusesRecipient = 0.0
  var defersRecipient = 0.0

  static let none = UpstreamTrouble()
}

/// A connection to the simulated upstream. Belongs to its simulator's thread.
final class SimulatedLink: UpstreamLink, @unchecked Sendable {
  let number: Int
  private let account: Account
  private let life: Life
  private var inFlight: [Job] = []
  private var isServing = false
  private var isLeaving = false
  private var isClosed = false
  private let peer = "upstream.test"
  private var depth = 1

  init(number: Int, account: Account, life: Life) {
    self.number = number
    self.account = account
    self.life = life
  }

  func run(resolver: Resolver, context: TLSContext?) async {
    await life.pause(upTo: .milliseconds(200))
    // A process that has ended hears of it too, so that account and connection let go of each other.
    if life.isOver || life.chance(\.refusesConnection) {
      let fault: AccountFault = life.simulator.random.pick([.unreachable, .badCredentials, .tooManyLogins])
      await account.openingFailed(number, OpenFailure(fault: fault, description: "simulated"))
      return
    }
    life.links.append(self)
    depth = life.simulator.random.pick([1, 1, 3])
    await account.opened(number, peer: peer, tls: nil, depth: depth)
  }

  func hand(_ job: Job) {
    inFlight.append(job)
    if isServing { return }
    isServing = true
    Task(executorPreference: account.seat.loop) { await self.serve() }
  }

  func leave() {
    guard inFlight.isEmpty, !isLeaving else { return }
    isLeaving = true
    account.seat.loop.execute { self.close("goodbye", isFault: false) }
  }

  func breakOff() { account.seat.loop.execute { self.lose("broken off", isInDoubt: true) } }

  /// The process has ended: nobody hears of anything, but nothing may be left hanging either.
  func end() { account.seat.loop.execute { self.lose("the process has ended", isInDoubt: false) } }

  private func serve() async {
    while let job = inFlight.first, !isClosed {
      let content = await read(job.content)
      await life.pause(upTo: .milliseconds(50))
      if isClosed || life.isOver { break }
      guard let content else {
        // What cannot be read to its end must not look complete.
        await onLoop { self.lose("the content cannot be read", isInDoubt: false) }
        break
      }
      await onLoop { self.answer(job, content) }
    }
    isServing = false
  }

  private func onLoop(_ body: @escaping @Sendable () -> Void) async {
    await withCheckedContinuation { done in
      account.seat.loop.execute {
        body()
        done.resume()
      }
    }
  }

  private func read(_ content: Content) async -> [UInt8]? {
    switch content {
    case .bytes(let bytes): return bytes
    case .file(let file):
      var bytes: [UInt8] = []
      while bytes.count < file.count {
        guard let piece = try? await file.read(at: bytes.count, count: 1000), !piece.isEmpty else { return nil }
        bytes += piece
      }
      return bytes
    }
  }

  private func answer(_ job: Job, _ content: [UInt8]) {
    if isClosed || life.isOver { return }
    if life.chance(\.breaksBeforeContent) { return lose("broken before the content", isInDoubt: false) }
    if life.chance(\.breaksInDoubt) { return lose("broken in doubt", isInDoubt: true) }
    if life.chance(\.breaksAfterTaking) {
      life.world.taken(job, job.recipients, content, by: account.name, isInDoubt: true)
      return lose("broken after the message was taken", isInDoubt: true)
    }
    if life.chance(\.holdsAccount) {
      return reply(job, content, all: Reply(550, "5.4.5", "Daily user sending limit exceeded"), stage: .mail)
    }
    if life.chance(\.closes) {
      return reply(job, content, all: Reply(421, "4.7.0", "Try again later"), stage: .mail, mustClose: true)
    }
    reply(job, content)
  }

  private func reply(
    _ job: Job, _ content: [UInt8], all: Reply? = nil, stage: ClientTransaction.Stage = .rcpt, mustClose: Bool = false
  ) {
    var outcomes: [ClientTransaction.RecipientOutcome] = []
    var taken: [Int] = []
    var hasFailures = false
    for index in job.recipients {
      if let all {
        outcomes.append(.refused(all, stage: stage))
      } else if life.chance(\.refusesRecipient) {
        outcomes.append(.refused(Reply(550, "5.1.1", "No such user"), stage: .rcpt))
        hasFailures = true
        life.world.refused(job, index)
      } else if life.chance(\.defersRecipient) {
        outcomes.append(.refused(Reply(450, "4.2.1", "Later"), stage: .rcpt))
      } else {
        outcomes.append(.accepted(Reply(250, "2.0.0", "OK")))
        taken.append(index)
      }
    }
    life.world.taken(job, taken, content, by: account.name, isInDoubt: false)
    let outcome = ClientTransaction.Outcome(
      recipients: outcomes, isInDoubt: false, mustClose: mustClose, needsReset: false)
    inFlight.removeFirst()
    account.assumeIsolated { [number, peer, depth] in
      $0.finished(job, outcome, on: number, peer: peer, depth: depth)
    }
    life.world.recorded(job, taken, hasFailures: hasFailures)
    if mustClose { lose("closed by the upstream", isInDoubt: false) }
  }

  private func lose(_ reason: String, isInDoubt: Bool) {
    if isClosed { return }
    let lost = inFlight
    inFlight = []
    for job in lost {
      let refusal = ClientTransaction.RecipientOutcome.refused(ClientTransaction.connectionLost, stage: .connection)
      let outcome = ClientTransaction.Outcome(
        recipients: job.recipients.map { _ in refusal }, isInDoubt: isInDoubt, mustClose: true, needsReset: false)
      account.assumeIsolated { [peer] in $0.lost(job, outcome, reason, peer: peer) }
    }
    close(reason, isFault: true)
  }

  private func close(_ reason: String, isFault: Bool) {
    if isClosed { return }
    isClosed = true
    account.assumeIsolated { [number, peer] in $0.closed(number, reason, peer: peer, isFault: isFault) }
  }
}
