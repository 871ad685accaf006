// The names in the JSON of a message: one that is misspelt must not be passed over, because what it was to say ("held")
// would not be heeded, and the mail would be gone.

import Configuration
import FoundationEssentials

extension MessageDocument {
  private static let names = [
    "format", "id", "arrival", "sender", "account", "recipients", "client", "helo", "eight_bit_mime", "smtp_utf8",
    "envid", "ret", "held", "dead", "delay_reported", "lanes", "life", "content",
  ]
  private static let namesWithin = [
    "recipients": ["address", "original", "account", "state", "reply", "notify", "orcpt"],
    "lanes": ["account", "attempts", "next_attempt", "last_reply", "in_doubt"],
    "life": ["time", "event", "account", "text"],
    "content": ["octets", "crc32c"],
  ]

  /// Refuses names that a document of this format does not have. A text that is no JSON is left to others.
  static func checkNames(_ json: Data) throws(Malformed) {
    struct Version: Decodable { var format: Int? }
    let decoder = JSONDecoder()
    // That a later release wrote it is the better thing to say.
    if let format = (try? decoder.decode(Version.self, from: json))?.format, format != 1 { return }
    guard case .object(let members)? = try? decoder.decode(JSONShape.self, from: json) else { return }
    try check(members.map(\.name), among: names, "")
    for (name, value) in members {
      guard let known = namesWithin[name] else { continue }
      let parts: [JSONShape] = if case .list(let parts) = value { parts } else { [value] }
      for case .object(let inner) in parts { try check(inner.map(\.name), among: known, " in \(name)") }
    }
  }

  private static func check(_ found: [String], among known: [String], _ place: String) throws(Malformed) {
    guard let unknown = found.filter({ !known.contains($0) }).min() else { return }
    throw Malformed(
      description:
        "unknown key \(unknown.debugDescription)\(place)\(suggestion(for: unknown, among: known, noun: "keys"))")
  }
}

/// The names in a JSON text, with what stands below them.
private enum JSONShape: Decodable {
  case object([(name: String, value: JSONShape)])
  case list([JSONShape])
  case value

  private struct Name: CodingKey {
    var stringValue: String
    var intValue: Int? { nil }
    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
  }

  init(from decoder: any Decoder) throws {
    if let values = try? decoder.container(keyedBy: Name.self) {
      self = .object(values.allKeys.map { ($0.stringValue, (try? values.decode(Self.self, forKey: $0)) ?? .value) })
    } else if var values = try? decoder.unkeyedContainer() {
      var parts: [JSONShape] = []
      while !values.isAtEnd {
        if try values.decodeNil() { continue }
        parts.append(try values.decode(Self.self))
      }
      self = .list(parts)
    } else {
      self = .value
    }
  }
}
