// Reads both sides of a session as the RFCs have it: which octets each reply answers, and which messages the server has
// taken. Written from RFC 5321 and RFC 3030 without a look at the server.

struct ReferenceSession {
  /// Of the messages that were answered with 250, in their order.
  private(set) var contents: [[UInt8]] = []

  private var input: ArraySlice<UInt8>
  private var replies: ArraySlice<Answer>
  /// The chunks of a message that is not complete.
  private var chunks: [UInt8] = []

  private struct Answer {
    var code: Int
    var text: String
    var isQueued: Bool { code == 250 && text.contains("Queued as ") }
  }

  init(input: [UInt8], output: [UInt8]) throws {
    self.input = input[...]
    replies = try Self.answers(output)[...]
    guard let greeting = replies.popFirst(), greeting.code == 220 else {
      throw Violation(description: "the session does not begin with 220")
    }
    while let answer = replies.popFirst() { try take(answer) }
    if !hasEnded, !awaitsContent { try expect(isInTheMiddle, "a command has no reply") }
  }

  /// The last reply said that it was the last.
  private var hasEnded = false
  /// The last reply asked for content, or a chunk was not complete.
  private var awaitsContent = false

  /// Whether what is left of the input is not a whole command, or a chunk that is not whole.
  private var isInTheMiddle: Bool {
    guard let feed = input.firstIndex(of: 0x0a) else { return true }
    let words = Self.words(input[...feed]) ?? []
    guard words.first == "BDAT", words.count >= 2, let count = Int(words[1]) else { return false }
    return count > input.endIndex - (feed + 1)
  }

  // MARK: Replies

  private static func answers(_ output: [UInt8]) throws -> [Answer] {
    var answers: [Answer] = []
    var open: Answer?
    try expect(output.isEmpty || output.last == 0x0a, "the last reply is cut")
    for line in output.split(separator: 0x0a) {
      try expect(line.last == 0x0d && line.count <= 511, "a reply line of \(line.count + 1) octets")
      let text = line.dropLast()
      try expect(text.allSatisfy { $0 >= 0x20 && $0 < 0x7f }, "a reply that is not printable")
      guard text.count >= 4, let code = Int(String(decoding: text.prefix(3), as: UTF8.self)) else {
        throw Violation(description: "a line that is no reply")
      }
      let separator = text[text.startIndex + 3]
      try expect((200...599).contains(code) && (separator == 0x20 || separator == 0x2d), "a line that is no reply")
      try expect(open == nil || open?.code == code, "a reply with two codes")
      let answer = Answer(code: code, text: (open?.text ?? "") + String(decoding: text.dropFirst(4), as: UTF8.self))
      open = separator == 0x2d ? answer : nil
      if separator == 0x20 { answers.append(answer) }
    }
    try expect(open == nil, "the last reply is not complete")
    return answers
  }

  // MARK: What they answer

  private mutating func take(_ answer: Answer) throws {
    try expect(!hasEnded && !awaitsContent, "a reply behind the last one")
    guard let feed = input.firstIndex(of: 0x0a) else {
      try expect(answer.code == 421, "a reply to nothing: \(answer.code) \(answer.text)")
      hasEnded = true
      return
    }
    let line = input[...feed]
    input = input[(feed + 1)...]
    hasEnded = answer.code == 221 || answer.code == 421
    let words = Self.words(line)
    let verb = words?.first ?? ""
    // Content that did not wait, and what a browser posts: the connection ends, and nothing of it is a command.
    if words == ["DATA"], answer.code != 354, !input.isEmpty { hasEnded = true }
    if answer.code == 554,
      ["GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE", "PRI"].contains(verb)
    {
      hasEnded = true
    }
    switch words?.first {
    case "BDAT": try chunk(answer, Array(words ?? []))
    case "DATA" where answer.code == 354: try data()
    case "RSET", "EHLO", "HELO": if answer.code == 250 { chunks = [] }
    case "MAIL": if answer.code == 250 { chunks = [] }
    default: break
    }
    if words?.first != "DATA" { try expect(answer.code != 354, "354 for something else than DATA") }
    if words?.first != "BDAT" { try expect(!answer.isQueued, "a message was taken without content") }
  }

  /// The words of a line that is one, in capitals. No command begins with a blank.
  private static func words(_ line: ArraySlice<UInt8>) -> [String]? {
    guard line.count <= 2048, line.count >= 2, line.first != 0x20, line.first != 0x09,
      line.dropLast().firstIndex(of: 0x0d) == line.endIndex - 2
    else {
      return nil
    }
    return line.dropLast(2).split { $0 == 0x20 || $0 == 0x09 }.map {
      String(decoding: $0, as: UTF8.self).uppercased()
    }
  }

  private mutating func data() throws {
    let reference = ReferenceData(Array(input))
    guard let end = reference.end else {
      awaitsContent = true
      return try closes()
    }
    input = input.dropFirst(end)
    guard let answer = replies.popFirst() else { throw Violation(description: "content without a reply") }
    hasEnded = answer.code == 221 || answer.code == 421
    guard answer.isQueued else {
      return try expect(answer.code >= 400, "content was answered with \(answer.code)")
    }
    try expect(!reference.isBare, "a message with a bare line break was taken")
    try expect(!reference.content.contains(0), "a message with a NUL was taken")
    contents.append(reference.content)
  }

  /// Nothing may follow but a farewell.
  private mutating func closes() throws {
    guard let answer = replies.popFirst() else { return }
    try expect(answer.code == 421, "a reply before the content is complete: \(answer.code)")
    hasEnded = true
  }

  private mutating func chunk(_ answer: Answer, _ words: [String]) throws {
    guard (2...3).contains(words.count), words[1].utf8.allSatisfy({ (0x30...0x39).contains($0) }),
      words.count == 2 || words[2] == "LAST", let count = Int(words[1])
    else {
      // How much follows is not known, so nothing behind it may be read.
      hasEnded = true
      return try expect(answer.code >= 400, "a BDAT that cannot be read was answered with \(answer.code)")
    }
    if hasEnded { return }
    try expect(count <= input.count, "a chunk was answered that is not complete")
    let content = input.prefix(count)
    input = input.dropFirst(count)
    guard answer.code == 250 else {
      chunks = []
      return try expect(answer.code >= 400, "a chunk was answered with \(answer.code)")
    }
    chunks += content
    try expect(answer.isQueued == (words.count == 3), "the last chunk and the message go together")
    guard answer.isQueued else { return }
    for (index, byte) in chunks.enumerated() {
      let isBare =
        byte == 0x0d
        ? index + 1 == chunks.count || chunks[index + 1] != 0x0a
        : byte == 0x0a ? index == 0 || chunks[index - 1] != 0x0d : false
      try expect(!isBare, "a message with a bare line break was taken")
    }
    try expect(!chunks.contains(0), "a message with a NUL was taken")
    contents.append(chunks)
    chunks = []
  }
}
