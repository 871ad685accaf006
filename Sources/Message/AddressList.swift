// Addresses as people and their programs write them into a header: names, comments, groups, and mistakes. Read with
// tolerance, because what comes out is checked by its own type and written anew.

import SMTP

/// The addresses of a From, Reply-To, To or Cc field (RFC 5322 3.4, 4.4; groups in From are RFC 6854).
public struct AddressList: Hashable, Sendable {
  public struct Member: Hashable, Sendable {
    /// The display name, or the comment behind an address without one; encoded words are decoded.
    public var name: String?
    public var mailbox: Mailbox

    public init(name: String? = nil, mailbox: Mailbox) {
      self.name = name
      self.mailbox = mailbox
    }
  }

  /// In their order, those of groups among them.
  public private(set) var members: [Member] = []
  /// The names of groups, empty ones among them.
  public private(set) var groups: [String] = []
  /// Whether all that was there has been understood.
  public private(set) var isWellFormed = true
  /// Whether an address had no domain and was given the default one.
  public private(set) var isCompleted = false

  /// - Parameters:
  ///   - value: behind the colon, folded or not.
  ///   - defaultDomain: for names without a domain, as programs of this machine write them; nil takes none.
  public init(parsing value: some Sequence<UInt8>, defaultDomain: String? = nil) {
    var reader = Reader(Array(value))
    var entry = Entry()
    var isInGroup = false
    while let token = reader.next() {
      switch token {
      case .word(let bytes): entry.words.append(.init(bytes: bytes, raw: bytes))
      case .quoted(let bytes, let raw): entry.words.append(.init(bytes: bytes, raw: raw))
      case .comment(let bytes): entry.comments.append(bytes)
      case .angle(let bytes):
        if entry.angle != nil { isWellFormed = false }
        entry.angle = bytes
      case .special(UInt8(ascii: ":")):
        if isInGroup || entry.angle != nil || entry.words.isEmpty {
          isWellFormed = false
        } else {
          groups.append(EncodedWord.decode(entry.words.map(\.bytes)) ?? "")
          entry = Entry()
          isInGroup = true
        }
      case .special(let byte):
        finish(entry, defaultDomain)
        entry = Entry()
        if byte == UInt8(ascii: ";") {
          if !isInGroup { isWellFormed = false }
          isInGroup = false
        } else if byte != UInt8(ascii: ",") {
          isWellFormed = false
        }
      }
    }
    finish(entry, defaultDomain)
    if reader.isBroken || isInGroup { isWellFormed = false }
  }

  private struct Entry {
    struct Word {
      var bytes: [UInt8]
      var raw: [UInt8]
    }
    var words: [Word] = []
    var angle: [UInt8]?
    var comments: [[UInt8]] = []

    /// Blanks may stand around the dots and the `@` of an address only (RFC 5322 4.4).
    var isOneAddress: Bool {
      func joins(_ byte: UInt8?) -> Bool { byte == UInt8(ascii: "@") || byte == UInt8(ascii: ".") }
      return zip(words, words.dropFirst()).allSatisfy { joins($0.raw.last) || joins($1.raw.first) }
    }
  }

  private mutating func finish(_ entry: Entry, _ defaultDomain: String?) {
    let address = entry.angle ?? entry.words.flatMap(\.raw)
    if entry.angle == nil, address.isEmpty { return }
    // `Jane Doe jane@example.org` must not become one address.
    guard entry.angle != nil || entry.isOneAddress else {
      isWellFormed = false
      return
    }
    guard let text = String(validating: address, as: UTF8.self), let mailbox = mailbox(text, defaultDomain) else {
      isWellFormed = false
      return
    }
    var name: String?
    if entry.angle != nil, !entry.words.isEmpty { name = EncodedWord.decode(entry.words.map(\.bytes)) }
    if name == nil, let comment = entry.comments.last {
      name = EncodedWord.decode(comment.split { $0 == 0x20 || $0 == 0x09 }.map { Array($0) })
    }
    members.append(Member(name: name.flatMap { $0.isEmpty ? nil : $0 }, mailbox: mailbox))
  }

  private mutating func mailbox(_ text: String, _ defaultDomain: String?) -> Mailbox? {
    if let mailbox = try? Mailbox(parsing: text.hasPrefix("@") ? "<\(text)>" : text) { return mailbox }
    guard let defaultDomain, !text.isEmpty, !text.utf8.contains(UInt8(ascii: "@")) else { return nil }
    guard let mailbox = try? Mailbox(parsing: "\(text)@\(defaultDomain)") else { return nil }
    isCompleted = true
    return mailbox
  }

  /// The members as the value of a field, folded.
  /// - Parameter column: octets on the line already.
  public static func render(_ members: [Member], column: Int) -> String {
    members.map { member in
      guard let name = member.name, !name.isEmpty else { return member.mailbox.description }
      return HeaderText.named(name, member.mailbox, column: column)
    }.joined(separator: ",\r\n ")
  }
}

