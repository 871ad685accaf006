// The client's side of DATA: dot-stuffing, a run at a time.

/// Encodes content for DATA (RFC 5321 4.5.2), in pieces of any size.
///
/// The content is to have CRLF line ends. A dot behind a LF without CR is doubled too: such content is never accepted
/// here, but should it get in otherwise, it must not be able to end the data at a lenient server.
public struct DataEncoder: Sendable {
  private var last: UInt8 = .lineFeed
  private var beforeLast: UInt8 = .carriageReturn

  public init() {}

  public mutating func encode(_ input: UnsafeRawBufferPointer, into output: inout [UInt8]) {
    let count = input.count
    guard count > 0 else { return }
    output.reserveCapacity(output.count + count + 64)
    var run = 0
    var index = 0
    // Dots are rarer than line ends in what mail is mostly made of, so those are what is looked for.
    while let dot = input.offset(of: .dot, from: index, to: count) {
      if (dot == 0 ? last : input[dot - 1]) == .lineFeed {
        output.append(input, run..<dot)
        output.append(.dot)
        run = dot
      }
      index = dot + 1
    }
    output.append(input, run..<count)
    beforeLast = count > 1 ? input[count - 2] : last
    last = input[count - 1]
  }

  /// Ends the last line if it has no end, and the data.
  public mutating func finish(into output: inout [UInt8]) {
    if last == .carriageReturn {
      output.append(.lineFeed)
    } else if last != .lineFeed || beforeLast != .carriageReturn {
      output.append(contentsOf: [.carriageReturn, .lineFeed])
    }
    output.append(contentsOf: [.dot, .carriageReturn, .lineFeed])
    self = DataEncoder()
  }
}
