// Encoded words on their way in: whatever character set a name was written in becomes text.

import SMTP

#if canImport(Glibc)
  import Glibc
#endif

/// Decoding of RFC 2047.
public enum EncodedWord {
  private enum Piece {
    case text(String)
    case encoded(charset: String, bytes: [UInt8])
  }

  /// The words of a phrase as text, with one blank between them; nil when one of them cannot be read.
  ///
  /// The octets of neighbours in the same character set are put together first: many programs split a character
  /// between two words, although they must not.
  public static func decode(_ words: [[UInt8]]) -> String? {
    var pieces: [Piece] = []
    for word in words { split(word, into: &pieces) }
    var out = ""
    var wasEncoded = false
    var index = 0
    while index < pieces.count {
      switch pieces[index] {
      case .text(let text):
        if index > 0 { out += " " }
        out += text
        wasEncoded = false
      case .encoded(let charset, var bytes):
        while index + 1 < pieces.count, case .encoded(charset, let more) = pieces[index + 1] {
          bytes += more
          index += 1
        }
        guard let text = CharacterSet.decode(bytes, charset) else { return nil }
        if index > 0, !wasEncoded, !out.isEmpty { out += " " }
        out += text
        wasEncoded = true
      }
      index += 1
    }
    return out
  }

  /// A word, or the several encoded ones that it holds: within quotes there may be blanks between them.
  private static func split(_ word: [UInt8], into pieces: inout [Piece]) {
    var rest = word[...]
    var found: [Piece] = []
    while let (piece, end) = encoded(rest) {
      found.append(piece)
      rest = rest[end...].drop { $0 == 0x20 || $0 == 0x09 }
    }
    if found.isEmpty || !rest.isEmpty {
      pieces.append(.text(CharacterSet.guess(Array(word))))
    } else {
      pieces += found
    }
  }

  /// `=?charset?encoding?text?=` at the beginning of `bytes`, and where it ends.
  private static func encoded(_ bytes: ArraySlice<UInt8>) -> (Piece, Int)? {
    let mark = UInt8(ascii: "?")
    guard bytes.starts(with: "=?".utf8) else { return nil }
    let charsetStart = bytes.startIndex + 2
    guard let charsetEnd = bytes[charsetStart...].firstIndex(of: mark), charsetEnd + 2 < bytes.endIndex,
      bytes[charsetEnd + 2] == mark
    else { return nil }
    let textStart = charsetEnd + 3
    guard let textEnd = bytes[textStart...].firstIndex(of: mark), textEnd + 1 < bytes.endIndex,
      bytes[textEnd + 1] == UInt8(ascii: "=")
    else { return nil }
    // RFC 2231 5 lets a language follow the character set.
    let charset = String(decoding: bytes[charsetStart..<charsetEnd].prefix { $0 != UInt8(ascii: "*") }, as: UTF8.self)
    let text = bytes[textStart..<textEnd]
    let value: [UInt8]?
    switch bytes[charsetEnd + 1] | 0x20 {
    case UInt8(ascii: "b"):
      let digits = String(decoding: text, as: UTF8.self)
      value = Base64.decode(digits + String(repeating: "=", count: (4 - text.count % 4) % 4))
    case UInt8(ascii: "q"): value = quotedPrintable(text)
    default: value = nil
    }
    guard let value else { return nil }
    return (.encoded(charset: charset.lowercased(), bytes: value), textEnd + 2)
  }

  private static func quotedPrintable(_ text: ArraySlice<UInt8>) -> [UInt8]? {
    var out: [UInt8] = []
    var index = text.startIndex
    while index < text.endIndex {
      switch text[index] {
      case UInt8(ascii: "_"): out.append(0x20)
      case UInt8(ascii: "="):
        guard index + 2 < text.endIndex,
          let byte = UInt8(String(decoding: text[(index + 1)...(index + 2)], as: UTF8.self), radix: 16)
        else { return nil }
        out.append(byte)
        index += 2
      case let byte: out.append(byte)
      }
      index += 1
    }
    return out
  }
}

/// Character sets of mail. Those in use are converted by the C library; others are not asked for by a name that a
/// stranger chose.
enum CharacterSet {
  private static let known: Set<String> = {
    var names: Set<String> = [
      "windows-1250", "windows-1251", "windows-1252", "windows-1253", "windows-1254", "windows-1255", "windows-1256",
      "windows-1257", "windows-1258", "cp1250", "cp1251", "cp1252", "koi8-r", "koi8-u", "shift_jis", "euc-jp",
      "iso-2022-jp", "gb2312", "gbk", "gb18030", "big5", "euc-kr", "macintosh", "tis-620",
    ]
    for number in 1...16 { names.insert("iso-8859-\(number)") }
    return names
  }()

  /// nil for a character set that is not known. What does not fit it becomes U+FFFD.
  static func decode(_ bytes: [UInt8], _ charset: String) -> String? {
    switch charset {
    case "utf-8", "utf8": return String(decoding: bytes, as: UTF8.self)
    case "us-ascii", "ascii", "iso-8859-1", "latin1": return guess(bytes)
    case _ where known.contains(charset): return convert(bytes, charset)
    default: return nil
    }
  }

  /// Octets of which nobody says what they are: UTF-8 if they can be, else what Western Europe used before it.
  static func guess(_ bytes: [UInt8]) -> String {
    if let text = String(validating: bytes, as: UTF8.self) { return text }
    return convert(bytes, "windows-1252") ?? String(decoding: bytes, as: UTF8.self)
  }

  private static func convert(_ bytes: [UInt8], _ charset: String) -> String? {
    let converter = iconv_open("UTF-8", charset)
    guard let converter, converter != UnsafeMutableRawPointer(bitPattern: -1) else { return nil }
    defer { iconv_close(converter) }
    var out = [UInt8](repeating: 0, count: bytes.count * 4 + 16)
    var input = bytes
    var produced = 0
    var consumed = 0
    while consumed < input.count {
      let before = consumed
      input.withUnsafeMutableBytes { from in
        out.withUnsafeMutableBytes { to in
          var source = from.baseAddress?.advanced(by: consumed).assumingMemoryBound(to: CChar.self)
          var sourceLeft = from.count - consumed
          var target = to.baseAddress?.advanced(by: produced).assumingMemoryBound(to: CChar.self)
          var targetLeft = to.count - produced
          _ = iconv(converter, &source, &sourceLeft, &target, &targetLeft)
          consumed = from.count - sourceLeft
          produced = to.count - targetLeft
        }
      }
      guard consumed < input.count else { break }
      // An octet that is not of this set.
      guard produced + 3 <= out.count else { break }
      out.replaceSubrange(produced..<produced + 3, with: [0xef, 0xbf, 0xbd])
      produced += 3
      consumed = max(consumed, before) + 1
    }
    return String(decoding: out[..<produced], as: UTF8.self)
  }
}
