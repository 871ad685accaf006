// The packets of the milter protocol, version 6, as sendmail and Postfix speak it: four octets of length, a letter, and
// what belongs to it. Octets in, values out, and the other way round; no I/O.

import Primitives
import SMTP

/// What a filter may do to a message (`SMFIF_…`).
public struct MilterActions: OptionSet, Hashable, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static let addHeaders = Self(rawValue: 0x01)
  public static let changeBody = Self(rawValue: 0x02)
  public static let addRecipients = Self(rawValue: 0x04)
  public static let deleteRecipients = Self(rawValue: 0x08)
  public static let changeHeaders = Self(rawValue: 0x10)
  public static let quarantine = Self(rawValue: 0x20)
  public static let changeSender = Self(rawValue: 0x40)
  public static let addRecipientsWithParameters = Self(rawValue: 0x80)
  /// All that is done here. Lists of macros (0x100) are not: every macro that is known is sent.
  public static let all = Self(rawValue: 0xff)
}

/// What a filter does not want to hear, or will not answer (`SMFIP_…`).
public struct MilterFlags: OptionSet, Hashable, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static let noConnect = Self(rawValue: 0x01)
  public static let noHelo = Self(rawValue: 0x02)
  public static let noMail = Self(rawValue: 0x04)
  public static let noRecipients = Self(rawValue: 0x08)
  public static let noBody = Self(rawValue: 0x10)
  public static let noHeaders = Self(rawValue: 0x20)
  public static let noEndOfHeaders = Self(rawValue: 0x40)
  public static let silentHeaders = Self(rawValue: 0x80)
  public static let noUnknown = Self(rawValue: 0x100)
  public static let noData = Self(rawValue: 0x200)
  /// It may say that it has seen enough of the body.
  public static let skip = Self(rawValue: 0x400)
  /// It wants refused recipients too, which it does not get here.
  public static let refusedRecipients = Self(rawValue: 0x800)
  public static let silentConnect = Self(rawValue: 0x1000)
  public static let silentHelo = Self(rawValue: 0x2000)
  public static let silentMail = Self(rawValue: 0x4000)
  public static let silentRecipients = Self(rawValue: 0x8000)
  public static let silentData = Self(rawValue: 0x1_0000)
  public static let silentUnknown = Self(rawValue: 0x2_0000)
  public static let silentEndOfHeaders = Self(rawValue: 0x4_0000)
  public static let silentBody = Self(rawValue: 0x8_0000)
  /// Values of header fields begin with the blank behind the colon, in both directions.
  public static let leadingSpace = Self(rawValue: 0x10_0000)
  public static let none: Self = []
  /// All that is honoured here.
  public static let all = Self(rawValue: 0x1f_ffff).subtracting(.refusedRecipients)
  /// What there was before version 6.
  static let old = Self(rawValue: 0x7f)
}

/// What this side says (`SMFIC_…`).
public enum MilterCommand: UInt8, Sendable, CaseIterable {
  case abort = 0x41  // A
  case body = 0x42  // B
  case connect = 0x43  // C
  case macros = 0x44  // D
  case endOfBody = 0x45  // E
  case helo = 0x48  // H
  case quitForNew = 0x4b  // K
  case header = 0x4c  // L
  case mail = 0x4d  // M
  case endOfHeaders = 0x4e  // N
  case negotiate = 0x4f  // O
  case quit = 0x51  // Q
  case recipient = 0x52  // R
  case data = 0x54  // T
}

/// What a filter says (`SMFIR_…`).
public enum MilterReply: Hashable, Sendable {
  case proceed
  case accept
  case reject
  case temporaryFailure
  case discard
  case skip
  case progress
  case connectionFailure
  case shutdown
  /// With a code from 400 to 599.
  case reply(Reply)
  case negotiation(version: UInt32, actions: MilterActions, flags: MilterFlags)
  case addHeader(name: [UInt8], value: [UInt8])
  case insertHeader(index: UInt32, name: [UInt8], value: [UInt8])
  /// The `index`th of that name, from 1; an empty value removes it.
  case changeHeader(index: UInt32, name: [UInt8], value: [UInt8])
  case addRecipient(String)
  case deleteRecipient(String)
  case changeSender(String)
  case replaceBody([UInt8])
  case quarantine(String)
}

/// Why something is not a packet of a filter.
public enum MilterFault: Error, Hashable, Sendable, CustomStringConvertible {
  case tooLong(UInt32)
  case empty
  case unknown(UInt8)
  case malformed(String)
  /// It is a packet, but not one that may come here.
  case unexpected(String)
  case version(UInt32)

