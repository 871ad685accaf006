// Mailbox syntax and the two paths of an envelope: parsed once at the edge, safe to print anywhere afterwards.

import Primitives

/// Why a text is not a mailbox (RFC 5321 4.1.2).
public enum AddressError: Error, Hashable, Sendable, CustomStringConvertible {
  case empty
  case missingAt
  case localPart
  case domain
  case addressLiteral
  case unbalancedBrackets
  case sourceRoute
  case controlCharacter
  case invalidUTF8
  case tooLong

  public var description: String {
    switch self {
    case .empty: "the address is empty"
    case .missingAt: "the address has no @domain"
    case .localPart: "the part before @ is not valid (unusual characters need quotes)"
    case .domain: "the domain is not valid"
    case .addressLiteral: "the address literal is not valid; write [192.0.2.1] or [IPv6:2001:db8::1]"
    case .unbalancedBrackets: "< and > do not match"
    case .sourceRoute: "the source route is not valid"
    case .controlCharacter: "the address contains a control character"
    case .invalidUTF8: "the address is not valid UTF-8"
    case .tooLong: "the address is too long (64 octets before @, 255 after, 254 together)"
    }
  }
}

/// A mailbox, `local-part@domain` (RFC 5321 4.1.2, RFC 6531 3.3); compares without regard to case.
public struct Mailbox: Hashable, Sendable, CustomStringConvertible {
  /// What stands before the `@`, with quotes and backslashes resolved.
  public let localPart: String
  /// A domain name or, with its brackets, an address literal.
  public let domain: String
  /// The address as it goes between `<` and `>`, quoted as little as possible.
  public let description: String
  /// The lowercased ``description``, which decides equality.
  public let canonical: String
  /// Whether the address has octets outside ASCII, so that only SMTPUTF8 can carry it.
  public let needsSMTPUTF8: Bool

  /// Parses `a@b`, `<a@b>` or `<@relay:a@b>`, whose source route is dropped (RFC 5321 appendix C).
  public init(parsing text: some StringProtocol) throws(AddressError) {
    try self.init(utf8: Array(text.utf8)[...])
  }

  /// Makes a mailbox from an unquoted local part and a domain, checked like parsed ones.
  public init(localPart: String, domain: String) throws(AddressError) {
    try self.init(localPart: Array(localPart.utf8)[...], domain: Array(domain.utf8)[...])
  }

  /// Parses octets that need not be UTF-8.
  init(utf8 bytes: ArraySlice<UInt8>) throws(AddressError) {
    var bytes = bytes
    if bytes.first == .lessThan {
      guard bytes.count >= 2, bytes.last == .greaterThan else { throw .unbalancedBrackets }
      bytes = bytes.dropFirst().dropLast()
      if bytes.first == .at { bytes = try Self.droppingRoute(bytes) }
    }
    guard !bytes.isEmpty else { throw .empty }
    let (local, end) = try Self.scanLocalPart(bytes)
    guard end < bytes.endIndex, bytes[end] == .at else {
      throw bytes[end...].contains(.at) ? .localPart : .missingAt
    }
    guard !local.isEmpty || bytes.first == .quote else { throw .localPart }
    try self.init(localPart: local[...], domain: bytes[(end + 1)...])
  }

  private init(localPart local: ArraySlice<UInt8>, domain: ArraySlice<UInt8>) throws(AddressError) {
    guard !domain.isEmpty else { throw .domain }
    let isQuoted = !Self.isDotString(local)
    guard
      let localText = String(validating: local, as: UTF8.self),
      let domainText = String(validating: domain, as: UTF8.self)
    else { throw .invalidUTF8 }
    guard !Self.hasControl(local), !Self.hasControl(domain) else { throw .controlCharacter }
    try Self.checkDomain(domain, text: domainText)
    var text = ""
    text.reserveCapacity(local.count + domain.count + 1)
    if isQuoted {
      var quoted: [UInt8] = [.quote]
      for byte in local {
        if byte == .quote || byte == .backslash { quoted.append(.backslash) }
        quoted.append(byte)
      }
      quoted.append(.quote)
      guard quoted.count <= 64 else { throw .tooLong }
      text += String(decoding: quoted, as: UTF8.self)
    } else {
      guard local.count <= 64 else { throw .tooLong }
      text += localText
    }
    text += "@"
    text += domainText
    guard domain.count <= 255, text.utf8.count <= 254 else { throw .tooLong }
    self.localPart = localText
    self.domain = domainText
    description = text
    needsSMTPUTF8 = text.utf8.contains { $0 >= 0x80 }
    // Most addresses are lowercase already; those share one storage.
    let isLower = !needsSMTPUTF8 && !text.utf8.contains { (0x41...0x5a).contains($0) }
    canonical = isLower ? text : text.lowercased()
  }

  public static func == (a: Self, b: Self) -> Bool { a.canonical == b.canonical }
  public func hash(into hasher: inout Hasher) { hasher.combine(canonical) }

  // MARK: - Grammar

  /// Reads a dot-string or a quoted-string; returns its meaning and where it ended.
  private static func scanLocalPart(_ bytes: ArraySlice<UInt8>) throws(AddressError) -> ([UInt8], Int) {
    var index = bytes.startIndex
    guard bytes.first == .quote else {
      while index < bytes.endIndex, isAtext(bytes[index]) || bytes[index] == .dot { index += 1 }
      let local = bytes[..<index]
      guard local.isEmpty || isDotString(local) else { throw .localPart }
      return (Array(local), index)
    }
    var value: [UInt8] = []
    index += 1
    while index < bytes.endIndex {
      var byte = bytes[index]
      if byte == .quote { return (value, index + 1) }
      if byte == .backslash {
        index += 1
        guard index < bytes.endIndex, bytes[index] < 0x7f else { throw .localPart }
        byte = bytes[index]
      }
      guard byte >= 0x20, byte != 0x7f else { throw .controlCharacter }
      value.append(byte)
      index += 1
    }
    throw .localPart
  }

