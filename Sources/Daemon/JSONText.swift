// JSON for answers with many thousands of objects. A general encoder costs about as much for each object as reading the
// message does; here it is text put behind text.

/// Collects one JSON text.
struct JSONText {
  private(set) var bytes: [UInt8] = []
  private var needsComma = false

  init(capacity: Int = 0) { bytes.reserveCapacity(capacity) }

  mutating func raw(_ text: StaticString) { text.withUTF8Buffer { bytes.append(contentsOf: $0) } }

  mutating func append(_ byte: UInt8) { bytes.append(byte) }

  mutating func open(_ sign: Character) {
    separate()
    bytes.append(sign.asciiValue ?? 0)
    needsComma = false
  }

  mutating func close(_ sign: Character) {
    bytes.append(sign.asciiValue ?? 0)
    needsComma = true
  }

  /// Ends a line of JSON: the next value begins a text of its own.
  mutating func endLine() {
    bytes.append(0x0a)
    needsComma = false
  }

  private mutating func separate() {
    if needsComma { bytes.append(0x2c) }
    needsComma = true
  }

  mutating func key(_ name: StaticString) {
    separate()
    bytes.append(0x22)
    raw(name)
    bytes.append(0x22)
    bytes.append(0x3a)
    needsComma = false
  }

  mutating func field(_ name: StaticString, _ value: String) {
    key(name)
    string(value)
  }

  mutating func field(_ name: StaticString, _ value: Int) {
    key(name)
    number(value)
  }

  mutating func field(_ name: StaticString, _ values: [String]) {
    key(name)
    open("[")
    for value in values { string(value) }
    close("]")
  }

  mutating func number(_ value: Int) {
    separate()
    bytes.append(contentsOf: String(value).utf8)
  }

  mutating func string(_ text: String) {
    separate()
    bytes.append(0x22)
    for byte in text.utf8 {
      switch byte {
      case 0x22, 0x5c:
        bytes.append(0x5c)
        bytes.append(byte)
      case 0..<0x20:
        raw("\\u00")
        bytes.append(Self.digits[Int(byte >> 4)])
        bytes.append(Self.digits[Int(byte & 15)])
      default: bytes.append(byte)
      }
    }
    bytes.append(0x22)
  }

  private static let digits = Array("0123456789abcdef".utf8)
}
