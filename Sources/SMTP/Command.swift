// Commands as values, and the parser that makes them from a line.

/// A command of a client (RFC 5321 4.1.1, RFC 3030, 3207, 4954).
public enum Command: Hashable, Sendable {
  case ehlo(String)
  case helo(String)
  case mail(ReversePath, MailParameters)
  case rcpt(ForwardPath, RecipientParameters)
  case data
  case bdat(count: Int, last: Bool)
  case rset
  case noop
  case vrfy(String)
  case expn(String)
  case help
  case quit
  case startTLS
  /// The initial response is base64 text; "" for `=`, the empty response (RFC 4954 4).
  case auth(mechanism: String, initialResponse: String?)
}

/// A line that is not a command, with the reply that says why.
public struct CommandError: Error, Hashable, Sendable {
  public let reply: Reply
  /// Octets of unknown number follow the line, so that nothing behind it can be trusted to be a command.
  public let losesFraming: Bool

  init(_ code: Int, _ enhanced: String, _ text: String, losesFraming: Bool = false) {
    reply = Reply(code, enhanced, text)
    self.losesFraming = losesFraming
  }
}

extension Command {
  /// Parses a line without its CRLF.
  public init(parsing line: UnsafeRawBufferPointer) throws(CommandError) {
    var end = line.count
    while end > 0, line[end - 1] == .space || line[end - 1] == .tab { end -= 1 }
    var verbEnd = 0
    while verbEnd < end, line[verbEnd] != .space, line[verbEnd] != .tab { verbEnd += 1 }
    var start = verbEnd
    while start < end, line[start] == .space || line[start] == .tab { start += 1 }
    let verb = Verb(line.slice(0..<verbEnd))
    let argument = line.slice(start..<end)
    guard !argument.contains(where: { $0.isControl && $0 != .tab }) else {
      throw CommandError(501, "5.5.2", "Control characters are not allowed", losesFraming: verb == .bdat)
    }
    guard let verb else {
      if Self.isWebRequest(line.slice(0..<verbEnd)) {
        throw CommandError(554, "5.5.1", "This is an SMTP server, not a web server", losesFraming: true)
      }
      throw CommandError(500, "5.5.1", "Command not recognized")
    }
    let text = String(decoding: argument, as: UTF8.self)
    switch verb {
    case .ehlo: self = .ehlo(try Self.heloName(argument, text))
    case .helo: self = .helo(try Self.heloName(argument, text))
    case .mail: self = try Self.mail(argument)
    case .rcpt: self = try Self.rcpt(argument)
    case .data: self = try Self.bare(.data, argument)
    case .bdat: self = try Self.bdat(text)
    case .rset: self = try Self.bare(.rset, argument)
    case .noop: self = .noop
    case .vrfy: self = .vrfy(try Self.required(text))
    case .expn: self = .expn(try Self.required(text))
    case .help: self = .help
    case .quit: self = try Self.bare(.quit, argument)
    case .starttls: self = try Self.bare(.startTLS, argument)
    case .auth: self = try Self.auth(text)
    }
  }

  /// Parses a line given as text, for tests and tools.
  public init(parsing line: String) throws(CommandError) {
    let bytes = Array(line.utf8)
    let result: Result<Command, CommandError> = bytes.withUnsafeBytes { raw in
      do throws(CommandError) { return .success(try Command(parsing: raw)) } catch { return .failure(error) }
    }
    self = try result.get()
  }

  private enum Verb: String {
    case ehlo, helo, mail, rcpt, data, bdat, rset, noop, vrfy, expn, help, quit, starttls, auth

    /// Compares four octets at once: the verb is looked at for every line of every session.
    init?(_ bytes: UnsafeRawBufferPointer) {
      guard bytes.count == 4 else {
        guard bytes.count == 8, String(decoding: bytes, as: UTF8.self).lowercased() == "starttls" else { return nil }
        self = .starttls
        return
      }
      var word: UInt32 = 0
      for byte in bytes { word = word << 8 | UInt32(byte.uppercased) }
      switch word {
      case 0x4548_4c4f: self = .ehlo
      case 0x4845_4c4f: self = .helo
      case 0x4d41_494c: self = .mail
      case 0x5243_5054: self = .rcpt
      case 0x4441_5441: self = .data
      case 0x4244_4154: self = .bdat
      case 0x5253_4554: self = .rset
      case 0x4e4f_4f50: self = .noop
      case 0x5652_4659: self = .vrfy
      case 0x4558_504e: self = .expn
      case 0x4845_4c50: self = .help
      case 0x5155_4954: self = .quit
      case 0x4155_5448: self = .auth
      default: return nil
      }
    }
  }

  /// The methods of HTTP: a browser can be made to talk to any port of its network, and what it posts is another's
  /// text. Nothing behind such a line is read.
  private static func isWebRequest(_ verb: UnsafeRawBufferPointer) -> Bool {
    guard (3...7).contains(verb.count) else { return false }
    return ["GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE", "PRI"].contains(
      String(decoding: verb, as: UTF8.self).uppercased())
  }

  // MARK: - Arguments

  private static func bare(_ command: Command, _ argument: UnsafeRawBufferPointer) throws(CommandError) -> Command {
    guard argument.isEmpty else { throw CommandError(501, "5.5.4", "This command takes no parameter") }
    return command
  }

