// The upstream's own reading of SMTP. It shares nothing with the `SMTP` module on purpose: a stand-in that used the
// relay's own parser would forgive the relay's own mistakes.

import Glibc

/// Undoes dot-stuffing (RFC 5321 4.5.2); only `<CRLF>.<CRLF>` ends the content.
struct DotDecoder {
  private(set) var content: [UInt8] = []
  private(set) var count = 0
  private(set) var sawBareLineFeed = false
  private let limit: Int
  private var isAtLineStart = true

  init(limit: Int) { self.limit = limit }

  var isTooLarge: Bool { count > limit }

  private mutating func take(_ bytes: UnsafeRawBufferPointer.SubSequence) {
    count += bytes.count
    if !isTooLarge { content.append(contentsOf: bytes) }
  }

  /// Takes whole lines out of `bytes`. Returns how many bytes were used up and whether the end was among them.
  mutating func decode(_ bytes: UnsafeRawBufferPointer) -> (consumed: Int, isComplete: Bool) {
    var start = 0
    while start < bytes.count {
      guard let base = bytes.baseAddress, let found = memchr(base + start, 0x0a, bytes.count - start) else {
        // A line longer than any buffer is passed on in pieces, but the start of one decides: wait for three bytes.
        if bytes.count - start < 4096 { break }
        let end = bytes.count - 1  // a CR may belong to the line feed that comes next
        take(bytes[(isAtLineStart && bytes[start] == 0x2e ? start + 1 : start)..<end])
        isAtLineStart = false
        return (end, false)
      }
      let end = UnsafeRawPointer(found) - base + 1
      let isProper = end - start >= 2 && bytes[end - 2] == 0x0d
      if isAtLineStart, bytes[start] == 0x2e {
        if isProper, end - start == 3 { return (end, true) }
        take(bytes[(start + 1)..<end])
      } else {
        take(bytes[start..<end])
      }
      if !isProper { sawBareLineFeed = true }
      isAtLineStart = isProper
      start = end
    }
    return (start, false)
  }

  mutating func takeContent() -> [UInt8] {
    defer { content = [] }
    return content
  }
}

/// `FROM:<path> parameters` or `TO:<path> parameters`, read strictly (RFC 5321 3.3: no space behind the colon).
struct PathArgument {
  var path: String
  var parameters: [String]

  init?(_ text: Substring, prefix: String) {
    guard text.prefix(prefix.count).uppercased() == prefix else { return nil }
    let rest = text.dropFirst(prefix.count).utf8
    guard rest.first == UInt8(ascii: "<") else { return nil }
    var isQuoted = false
    var isEscaped = false
    var end: Substring.UTF8View.Index?
    for i in rest.indices.dropFirst() {
      let byte = rest[i]
      if isEscaped {
        isEscaped = false
      } else if isQuoted, byte == UInt8(ascii: "\\") {
        isEscaped = true
      } else if byte == UInt8(ascii: "\"") {
        isQuoted.toggle()
      } else if !isQuoted, byte == UInt8(ascii: ">") {
        end = i
        break
      } else if byte < 0x20 || (!isQuoted && (byte == 0x20 || byte == UInt8(ascii: "<"))) {
        return nil
      }
    }
    guard let end else { return nil }
    path = String(Substring(rest[rest.index(after: rest.startIndex)..<end]))
    let tail = Substring(rest[rest.index(after: end)...])
    guard tail.isEmpty || tail.hasPrefix(" ") else { return nil }
    parameters = tail.split(separator: " ").map(String.init)
  }
}

/// Base64 (RFC 4648 4), for credentials.
enum Base64 {
  private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)

  static func encode(_ text: String) -> String {
    let bytes = Array(text.utf8)
    var result: [UInt8] = []
    for start in stride(from: 0, to: bytes.count, by: 3) {
      let group = bytes[start..<min(start + 3, bytes.count)]
      var value = 0
      for i in 0..<3 { value = value << 8 | (i < group.count ? Int(bytes[start + i]) : 0) }
      for i in 0..<4 { result.append(i <= group.count ? alphabet[value >> (18 - 6 * i) & 63] : UInt8(ascii: "=")) }
    }
    return String(decoding: result, as: UTF8.self)
  }

  /// Returns nil for anything that is not canonical Base64 of UTF-8 text.
  static func decode(_ text: Substring) -> String? {
    let digits = Array(text.utf8)
    guard digits.count % 4 == 0 else { return nil }
    let padding = digits.reversed().prefix { $0 == UInt8(ascii: "=") }.count
    guard padding <= 2 else { return nil }
    var bytes: [UInt8] = []
    var value = 0
    var bits = 0
    for digit in digits.dropLast(padding) {
      guard let index = alphabet.firstIndex(of: digit) else { return nil }
      value = (value << 6 | index) & 0xffff
      bits += 6
      if bits >= 8 {
        bits -= 8
        bytes.append(UInt8(value >> bits & 0xff))
      }
    }
    guard value & (1 << bits - 1) == 0 else { return nil }
    return String(validating: bytes, as: UTF8.self)
  }
}
