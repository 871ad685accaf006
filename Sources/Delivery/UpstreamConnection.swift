// One connection to an upstream: opened, secured, logged in, then used for many messages. It speaks SMTP and knows
// nothing of queues: jobs come from its account, outcomes go back there.

import Collections
import Network
import Primitives
import SMTP
import Spool

actor UpstreamConnection {
  nonisolated let number: Int
  private let loop: EventLoop
  private let settings: UpstreamSettings
  private let time: any Timekeeper
  private let account: Account

  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  private var stream: ByteStream?
  private var parser = ReplyParser()
  private var capabilities = Capabilities()
  private(set) var peer = ""

  /// What was sent and waits for replies, oldest first.
  private var inFlight: Deque<Exchange> = []
  /// Jobs behind a probe or behind a content that is still being written.
  private var waiting: Deque<Job> = []
  private var isWriting = false
  private var isQuitting = false
  private var mustReset = false
  private var lastUse: MonotonicInstant
  /// The shortest time from a flight to its last reply; before the first, that of a command while opening.
  private var roundTrip = Duration.seconds(3600)
  private var hasFlown = false

  /// An idle connection older than this is probed before a message is trusted to it.
  private static let probeAfter = Duration.seconds(30)
  /// We leave before the upstream throws us out.
  private static let idleLimit = Duration.seconds(240)
  /// With a line slower than this, the next message's flight does not wait for the replies to the last.
  private static let overlapFrom = Duration.milliseconds(5)
  static let overlapDepth = 6
  private static let chunk = 256 * 1024

  private enum Exchange {
    case probe
    case quit
    case transaction(Transmission)
  }

  private struct Transmission {
    let job: Job
    var transaction: ClientTransaction
    var isContentSent = false
    let started: MonotonicInstant
  }

  init(number: Int, settings: UpstreamSettings, account: Account, loop: EventLoop, time: any Timekeeper) {
    self.number = number
    self.settings = settings
    self.account = account
    self.loop = loop
    self.time = time
    lastUse = time.now
  }

  /// The whole life of the connection.
  func run(resolver: Resolver, context: TLSContext?) async {
    let opening = UpstreamOpening(settings, number: number, loop: loop)
    do throws(OpenFailure) { stream = try await opening.run(resolver, context) } catch {
      await account.openingFailed(number, error)
      return
    }
    capabilities = opening.capabilities
    account.services.bouncer.sizes.note(capabilities.size, of: settings.name)
    peer = opening.peer
    roundTrip = opening.roundTrip
    lastUse = time.now
    await account.opened(number, peer: peer, tls: opening.tls, depth: depth)
    await readReplies()
  }

  // MARK: Sending

  /// How many messages may be under way at once.
  private var depth: Int {
    capabilities.chunking && capabilities.pipelining && roundTrip > Self.overlapFrom && roundTrip < .seconds(3600)
      ? Self.overlapDepth : 1
  }

  /// Takes a job. Its outcome goes to the account.
  func start(_ job: Job) {
    let now = time.now
    if inFlight.isEmpty, waiting.isEmpty, now - lastUse > Self.probeAfter {
      // The probe is a reset as well.
      mustReset = false
      inFlight.append(.probe)
      stream?.append { $0.append(contentsOf: "RSET\r\n".utf8) }
      waiting.append(job)
      pushOut()
      expectReply(within: settings.readTimeout)
    } else if isWriting || !waiting.isEmpty {
      waiting.append(job)
    } else {
      transmit(job, now)
    }
  }

  private func transmit(_ job: Job, _ now: MonotonicInstant) {
    guard let stream else { return }
    if let obstacle = ClientTransaction.obstacle(
      size: job.size, smtpUTF8: job.envelope.smtpUTF8, capabilities: capabilities)
    {
      // Not from here: the account would hand out the next message at once, and a thousand such messages would go as
      // deep into the stack.
      Task(executorPreference: loop) {
        await self.report(job, ClientTransaction.notBegun(recipients: job.recipients.count, obstacle))
      }
      return
    }
    var transmission = Transmission(
      job: job,
      transaction: ClientTransaction(
        reversePath: job.reversePath, recipients: job.recipients.map { job.envelope.recipients[$0].address },
        size: job.size, is8Bit: job.envelope.is8Bit, smtpUTF8: job.envelope.smtpUTF8, capabilities: capabilities,
        dsn: capabilities.dsn ? job.dsnOptions : nil),
      started: SystemTime().now)
    if mustReset || !inFlight.isEmpty {
      // What went before may have failed in the middle, and a failed BDAT leaves its transaction open (RFC 3030 2).
      mustReset = false
      inFlight.append(.probe)
      stream.append { $0.append(contentsOf: "RSET\r\n".utf8) }
      if !capabilities.pipelining {
        waiting.append(job)
        pushOut()
        return expectReply(within: settings.readTimeout)
      }
    }
    lastUse = now
    var style = ClientTransaction.Style.lockStep
    stream.append { style = transmission.transaction.flight(into: &$0) }
    if style == .chunked {
      send(&transmission, dotStuffed: false)
    } else {
      pushOut()
    }
    inFlight.append(.transaction(transmission))
    expectReply(within: style == .chunked ? settings.contentReplyTimeout : settings.readTimeout)
  }

  /// Sends the content: at once what is in memory, in pieces what is in a file.
  private func send(_ transmission: inout Transmission, dotStuffed: Bool) {
    guard let stream else { return }
    switch transmission.job.outgoing {
    case .bytes(let bytes):
      stream.append { output in
        guard dotStuffed else {
          output.append(contentsOf: bytes)
          return
        }
        var encoder = DataEncoder()
        bytes.withUnsafeBytes { encoder.encode($0, into: &output) }
        encoder.finish(into: &output)
      }
      transmission.isContentSent = true
      pushOut()
    case .file(let file):
      isWriting = true
      Task(executorPreference: loop) { await self.write(file, dotStuffed: dotStuffed) }
    }
  }

  private func pushOut() {
    guard let stream, !isWriting else { return }
    do {
      if try stream.tryFlush() { return }
    } catch {
      // The reader notices as well, and cleans up.
      stream.close()
      return
    }
    isWriting = true
    Task(executorPreference: loop) { await self.drain() }
  }

  private func drain() async {
    do {
      try await stream?.flush(until: SystemTime().now + settings.writeTimeout, waitingFor: "the upstream to read")
    } catch { stream?.close() }
    isWriting = false
    startWaiting()
  }

  private func write(_ file: any StoredContent, dotStuffed: Bool) async {
    guard let stream else { return }
    var encoder = DataEncoder()
    do {
      var offset = 0
      while offset < file.count {
        let piece = try await file.read(at: offset, count: min(Self.chunk, file.count - offset))
        if piece.isEmpty { throw NetworkError.endOfStream }
        offset += piece.count
        stream.append { output in
          if dotStuffed {
            piece.withUnsafeBytes { encoder.encode($0, into: &output) }
          } else {
            output.append(contentsOf: piece)
          }
        }
        stream.extendFill(to: SystemTime().now + settings.contentReplyTimeout)
        try await stream.flush(until: SystemTime().now + settings.writeTimeout, waitingFor: "the upstream to read")
      }
      if dotStuffed {
        stream.append { encoder.finish(into: &$0) }
        try await stream.flush(until: SystemTime().now + settings.writeTimeout, waitingFor: "the upstream to read")
      }
      if case .transaction(var last)? = inFlight.last {
        last.isContentSent = true
        inFlight[inFlight.count - 1] = .transaction(last)
      }
      expectReply(within: settings.contentReplyTimeout)
    } catch {
      // A content that ends early must not look complete: the connection goes, the message stays.
      if let error = error as? QueueError, case .corrupt = error, case .transaction(let last)? = inFlight.last {
        await account.damaged(last.job.id, error)
      }
      stream.close()
    }
    isWriting = false
    startWaiting()
  }

  private func startWaiting() {
    // Without PIPELINING a job may go back to waiting, for the reply to a reset: that reply comes here again.
    while !isWriting, capabilities.pipelining || inFlight.isEmpty, let job = waiting.popFirst() {
      transmit(job, time.now)
    }
  }

  // MARK: Replies

  private var replyDeadline = MonotonicInstant.distantFuture

  private func expectReply(within timeout: Duration) {
    replyDeadline = SystemTime().now + timeout
    stream?.extendFill(to: replyDeadline)
  }

  /// Each reply has its own time limit: a hundred recipients may take longer than one.
  private func extendReply(by timeout: Duration) { replyDeadline = max(replyDeadline, SystemTime().now + timeout) }

  private func readReplies() async {
    guard let stream else { return }
    replyDeadline = SystemTime().now + Self.idleLimit
    var reason: String
    do {
      while true {
        while let reply = try stream.nextReply(&parser) {
          guard handle(reply) else {
            return finish("the upstream closes: \(reply)", isFault: !isQuitting)
          }
        }
        if inFlight.isEmpty { stream.releaseOutputBuffer() }
        guard try await stream.fill(until: replyDeadline, waitingFor: "the upstream's reply") else { break }
      }
      reason = "the upstream closed the connection"
    } catch let error as NetworkError {
      if case .timedOut = error, inFlight.isEmpty {
        quit()
        return finish("idle", isFault: false)
      }
      reason = "\(error)"
    } catch { reason = "\(error)" }
    // An idle connection may go at any time; a message under way is another matter.
    finish(reason, isFault: !isQuitting && !inFlight.isEmpty)
  }

  /// Returns false when the connection is at its end.
  private func handle(_ reply: Reply) -> Bool {
    guard let first = inFlight.first else {
      complain(reply)
      return false  // nobody asked: 421, or nonsense
    }
    switch first {
    case .quit: return false
    case .probe:
      guard reply.isPositive else {
        complain(reply)
        return false
      }
      inFlight.removeFirst()
      lastUse = time.now
      startWaiting()
      return true
    case .transaction(var transmission):
      let event = transmission.transaction.receive(reply)
      switch event {
      case .wait:
        inFlight[0] = .transaction(transmission)
        extendReply(by: settings.readTimeout)
      case .send(let commands):
        inFlight[0] = .transaction(transmission)
        stream?.append { $0.append(contentsOf: commands) }
        pushOut()
        extendReply(by: settings.readTimeout)
      case .sendContent(let dotStuffed):
        send(&transmission, dotStuffed: dotStuffed)
        inFlight[0] = .transaction(transmission)
        expectReply(within: settings.contentReplyTimeout)
      case .finished(let outcome):
        inFlight.removeFirst()
        let now = time.now
        // Lines are measured by the machine's clock, like the deadlines of sockets.
        let flight = SystemTime().now - transmission.started
        roundTrip = hasFlown ? min(roundTrip, flight) : flight
        hasFlown = true
        lastUse = now
        if outcome.needsReset { mustReset = true }
        replyDeadline = SystemTime().now + (inFlight.isEmpty ? Self.idleLimit : settings.contentReplyTimeout)
        report(transmission.job, outcome)
        if outcome.mustClose { return false }
      }
      return true
    }
  }

  /// Passes on what a reply outside a transaction says about the account's pace.
  private func complain(_ reply: Reply) {
    guard ReplyMeaning.isAboutRate(reply) else { return }
    let peer = peer
    account.assumeIsolated { $0.slowDown(reply, peer: peer) }
  }

  private func report(_ job: Job, _ outcome: ClientTransaction.Outcome) {
    let (depth, peer) = (depth, peer)
    account.assumeIsolated { $0.finished(job, outcome, on: number, peer: peer, depth: depth) }
  }

  // MARK: Closing

  /// Says QUIT once nothing is under way.
  func quit() {
    guard !isQuitting, !isWriting, inFlight.isEmpty, waiting.isEmpty else { return }
    isQuitting = true
    inFlight.append(.quit)
    stream?.append { $0.append(contentsOf: "QUIT\r\n".utf8) }
    pushOut()
    expectReply(within: .seconds(5))
  }

  /// Drops the connection now; what is under way is reported as lost.
  func abort() { stream?.close() }

  private func finish(_ reason: String, isFault: Bool) {
    stream?.close()
    let lost = inFlight
    let never = waiting
    inFlight = []
    waiting = []
    for exchange in lost {
      guard case .transaction(let transmission) = exchange else { continue }
      let outcome = transmission.transaction.connectionFailed(contentFullySent: transmission.isContentSent)
      let (job, peer) = (transmission.job, peer)
      account.assumeIsolated { $0.lost(job, outcome, reason, peer: peer) }
    }
    let peer = peer
    for job in never { account.assumeIsolated { $0.unsent(job) } }
    account.assumeIsolated { $0.closed(number, reason, peer: peer, isFault: isFault) }
  }
}
