// The packets of the milter protocol: what is sent to the octet, what is understood, and what is nonsense.

import Primitives
import SMTP
import Testing

@testable import Filters

@Suite struct MilterCodecTests {
  typealias Parsed = (reply: MilterReply, length: Int)

  private func parse(_ bytes: [UInt8]) throws(MilterFault) -> Parsed? {
    var result: Result<Parsed?, MilterFault> = .success(nil)
    bytes.withUnsafeBytes { bytes in
      do throws(MilterFault) { result = .success(try MilterCodec.parse(bytes)) } catch { result = .failure(error) }
    }
    return try result.get()
  }

  /// A packet of a letter and text.
  private func packet(_ code: Character, _ data: [UInt8] = []) -> [UInt8] {
    let count = UInt32(data.count + 1)
    return (0..<4).map { UInt8(truncatingIfNeeded: count >> (24 - 8 * UInt32($0))) } + [code.asciiValue!] + data
  }

  private func reply(_ code: Character, _ text: String = "") throws -> MilterReply? {
    try parse(packet(code, Array(text.utf8)))?.reply
  }

  // MARK: What is sent

  @Test func negotiationOffersVersionSix() {
    var out: [UInt8] = []
    MilterCodec.negotiate(into: &out)
    #expect(out == [0, 0, 0, 13, 0x4f, 0, 0, 0, 6, 0, 0, 0, 0xff, 0, 0x1f, 0xf7, 0xff])
  }

  @Test func connectionNamesFamilyPortAndAddress() {
    var out: [UInt8] = []
    MilterCodec.connect(hostname: "[192.0.2.1]", address: IPAddress("192.0.2.1")!, port: 4711, into: &out)
    #expect(out == packet("C", Array("[192.0.2.1]\u{0}4".utf8) + [0x12, 0x67] + Array("192.0.2.1\u{0}".utf8)))
    out = []
    MilterCodec.connect(hostname: "[::1]", address: IPAddress("::1")!, port: 1, into: &out)
    #expect(out == packet("C", Array("[::1]\u{0}6".utf8) + [0, 1] + Array("::1\u{0}".utf8)))
  }

  @Test func macrosStandBeforeTheirCommand() {
    var out: [UInt8] = []
    MilterCodec.macros(for: .mail, [("i", "1"), ("auth_authen", "jane")], into: &out)
    #expect(out == packet("D", Array("Mi\u{0}1\u{0}{auth_authen}\u{0}jane\u{0}".utf8)))
    out = []
    MilterCodec.macros(for: .mail, [], into: &out)
    #expect(out.isEmpty)
  }

  @Test func nulCannotEndAWordEarly() {
    var out: [UInt8] = []
    MilterCodec.words(.mail, ["<a@b>", "X\u{0}Y"], into: &out)
    #expect(out == packet("M", Array("<a@b>\u{0}XY\u{0}".utf8)))
  }

  @Test func fieldThatIsTooLongIsCutToAPacket() {
    var out: [UInt8] = []
    MilterCodec.header(name: Array("X".utf8), value: [UInt8](repeating: 0x61, count: 100_000), into: &out)
    #expect(out.count == 4 + MilterCodec.chunkSize)
    #expect(out.last == 0)
  }

  // MARK: What comes back

  @Test(
    arguments: [
      ("c", MilterReply.proceed), ("a", .accept), ("r", .reject), ("t", .temporaryFailure), ("d", .discard),
      ("s", .skip), ("p", .progress), ("f", .connectionFailure), ("4", .shutdown),
    ] as [(Character, MilterReply)]) func letterAloneIsAVerdict(code: Character, verdict: MilterReply) throws
  {
    #expect(try reply(code) == verdict)
  }

