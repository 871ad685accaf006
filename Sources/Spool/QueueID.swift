// The name of a queued message: a number that only grows, written so that people can read it out to each other.

/// Names a message in the queue; later messages have greater identifiers.
///
/// The number is the arrival in microseconds since 1970, or one more than the last identifier where that is greater.
/// Its text has a fixed width of eleven characters and sorts like the number. It uses digits and consonants only
/// (no vowels: no words; no `l`: nothing that looks like `1`). Those are 30 signs, which reach the year 2531.
public struct QueueID: Hashable, Comparable, Sendable, LosslessStringConvertible {
  public let rawValue: UInt64

  /// - Parameter rawValue: only values up to ``maximum`` have a text that reads back.
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// Reads the text form; accepts capitals, `nil` for everything that is not exactly eleven of the signs.
  public init?(_ description: String) {
    let utf8 = description.utf8
    guard utf8.count == Self.width else { return nil }
    var value: UInt64 = 0
    for byte in utf8 {
      let lower = byte >= 0x41 && byte <= 0x5A ? byte | 0x20 : byte
      guard let digit = Self.signs.firstIndex(of: lower) else { return nil }
      value = value * Self.base + UInt64(digit)
    }
    rawValue = value
  }

  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }

  public var description: String {
    var value = min(rawValue, Self.maximum)
    return String(unsafeUninitializedCapacity: Self.width) { text in
      for place in stride(from: Self.width - 1, through: 0, by: -1) {
        text[place] = Self.signs[Int(value % Self.base)]
        value /= Self.base
      }
      return Self.width
    }
  }

  /// The greatest identifier that eleven signs can name.
  public static let maximum: UInt64 = 17_714_699_999_999_999

  private static let width = 11
  private static let base: UInt64 = 30
  private static let signs = Array("0123456789bcdfghjkmnpqrstvwxyz".utf8)
}
