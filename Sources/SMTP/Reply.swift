// Replies: how this side writes them, and how both sides keep them.

/// An enhanced mail system status code, `class.subject.detail` (RFC 3463 2).
public struct EnhancedStatusCode: Hashable, Sendable, CustomStringConvertible {
  public let `class`: UInt8
  public let subject: UInt16
  public let detail: UInt16

  public init(_ class: UInt8, _ subject: UInt16, _ detail: UInt16) {
    self.class = `class`
    self.subject = subject
    self.detail = detail
  }

  /// Parses `5.7.1`; the class must be 2, 4 or 5, the other numbers have at most three digits.
  public init?(parsing text: some StringProtocol) {
    self.init(utf8: text.utf8)
  }

  init?(utf8 bytes: some Collection<UInt8>) {
    var numbers: (Int, Int, Int) = (0, 0, 0)
    var field = 0
    var digits = 0
    for byte in bytes {
      if byte == .dot {
        guard digits > 0, field < 2 else { return nil }
        field += 1
        digits = 0
        continue
      }
      guard byte.isDigit, digits < (field == 0 ? 1 : 3) else { return nil }
      digits += 1
      let value = Int(byte - 0x30)
      switch field {
      case 0: numbers.0 = value
      case 1: numbers.1 = numbers.1 * 10 + value
      default: numbers.2 = numbers.2 * 10 + value
      }
    }
    guard field == 2, digits > 0, numbers.0 == 2 || numbers.0 == 4 || numbers.0 == 5 else { return nil }
    self.init(UInt8(numbers.0), UInt16(numbers.1), UInt16(numbers.2))
  }

  public var description: String { "\(self.class).\(subject).\(detail)" }
}

/// A reply of an SMTP server (RFC 5321 4.2), with the enhanced code apart from the text (RFC 2034).
public struct Reply: Hashable, Sendable, CustomStringConvertible {
  public var code: Int
  public var enhanced: EnhancedStatusCode?
  /// The text of each line, without code and enhanced code; may be empty.
  public var lines: [String]

  public init(code: Int, enhanced: EnhancedStatusCode?, lines: [String]) {
    self.code = code
    self.enhanced = enhanced
    self.lines = lines
  }

  /// `Reply(550, "5.1.1", "No such user")`; an enhanced code that does not parse is left out.
  public init(_ code: Int, _ enhanced: String?, _ text: String...) {
    self.init(code: code, enhanced: enhanced.flatMap { EnhancedStatusCode(parsing: $0) }, lines: text)
  }

  public var isPositive: Bool { code / 100 == 2 }
  public var isIntermediate: Bool { code / 100 == 3 }
  public var isTransient: Bool { code / 100 == 4 }
  public var isPermanent: Bool { code / 100 == 5 }

  /// All lines joined by blanks, without the codes.
  public var text: String { Self.sanitised(lines.joined(separator: " ")) }

  /// One line for logs and reports: `550 5.1.1 No such user`, free of control characters.
  public var description: String {
    var out = String(code)
    if let enhanced { out += " \(enhanced)" }
    let text = text
    if !text.isEmpty { out += " \(text)" }
    return out
  }

  /// Appends the reply as it goes over the wire; a line never exceeds 512 octets (RFC 5321 4.5.3.1.5), what is more is
  /// cut, and whatever is not printable ASCII becomes `?`.
  public func encode(into output: inout [UInt8]) {
    let status: [UInt8]? = enhanced.map { Array("\($0) ".utf8) }
    let room = 512 - 6 - (status?.count ?? 0)
    let last = max(lines.count, 1) - 1
    for index in 0...last {
      output.append(decimal: code)
      output.append(index == last ? .space : .hyphen)
      if let status { output.append(contentsOf: status) }
      if index < lines.count {
        for byte in lines[index].utf8.prefix(room) {
          output.append(byte < 0x20 || byte >= 0x7f ? UInt8(ascii: "?") : byte)
        }
      }
      output.append(.carriageReturn)
      output.append(.lineFeed)
    }
  }

  public var encoded: [UInt8] {
    var output: [UInt8] = []
    encode(into: &output)
    return output
  }

  /// `text` with every control character (C0, DEL, C1, line and paragraph separators) replaced by a blank.
  static func sanitised(_ text: String) -> String {
    func isUnsafe(_ scalar: Unicode.Scalar) -> Bool {
      scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value) || scalar.value == 0x2028 || scalar.value == 0x2029
    }
    guard text.unicodeScalars.contains(where: isUnsafe) else { return text }
    var clean = String.UnicodeScalarView()
    for scalar in text.unicodeScalars { clean.append(isUnsafe(scalar) ? " " : scalar) }
    return String(clean)
  }
}