  private static func droppingRoute(_ bytes: ArraySlice<UInt8>) throws(AddressError) -> ArraySlice<UInt8> {
    guard let colon = bytes.firstIndex(of: .colon) else { throw .sourceRoute }
    for hop in bytes[..<colon].split(separator: .comma, omittingEmptySubsequences: false) {
      guard hop.first == .at, let text = String(validating: hop.dropFirst(), as: UTF8.self) else { throw .sourceRoute }
      do { try checkDomain(hop.dropFirst(), text: text) } catch { throw .sourceRoute }
    }
    return bytes[(colon + 1)...]
  }

  private static func isDotString(_ bytes: ArraySlice<UInt8>) -> Bool {
    var previousIsDot = true
    for byte in bytes {
      if byte == .dot {
        if previousIsDot { return false }
        previousIsDot = true
      } else {
        guard isAtext(byte) else { return false }
        previousIsDot = false
      }
    }
    return !previousIsDot
  }

  private static func isAtext(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x41...0x5a, 0x61...0x7a, 0x80...: true
    case UInt8(ascii: "!"), 0x23...0x27, UInt8(ascii: "*"), UInt8(ascii: "+"), UInt8(ascii: "-"), UInt8(ascii: "/"):
      true
    case UInt8(ascii: "="), UInt8(ascii: "?"), 0x5e...0x60, 0x7b...0x7e: true
    default: false
    }
  }

  /// Also finds what acts as a control in Unicode: C1, LINE SEPARATOR and PARAGRAPH SEPARATOR.
  private static func hasControl(_ bytes: ArraySlice<UInt8>) -> Bool {
    for (index, byte) in zip(bytes.indices, bytes) {
      if byte < 0x20 || byte == 0x7f { return true }
      if byte == 0xc2, index + 1 < bytes.endIndex, bytes[index + 1] < 0xa0 { return true }
      if byte == 0xe2, index + 2 < bytes.endIndex, bytes[index + 1] == 0x80,
        bytes[index + 2] == 0xa8 || bytes[index + 2] == 0xa9
      {
        return true
      }
    }
    return false
  }

  /// Underscores pass: hosts that are named so do send mail, and nothing of ours depends on their absence.
  private static func checkDomain(_ bytes: ArraySlice<UInt8>, text: String) throws(AddressError) {
    if bytes.first == .bracketOpen {
      guard isAddressLiteral(text) else { throw .addressLiteral }
      return
    }
    for label in bytes.split(separator: .dot, omittingEmptySubsequences: false) {
      guard !label.isEmpty, label.count <= 63, label.first != .hyphen, label.last != .hyphen else { throw .domain }
      for byte in label {
        switch byte {
        case 0x30...0x39, 0x41...0x5a, 0x61...0x7a, 0x80..., .hyphen, UInt8(ascii: "_"): continue
        default: throw byte < 0x20 || byte == 0x7f ? .controlCharacter : .domain
        }
      }
    }
  }

  /// Whether `text` is `[192.0.2.1]` or `[IPv6:…]` (RFC 5321 4.1.3).
  static func isAddressLiteral(_ text: some StringProtocol) -> Bool {
    guard text.hasPrefix("["), text.hasSuffix("]"), text.utf8.count < 64 else { return false }
    let inner = text.dropFirst().dropLast()
    if inner.prefix(5).lowercased() == "ipv6:" {
      return inner.dropFirst(5).contains(":") && IPAddress(inner.dropFirst(5)) != nil
    }
    return IPAddress(inner)?.isIPv4 == true && !inner.contains(":")
  }
}

/// Whom failures are reported to: the argument of MAIL (RFC 5321 4.1.2).
public enum ReversePath: Hashable, Sendable {
  /// `<>`: the message is itself a report and must never cause one.
  case null
  case mailbox(Mailbox)

  /// Parses what ``text`` gives: empty for the null reverse-path, else a mailbox.
  public init(parsing text: some StringProtocol) throws(AddressError) {
    self = text.isEmpty ? .null : .mailbox(try Mailbox(parsing: text))
  }

  /// The path without `<>`; empty for the null reverse-path.
  public var text: String {
    switch self {
    case .null: ""
    case .mailbox(let mailbox): mailbox.description
    }
  }

  public var mailbox: Mailbox? {
    if case .mailbox(let mailbox) = self { mailbox } else { nil }
  }
}

/// Where a message goes: the argument of RCPT (RFC 5321 4.1.2).
public enum ForwardPath: Hashable, Sendable {
  case mailbox(Mailbox)
  /// `<postmaster>` without a domain, which every server must accept (RFC 5321 4.5.1).
  case postmaster

  /// Parses what ``text`` gives: `postmaster` in any case, or a mailbox.
  public init(parsing text: some StringProtocol) throws(AddressError) {
    self = text.lowercased() == "postmaster" ? .postmaster : .mailbox(try Mailbox(parsing: text))
  }

  /// The path without `<>`.
  public var text: String {
    switch self {
    case .mailbox(let mailbox): mailbox.description
    case .postmaster: "postmaster"
    }
  }
}
