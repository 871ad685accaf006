// The client's reader of replies: octets in, whole replies out, bounded whatever the server sends.

/// Why a server's octets are not a reply; the connection is of no further use.
public enum ReplyError: Error, Hashable, Sendable, CustomStringConvertible {
  case lineTooLong
  case tooManyLines
  case tooLong
  /// The line as received, made safe to print and cut to 100 characters.
  case malformed(String)

  public var description: String {
    switch self {
    case .lineTooLong: "a reply line exceeds \(ReplyParser.maximumLineLength) octets"
    case .tooManyLines: "a reply has more than \(ReplyParser.maximumLines) lines"
    case .tooLong: "a reply exceeds \(ReplyParser.maximumLength) octets"
    case .malformed(let line): "not an SMTP reply: \(line)"
    }
  }
}

/// Collects replies from a byte stream that arrives in arbitrary pieces (RFC 5321 4.2).
public struct ReplyParser: Sendable {
  public static let maximumLineLength = 4096
  public static let maximumLines = 128
  public static let maximumLength = 64 * 1024

  private var partial: [UInt8] = []
  private var lines: [String] = []
  private var enhanced: EnhancedStatusCode?
  private var total = 0

  public init() {}

  /// Reads `input` from offset `consumed` on, advances `consumed`, and returns the next whole reply, or nil when more
  /// octets are needed.
  public mutating func next(
    _ input: UnsafeRawBufferPointer, consumed: inout Int
  ) throws(ReplyError) -> Reply? {
    while consumed < input.count {
      let start = consumed
      guard let feed = input.offset(of: .lineFeed, from: start, to: input.count) else {
        guard partial.count + input.count - start <= Self.maximumLineLength else { throw .lineTooLong }
        partial.append(input, start..<input.count)
        consumed = input.count
        return nil
      }
      guard partial.count + feed - start <= Self.maximumLineLength else { throw .lineTooLong }
      consumed = feed + 1
      let reply: Reply?
      if partial.isEmpty {
        reply = try take(input.slice(start..<feed))
      } else {
        partial.append(input, start..<feed)
        let line = partial
        partial.removeAll(keepingCapacity: true)
        reply = try Self.borrowing(line) { (bytes) throws(ReplyError) in try take(bytes) }
      }
      if let reply { return reply }
    }
    return nil
  }

  private static func borrowing<R>(
    _ bytes: [UInt8], _ body: (UnsafeRawBufferPointer) throws(ReplyError) -> R
  ) throws(ReplyError) -> R {
    let result: Result<R, ReplyError> = bytes.withUnsafeBytes { raw in
      do throws(ReplyError) { return .success(try body(raw)) } catch { return .failure(error) }
    }
    return try result.get()
  }

  /// Takes a line without its LF; returns the reply that it ends.
  private mutating func take(_ line: UnsafeRawBufferPointer) throws(ReplyError) -> Reply? {
    var end = line.count
    while end > 0, line[end - 1] == .carriageReturn { end -= 1 }
    guard end >= 3, line[0] >= 0x32, line[0] <= 0x35, line[1].isDigit, line[2].isDigit,
      end == 3 || line[3] == .space || line[3] == .hyphen
    else {
      let shown = String(decoding: line.slice(0..<min(end, 100)), as: UTF8.self)
      throw .malformed(Reply.sanitised(shown))
    }
    total += line.count + 1
    guard total <= Self.maximumLength else { throw .tooLong }
    guard lines.count < Self.maximumLines else { throw .tooManyLines }

    var text = min(end, 4)
    if let (status, length) = Self.enhancedPrefix(line.slice(text..<end), class: line[0] - 0x30) {
      if enhanced == nil { enhanced = status }
      text += length
    }
    lines.append(Self.text(line.slice(text..<end)))
    guard end == 3 || line[3] == .space else { return nil }

    // Servers exist that change the code between lines; the last line is the one that counts.
    let code = Int(line[0] - 0x30) * 100 + Int(line[1] - 0x30) * 10 + Int(line[2] - 0x30)
    let reply = Reply(code: code, enhanced: enhanced.flatMap { Int($0.class) == code / 100 ? $0 : nil }, lines: lines)
    lines = []
    enhanced = nil
    total = 0
    return reply
  }

  /// An enhanced code counts only when its class agrees with the reply code (RFC 2034 4).
  private static func enhancedPrefix(
    _ text: UnsafeRawBufferPointer, class expected: UInt8
  ) -> (EnhancedStatusCode, length: Int)? {
    guard text.count >= 5, text[0] == expected + 0x30, text[1] == .dot else { return nil }
    var end = 2
    while end < text.count, text[end].isDigit || text[end] == .dot { end += 1 }
    guard end == text.count || text[end] == .space, let code = EnhancedStatusCode(utf8: text.slice(0..<end)) else {
      return nil
    }
    return (code, end == text.count ? end : end + 1)
  }

  private static func text(_ bytes: UnsafeRawBufferPointer) -> String {
    Reply.sanitised(String(decoding: bytes, as: UTF8.self))
  }
}
