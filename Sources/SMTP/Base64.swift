// Base64 (RFC 4648 4), for SASL and for MIME.

public enum Base64 {
  private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)

  /// Appends the encoding of `input`, padded, without line ends.
  public static func encode(_ input: some Collection<UInt8>, into output: inout [UInt8]) {
    output.reserveCapacity(output.count + (input.count + 2) / 3 * 4)
    var group: UInt32 = 0
    var held = 0
    for byte in input {
      group = group << 8 | UInt32(byte)
      held += 1
      if held == 3 {
        append(group, digits: 4, to: &output)
        group = 0
        held = 0
      }
    }
    if held > 0 {
      append(group << UInt32(8 * (3 - held)), digits: held + 1, to: &output)
      for _ in held..<3 { output.append(.equals) }
    }
  }

  public static func encode(_ input: some Collection<UInt8>) -> String {
    var output: [UInt8] = []
    encode(input, into: &output)
    return String(decoding: output, as: UTF8.self)
  }

  private static func append(_ group: UInt32, digits: Int, to output: inout [UInt8]) {
    for digit in 0..<digits { output.append(alphabet[Int(group >> UInt32(18 - 6 * digit) & 63)]) }
  }

  /// Decodes one encoding in its only form: full groups, right padding, no blanks, no stray bits.
  public static func decode(_ text: some StringProtocol) -> [UInt8]? {
    let bytes = Array(text.utf8)
    guard bytes.count % 4 == 0 else { return nil }
    let padding = bytes.suffix(2).reversed().prefix { $0 == .equals }.count
    var output: [UInt8] = []
    output.reserveCapacity(bytes.count / 4 * 3)
    var group: UInt32 = 0
    var held = 0
    for byte in bytes.dropLast(padding) {
      guard let value = value(of: byte) else { return nil }
      group = group << 6 | value
      held += 1
      if held == 4 {
        output.append(UInt8(group >> 16))
        output.append(UInt8(group >> 8 & 255))
        output.append(UInt8(group & 255))
        group = 0
        held = 0
      }
    }
    switch held {
    case 2:
      guard group & 15 == 0 else { return nil }
      output.append(UInt8(group >> 4))
    case 3:
      guard group & 3 == 0 else { return nil }
      output.append(UInt8(group >> 10))
      output.append(UInt8(group >> 2 & 255))
    case 1: return nil
    default: break
    }
    return output
  }

  private static func value(of byte: UInt8) -> UInt32? {
    switch byte {
    case 0x41...0x5a: UInt32(byte) - 0x41
    case 0x61...0x7a: UInt32(byte) - 0x61 + 26
    case 0x30...0x39: UInt32(byte) - 0x30 + 52
    case UInt8(ascii: "+"): 62
    case UInt8(ascii: "/"): 63
    default: nil
    }
  }
}
