// The relay killed again and again, at moments nobody chose, while mail of all sizes comes in and the upstream behaves
// badly: every message that was answered 250 arrives whole, and what arrives twice can be explained.
//
// `scripts/crash-test` runs this with more rounds: SSMTP_MAILER_CRASH_ROUNDS and SSMTP_MAILER_CRASH_SEED.

import Dispatch
import Glibc
import Primitives
import Sandbox
import Testing

extension EndToEnd {
  @Suite struct Crashes {
    @Test(.timeLimit(.minutes(30))) func daemonKilledAtRandomMomentsLosesNothingItAcknowledged() async throws {
      let rounds = Self.number("SSMTP_MAILER_CRASH_ROUNDS") ?? 10
      let seed = UInt64(Self.number("SSMTP_MAILER_CRASH_SEED") ?? Int(SystemTime().wallClock.microseconds % 1_000_000))
      var random = Dice(seed)
      let arrivals = Arrivals()
      let settings = ["retry_schedule = 1s, 1s, 2s"]
      print("kill -9 at random: seed \(seed), \(rounds) rounds")
      let observe: (inout UpstreamOptions) -> Void = { options in
        options.keepsMessages = false
        options.received = { arrivals.take($0) }
      }
      try await Bench.run(settings: settings, upstream: observe) { bench in
        let begin = SystemTime().now
        let traffic = Traffic(port: bench.port)
        let group = DispatchGroup()
        for client in 0..<8 {
          let dice = Dice(seed &* 31 &+ UInt64(client))
          DispatchQueue(label: "client").async(group: group) { traffic.work(client, dice) }
        }
        var slowestStart = Duration.zero
        for round in 1...rounds {
          bench.upstream.follow(Self.trouble(&random))
          try await Task.sleep(for: .milliseconds(20 + random.below(400)))
          bench.daemon.signal(SIGKILL)
          #expect(await bench.daemon.exit() == 128 + SIGKILL, "the daemon had ended before round \(round)")
          let start = SystemTime().now
          try await bench.start()
          slowestStart = max(slowestStart, SystemTime().now - start)
        }
        traffic.stop()
        try await until("the clients are done", within: 120) { group.wait(timeout: .now()) == .success }
        // From here on the upstream behaves; what still hangs there is let go by one more start.
        bench.upstream.follow([])
        #expect(await bench.stop() == 0)
        try await bench.start()
        try await until("the queue is empty", within: 300) {
          _ = try await bench.relay("queue", "retry", "--all")
          return try await bench.relay("queue", "list", "--limit", "1").output.contains("no messages")
        }
        #expect(await bench.stop() == 0)

        let sent = traffic.result
        let found = arrivals.result
        let lost = sent.acknowledged.subtracting(found.copies.keys)
        #expect(lost.isEmpty, "lost: \(lost.sorted().prefix(20))")
        #expect(found.damaged == [], "damaged")
        #expect(sent.refused == [:])
        // A stop may leave contents behind whose messages are gone; a start may not.
        try await bench.start()
        #expect(Files.all(below: "\(bench.queue)/content") == [], "contents of no message are left")
        // Two copies with the same id of ours: the upstream had the message, but its answer did not reach the disk. Two
        // ids for one message: our answer did not reach the client, and it sent again.
        let byRelay = found.copies.values.reduce(0) { $0 + $1.values.reduce(0) { $0 + $1 - 1 } }
        let byClient = found.copies.values.reduce(0) { $0 + $1.count - 1 }
        for (id, copies) in found.copies {
          let tries = 1 + (sent.inDoubt[id] ?? 0)
          #expect(copies.count <= tries, "message \(id) was queued \(copies.count) times, sent \(tries) times")
        }
        let statistics = bench.upstream.statistics
        // Ten connections with at most six messages each, and the answers that one sync keeps waiting.
        #expect(byRelay <= statistics.scriptedFaults + rounds * 100)
        #expect(statistics.violations == [])
        #expect(statistics.credentialsInClear == 0)
        #expect(!sent.acknowledged.isEmpty)
        let figures = [
          "seed \(seed)", "\(rounds) kills", "\(sent.acknowledged.count) acknowledged (\(sent.large) large)",
          "\(found.copies.count) arrived", "\(lost.count) lost", "\(found.damaged.count) damaged",
          "\(byRelay + byClient) duplicates (\(byRelay) in doubt at the upstream, \(byClient) in doubt at the client)",
          "\(statistics.scriptedFaults) upstream faults", "slowest start \(slowestStart)",
          "\(SystemTime().now - begin) in all",
        ]
        print("kill -9 at random: \(figures.joined(separator: ", "))")
      }
    }

    private static func number(_ name: String) -> Int? { getenv(name).flatMap { Int(String(cString: $0)) } }

    /// What goes wrong at the upstream during one round.
    private static func trouble(_ random: inout Dice) -> [Rule] {
      var rules: [Rule] = []
      for _ in 0..<random.below(4) {
        let times = 1 + random.below(8)
        switch random.below(9) {
        case 0: rules.append(.answer(.content, "451 4.3.0 try again later", times: times))
        case 1: rules.append(.answer(.mail, "421 4.3.2 too busy", times: times))
        case 2: rules.append(.recipient("contact-", "450 4.2.1 busy", times: times))
        case 3: rules.append(.disconnectAfterDot(times: times))
        case 4: rules.append(.disconnectInData(afterBytes: random.below(300_000), times: times))
        case 5: rules.append(.disconnect(.mail, times: times))
        case 6: rules.append(.hang(.content, times: times))
        case 7: rules.append(.hang(.mail, times: 1))
        default: rules.append(.delay(.content, .milliseconds(random.below(50))))
        }
      }
      return rules
    }
  }
}