  private static func required(_ text: String) throws(CommandError) -> String {
    guard !text.isEmpty else { throw CommandError(501, "5.5.4", "This command needs a parameter") }
    return text
  }

  /// Clients name themselves in many wrong ways; only what could do harm in a header or a log is refused.
  private static func heloName(_ bytes: UnsafeRawBufferPointer, _ text: String) throws(CommandError) -> String {
    guard !bytes.isEmpty else { throw CommandError(501, "5.5.4", "Say who you are: a host name or [address]") }
    guard bytes.count <= 255, bytes.allSatisfy({ $0 > 0x20 && $0 < 0x7f }) else {
      throw CommandError(501, "5.5.2", "Not a host name or [address]")
    }
    return text
  }

  private static func bdat(_ text: String) throws(CommandError) -> Command {
    let words = text.split { $0 == " " || $0 == "\t" }
    guard words.count == 1 || words.count == 2, let count = parseDecimal(words[0].utf8) else {
      throw CommandError(501, "5.5.4", "Use BDAT <octets> [LAST]; closing, as data may follow", losesFraming: true)
    }
    guard words.count == 1 || words[1].uppercased() == "LAST" else {
      throw CommandError(501, "5.5.4", "Use BDAT <octets> [LAST]; closing, as data may follow", losesFraming: true)
    }
    return .bdat(count: count, last: words.count == 2)
  }

  private static func auth(_ text: String) throws(CommandError) -> Command {
    let words = text.split { $0 == " " || $0 == "\t" }
    guard words.count == 1 || words.count == 2, words[0].utf8.count <= 20 else {
      throw CommandError(501, "5.5.4", "Use AUTH <mechanism> [initial-response]")
    }
    let initial = words.count == 2 ? (words[1] == "=" ? "" : String(words[1])) : nil
    return .auth(mechanism: words[0].uppercased(), initialResponse: initial)
  }

  private static func mail(_ argument: UnsafeRawBufferPointer) throws(CommandError) -> Command {
    let (path, rest) = try splitPath(argument, keyword: "FROM")
    let parameters = try mailParameters(rest)
    if path.isEmpty { return .mail(.null, parameters) }
    let mailbox = try mailbox(path)
    guard !mailbox.needsSMTPUTF8 || parameters.smtpUTF8 else { throw needsSMTPUTF8 }
    return .mail(.mailbox(mailbox), parameters)
  }

  private static func rcpt(_ argument: UnsafeRawBufferPointer) throws(CommandError) -> Command {
    let (path, rest) = try splitPath(argument, keyword: "TO")
    let parameters = try recipientParameters(rest)
    guard !path.isEmpty else { throw CommandError(501, "5.1.3", "A recipient is needed between < and >") }
    if path.count == 10, String(decoding: path, as: UTF8.self).lowercased() == "postmaster" {
      return .rcpt(.postmaster, parameters)
    }
    return .rcpt(.mailbox(try mailbox(path)), parameters)
  }

  static let needsSMTPUTF8 = CommandError(553, "5.6.7", "This address needs the SMTPUTF8 parameter of MAIL")

  private static func mailbox(_ path: ArraySlice<UInt8>) throws(CommandError) -> Mailbox {
    do throws(AddressError) {
      // Brackets tell the mailbox parser that a source route may stand in front.
      return try Mailbox(utf8: ([.lessThan] + path + [.greaterThan])[...])
    } catch {
      throw CommandError(501, "5.1.3", "Bad address: \(error)")
    }
  }

  /// Splits `FROM:<path> parameters`; the path comes back without its brackets.
  private static func splitPath(
    _ argument: UnsafeRawBufferPointer, keyword: String
  ) throws(CommandError) -> (path: ArraySlice<UInt8>, parameters: ArraySlice<UInt8>) {
    let verb = keyword == "FROM" ? "MAIL FROM" : "RCPT TO"
    let bytes = Array(argument)
    var index = 0
    for byte in keyword.utf8 {
      guard index < bytes.count, bytes[index].uppercased == byte else {
        throw CommandError(501, "5.5.2", "Use \(verb):<address>")
      }
      index += 1
    }
    while index < bytes.count, bytes[index] == .space { index += 1 }
    guard index < bytes.count, bytes[index] == .colon else {
      throw CommandError(501, "5.5.2", "Use \(verb):<address>")
    }
    index += 1
    while index < bytes.count, bytes[index] == .space || bytes[index] == .tab { index += 1 }
    guard index < bytes.count, bytes[index] == .lessThan else {
      throw CommandError(501, "5.5.2", "Put the address between < and >: \(verb):<address>")
    }
    let start = index + 1
    var isQuoted = false
    index = start
    while index < bytes.count {
      let byte = bytes[index]
      if isQuoted, byte == .backslash { index += 1 } else if byte == .quote { isQuoted.toggle() }
      if !isQuoted, byte == .greaterThan { break }
      index += 1
    }
    guard index < bytes.count else { throw CommandError(501, "5.5.2", "The address has no closing >") }
    let rest = bytes[(index + 1)...]
    guard rest.isEmpty || rest.first == .space || rest.first == .tab else {
      throw CommandError(501, "5.5.2", "A blank must separate the address from its parameters")
    }
    return (bytes[start..<index], rest)
  }
}
