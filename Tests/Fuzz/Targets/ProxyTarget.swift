// The header of a load balancer: what is read does not depend on what follows, and nothing is read before it is whole.

import Primitives
import SMTP

extension FuzzTarget {
  static let proxy = FuzzTarget("proxy", limit: 2600) { input in
    let whole = read(input[...])
    if case .header(let header, let length) = whole {
      try expect(length > 0 && length <= input.count && length <= ProxyHeader.maximumLength, "a length of \(length)")
      try expect(read(input[..<length]) == whole, "what follows the header changes it")
      for count in stride(from: 0, to: length, by: max(1, length / 16)) {
        guard case .more = read(input[..<count]) else {
          throw Violation(description: "\(count) octets of \(length) are taken for something")
        }
      }
      for end in [header.ends?.source, header.ends?.destination] {
        if let end { try expect(Endpoint("\(end)") == end, "\(end) cannot be written down") }
      }
    }
    if case .fault(let text) = whole { try expect(isOneLine(text), "the error breaks its line") }
    // Whatever comes, the end of waiting is near.
    if input.count > ProxyHeader.maximumLength {
      guard case .more = whole else { return }
      throw Violation(description: "\(input.count) octets are not enough")
    }
  }

  private enum Read: Equatable {
    case header(ProxyHeader, Int)
    case more
    case fault(String)
  }

  private static func read(_ bytes: ArraySlice<UInt8>) -> Read {
    Array(bytes).withUnsafeBytes { raw in
      do throws(ProxyHeader.Fault) {
        guard let (header, length) = try ProxyHeader.parse(raw) else { return .more }
        return .header(header, length)
      } catch { return .fault(error.description) }
    }
  }
}