  @Test func changesAreUnderstood() throws {
    let (name, value) = (Array("X-Spam".utf8), Array("yes\n\tvery".utf8))
    #expect(try reply("h", "X-Spam\u{0}yes\n\tvery\u{0}") == .addHeader(name: name, value: value))
    #expect(
      try parse(packet("i", [0, 0, 1, 2] + Array("X-Spam\u{0}yes\n\tvery\u{0}".utf8)))?.reply
        == .insertHeader(index: 258, name: name, value: value))
    #expect(
      try parse(packet("m", [0, 0, 0, 1] + Array("X-Spam\u{0}\u{0}".utf8)))?.reply
        == .changeHeader(index: 1, name: name, value: []))
    #expect(try reply("+", "<a@b>\u{0}") == .addRecipient("<a@b>"))
    #expect(try reply("2", "<a@b>\u{0}NOTIFY=NEVER\u{0}") == .addRecipient("<a@b>"))
    #expect(try reply("-", "<a@b>\u{0}") == .deleteRecipient("<a@b>"))
    #expect(try reply("e", "<a@b>\u{0}SIZE=1\u{0}") == .changeSender("<a@b>"))
    #expect(try reply("b", "line\r\n") == .replaceBody(Array("line\r\n".utf8)))
    #expect(try reply("q", "looks odd\u{0}") == .quarantine("looks odd"))
    #expect(
      try parse(packet("O", [0, 0, 0, 6, 0, 0, 0, 0x11, 0, 0, 0, 0x21]))?.reply
        == .negotiation(version: 6, actions: [.addHeaders, .changeHeaders], flags: [.noConnect, .noHeaders]))
  }

  @Test(arguments: [
    ("550 5.7.1 Spam 100%% sure", Reply(550, "5.7.1", "Spam 100% sure")),
    ("451 later", Reply(451, nil, "later")), ("554", Reply(554, nil, "")),
    ("550 4.7.1 odd", Reply(550, nil, "4.7.1 odd")),
    ("554-5.7.1 one\r\n554 5.7.1 two", Reply(code: 554, enhanced: .init(5, 7, 1), lines: ["one", "two"])),
  ]) func replyOfTheFilterIsRead(text: String, expected: Reply) throws {
    #expect(try reply("y", text + "\u{0}") == .reply(expected))
  }

  @Test(arguments: [
    "250 2.0.0 fine", "354 go on", "xyz", "", "55", "5555 x", "550_x", "600 x", "550-a\r\n551 b",
  ]) func filterMayNotSaySomethingElseThanNo(text: String) {
    #expect(throws: MilterFault.self) { try reply("y", text + "\u{0}") }
  }

  @Test func replyCannotBeginAnotherOne() throws {
    guard case .reply(let answer) = try reply("y", "550 5.7.1 no\r\n550 5.7.1 a\u{1}b\u{0}") else {
      Issue.record("no reply")
      return
    }
    #expect(String(decoding: answer.encoded, as: UTF8.self) == "550-5.7.1 no\r\n550 5.7.1 a?b\r\n")
  }

  @Test func everyBeginningOfAPacketAsksForMore() throws {
    let bytes = packet("h", Array("X\u{0}y\u{0}".utf8))
    for count in 0..<bytes.count { #expect(try parse(Array(bytes[..<count])) == nil) }
    #expect(try parse(bytes + [1, 2, 3])?.length == bytes.count)
  }

  @Test func nonsenseIsToldBeforeItIsComplete() {
    #expect(throws: MilterFault.empty) { try parse([0, 0, 0, 0]) }
    #expect(throws: MilterFault.tooLong(66_560)) { try parse([0, 1, 4, 0]) }
    #expect(throws: MilterFault.tooLong(0x4854_5450)) { try parse(Array("HTTP/1.1 400".utf8)) }
    #expect(throws: MilterFault.unknown(0x7a)) { try parse([0, 0, 1, 0, 0x7a]) }
    for bytes in [
      packet("h", Array("X".utf8)), packet("h", Array("X\u{0}".utf8)), packet("m", [0, 0, 1]), packet("+"),
      packet("O", [0, 0, 0, 6]), packet("q", [0xff, 0]), packet("i", [0, 0, 0, 0]),
    ] { #expect(throws: MilterFault.self) { try parse(bytes) } }
  }
}
