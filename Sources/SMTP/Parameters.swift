// The parameters of MAIL and RCPT, as types.

/// What MAIL FROM said beside the reverse-path (RFC 1870, 6152, 6531, 4954, 3461).
public struct MailParameters: Hashable, Sendable {
  public enum Body: String, Hashable, Sendable {
    case sevenBit = "7BIT"
    case eightBitMIME = "8BITMIME"
  }

  /// How much of the message a failure report returns (RFC 3461 4.3).
  public enum Return: String, Hashable, Sendable {
    case full = "FULL"
    case headers = "HDRS"
  }

  /// The octets the client announces.
  public var size: Int?
  public var body: Body?
  public var smtpUTF8 = false
  /// The value of AUTH=, decoded; `<>` for unknown.
  public var auth: String?
  public var ret: Return?
  /// The value of ENVID=, decoded.
  public var envelopeID: String?

  public init() {}

  public var usesDSN: Bool { ret != nil || envelopeID != nil }
  var usesExtensions: Bool { self != MailParameters() }
}

/// What RCPT TO said beside the forward-path (RFC 3461 4.1, 4.2).
public struct RecipientParameters: Hashable, Sendable {
  public struct Notify: OptionSet, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    public static let success = Notify(rawValue: 1)
    public static let failure = Notify(rawValue: 2)
    public static let delay = Notify(rawValue: 4)
    /// NOTIFY=NEVER: no report whatever happens.
    public static let never: Notify = []

    /// The value as NOTIFY= takes it.
    public var text: String {
      if isEmpty { return "NEVER" }
      var words: [String] = []
      if contains(.success) { words.append("SUCCESS") }
      if contains(.failure) { words.append("FAILURE") }
      if contains(.delay) { words.append("DELAY") }
      return words.joined(separator: ",")
    }
  }

  public struct OriginalRecipient: Hashable, Sendable {
    /// `rfc822` or `utf-8`, as written.
    public var addressType: String
    /// The address, decoded.
    public var address: String

    public init(addressType: String, address: String) {
      self.addressType = addressType
      self.address = address
    }

    /// Whether a text can stand for the type: an atom (RFC 3461 4.2), and none with the sign that ends a keyword.
    public static func isAddressType(_ text: some StringProtocol) -> Bool {
      !text.isEmpty
        && text.utf8.allSatisfy { byte in
          byte.isDigit || (0x41...0x5a).contains(byte.uppercased) || "!#$%&'*+-/?^_`{|}~".utf8.contains(byte)
        }
    }
  }

  /// nil when NOTIFY was not given: report failures and, if configured so, delays.
  public var notify: Notify?
  public var originalRecipient: OriginalRecipient?

  public init() {}

  public init(notify: Notify?, originalRecipient: OriginalRecipient?) {
    self.notify = notify
    self.originalRecipient = originalRecipient
  }

  public var usesDSN: Bool { notify != nil || originalRecipient != nil }
}

/// The encoding of ENVID, ORCPT and AUTH values (RFC 3461 4).
public enum XText {
  /// Encodes UTF-8 octets; everything but printable ASCII, `+` and `=` becomes `+HH`.
  public static func encode(_ text: String) -> String {
    var out: [UInt8] = []
    let digits = Array("0123456789ABCDEF".utf8)
    for byte in text.utf8 {
      if byte > 0x20, byte < 0x7f, byte != .plus, byte != .equals {
        out.append(byte)
      } else {
        out.append(.plus)
        out.append(digits[Int(byte >> 4)])
        out.append(digits[Int(byte & 15)])
      }
    }
    return String(decoding: out, as: UTF8.self)
  }

  /// Decodes, or returns nil for what is not xtext, not UTF-8, or contains control characters.
  public static func decode(_ text: some StringProtocol) -> String? {
    var out: [UInt8] = []
    var bytes = text.utf8.makeIterator()
    while let byte = bytes.next() {
      if byte == .plus {
        guard let high = bytes.next().flatMap(hex), let low = bytes.next().flatMap(hex) else { return nil }
        out.append(high << 4 | low)
      } else {
        guard byte > 0x20, byte != 0x7f, byte != .equals else { return nil }
        out.append(byte)
      }
    }
    guard !out.contains(where: \.isControl) else { return nil }
    return String(validating: out, as: UTF8.self)
  }

  private static func hex(_ byte: UInt8) -> UInt8? {
    switch byte {
    case 0x30...0x39: byte - 0x30
    case 0x41...0x46: byte - 0x41 + 10
    case 0x61...0x66: byte - 0x61 + 10
    default: nil
    }
  }
}
