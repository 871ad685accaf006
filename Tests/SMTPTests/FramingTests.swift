// End of data, dot-stuffing, command lines and bare line breaks, whatever the splits of the input.

import Testing

@testable import SMTP

/// A small seeded generator, so that a failing case can be repeated.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}

struct Decoded: Hashable {
  var content: String
  var finished: Bool
  var consumed: Int
  var bare: Bool
  var octets: Int
  var longest: Int
}

func decode(_ input: [UInt8], splits: [Int]) throws -> Decoded {
  var decoder = DataDecoder()
  var output: [UInt8] = []
  var consumed = 0
  var start = 0
  for end in splits + [input.count] where !decoder.isFinished {
    let (used, finished) = try Array(input[start..<end]).withUnsafeBytes { raw throws(DataError) in
      try decoder.decode(raw, into: &output)
    }
    consumed += used
    if finished { break }
    #expect(used == end - start)
    start = end
  }
  return Decoded(
    content: String(decoding: output, as: UTF8.self), finished: decoder.isFinished, consumed: consumed,
    bare: decoder.sawBareLineBreak, octets: decoder.octetCount, longest: decoder.longestLine)
}

/// The same rules a byte at a time, slow and plain, to compare with.
func referenceDecode(_ input: [UInt8]) -> Decoded {
  // Line ends are CRLF only; split first, then look at each line.
  var content: [UInt8] = []
  var line: [UInt8] = []
  var longest = 0
  func isBare(_ bytes: [UInt8]) -> Bool { bytes.contains(13) || bytes.contains(10) }
  var bare = false
  var index = 0
  while index < input.count {
    if input[index] == 13, index + 1 < input.count, input[index + 1] == 10 {
      index += 2
      if line == [46] {
        return Decoded(
          content: String(decoding: content, as: UTF8.self), finished: true, consumed: index, bare: bare,
          octets: content.count, longest: longest)
      }
      if line.first == 46 { line.removeFirst() }
      if isBare(line) { bare = true }
      longest = max(longest, line.count)
      content += line + [13, 10]
      line = []
    } else {
      line.append(input[index])
      index += 1
    }
  }
  return Decoded(
    content: String(decoding: content, as: UTF8.self), finished: false, consumed: input.count, bare: bare,
    octets: content.count, longest: longest)
}

@Suite struct DataDecoderTests {
  static let end = "\r\n.\r\n"

  @Test(arguments: [
    ("a\r\n.\r\n", "a\r\n"),
    (".\r\n", ""),
    ("\r\n.\r\n", "\r\n"),
    ("..\r\n.\r\n", ".\r\n"),
    (".a\r\n..b\r\n...c\r\n.\r\n", "a\r\n.b\r\n..c\r\n"),
    ("a.b\r\n.\r\n", "a.b\r\n"),
    ("a\r\n\r\n.\r\n", "a\r\n\r\n"),
  ])
  func dotsAreRemovedAndOnlyTheLoneDotEnds(_ input: String, _ content: String) throws {
    let result = try decode(Array(input.utf8), splits: [])
    #expect(result.content == content)
    #expect(result.finished && !result.bare)
    #expect(result.consumed == input.utf8.count)
    #expect(result.octets == content.utf8.count)
  }

  /// Every sequence that some server has taken for the end of data.
  @Test(arguments: [
    "\n.\n", "\n.\r\n", "\r.\r", "\r.\r\n", "\r\n.\n", "\r\n.\r", "\n.\r", "\r.\n", "\r\n\0.\r\n", "\r\n.\0\r\n",
    "\r\r\n.\n", "\n\n.\n\n", "\r\n.\r\r\n", "\r\n.\n\r\n", "\r\n..\n", "\r\n. \r\n",
  ])
  func noSmugglingFormEndsTheData(_ form: String) throws {
    let input = Array("text\(form)MAIL FROM:<x@y>\r\nRCPT TO:<z@y>\r\n.\r\nNOOP\r\n".utf8)
    let end = input.count - 6
    for split in 0...input.count {
      let result = try decode(input, splits: [split])
      #expect(result.finished)
      #expect(result.consumed == end, "split at \(split)")
      let hasLoneBreak = !form.contains("\0") && form != "\r\n. \r\n"
      #expect(result.bare == hasLoneBreak)
    }
  }

