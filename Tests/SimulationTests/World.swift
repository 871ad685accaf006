// What outlives the processes of a simulated machine: its disk, its mail, and the truth about each message, against
// which everything the relay does is held.

import Primitives

@testable import Delivery
@testable import Spool

/// A message as somebody outside knows it.
final class Letter: @unchecked Sendable {
  let number: Int
  let content: [UInt8]
  let recipients: [Recipient]
  var id: QueueID?
  /// The client was told 250.
  var isAcknowledged = false
  /// By recipient: each time the upstream took it.
  var deliveries: [Int: [Delivered]] = [:]
  /// Recipients that the upstream, or an operator, refused for good.
  var refused: Set<Int> = []
  /// Recipients that a notification has named.
  var noticed: Set<Int> = []
  /// A notification about it was refused itself.
  var isNoticeRefused = false
  /// An operator has ordered its removal, in whatever life.
  var isDeleted = false
  /// The process of now has carried that out.
  var isRemoved = false
  /// Orders begun so far, and whether the last one was a hold that a sync has made durable.
  var orders = 0
  var ordersUnderWay = 0
  var isHeldForGood = false
  /// The queue said that there was no space: it is not queued.
  var isRefusedForSpace = false
  /// Its removal was durable: it must never be seen again.
  var isGone = false

  struct Delivered {
    enum State {
      /// No process has heard of it, or the one that had has ended: it may come again.
      case doubtful
      /// The account knows, and has told the queue.
      case recorded
      /// A sync was answered since.
      case durable
    }
    var state: State
    /// With a failure beside it the record may wait for the notification.
    var waitsForNotice = false
  }

  init(number: Int, content: [UInt8], recipients: [Recipient]) {
    self.number = number
    self.content = content
    self.recipients = recipients
  }

  /// Recipients who are still to get it, or whose sender is still to be told.
  var open: [Int] {
    recipients.indices.filter { deliveries[$0] == nil && !refused.contains($0) && !noticed.contains($0) }
  }
  var isOpen: Bool { isAcknowledged && !isDeleted && !open.isEmpty }
}

/// A seed's machine. Belongs to its simulator's thread.
final class World: @unchecked Sendable {
  let simulator: Simulator
  let platter = Platter()
  private(set) var letters: [Letter] = []
  private var byID: [QueueID: Letter] = [:]
  private(set) var violations: [String] = []
  private(set) var powerLosses = 0
  private(set) var kills = 0
  private(set) var failures = 0

  /// The account that has a daily limit, and to how many recipients it has sent when.
  var limited: (account: String, limit: Int)?
  private var sent: [(when: MonotonicInstant, count: Int)] = []
  /// The most that the account has sent within 24 hours.
  private(set) var mostInADay = 0

  init(_ simulator: Simulator) { self.simulator = simulator }

  func released(_ id: QueueID) { byID[id]?.isHeldForGood = false }

  func violate(_ text: String) { if violations.count < 5 { violations.append(text) } }

  // MARK: Mail

  func write(_ accounts: [String]) -> Letter {
    let number = letters.count
    let size = simulator.random.pick([40, 200, 900, 1800, 3500])
    var content = Array("X-Sim: \(number);\r\nSubject: simulated\r\n\r\n".utf8)
    content += (0..<size).map { UInt8(truncatingIfNeeded: ($0 &* 31 &+ number &* 7) | 1) }
    let count = simulator.random.pick([1, 1, 1, 2, 3])
    let recipients = (0..<count).map { index in
      let address = "r\(index)@example.test"
      return Recipient(address: address, original: address, account: simulator.random.pick(accounts))
    }
    let letter = Letter(number: number, content: content, recipients: recipients)
    letters.append(letter)
    return letter
  }

  func name(_ letter: Letter, _ id: QueueID) {
    letter.id = id
    byID[id] = letter
  }

  // MARK: What the upstream sees

  func taken(_ job: Job, _ recipients: [Int], _ content: [UInt8], by account: String, isInDoubt: Bool) {
    count(recipients.count, by: account)
    guard let letter = byID[job.id] else {
      if !recipients.isEmpty { told(content) }
      return
    }
    for index in recipients {
      if content != letter.content { violate("letter \(letter.number) arrived damaged") }
      if letter.isRefusedForSpace { violate("letter \(letter.number) was refused for want of space, and is delivered") }
      if letter.isGone { violate("letter \(letter.number) was delivered after its removal had been synced") }
      let before = letter.deliveries[index] ?? []
      if before.contains(where: { $0.state != .doubtful }) {
        violate("letter \(letter.number) came twice to recipient \(index), and nothing was in doubt: \(before)")
      }
      letter.deliveries[index, default: []].append(.init(state: isInDoubt ? .doubtful : .recorded))
    }
  }

  /// No crash may make an account send more than its limit: the upstream does not know of the crash.
  private func count(_ recipients: Int, by account: String) {
    guard let limited, limited.account == account else { return }
    sent.append((simulator.now, recipients))
    sent.removeAll { simulator.now - $0.when >= .seconds(86_400) }
    mostInADay = max(mostInADay, sent.reduce(0) { $0 + $1.count })
    if mostInADay > limited.limit, !platter.isLedgerVoid {
      violate("\(account) has sent to \(mostInADay) recipients within 24 hours, of \(limited.limit) that it may")
    }
  }

  func recorded(_ job: Job, _ recipients: [Int], hasFailures: Bool) {
    guard hasFailures, let letter = byID[job.id] else { return }
    for index in recipients {
      guard let last = letter.deliveries[index]?.count else { continue }
      letter.deliveries[index]?[last - 1].waitsForNotice = true
    }
  }