  public var description: String {
    switch self {
    case .tooLong(let count): "it sent a packet of \(count) octets, which is too long for the milter protocol"
    case .empty: "it sent an empty packet"
    case .unknown(let code):
      "it sent a packet of the unknown kind 0x\(String(code, radix: 16)), which is not the milter protocol"
    case .malformed(let what): "it sent a malformed packet: \(what)"
    case .unexpected(let what): "it sent \(what) where that has no meaning"
    case .version(let version): "it speaks version \(version) of the milter protocol instead of 2 to 6"
    }
  }
}

public enum MilterCodec {
  public static let version: UInt32 = 6
  /// What libmilter takes in one packet.
  public static let chunkSize = 65_535
  /// What is taken from a filter in one packet: a chunk, its letter, and the numbers and names around it.
  public static let maximumReply = 65_535 + 1024

  // MARK: What is sent

  /// Appends a packet whose contents `body` appends.
  public static func frame(
    _ command: MilterCommand, into output: inout [UInt8], _ body: (inout [UInt8]) -> Void = { _ in }
  ) {
    let start = output.count
    output += [0, 0, 0, 0, command.rawValue]
    body(&output)
    let length = UInt32(output.count - start - 4)
    for i in 0..<4 { output[start + i] = UInt8(truncatingIfNeeded: length >> (24 - 8 * UInt32(i))) }
  }

  public static func negotiate(into output: inout [UInt8]) {
    frame(.negotiate, into: &output) { out in
      for number in [version, MilterActions.all.rawValue, MilterFlags.all.rawValue] { append(number, to: &out) }
    }
  }

  /// Macros belong to the command that follows. Names of one letter stand alone, longer ones in braces.
  public static func macros(
    for command: MilterCommand, _ macros: [(name: String, value: String)], into output: inout [UInt8]
  ) {
    guard !macros.isEmpty else { return }
    frame(.macros, into: &output) { out in
      out.append(command.rawValue)
      for (name, value) in macros {
        append(name.utf8.count == 1 ? name : "{\(name)}", to: &out)
        append(value, to: &out)
      }
    }
  }

  public static func connect(hostname: String, address: IPAddress, port: UInt16, into output: inout [UInt8]) {
    frame(.connect, into: &output) { out in
      append(hostname, to: &out)
      out.append(UInt8(ascii: address.isIPv4 ? "4" : "6"))
      out.append(UInt8(port >> 8))
      out.append(UInt8(port & 0xff))
      append("\(address)", to: &out)
    }
  }

  /// Of HELO, MAIL and RCPT: words that each end with NUL.
  public static func words(_ command: MilterCommand, _ words: [String], into output: inout [UInt8]) {
    frame(command, into: &output) { out in for word in words { append(word, to: &out) } }
  }

  /// A field whose value has line ends of LF alone. What does not fit into a packet is cut off.
  public static func header(name: [UInt8], value: [UInt8], into output: inout [UInt8]) {
    frame(.header, into: &output) { out in
      let name = name.prefix(1024)
      append(name, to: &out)
      append(value.prefix(chunkSize - 3 - name.count), to: &out)
    }
  }

  private static func append(_ number: UInt32, to output: inout [UInt8]) {
    for shift in [24, 16, 8, 0] { output.append(UInt8(truncatingIfNeeded: number >> UInt32(shift))) }
  }

  private static func append(_ text: String, to output: inout [UInt8]) { append(Array(text.utf8)[...], to: &output) }

  /// A NUL ends a text, so that none may stand inside.
  private static func append(_ text: ArraySlice<UInt8>, to output: inout [UInt8]) {
    output.append(contentsOf: text.contains(0) ? text.filter { $0 != 0 }[...] : text)
    output.append(0)
  }

  // MARK: What comes back

