// Parsing of what follows the path in MAIL and RCPT: keyword=value pairs (RFC 5321 4.1.2, esmtp-param).

extension Command {
  static func mailParameters(_ rest: ArraySlice<UInt8>) throws(CommandError) -> MailParameters {
    var parameters = MailParameters()
    var seen: Set<String> = []
    for (keyword, value) in try pairs(rest, seen: &seen) {
      switch keyword {
      case "SIZE":
        guard let value, let size = parseDecimal(value.utf8) else { throw bad(keyword) }
        parameters.size = size
      case "BODY":
        guard let value else { throw bad(keyword) }
        switch value.uppercased() {
        case "7BIT": parameters.body = .sevenBit
        case "8BITMIME": parameters.body = .eightBitMIME
        // BINARYMIME is not offered: content without line ends could not be handed to most servers.
        case "BINARYMIME": throw CommandError(504, "5.5.4", "BODY=BINARYMIME is not supported")
        default: throw bad(keyword)
        }
      case "SMTPUTF8":
        guard value == nil else { throw bad(keyword) }
        parameters.smtpUTF8 = true
      case "AUTH":
        guard let value, let decoded = XText.decode(value) else { throw bad(keyword) }
        parameters.auth = decoded
      case "RET":
        guard let ret = value.flatMap({ MailParameters.Return(rawValue: $0.uppercased()) }) else { throw bad(keyword) }
        parameters.ret = ret
      case "ENVID":
        // Printable US-ASCII, before the encoding as behind it (RFC 3461 4.4).
        guard let value, !value.isEmpty, value.utf8.count <= 100, let decoded = XText.decode(value),
          decoded.utf8.allSatisfy({ $0 < 0x80 })
        else { throw CommandError(501, "5.5.4", "Bad value of parameter ENVID: it takes printable ASCII, as xtext") }
        parameters.envelopeID = decoded
      default: throw unknown(keyword)
      }
    }
    return parameters
  }

  static func recipientParameters(_ rest: ArraySlice<UInt8>) throws(CommandError) -> RecipientParameters {
    var parameters = RecipientParameters()
    var seen: Set<String> = []
    for (keyword, value) in try pairs(rest, seen: &seen) {
      switch keyword {
      case "NOTIFY":
        guard let value, let notify = notify(value) else { throw bad(keyword) }
        parameters.notify = notify
      case "ORCPT":
        guard let value, value.utf8.count <= 500, let semicolon = value.firstIndex(of: ";"),
          RecipientParameters.OriginalRecipient.isAddressType(value[..<semicolon]),
          let address = XText.decode(value[value.index(after: semicolon)...]), !address.isEmpty
        else { throw bad(keyword) }
        parameters.originalRecipient = .init(addressType: String(value[..<semicolon]), address: address)
      default: throw unknown(keyword)
      }
    }
    return parameters
  }

  private static func notify(_ value: String) -> RecipientParameters.Notify? {
    if value.uppercased() == "NEVER" { return .never }
    var notify: RecipientParameters.Notify = []
    for word in value.uppercased().split(separator: ",", omittingEmptySubsequences: false) {
      switch word {
      case "SUCCESS": notify.insert(.success)
      case "FAILURE": notify.insert(.failure)
      case "DELAY": notify.insert(.delay)
      default: return nil
      }
    }
    return notify
  }

  private static func pairs(
    _ rest: ArraySlice<UInt8>, seen: inout Set<String>
  ) throws(CommandError) -> [(keyword: String, value: String?)] {
    guard !rest.isEmpty else { return [] }
    var pairs: [(String, String?)] = []
    for word in rest.split(whereSeparator: { $0 == .space || $0 == .tab }) {
      let parts = word.split(separator: .equals, maxSplits: 1, omittingEmptySubsequences: false)
      let name = parts[0]
      guard !name.isEmpty, name.first != .hyphen,
        name.allSatisfy({ $0.isDigit || $0 == .hyphen || (0x41...0x5a).contains($0.uppercased) })
      else { throw CommandError(501, "5.5.4", "Malformed parameter") }
      let keyword = String(decoding: name, as: UTF8.self).uppercased()
      guard seen.insert(keyword).inserted else { throw CommandError(501, "5.5.4", "Parameter \(keyword) given twice") }
      guard parts.count == 2 else {
        pairs.append((keyword, nil))
        continue
      }
      guard !parts[1].isEmpty, let value = String(validating: parts[1], as: UTF8.self) else { throw bad(keyword) }
      pairs.append((keyword, value))
    }
    return pairs
  }

  private static func bad(_ keyword: String) -> CommandError {
    CommandError(501, "5.5.4", "Bad value of parameter \(keyword)")
  }

  private static func unknown(_ keyword: String) -> CommandError {
    CommandError(555, "5.5.4", "Parameter \(keyword.prefix(40)) is not supported")
  }
}
