// Text on its way into a header: checked, folded, and encoded where it is not ASCII.

import SMTP

/// Encoding of header field values (RFC 5322 2.2.3, RFC 2047, RFC 2231).
public enum HeaderText {
  /// `text` as an unstructured value: unchanged when it is printable ASCII with words that fit a line, else in encoded
  /// words; folded to lines of 76 octets at most where it can be.
  /// - Parameter column: octets on the line already, the name and its colon and blank.
  public static func unstructured(_ text: String, column: Int) -> String {
    let plain = text.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7f || $0 == 0x09 }
    if plain, !text.contains("=?"), text.split(separator: " ").allSatisfy({ $0.utf8.count <= 500 }),
      !text.hasSuffix(" "), !text.hasPrefix(" ")
    {
      return fold(text, column: column)
    }
    return encodedWords(text, column: column)
  }

  /// RFC 2047 encoded words (UTF-8, B), none above 75 octets and none that splits a character.
  public static func encodedWords(_ text: String, column: Int) -> String {
    var words: [String] = []
    var chunk: [UInt8] = []
    // The first word shares its line with the name of the field.
    var room = max(12, (75 - column - 12) / 4 * 3)
    for scalar in text.unicodeScalars {
      let bytes = Array(String(Character(scalar)).utf8)
      if chunk.count + bytes.count > min(room, 45), !chunk.isEmpty {
        words.append("=?UTF-8?B?\(Base64.encode(chunk))?=")
        chunk = []
        room = 45
      }
      chunk += bytes
    }
    if !chunk.isEmpty || words.isEmpty { words.append("=?UTF-8?B?\(Base64.encode(chunk))?=") }
    return words.joined(separator: "\r\n ")
  }

  /// Folds at blanks before column 76; a word that is longer stays whole.
  public static func fold(_ text: String, column: Int) -> String {
    guard column + text.utf8.count > 76 else { return text }
    var out = ""
    var width = column
    for (index, word) in text.split(separator: " ", omittingEmptySubsequences: false).enumerated() {
      if index > 0 {
        // A line of blanks only would end the header for some readers, so an empty word never begins one.
        if width + 1 + word.utf8.count > 76, !word.isEmpty {
          out += "\r\n "
          width = 1
        } else {
          out += " "
          width += 1
        }
      }
      out += word
      width += word.utf8.count
    }
    return out
  }

  /// A parameter of Content-Type or Content-Disposition (RFC 2045 5.1, RFC 2231 4), `name="value"` or `name*=…`.
  public static func parameter(_ name: String, _ value: String) -> String {
    if value.utf8.allSatisfy({ $0 >= 0x20 && $0 < 0x7f }), value.utf8.count <= 60 {
      let quoted = value.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"")
      return "\(name)=\"\(quoted)\""
    }
    // Continuations keep each line short whatever the length of the name.
    var pieces: [String] = []
    var piece = ""
    for byte in value.utf8 {
      let isPlain =
        (0x30...0x39).contains(byte) || (0x41...0x5a).contains(byte) || (0x61...0x7a).contains(byte)
        || byte == 0x2e || byte == 0x2d || byte == 0x5f
      if isPlain {
        piece.unicodeScalars.append(Unicode.Scalar(byte))
      } else {
        let hex = String(byte, radix: 16, uppercase: true)
        piece += "%" + (hex.utf8.count == 1 ? "0" : "") + hex
      }
      if piece.utf8.count >= 50 {
        pieces.append(piece)
        piece = ""
      }
    }
    if !piece.isEmpty || pieces.isEmpty { pieces.append(piece) }
    if pieces.count == 1 { return "\(name)*=UTF-8''\(pieces[0])" }
    return pieces.enumerated().map { index, piece in
      index == 0 ? "\(name)*0*=UTF-8''\(piece)" : "\(name)*\(index)*=\(piece)"
    }.joined(separator: ";\r\n ")
  }

  /// `text` with everything that could end a line or hide in it replaced by a blank.
  public static func singleLine(_ text: String, limit: Int = 900) -> String {
    var out = String.UnicodeScalarView()
    var length = 0
    for scalar in text.unicodeScalars {
      length += UTF8.width(scalar)
      if length > limit { break }
      let isUnsafe =
        scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value) || scalar.value == 0x2028
        || scalar.value == 0x2029
      out.append(isUnsafe ? " " : scalar)
    }
    return String(out)
  }
}
