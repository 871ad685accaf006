// Messages that leave with another sender than they came with, from memory and from the queue.

import Message
import Primitives
import SMTP
import Sandbox
import Spool
import TestSupport
import Testing

@testable import Delivery

@Suite(.timeLimit(.minutes(2))) struct DepartureTests {
  private static let departure: @Sendable (String, String, Envelope) -> Departure? = { _, _, envelope in
    guard let account = try? Mailbox(parsing: "relay@example.test") else { return nil }
    let from = FromRewriting(
      address: account, label: "Support", reversePath: nil, isOurs: { $0.domain.hasSuffix("example.test") })
    return Departure(reversePath: envelope.reversePath.isEmpty ? "" : "srs@example.test", from: from)
  }

  private static func text(_ message: ReceivedMessage) -> String { String(decoding: message.content, as: UTF8.self) }

  @Test func messageLeavesRewrittenAndItsNotificationGoesToTheOriginalSender() async throws {
    let bench = try await Bench([.recipient("nobody@", "550 5.1.1 no such user")], departure: Self.departure)
    try await bench.submit(to: ["support@example.test"], body: "Hello\r\n.\r\n")
    let message = await bench.upstream.messages(atLeast: 1)[0]
    #expect(message.reversePath == "srs@example.test")
    #expect(
      Self.text(message).hasPrefix(
        "From: \"jane@example.org via Support\" <relay@example.test>\r\nReply-To: jane@example.org\r\n"
          + "X-Original-From: jane@example.org\r\nMessage-ID: "))
    #expect(Self.text(message).hasSuffix("\r\n\r\nHello\r\n.\r\n"))
    try await bench.submit(to: ["nobody@example.test"])
    let report = await bench.reports(1)[0]
    #expect(report.contains("To: <jane@example.org>") && report.contains("\r\nFrom: jane@example.org\r\n"))
    #expect(!report.contains("via Support"), "what comes back is what was sent")
    await bench.end()
    #expect(bench.upstream.statistics.violations.isEmpty)
  }

  @Test func announcedSizeIsThatOfTheRewrittenMessage() async throws {
    let bench = try await Bench(departure: Self.departure)
    let id = try await bench.submit()
    let stored = try #require(bench.store.messages[id]).content.octets
    let message = await bench.upstream.messages(atLeast: 1)[0]
    #expect(message.content.count > stored.count)
    #expect(message.parameters.contains("SIZE=\(message.content.count)"))
    await bench.end()
  }

  @Test func messageThatIsTriedAgainLeavesTheSame() async throws {
    let bench = try await Bench(
      [.recipient("support@", "451 4.3.0 later", times: 1)], departure: Self.departure)
    try await bench.submit()
    _ = await bench.lines.line(containing: "status=deferred")
    await bench.asleep()
    bench.time.advance(by: .seconds(120))
    let message = await bench.upstream.messages(atLeast: 1)[0]
    #expect(message.reversePath == "srs@example.test" && Self.text(message).contains("via Support"))
    await bench.end()
  }

  // MARK: Contents in files

  private struct Pieces: StoredContent {
    let bytes: [UInt8]
    let longest: Int
    var count: Int { bytes.count }
    func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
      Array(bytes[min(offset, bytes.count)..<min(offset + count, bytes.count)])
    }
  }

  private func read(_ content: Content, step: Int) async throws -> [UInt8] {
    guard case .file(let file) = content else { return content.octets }
    var result: [UInt8] = []
    while result.count < file.count {
      let piece = try await file.read(at: result.count, count: step)
      try #require(!piece.isEmpty)
      result += piece
    }
    #expect(try await file.read(at: file.count, count: 10).isEmpty)
    return result
  }

  @Test(arguments: [1, 7, 4096, 1 << 22])
  func fileIsRewrittenInItsHeaderAndStreamedBehindIt(step: Int) async throws {
    let filler = (0..<4000).map { "X-Filler-\($0): \(String(repeating: "y", count: 40))\r\n" }.joined()
    let size = step == 1 ? 2000 : 300_000
    let text = (step == 1 ? "" : filler) + "From: jane@example.org\r\n\r\n" + String(repeating: "z", count: size)
    let file = Pieces(bytes: Array(text.utf8), longest: step)
    let envelope = Envelope(reversePath: "a@b.test", recipients: [], arrival: Timestamp(seconds: 0))
    let departure = try #require(Self.departure("", "", envelope))
    let content = try await departure.content(.file(file))
    let expected = departure.content(file.bytes)
    #expect(content.count == expected.count && expected != file.bytes)
    #expect(try await read(content, step: step) == expected)
  }

  @Test func headerWithoutEndIsLeftAlone() async throws {
    let text = "From: jane@example.org\r\n" + String(repeating: "X: y\r\n", count: 250_000)
    let envelope = Envelope(reversePath: "a@b.test", recipients: [], arrival: Timestamp(seconds: 0))
    let departure = try #require(Self.departure("", "", envelope))
    #expect(departure.content(Array(text.utf8)) == Array(text.utf8))
    let content = try await departure.content(.file(Pieces(bytes: Array(text.utf8), longest: 1)))
    #expect(content.count == text.utf8.count)
  }
}
