// The server's side of DATA: finds the one true end of data and takes the dot-stuffing out, a run at a time.

/// Misuse of a ``DataDecoder``.
public enum DataError: Error, Hashable, Sendable {
  /// `decode` was called behind the end of data.
  case alreadyFinished
}

/// Decodes the octets that follow a 354 reply (RFC 5321 4.1.1.4, 4.5.2), in pieces of any size.
///
/// Only `<CRLF>.<CRLF>` ends the data. A CR or LF that stands alone never begins a line and never ends one: it is
/// noted in ``sawBareLineBreak``, reading goes on to the real end, and the message is then to be refused. Otherwise
/// another server in the chain could see an end, and commands, where this one saw text (SMTP smuggling).
public struct DataDecoder: Sendable {
  private enum State { case lineStart, dot, dotReturn, inLine, lineReturn, finished }
  private var state = State.lineStart
  private var lineLength = 0

  /// Octets of content so far, dot-stuffing removed, whether they were stored or not.
  public private(set) var octetCount = 0
  /// Whether a CR without LF or a LF without CR occurred.
  public private(set) var sawBareLineBreak = false
  /// The longest line so far in octets, without its CRLF.
  public private(set) var longestLine = 0
  /// Once set, content is counted and checked but no longer stored: for what is refused anyway.
  public var discardsContent = false

  public init() {}

  /// Whether the end of data has been seen.
  public var isFinished: Bool { state == .finished }

  /// Appends the content found in `input` to `output`.
  /// - Returns: how many octets belong to the data (all of them until it is `finished`), the end included.
  public mutating func decode(
    _ input: UnsafeRawBufferPointer, into output: inout [UInt8]
  ) throws(DataError) -> (consumed: Int, finished: Bool) {
    guard state != .finished else { throw .alreadyFinished }
    let count = input.count
    var index = 0
    // Octets from here to `index` are content that has not been copied yet.
    var run = 0
    while index < count {
      switch state {
      case .lineStart:
        if input[index] == .dot {
          store(input, run..<index, into: &output)
          index += 1
          run = index
          state = .dot
        } else {
          state = .inLine
        }
      case .dot:
        if input[index] == .carriageReturn {
          index += 1
          run = index
          state = .dotReturn
        } else {
          state = .inLine
        }
      case .dotReturn:
        if input[index] == .lineFeed {
          state = .finished
          return (index + 1, true)
        }
        // The CR was content after all, and a bare one.
        sawBareLineBreak = true
        octetCount += 1
        lineLength += 1
        if !discardsContent { output.append(.carriageReturn) }
        state = .inLine
      case .lineReturn:
        if input[index] == .lineFeed {
          index += 1
          endLine(octets: -1)
        } else {
          sawBareLineBreak = true
          state = .inLine
        }
      case .inLine:
        let feed = input.offset(of: .lineFeed, from: index, to: count)
        let end = feed ?? count
        let firstReturn = input.offset(of: .carriageReturn, from: index, to: end)
        if let firstReturn, firstReturn < end - 1 { sawBareLineBreak = true }
        let endsInReturn = firstReturn != nil && input[end - 1] == .carriageReturn
        if let feed {
          if endsInReturn {
            endLine(octets: feed - index - 1)
          } else {
            sawBareLineBreak = true
            lineLength += feed + 1 - index
          }
          index = feed + 1
        } else {
          lineLength += count - index
          if endsInReturn { state = .lineReturn }
          index = count
        }
      case .finished:
        throw .alreadyFinished
      }
    }
    store(input, run..<count, into: &output)
    return (count, false)
  }

  private mutating func endLine(octets: Int) {
    longestLine = max(longestLine, lineLength + octets)
    lineLength = 0
    state = .lineStart
  }

  private mutating func store(_ input: UnsafeRawBufferPointer, _ range: Range<Int>, into output: inout [UInt8]) {
    octetCount += range.count
    if !discardsContent { output.append(input, range) }
  }
}

/// Looks for CR without LF and LF without CR in content that arrives in pieces, as the chunks of BDAT do.
public struct BareLineBreakScanner: Sendable {
  private var endsInReturn = false
  public private(set) var sawBareLineBreak = false
  /// Whether the last octets scanned were CRLF.
  public private(set) var endsInLineBreak = false

  public init() {}

  public mutating func scan(_ input: UnsafeRawBufferPointer) {
    guard !input.isEmpty else { return }
    let count = input.count
    var index = 0
    if endsInReturn {
      if input[0] == .lineFeed { index = 1 } else { sawBareLineBreak = true }
    }
    endsInLineBreak = index == count
    endsInReturn = false
    while index < count {
      let feed = input.offset(of: .lineFeed, from: index, to: count)
      let end = feed ?? count
      let firstReturn = input.offset(of: .carriageReturn, from: index, to: end)
      if let firstReturn, firstReturn < end - 1 { sawBareLineBreak = true }
      let lastIsReturn = firstReturn != nil && input[end - 1] == .carriageReturn
      guard let feed else {
        endsInReturn = lastIsReturn
        endsInLineBreak = false
        return
      }
      if !lastIsReturn { sawBareLineBreak = true }
      index = feed + 1
      endsInLineBreak = lastIsReturn && index == count
    }
  }

  /// Tells that no more content follows, so that a CR at the end is a bare one.
  public mutating func finish() {
    if endsInReturn { sawBareLineBreak = true }
  }
}