  @Test(arguments: 0..<400)
  func anySplitGivesWhatTheWholeGives(_ seed: Int) throws {
    var random = SeededGenerator(state: UInt64(seed))
    let alphabet: [UInt8] = [13, 10, 46, 97, 13, 10, 46]
    var input = (0..<Int.random(in: 0...60, using: &random)).map { _ in alphabet.randomElement(using: &random)! }
    // An odd CR before the end would be part of a line, which is what the reference says too.
    input += Array("\r\n.\r\nQUIT\r\n".utf8)
    let whole = try decode(input, splits: [])
    #expect(whole == referenceDecode(input), "\(input)")
    for _ in 0..<20 {
      let count = Int.random(in: 1...6, using: &random)
      let splits = (0..<count).map { _ in Int.random(in: 0...input.count, using: &random) }.sorted()
      #expect(try decode(input, splits: splits) == whole, "\(input) at \(splits)")
    }
    #expect(try decode(input, splits: Array(0...input.count)) == whole)
  }

  @Test func discardedContentIsStillCountedAndChecked() throws {
    var decoder = DataDecoder()
    decoder.discardsContent = true
    var output: [UInt8] = []
    let (consumed, finished) = try Array("..a\nb\r\n.\r\nX".utf8).withUnsafeBytes { raw throws(DataError) in
      try decoder.decode(raw, into: &output)
    }
    #expect(finished && consumed == 10 && output.isEmpty)
    #expect(decoder.octetCount == 6 && decoder.sawBareLineBreak)
    #expect(throws: DataError.alreadyFinished) {
      _ = try [UInt8]([1]).withUnsafeBytes { try decoder.decode($0, into: &output).consumed }
    }
  }

  @Test func longestLineIsMeasuredAcrossPieces() throws {
    let input = Array(("short\r\n" + String(repeating: "x", count: 1200) + "\r\n.\r\n").utf8)
    #expect(try decode(input, splits: [3, 300, 301, 1206, 1207, 1208]).longest == 1200)
  }
}

@Suite struct DataEncoderTests {
  static func encode(_ content: [UInt8], splits: [Int] = []) -> [UInt8] {
    var encoder = DataEncoder()
    var output: [UInt8] = []
    var start = 0
    for end in splits + [content.count] {
      Array(content[start..<end]).withUnsafeBytes { encoder.encode($0, into: &output) }
      start = end
    }
    encoder.finish(into: &output)
    return output
  }

  @Test(arguments: [
    ("", ".\r\n"), ("a", "a\r\n.\r\n"), ("a\r\n", "a\r\n.\r\n"), (".", "..\r\n.\r\n"),
    ("a\r\n.b\r\n", "a\r\n..b\r\n.\r\n"),
    ("a\r", "a\r\n.\r\n"), ("a.\r\n", "a.\r\n.\r\n"), ("..\r\n", "...\r\n.\r\n"), ("a\n.\n", "a\n..\n\r\n.\r\n"),
    ("\r\n", "\r\n.\r\n"),
  ])
  func contentIsStuffedAndEnded(_ content: String, _ encoded: String) {
    let bytes = Array(content.utf8)
    #expect(String(decoding: Self.encode(bytes), as: UTF8.self) == encoded)
    #expect(String(decoding: Self.encode(bytes, splits: Array(0...bytes.count)), as: UTF8.self) == encoded)
  }

