// The header of a message looked at in place: ranges into the octets, nothing copied until a value is asked for.

#if canImport(Glibc)
  import Glibc
#endif

/// A header field as offsets into the message.
public struct HeaderField: Hashable, Sendable {
  /// The name, without the colon and blanks before it.
  public let name: Range<Int>
  /// Everything behind the colon up to the line end of the last folded line, without that line end.
  public let value: Range<Int>
  /// The whole field, its line ends included.
  public let field: Range<Int>
}

/// The header section of a message (RFC 5322 2.2), read as tolerantly as mail requires.
///
/// A line that is neither a field nor a continuation is passed over; line ends may be CRLF or LF. The view is as
/// short-lived as the buffer it points into.
public struct HeaderView {
  private let bytes: UnsafeRawBufferPointer
  public let fields: [HeaderField]
  /// Where the body begins; the length of the message when it has no body.
  public let bodyStart: Int
  /// Lines in the header that are not fields.
  public let malformedLineCount: Int

  public init(_ bytes: UnsafeRawBufferPointer) {
    self.bytes = bytes
    var fields: [HeaderField] = []
    fields.reserveCapacity(24)
    var malformed = 0
    var index = 0
    var open: (start: Int, name: Range<Int>, valueStart: Int, valueEnd: Int, end: Int)?
    var body = bytes.count

    while index < bytes.count {
      let feed = Self.offset(in: bytes, of: 0x0a, from: index, to: bytes.count)
      let next = feed.map { $0 + 1 } ?? bytes.count
      var end = feed ?? bytes.count
      if end > index, bytes[end - 1] == 0x0d { end -= 1 }
      if end == index {
        body = next
        break
      }
      if bytes[index] == 0x20 || bytes[index] == 0x09 {
        if open != nil {
          open?.valueEnd = end
          open?.end = next
        } else {
          malformed += 1
        }
        index = next
        continue
      }
      if let field = open {
        fields.append(
          HeaderField(name: field.name, value: field.valueStart..<field.valueEnd, field: field.start..<field.end))
        open = nil
      }
      if let name = Self.fieldName(in: bytes, index..<end) {
        open = (index, index..<name.end, name.colon + 1, end, next)
      } else {
        malformed += 1
      }
      index = next
    }
    if let field = open {
      fields.append(
        HeaderField(name: field.name, value: field.valueStart..<field.valueEnd, field: field.start..<field.end))
    }
    self.fields = fields
    bodyStart = body
    malformedLineCount = malformed
  }

  private static func offset(in bytes: UnsafeRawBufferPointer, of byte: UInt8, from start: Int, to end: Int) -> Int? {
    guard start < end, let base = bytes.baseAddress, let hit = memchr(base + start, Int32(byte), end - start) else {
      return nil
    }
    return UnsafeRawPointer(hit) - base
  }

  private static func fieldName(
    in bytes: UnsafeRawBufferPointer, _ line: Range<Int>
  ) -> (end: Int, colon: Int)? {
    var index = line.lowerBound
    while index < line.upperBound, bytes[index] > 0x20, bytes[index] < 0x7f, bytes[index] != 0x3a { index += 1 }
    let end = index
    // Blanks before the colon are obsolete (RFC 5322 4.5) but seen.
    while index < line.upperBound, bytes[index] == 0x20 || bytes[index] == 0x09 { index += 1 }
    guard end > line.lowerBound, index < line.upperBound, bytes[index] == 0x3a else { return nil }
    return (end, index)
  }

  // MARK: - Fields

  /// Whether `field` has that name, whatever its case.
  public func isNamed(_ field: HeaderField, _ name: StaticString) -> Bool {
    guard field.name.count == name.utf8CodeUnitCount else { return false }
    let start = name.utf8Start
    for (offset, index) in field.name.enumerated() where Self.lower(bytes[index]) != Self.lower(start[offset]) {
      return false
    }
    return true
  }

  private static func lower(_ byte: UInt8) -> UInt8 { byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte }

  public func name(of field: HeaderField) -> String {
    String(decoding: UnsafeRawBufferPointer(rebasing: bytes[field.name]), as: UTF8.self)
  }

  /// The value on one line (RFC 5322 2.2.3): line ends removed, outer blanks too.
  public func unfoldedValue(of field: HeaderField) -> String {
    var out: [UInt8] = []
    out.reserveCapacity(field.value.count)
    for index in field.value where bytes[index] != 0x0d && bytes[index] != 0x0a { out.append(bytes[index]) }
    while let last = out.last, last == 0x20 || last == 0x09 { out.removeLast() }
    let start = out.firstIndex { $0 != 0x20 && $0 != 0x09 } ?? out.endIndex
    return String(decoding: out[start...], as: UTF8.self)
  }

  public func first(_ name: StaticString) -> HeaderField? { fields.first { isNamed($0, name) } }

  public func hasHeader(_ name: StaticString) -> Bool { first(name) != nil }

  /// The unfolded value of the first field of that name.
  public func value(_ name: StaticString) -> String? { first(name).map { unfoldedValue(of: $0) } }

  public func all(_ name: StaticString) -> [HeaderField] { fields.filter { isNamed($0, name) } }

  public func count(_ name: StaticString) -> Int {
    fields.reduce(0) { $0 + (isNamed($1, name) ? 1 : 0) }
  }

  public var receivedCount: Int { count("Received") }

  /// The octets of the header without the empty line that ends it.
  public var headerRange: Range<Int> { 0..<(fields.last?.field.upperBound ?? 0) }
}
