// The words of the configuration as typed values. Each reader returns nil for a word it does not understand, and
// says what it wants.

import Primitives

struct ValueKind<Value: Sendable>: Sendable {
  /// Completes "must be …".
  let wanted: String
  let read: @Sendable (String) -> Value?
}

enum Values {
  static let boolean = ValueKind(wanted: "true or false (or yes, no, on, off)") { word -> Bool? in
    switch word.lowercased() {
    case "true", "yes", "on": true
    case "false", "no", "off": false
    default: nil
    }
  }

  static func integer(_ range: ClosedRange<Int>) -> ValueKind<Int> {
    ValueKind(wanted: "a number from \(range.lowerBound) to \(range.upperBound)") { word in
      Int(word).flatMap { range.contains($0) ? $0 : nil }
    }
  }

  static let size = ValueKind(wanted: "a size in octets, such as 35882577 or 25M") { word -> Int? in
    let units: [Character: Int] = ["K": 1 << 10, "M": 1 << 20, "G": 1 << 30]
    guard let last = word.last else { return nil }
    let factor = units[Character(last.uppercased())]
    guard let number = Int(factor == nil ? word : String(word.dropLast())), number > 0 else { return nil }
    let (product, overflow) = number.multipliedReportingOverflow(by: factor ?? 1)
    return overflow ? nil : product
  }

  static func duration(atLeast minimum: Duration = .zero) -> ValueKind<Duration> {
    ValueKind(wanted: "a duration, such as 30, 30s, 5m, 4h or 5d\(minimum > .zero ? ", at least 1 second" : "")") {
      duration(of: $0).flatMap { $0 >= minimum ? $0 : nil }
    }
  }

  private static func duration(of word: String) -> Duration? {
    let units: [Character: Int64] = ["s": 1, "m": 60, "h": 3600, "d": 86_400]
    guard let last = word.last else { return nil }
    let factor = units[last]
    guard let number = Int64(factor == nil ? word : String(word.dropLast())), number >= 0, number <= 1_000_000_000 else {
      return nil
    }
    return .seconds(number * (factor ?? 1))
  }

  static let durations = ValueKind(wanted: "durations separated by commas, such as 1m, 5m, 1h") { word -> [Duration]? in
    let parts = list(of: word)
    let values = parts.compactMap { duration(of: $0).flatMap { $0 > .zero ? $0 : nil } }
    return values.isEmpty || values.count != parts.count ? nil : values
  }

  static let endpoints = ValueKind(
    wanted: "addresses with ports separated by commas, such as 0.0.0.0:25, [::]:25"
  ) { word -> [Endpoint]? in
    let parts = list(of: word)
    let values = parts.compactMap { Endpoint($0) }
    return values.isEmpty || values.count != parts.count ? nil : values
  }

  static let networks = ValueKind(wanted: "networks separated by commas, such as 127.0.0.0/8, ::1") {
    word -> [IPNetwork]? in
    let parts = list(of: word)
    let values = parts.compactMap { IPNetwork($0) }
    return values.count != parts.count ? nil : values
  }

  static let text = ValueKind(wanted: "a text") { word -> String? in word.isEmpty ? nil : word }
  static let texts = ValueKind(wanted: "a list separated by commas") { word -> [String]? in list(of: word) }

  static let hostname = ValueKind(wanted: "a host name, such as mailer.example.com") { word -> String? in
    let labels = word.split(separator: ".", omittingEmptySubsequences: false)
    let isName = labels.allSatisfy { label in
      !label.isEmpty && label.utf8.count <= 63 && !label.hasPrefix("-")
        && label.utf8.allSatisfy { (0x30...0x39).contains($0) || (0x61...0x7a).contains($0 | 0x20) || $0 == 0x2d || $0 == 0x5f }
    }
    return isName && word.utf8.count <= 253 ? word : nil
  }

  static func choice<Value: RawRepresentable & CaseIterable & Sendable>(_ type: Value.Type) -> ValueKind<Value>
  where Value.RawValue == String {
    let words = Value.allCases.map(\.rawValue)
    return ValueKind(wanted: "one of \(words.joined(separator: ", "))") { word in
      Value.allCases.first { $0.rawValue.lowercased() == word.lowercased() }
    }
  }

  static func list(of word: String) -> [String] {
    word.split(separator: ",").map { INI.trim(String($0)) }.filter { !$0.isEmpty }
  }
}