  /// Reads the packet that `bytes` begin with.
  /// - Returns: the packet and its length with the four octets; nil when it is not complete.
  public static func parse(_ bytes: UnsafeRawBufferPointer) throws(MilterFault) -> (reply: MilterReply, length: Int)? {
    guard bytes.count >= 4 else { return nil }
    let count = bytes[..<4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    guard count > 0 else { throw .empty }
    guard count <= maximumReply else { throw .tooLong(count) }
    let length = 4 + Int(count)
    // What is nonsense is told by its first letter, not waited for.
    if bytes.count > 4, !codes.contains(bytes[4]) { throw .unknown(bytes[4]) }
    guard bytes.count >= length else { return nil }
    return (try reply(bytes[4], Array(bytes[5..<length])), length)
  }

  private static let codes = Set("+-24abcdefhilmpqrsty0O".utf8).subtracting([UInt8(ascii: "0"), UInt8(ascii: "l")])

  private static func reply(_ code: UInt8, _ data: [UInt8]) throws(MilterFault) -> MilterReply {
    switch code {
    case UInt8(ascii: "c"): return .proceed
    case UInt8(ascii: "a"): return .accept
    case UInt8(ascii: "r"): return .reject
    case UInt8(ascii: "t"): return .temporaryFailure
    case UInt8(ascii: "d"): return .discard
    case UInt8(ascii: "s"): return .skip
    case UInt8(ascii: "p"): return .progress
    case UInt8(ascii: "f"): return .connectionFailure
    case UInt8(ascii: "4"): return .shutdown
    case UInt8(ascii: "b"): return .replaceBody(data)
    case UInt8(ascii: "y"): return .reply(try smtpReply(data))
    case UInt8(ascii: "O"):
      guard data.count >= 12 else { throw .malformed("the answer to the negotiation has \(data.count) octets") }
      return .negotiation(
        version: number(data, 0), actions: .init(rawValue: number(data, 4)), flags: .init(rawValue: number(data, 8)))
    case UInt8(ascii: "h"):
      let texts = try texts(data[...], atLeast: 2)
      return .addHeader(name: texts[0], value: texts[1])
    case UInt8(ascii: "i"), UInt8(ascii: "m"):
      guard data.count >= 4 else { throw .malformed("a change of the header without its index") }
      let texts = try texts(data[4...], atLeast: 2)
      let index = number(data, 0)
      return code == UInt8(ascii: "i")
        ? .insertHeader(index: index, name: texts[0], value: texts[1])
        : .changeHeader(index: index, name: texts[0], value: texts[1])
    case UInt8(ascii: "+"), UInt8(ascii: "2"): return .addRecipient(try text(data))
    case UInt8(ascii: "-"): return .deleteRecipient(try text(data))
    case UInt8(ascii: "e"): return .changeSender(try text(data))
    case UInt8(ascii: "q"): return .quarantine(try text(data))
    default: throw .unknown(code)
    }
  }

  private static func number(_ data: [UInt8], _ place: Int) -> UInt32 {
    data[place..<(place + 4)].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
  }

  /// Texts that each end with NUL.
  private static func texts(_ data: ArraySlice<UInt8>, atLeast count: Int) throws(MilterFault) -> [[UInt8]] {
    guard data.last == 0 else { throw .malformed("a text without its end") }
    let texts = data.dropLast().split(separator: 0, omittingEmptySubsequences: false).map { Array($0) }
    guard texts.count >= count else { throw .malformed("\(texts.count) texts instead of \(count)") }
    return texts
  }

  /// The first text. Parameters of MAIL and RCPT that may follow are not used.
  private static func text(_ data: [UInt8]) throws(MilterFault) -> String {
    guard let text = String(validating: try texts(data[...], atLeast: 1)[0], as: UTF8.self) else {
      throw .malformed("a text that is not UTF-8")
    }
    return text
  }

  /// `550 5.7.1 text`, or several lines `550-5.7.1 text` separated by CRLF. Codes other than 4xx and 5xx are refused:
  /// a filter may say no, but not that all is well.
  private static func smtpReply(_ data: [UInt8]) throws(MilterFault) -> Reply {
    let text = String(decoding: data.prefix { $0 != 0 }, as: UTF8.self)
    var code = 0
    var enhanced: EnhancedStatusCode?
    var lines: [String] = []
    for line in text.split(whereSeparator: { $0 == "\r\n" || $0 == "\n" || $0 == "\r" }).prefix(20) {
      let digits = line.prefix(3)
      guard digits.utf8.count == 3, digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let number = Int(digits),
        (400...599).contains(number), line.dropFirst(3).first.map({ $0 == " " || $0 == "-" }) ?? true
      else { throw .malformed("a reply that does not begin with a code from 400 to 599") }
      var rest = line.dropFirst(4)
      let word = rest.prefix { $0 != " " }
      if let status = EnhancedStatusCode(parsing: word), Int(status.class) == number / 100 {
        if enhanced == nil { enhanced = status }
        rest = rest.dropFirst(word.count + 1)
      }
      guard code == 0 || code == number else { throw .malformed("a reply with two codes") }
      code = number
      // As sendmail wants it written.
      lines.append(String(rest).replacing("%%", with: "%"))
    }
    guard code > 0 else { throw .malformed("a reply without a code") }
    return Reply(code: code, enhanced: enhanced, lines: lines)
  }
}
