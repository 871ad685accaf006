// What a server offers, read from its reply to EHLO.

/// The service extensions of an upstream (RFC 5321 4.1.1.1).
public struct Capabilities: Hashable, Sendable {
  /// The largest message in octets (RFC 1870); nil when the server states none.
  public var size: Int?
  public var eightBitMIME = false
  public var smtpUTF8 = false
  public var pipelining = false
  public var chunking = false
  public var enhancedStatusCodes = false
  public var startTLS = false
  public var dsn = false
  /// SASL mechanisms in capitals.
  public var authMechanisms: Set<String> = []

  /// Nothing offered: what a server that only knows HELO can do.
  public init() {}

  /// Reads the lines behind the greeting of a reply to EHLO; unknown keywords are passed over.
  public init(ehlo reply: Reply) {
    for line in reply.lines.dropFirst() {
      let words = line.split { $0 == " " || $0 == "\t" }
      guard let keyword = words.first?.uppercased() else { continue }
      switch keyword {
      case "SIZE":
        // "SIZE 0" means that no fixed limit is in force (RFC 1870 4).
        if words.count > 1, let limit = Int(words[1]), limit > 0 { size = limit }
      case "8BITMIME": eightBitMIME = true
      case "SMTPUTF8": smtpUTF8 = true
      case "PIPELINING": pipelining = true
      case "CHUNKING": chunking = true
      case "ENHANCEDSTATUSCODES": enhancedStatusCodes = true
      case "STARTTLS": startTLS = true
      case "DSN": dsn = true
      case "AUTH": for word in words.dropFirst() { authMechanisms.insert(word.uppercased()) }
      default:
        // The form of before RFC 2554, which some servers still print beside the right one.
        if keyword.hasPrefix("AUTH=") {
          authMechanisms.insert(String(keyword.dropFirst(5)))
          for word in words.dropFirst() { authMechanisms.insert(word.uppercased()) }
        }
      }
    }
  }
}
