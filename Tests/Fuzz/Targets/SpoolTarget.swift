// A queue directory that somebody has written or damaged. The spool opens or refuses it; what it opens holds nothing
// that was not queued, and opens the next time with the same in it.

import CChecksum
import Dispatch
import Primitives
import Spool

extension FuzzTarget {
  /// An even first octet: damage to a real queue. An odd one: records with the right checksums and any contents.
  static let spool = FuzzTarget("spool") { input in
    var octets = Octets(input)
    if octets.byte() & 1 == 0 {
      try damage(&octets)
    } else {
      try invent(&octets)
    }
  }

  private static let directory = "/q"
  private static let segment = "/q/spool/00000001.seg"

  // MARK: Damage

  private struct Original: Sendable {
    var files: [String: [UInt8]]
    var messages: [QueueID: (envelope: Envelope, content: [UInt8])]
  }

  /// A queue with one of everything.
  private static let original: Original? = try? wait {
    let disk = FuzzDisk([:])
    let spool = try Spool.open(directory: directory, disk: disk, onFailure: { _ in })
    var messages: [QueueID: (envelope: Envelope, content: [UInt8])] = [:]
    for number in 0..<5 {
      let recipients = (0...number).map {
        Recipient(address: "r\($0)@gmail.test", original: "r\($0)@relay.test", account: $0 % 2 == 0 ? "a" : "b")
      }
      let envelope = Envelope(
        reversePath: "s\(number)@example.org", recipients: recipients,
        arrival: Timestamp(microseconds: 1_800_000_000_000_000), envelopeID: number == 2 ? "id" : nil)
      let content = Array("Subject: \(number)\r\n\r\n\(String(repeating: "text ", count: number * 5))\r\n".utf8)
      let id = spool.nextID()
      try await spool.append(id, envelope, .bytes(content))
      messages[id] = (envelope, content)
      if number == 1 { spool.update(id) { $0.isHeld = true } }
      if number == 3 { spool.update(id) { $0.recipients[0] = .failed("550 5.1.1 No") } }
      if number == 4 { spool.remove(id) }
    }
    await spool.close()
    return Original(files: disk.contents, messages: messages)
  }

  /// Three octets a change: where, where, and what.
  private static func damage(_ octets: inout Octets) throws {
    guard let original, var bytes = original.files[segment] else { throw Violation(description: "no queue to damage") }
    let cut = octets.byte() << 8 | octets.byte()
    if cut < bytes.count, cut > 0 { bytes.removeLast(cut) }
    while !octets.isEmpty, !bytes.isEmpty {
      let place = (octets.byte() << 8 | octets.byte()) % bytes.count
      bytes[place] ^= UInt8(octets.byte())
    }
    var files = original.files
    files[segment] = bytes
    for message in try examine(FuzzDisk(files)) {
      guard let known = original.messages[message.id] else {
        throw Violation(description: "\(message.id) was never queued")
      }
      try expect(message.envelope == known.envelope, "\(message.id) has another envelope")
      if case .bytes(let content) = message.content {
        try expect(content == known.content, "\(message.id) has another content")
      }
    }
  }

  // MARK: Invention

  private static func invent(_ octets: inout Octets) throws {
    var bytes = little(0x4745_5350_544D_5353 as UInt64) + little(UInt32(1 + octets.byte() & 3)) + little(1 as UInt32)
    bytes += little(UInt64(octets.byte())) + [UInt8](repeating: 0, count: 36)
    bytes += little(checksum(bytes))
    while !octets.isEmpty {
      let type = octets.byte()
      let id = UInt64(1_800_000_000_000_000 + octets.byte())
      var payload = octets.take(octets.byte())
      // The sizes of a message's parts, which would seldom fit by chance.
      if type == 1, payload.count >= 52, let first = payload.first, first & 1 == 0 {
        let parts = [payload[4], payload[8], payload[12]].map { Int($0) % (payload.count - 48) }
        for (index, part) in parts.enumerated() {
          payload.replaceSubrange(4 + index * 4..<8 + index * 4, with: little(UInt32(part)))
        }
        let front = 48 + parts.reduce(0, +)
        if front <= payload.count {
          payload.replaceSubrange(16..<24, with: little(UInt64(payload.count - front)))
          payload.replaceSubrange(24..<32, with: [UInt8](repeating: 0, count: 8))
          payload.replaceSubrange(0..<4, with: little(checksum(Array(payload[4..<front]))))
        }
      }
      let body =
        little(UInt32(payload.count)) + [UInt8(type), 0, 0, 0] + little(id) + little(UInt64(bytes.count)) + payload
      bytes += little(0x4352_5153 as UInt32) + little(checksum(body)) + body
      bytes += [UInt8](repeating: 0, count: (8 - bytes.count % 8) % 8)
    }
    _ = try examine(FuzzDisk([segment: bytes]))
  }

  private static func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
  }

  private static func checksum(_ bytes: [UInt8]) -> UInt32 {
    bytes.withUnsafeBytes { ssmtp_crc32c(0, $0.baseAddress, $0.count) }
  }

  // MARK: What must hold for both

  /// Opens the queue twice and reads all that is in it; nothing when it is refused.
  private static func examine(_ disk: FuzzDisk) throws -> [QueuedMessage] {
    do throws(SpoolVerifier.Problem) { _ = try SpoolVerifier(directory: directory, disk: disk).run() } catch {
      try expect(isOneLine(error.description), "the report breaks its line")
    }
    return try wait {
      let spool: Spool
      do throws(QueueError) { spool = try Spool.open(directory: directory, disk: disk, onFailure: { _ in }) } catch {
        try expect(isOneLine("\(error)"), "the refusal breaks its line")
        return []
      }
      let entries = await spool.entries(startingAfter: nil, limit: 1000)
      try expect(entries.count == spool.statistics.messages, "\(entries.count) listed of \(spool.statistics.messages)")
      var messages: [QueuedMessage] = []
      for entry in entries {
        // One that cannot be decoded is an error to its reader, and no more.
        if let message = try? await spool.read(entry.id) { messages.append(message) }
      }
      await spool.close()
      let again: Spool
      do throws(QueueError) { again = try Spool.open(directory: directory, disk: disk, onFailure: { _ in }) } catch {
        throw Violation(description: "the second start fails: \(error)")
      }
      let second = await again.entries(startingAfter: nil, limit: 1000)
      await again.close()
      try expect(second == entries, "the second start finds something else")
      return messages
    }
  }
}

/// Waits for something asynchronous, as a fuzzer does nothing else meanwhile.
func wait<T: Sendable>(_ body: @escaping @Sendable () async throws -> T) throws -> T {
  let result = Mutex<Result<T, any Error>?>(nil)
  let done = DispatchSemaphore(value: 0)
  Task.detached {
    let outcome: Result<T, any Error>
    do { outcome = .success(try await body()) } catch { outcome = .failure(error) }
    result.withLock { $0 = outcome }
    done.signal()
  }
  done.wait()
  guard let outcome = result.withLock({ $0 }) else { throw Violation(description: "nothing came of it") }
  return try outcome.get()
}
