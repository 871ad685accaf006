// The octets this protocol is made of, by name, and the few operations that every parser here shares.

#if canImport(Glibc)
  import Glibc
#endif

extension UInt8 {
  static let tab: UInt8 = 0x09
  static let lineFeed: UInt8 = 0x0a
  static let carriageReturn: UInt8 = 0x0d
  static let space: UInt8 = 0x20
  static let quote: UInt8 = 0x22
  static let plus: UInt8 = 0x2b
  static let comma: UInt8 = 0x2c
  static let hyphen: UInt8 = 0x2d
  static let dot: UInt8 = 0x2e
  static let colon: UInt8 = 0x3a
  static let semicolon: UInt8 = 0x3b
  static let lessThan: UInt8 = 0x3c
  static let equals: UInt8 = 0x3d
  static let greaterThan: UInt8 = 0x3e
  static let at: UInt8 = 0x40
  static let bracketOpen: UInt8 = 0x5b
  static let backslash: UInt8 = 0x5c

  var isDigit: Bool { self >= 0x30 && self <= 0x39 }
  var isControl: Bool { self < 0x20 || self == 0x7f }
  var uppercased: UInt8 { self >= 0x61 && self <= 0x7a ? self & 0xdf : self }
}

extension UnsafeRawBufferPointer {
  /// The offset of the first `byte` in `range`.
  @inline(__always)
  func offset(of byte: UInt8, from start: Int, to end: Int) -> Int? {
    guard start < end, let base = baseAddress, let hit = memchr(base + start, Int32(byte), end - start) else {
      return nil
    }
    return UnsafeRawPointer(hit) - base
  }

  func slice(_ range: Range<Int>) -> UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: self[range]) }
}

extension [UInt8] {
  @inline(__always)
  mutating func append(_ input: UnsafeRawBufferPointer, _ range: Range<Int>) {
    if !range.isEmpty { append(contentsOf: UnsafeRawBufferPointer(rebasing: input[range])) }
  }

  /// Appends the decimal digits of a number that is not negative.
  mutating func append(decimal value: Int) {
    if value >= 10 { append(decimal: value / 10) }
    append(UInt8(0x30 + value % 10))
  }

  static var crlf: [UInt8] { [.carriageReturn, .lineFeed] }
}

/// Parses an unsigned decimal number of at most 18 digits; no sign, no blanks.
func parseDecimal(_ digits: some Collection<UInt8>) -> Int? {
  guard !digits.isEmpty, digits.count <= 20 else { return nil }
  var value = 0
  for digit in digits {
    guard digit.isDigit else { return nil }
    let (scaled, o1) = value.multipliedReportingOverflow(by: 10)
    let (sum, o2) = scaled.addingReportingOverflow(Int(digit - 0x30))
    guard !o1, !o2 else { return nil }
    value = sum
  }
  return value
}
