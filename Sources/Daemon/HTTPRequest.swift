// The head of a request as the daemon understands it: a method, a target and how long the body is (RFC 9112).

/// A request without its body.
struct HTTPRequest: Sendable {
  var method: String
  /// Without the query, its percent-encoding undone.
  var path: String
  /// In the order in which it was written; a name may come twice.
  var query: [(name: String, value: String)] = []
  /// The octets of the body.
  var contentLength = 0
  /// Whether the client waits for `100 Continue` before it sends the body.
  var expectsContinue = false

  /// Why a request is not answered.
  struct Refusal: Error, Sendable, Equatable {
    var status: Int
    var text: String

    static let malformed = Refusal(status: 400, text: "this is no request of HTTP/1.1")
    static let tooLarge = Refusal(status: 431, text: "the head of the request is too large")
  }

  /// - Parameter head: all lines of the head, without the empty one at its end.
  init(head: [UInt8]) throws(Refusal) {
    var lines = head.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).map { line in
      line.last == UInt8(ascii: "\r") ? line.dropLast() : line
    }[...]
    guard let first = lines.popFirst() else { throw .malformed }
    let words = first.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
    guard words.count == 3, !words[0].isEmpty, words[1].first == UInt8(ascii: "/"),
      words[2].starts(with: Array("HTTP/1.".utf8))
    else { throw .malformed }
    method = String(decoding: words[0], as: UTF8.self)
    let parts = words[1].split(separator: UInt8(ascii: "?"), maxSplits: 1, omittingEmptySubsequences: false)
    path = try Self.decoded(parts[0])
    if parts.count == 2 {
      for pair in parts[1].split(separator: UInt8(ascii: "&")) {
        let sides = pair.split(separator: UInt8(ascii: "="), maxSplits: 1, omittingEmptySubsequences: false)
        query.append((try Self.decoded(sides[0]), sides.count == 2 ? try Self.decoded(sides[1]) : ""))
      }
    }
    try readFields(lines)
  }

  private mutating func readFields(_ lines: ArraySlice<ArraySlice<UInt8>>) throws(Refusal) {
    var length: Int?
    for line in lines where !line.isEmpty {
      guard let colon = line.firstIndex(of: UInt8(ascii: ":")), colon > line.startIndex else { throw .malformed }
      let name = String(decoding: line[..<colon], as: UTF8.self).lowercased()
      let value = String(decoding: line[line.index(after: colon)...], as: UTF8.self)
        .split(separator: " ").joined(separator: " ")
      switch name {
      case "content-length":
        guard length == nil, !value.isEmpty, value.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), let count = Int(value)
        else { throw .malformed }
        length = count
      case "transfer-encoding":
        throw Refusal(status: 411, text: "send the body with its Content-Length and without a Transfer-Encoding")
      case "expect": expectsContinue = value.lowercased() == "100-continue"
      default: break
      }
    }
    contentLength = length ?? 0
  }

  /// Undoes the percent-encoding (RFC 3986 2.1); `+` is itself.
  private static func decoded(_ text: ArraySlice<UInt8>) throws(Refusal) -> String {
    var bytes: [UInt8] = []
    var rest = text
    while let byte = rest.popFirst() {
      guard byte == UInt8(ascii: "%") else {
        bytes.append(byte)
        continue
      }
      let digits = rest.prefix(2)
      guard digits.count == 2, digits.allSatisfy({ Character(UnicodeScalar($0)).isHexDigit }),
        let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 16)
      else { throw .malformed }
      bytes.append(value)
      rest = rest.dropFirst(2)
    }
    guard let text = String(validating: bytes, as: UTF8.self) else { throw .malformed }
    return text
  }
}