  func refused(_ job: Job, _ index: Int) {
    if let letter = byID[job.id] {
      letter.refused.insert(index)
    } else if case .bytes(let bytes) = job.content {
      about(bytes)?.isNoticeRefused = true
    }
  }

  private func told(_ content: [UInt8]) {
    guard let letter = about(content) else { return }
    let text = String(decoding: content, as: UTF8.self)
    for (index, recipient) in letter.recipients.enumerated()
    where text.contains("Final-Recipient: rfc822; \(recipient.address)\r\n") { letter.noticed.insert(index) }
  }

  /// The letter that a notification is about: it carries the header of the original.
  private func about(_ content: [UInt8]) -> Letter? {
    let mark = Array("X-Sim: ".utf8)
    guard content.count > mark.count else { return nil }
    for start in 0..<content.count - mark.count where content[start] == mark[0] {
      guard content[start..<start + mark.count].elementsEqual(mark) else { continue }
      let digits = content[(start + mark.count)...].prefix { $0 != UInt8(ascii: ";") }
      return Int(String(decoding: digits, as: UTF8.self)).flatMap { $0 < letters.count ? letters[$0] : nil }
    }
    return nil
  }

  // MARK: Syncs

  /// What a sync that is asked for now makes durable when it is answered.
  func beginSync() -> [() -> Void] {
    var promises: [() -> Void] = []
    for letter in letters where !letter.isGone {
      for (index, deliveries) in letter.deliveries {
        for (place, delivery) in deliveries.enumerated() where delivery.state == .recorded && !delivery.waitsForNotice {
          promises.append {
            guard letter.deliveries[index]?[place].state == .recorded else { return }
            letter.deliveries[index]?[place].state = .durable
          }
        }
      }
      let isFinished = letter.recipients.indices.allSatisfy { index in
        letter.deliveries[index]?.contains { $0.state != .doubtful && !$0.waitsForNotice } == true
      }
      if letter.isRemoved || isFinished { promises.append { letter.isGone = true } }
    }
    return promises
  }

  /// A process has ended: what it knew and had not synced is in doubt.
  func endLife(_ life: Life) {
    if life.disk.hasLostPower { powerLosses += 1 } else if life.hasFailed { failures += 1 } else { kills += 1 }
    for letter in letters {
      letter.isRemoved = false
      for (index, deliveries) in letter.deliveries {
        for (place, delivery) in deliveries.enumerated() where delivery.state == .recorded {
          letter.deliveries[index]?[place].state = .doubtful
        }
      }
    }
  }

  // MARK: The truth

  /// Holds a freshly opened queue against what was promised.
  func check(_ spool: Spool) async {
    var queued: Set<QueueID> = []
    for entry in await spool.entries(startingAfter: nil, limit: .max) {
      queued.insert(entry.id)
      if let letter = byID[entry.id] {
        if letter.isHeldForGood, !entry.isHeld { violate("letter \(letter.number): its hold is lost") }
        if letter.isRefusedForSpace { violate("letter \(letter.number) was refused for want of space, and is queued") }
      } else {
        guard let message = try? await spool.read(entry.id), case .bytes(let bytes) = message.content,
          String(decoding: bytes, as: UTF8.self).contains("multipart/report")
        else {
          violate("\(entry.id) is nobody's message")
          continue
        }
      }
    }
    for letter in letters {
      guard let id = letter.id else { continue }
      if letter.isGone, queued.contains(id) {
        violate("letter \(letter.number) came back after its removal was synced")
      }
      guard letter.isAcknowledged else {
        // What never came into the queue has left its identifier to others.
        if !queued.contains(id), byID[id] === letter { byID[id] = nil }
        continue
      }
      guard queued.contains(id) else {
        if letter.isOpen { violate("letter \(letter.number) was acknowledged and is lost") }
        continue
      }
      do throws(QueueError) {
        guard let message = try await spool.read(id) else { continue }
        var content: [UInt8] = []
        switch message.content {
        case .bytes(let bytes): content = bytes
        case .file(let file): content = try await file.read(at: 0, count: file.count)
        }
        if content != letter.content { violate("letter \(letter.number) is damaged in the queue") }
        if message.envelope.recipients != letter.recipients { violate("letter \(letter.number) has another envelope") }
      } catch { violate("letter \(letter.number) cannot be read: \(error)") }
    }
  }

  /// When all trouble is over and all mail has had its time.
  func checkEnd(_ spool: Spool, _ delivery: Delivery) async {
    var dead: Set<QueueID> = []
    for entry in await spool.entries(startingAfter: nil, limit: .max) {
      if entry.isDead {
        dead.insert(entry.id)
      } else {
        let accounts = await delivery.snapshots().map {
          "\($0.name): \($0.queued) queued, \($0.active) active, \(String(describing: $0.hold))"
        }
        violate(
          "message \(entry.id) (letter \(byID[entry.id]?.number ?? -1)) is stuck in the queue: \(entry), \(accounts)")
      }
    }
    for letter in letters where letter.isAcknowledged && !letter.isDeleted {
      guard let id = letter.id, !letter.isNoticeRefused, !dead.contains(id) else { continue }
      for index in letter.recipients.indices where letter.deliveries[index] == nil && !letter.noticed.contains(index) {
        violate("letter \(letter.number) was acknowledged and is lost in the end to recipient \(index)")
      }
    }
    if !spool.admits(100) { violate("the queue takes no new mail although all of it is gone") }
  }
}
