// What a load balancer sends first: the same header whatever follows it, never one that is longer than the octets
// that it was read from, and nothing before it is complete.

import Primitives
import SMTP

extension FuzzTarget {
  static let proxy = FuzzTarget("proxy", limit: 2400) { input in
    guard let (header, length) = try parse(input[...]) else {
      // Whoever sends on has to come to an end.
      if input.count >= ProxyHeader.maximumLength { try expect(isFault(input[...]), "no end is found") }
      return
    }
    try expect(length <= input.count && length <= ProxyHeader.maximumLength, "\(length) of \(input.count) octets")
    try expect(length > 0, "a header without octets")
    for end in [length - 1, length / 2, 1, 0] where end < length {
      try expect(try parse(input[..<end]) == nil && !isFault(input[..<end]), "\(end) of \(length) octets are enough")
    }
    for suffix in [[], [0x0d, 0x0a], Array("PROXY UNKNOWN\r\n".utf8)] as [[UInt8]] {
      let again = try parse((input[..<length] + suffix)[...])
      try expect(again?.0 == header && again?.1 == length, "what follows changes the header")
    }
    guard let ends = header.ends, ends.source.address.isIPv4 == ends.destination.address.isIPv4 else { return }
    let family = ends.source.address.isIPv4 ? "TCP4" : "TCP6"
    let line =
      "PROXY \(family) \(ends.source.address) \(ends.destination.address) \(ends.source.port) \(ends.destination.port)\r\n"
    try expect(try parse(Array(line.utf8)[...])?.0 == header, "\(line.dropLast()) is another header")
  }

  private static func parse(_ bytes: ArraySlice<UInt8>) throws(Violation) -> (ProxyHeader, Int)? {
    let outcome: Result<(ProxyHeader, Int)?, ProxyHeader.Fault> = Array(bytes).withUnsafeBytes { raw in
      do throws(ProxyHeader.Fault) { return .success(try ProxyHeader.parse(raw).map { ($0.header, $0.length) }) } catch
      {
        return .failure(error)
      }
    }
    switch outcome {
    case .success(let result): return result
    case .failure(let fault):
      try expect(isOneLine(fault.description), "the fault breaks the log")
      return nil
    }
  }

  private static func isFault(_ bytes: ArraySlice<UInt8>) -> Bool {
    Array(bytes).withUnsafeBytes { raw in
      do throws(ProxyHeader.Fault) { _ = try ProxyHeader.parse(raw) } catch { return true }
      return false
    }
  }
}
