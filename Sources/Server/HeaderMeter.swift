// Measures the header of a message while it arrives, in pieces of any size.

import Glibc

/// Counts the octets up to the first empty line (RFC 5322 2.1), whatever stands in them: what looks like no field is
/// part of the header to whoever reads the message later.
struct HeaderMeter {
  private enum State { case inLine, lineReturn, lineStart, emptyLine }
  private var state = State.lineStart
  /// Octets of the header so far, its line ends included.
  private(set) var count = 0
  private(set) var hasEnded = false

  mutating func scan(_ bytes: UnsafeRawBufferPointer) {
    var index = 0
    while index < bytes.count, !hasEnded {
      switch state {
      case .inLine:
        guard let base = bytes.baseAddress, let hit = memchr(base + index, 0x0d, bytes.count - index) else {
          count += bytes.count - index
          return
        }
        let place = UnsafeRawPointer(hit) - base
        count += place + 1 - index
        index = place + 1
        state = .lineReturn
        continue
      case .lineReturn: state = bytes[index] == 0x0a ? .lineStart : bytes[index] == 0x0d ? .lineReturn : .inLine
      case .lineStart: state = bytes[index] == 0x0d ? .emptyLine : .inLine
      case .emptyLine:
        hasEnded = bytes[index] == 0x0a
        state = bytes[index] == 0x0d ? .lineReturn : .inLine
      }
      count += 1
      index += 1
    }
  }
}