extension HeaderText {
  /// `name <mailbox>` (RFC 5322 3.4): the name bare, quoted or in encoded words, as it needs; folded.
  public static func named(_ name: String, _ mailbox: Mailbox, column: Int) -> String {
    let shown = displayName(name, column: column)
    let width = (shown.split(separator: "\r\n").last?.utf8.count ?? 0) + (shown.contains("\r\n") ? 0 : column)
    let blank = width + mailbox.description.utf8.count + 3 > 76 ? "\r\n " : " "
    return "\(shown)\(blank)<\(mailbox)>"
  }

  /// A display name: what could end a line becomes a blank, and a very long one is cut. Several blanks become one: a
  /// name of nothing else would be folded into an empty line.
  public static func displayName(_ name: String, column: Int) -> String {
    let clean = singleLine(name, limit: 400).split(separator: " ").joined(separator: " ")
    let isPrintable = clean.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7f }
    guard isPrintable, !clean.contains("=?") else { return encodedWords(clean, column: column) }
    let isAtoms = clean.utf8.allSatisfy {
      $0 == 0x20 || (0x30...0x39).contains($0) || (0x41...0x5a).contains($0) || (0x61...0x7a).contains($0)
    }
    if isAtoms { return fold(clean, column: column) }
    return fold("\"" + clean.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"") + "\"", column: column)
  }
}

/// Splits a structured value into what matters for addresses.
private struct Reader {
  enum Token {
    case word([UInt8])
    /// Without quotes and backslashes, and as it was.
    case quoted([UInt8], raw: [UInt8])
    case comment([UInt8])
    /// Between `<` and `>`, without blanks and comments.
    case angle([UInt8])
    case special(UInt8)
  }

  private let bytes: [UInt8]
  private var index = 0
  private(set) var isBroken = false

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  private static func isBlank(_ byte: UInt8) -> Bool { byte == 0x20 || byte == 0x09 || byte == 0x0d || byte == 0x0a }

  mutating func next() -> Token? {
    while index < bytes.count, Self.isBlank(bytes[index]) { index += 1 }
    guard index < bytes.count else { return nil }
    switch bytes[index] {
    case UInt8(ascii: "\""): return quoted()
    case UInt8(ascii: "("): return .comment(comment())
    case UInt8(ascii: "<"): return .angle(angle())
    case UInt8(ascii: ","), UInt8(ascii: ":"), UInt8(ascii: ";"), UInt8(ascii: ">"), UInt8(ascii: ")"):
      index += 1
      return .special(bytes[index - 1])
    default:
      let start = index
      var isLiteral = false
      while index < bytes.count, isLiteral || !"\"(<,:;>)".utf8.contains(bytes[index]) {
        if Self.isBlank(bytes[index]) { break }
        // An address literal has colons.
        if bytes[index] == UInt8(ascii: "[") { isLiteral = true }
        if bytes[index] == UInt8(ascii: "]") { isLiteral = false }
        index += 1
      }
      return .word(Array(bytes[start..<index]))
    }
  }

  private mutating func quoted() -> Token {
    let start = index
    var value: [UInt8] = []
    index += 1
    while index < bytes.count {
      let byte = bytes[index]
      index += 1
      if byte == UInt8(ascii: "\"") { return .quoted(value, raw: Array(bytes[start..<index])) }
      if byte == UInt8(ascii: "\\"), index < bytes.count {
        value.append(bytes[index])
        index += 1
      } else if byte != 0x0d, byte != 0x0a {
        value.append(byte)
      }
    }
    isBroken = true
    return .quoted(value, raw: Array(bytes[start...]) + [UInt8(ascii: "\"")])
  }

  private mutating func comment() -> [UInt8] {
    var value: [UInt8] = []
    var depth = 0
    while index < bytes.count {
      let byte = bytes[index]
      index += 1
      switch byte {
      case UInt8(ascii: "("):
        depth += 1
        if depth > 1 { value.append(byte) }
      case UInt8(ascii: ")"):
        depth -= 1
        if depth == 0 { return value }
        value.append(byte)
      case UInt8(ascii: "\\") where index < bytes.count:
        value.append(bytes[index])
        index += 1
      case 0x0d, 0x0a: break
      default: value.append(byte)
      }
    }
    isBroken = true
    return value
  }

  private mutating func angle() -> [UInt8] {
    var value: [UInt8] = []
    index += 1
    while index < bytes.count {
      switch bytes[index] {
      case UInt8(ascii: ">"):
        index += 1
        return value
      case UInt8(ascii: "("): _ = comment()
      case UInt8(ascii: "\""): if case .quoted(_, let raw) = quoted() { value += raw }
      case let byte:
        index += 1
        if !Self.isBlank(byte) { value.append(byte) }
      }
    }
    isBroken = true
    return value
  }
}