/// Random numbers that a seed repeats (SplitMix64).
struct Dice: Sendable {
  private var state: UInt64

  init(_ seed: UInt64) { state = seed }

  mutating func below(_ limit: Int) -> Int {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return Int((z ^ (z >> 31)) % UInt64(max(limit, 1)))
  }
}

/// Bodies that say themselves what they have to be: a stretch of one long random text, its place in the header.
enum Body {
  static let lineLength = 78
  /// 2 MiB of lines; no two places are alike.
  static let pool: [UInt8] = {
    var dice = Dice(4711)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(2 << 20)
    let letters = Array("abcdefghijklmnopqrstuvwxyz0123456789".utf8)
    while bytes.count < 2 << 20 {
      for _ in 0..<(lineLength - 2) / 4 {
        let word = dice.below(letters.count * letters.count * letters.count * letters.count)
        bytes.append(letters[word % 36])
        bytes.append(letters[word / 36 % 36])
        bytes.append(letters[word / 1296 % 36])
        bytes.append(letters[word / 46656 % 36])
      }
      bytes += [0x0d, 0x0a]
    }
    return bytes
  }()

  static func message(_ id: String, start: Int, lines: Int) -> [UInt8] {
    let header =
      "From: jane@example.org\r\nTo: contact-sales@mailer.dreamlikelabs.com\r\nSubject: Test\r\n"
      + "X-Test-ID: \(id)\r\nX-Test-Body: \(start) \(lines)\r\n\r\n"
    return Array(header.utf8) + pool[start * lineLength..<(start + lines) * lineLength]
  }

  /// Whether the content ends in the body that its header promises.
  static func isWhole(_ message: ReceivedMessage) -> Bool {
    let words = (message.field("X-Test-Body") ?? "").split(separator: " ").compactMap { Int($0) }
    guard words.count == 2 else { return false }
    let (start, length) = (words[0] * lineLength, words[1] * lineLength)
    guard start + length <= pool.count, message.content.count > length + 4 else { return false }
    return message.content.withUnsafeBytes { content in
      let body = content.count - length
      guard content[(body - 4)..<body].elementsEqual([0x0d, 0x0a, 0x0d, 0x0a]) else { return false }
      return pool.withUnsafeBytes { pool in
        guard let found = content.baseAddress, let wanted = pool.baseAddress else { return length == 0 }
        return memcmp(found + body, wanted + start, length) == 0
      }
    }
  }
}

/// What has come to the upstream.
final class Arrivals: Sendable {
  struct Result: Sendable {
    /// Of each message, the copies by the id that the relay gave them.
    var copies: [String: [String: Int]] = [:]
    var damaged: [String] = []
  }
  private let state = Mutex(Result())

  var result: Result { state.withLock { $0 } }

  func take(_ message: ReceivedMessage) {
    let id = message.field("X-Test-ID") ?? "without an id"
    let isGood = Body.isWhole(message) && message.recipients == ["contact-sales@dreamlikelabs.com"]
    let head = String(decoding: message.content.prefix(1024), as: UTF8.self)
    let ours = head.components(between: " id ", and: [" ", ";", "\r"]) ?? "without an id of ours"
    state.withLock { state in
      state.copies[id, default: [:]][ours, default: 0] += 1
      if !isGood { state.damaged.append(id) }
    }
  }
}

extension String {
  /// What stands behind the first `start`, up to the first of `ends`.
  fileprivate func components(between start: String, and ends: Set<Character>) -> String? {
    guard let place = ranges(of: start).first else { return nil }
    return String(self[place.upperBound...].prefix { !ends.contains($0) })
  }
}

/// Clients that send messages of all sizes until they are stopped, and send again what was not acknowledged.
private final class Traffic: Sendable {
  struct Result: Sendable {
    var acknowledged: Set<String> = []
    /// How often each message was sent to its end without an answer.
    var inDoubt: [String: Int] = [:]
    var refused: [String: Int] = [:]
    var large = 0
  }
  private let state = Mutex(Result())
  private let isStopped = Mutex(false)
  private let port: UInt16

  init(port: UInt16) { self.port = port }

  var result: Result { state.withLock { $0 } }
  func stop() { isStopped.withLock { $0 = true } }

  func work(_ number: Int, _ dice: Dice) {
    var dice = dice
    var client: Client?
    var serial = 0
    while !isStopped.withLock({ $0 }) {
      serial += 1
      let id = "\(number)-\(serial)"
      // One in twelve is too large for the log and gets a file of its own.
      let isLarge = dice.below(12) == 0
      let lines = isLarge ? 3600 + dice.below(6000) : 1 + dice.below(200)
      let message = Body.message(id, start: dice.below(10_000), lines: lines)
      let chunked = dice.below(2) == 0
      let deadline = SystemTime().now + .seconds(60)
      while SystemTime().now < deadline {
        var isDoubtful = false
        do {
          if client == nil { client = try Client(port: port) }
          guard let open = client else { break }
          let reply = try open.deliver(to: "contact-sales@mailer.dreamlikelabs.com", message, chunked: chunked) {
            isDoubtful = true
          }
          if reply.hasPrefix("421") {
            client = nil
            continue
          }
          state.withLock { state in
            if reply.hasPrefix("250") {
              state.acknowledged.insert(id)
              if isLarge { state.large += 1 }
            } else {
              state.refused[reply, default: 0] += 1
            }
          }
          break
        } catch {
          client = nil
          if isDoubtful { state.withLock { $0.inDoubt[id, default: 0] += 1 } }
          usleep(5000)
        }
      }
      usleep(UInt32(dice.below(1500)))
    }
    _ = try? client?.say("QUIT")
  }
}