  @Test(arguments: 0..<200)
  func whatIsEncodedDecodesToItself(_ seed: Int) throws {
    var random = SeededGenerator(state: UInt64(seed) + 7)
    var content: [UInt8] = []
    for _ in 0..<Int.random(in: 0...30, using: &random) {
      content += [[46], [97, 98], [13, 10], [13, 10, 46], [46, 13, 10]].randomElement(using: &random)!
    }
    if content.suffix(2) != [13, 10], !content.isEmpty { content += [13, 10] }
    let splits = (0..<3).map { _ in Int.random(in: 0...content.count, using: &random) }.sorted()
    let result = try decode(Self.encode(content, splits: splits), splits: [])
    #expect(result.content == String(decoding: content, as: UTF8.self))
    #expect(result.finished && !result.bare)
  }
}

@Suite struct BareLineBreakScannerTests {
  @Test(arguments: [
    ("a\r\nb\r\n", false, true), ("", false, false), ("a\nb", true, false), ("a\rb", true, false), ("a\r", true, false),
    ("\r\r\n", true, true), ("\r\n\n", true, false), ("\n", true, false), ("abc", false, false), ("\r\n", false, true),
  ])
  func bareBreaksAreSeenWhateverTheSplit(_ text: String, _ bare: Bool, _ ends: Bool) {
    let bytes = Array(text.utf8)
    for first in 0...bytes.count {
      for second in first...bytes.count {
        var scanner = BareLineBreakScanner()
        for piece in [bytes[..<first], bytes[first..<second], bytes[second...]] {
          Array(piece).withUnsafeBytes { scanner.scan($0) }
        }
        #expect(scanner.endsInLineBreak == ends, "\(first) \(second)")
        scanner.finish()
        #expect(scanner.sawBareLineBreak == bare, "\(first) \(second)")
      }
    }
  }
}

@Suite struct LineFramerTests {
  /// Feeds `input` in pieces of `step` octets and writes down what comes out.
  static func lines(_ input: String, step: Int, limit: Int = 2048) -> [String] {
    var framer = LineFramer(maximumLength: limit)
    var buffer: [UInt8] = []
    var out: [String] = []
    for piece in Array(input.utf8).chunks(of: step) {
      buffer += piece
      reading: while true {
        switch buffer.withUnsafeBytes({ framer.next($0) }) {
        case .incomplete(let consumed):
          buffer.removeFirst(consumed)
          break reading
        case .line(let range, let consumed):
          out.append(String(decoding: buffer[range], as: UTF8.self))
          buffer.removeFirst(consumed)
        case .malformed(let error, let consumed):
          out.append("!\(error)")
          buffer.removeFirst(consumed)
        }
        #expect(buffer.count <= limit + step)
      }
    }
    return out
  }

  @Test(arguments: [1, 2, 3, 7, 1000])
  func linesAreFoundWhateverThePieces(_ step: Int) {
    #expect(Self.lines("EHLO a\r\nQUIT\r\n\r\nhalf", step: step) == ["EHLO a", "QUIT", ""])
    #expect(Self.lines("NOOP\nNOOP\r\n", step: step) == ["!bareLineBreak", "NOOP"])
    #expect(Self.lines("NO\rOP\r\nNOOP\r\n", step: step) == ["!bareLineBreak", "NOOP"])
    #expect(Self.lines("NOOP\r\r\nNOOP\r\n", step: step) == ["!bareLineBreak", "NOOP"])
    #expect(Self.lines("\nNOOP\r\n", step: step) == ["!bareLineBreak", "NOOP"])
    let long = String(repeating: "x", count: 99)
    #expect(Self.lines("\(long)\r\nNOOP\r\n", step: step, limit: 32) == ["!tooLong", "NOOP"])
  }

  @Test func theLimitIncludesTheLineEnd() {
    let exact = String(repeating: "x", count: 30)
    #expect(Self.lines("\(exact)\r\n", step: 5, limit: 32) == [exact])
    #expect(Self.lines("\(exact)x\r\n", step: 5, limit: 32) == ["!tooLong"])
  }
}

extension Array {
  func chunks(of size: Int) -> [ArraySlice<Element>] {
    stride(from: 0, to: count, by: size).map { self[$0..<Swift.min($0 + size, count)] }
  }
}
