// Command lines out of a byte stream, with the strictness that keeps two servers from reading it differently.

/// Why a command line is not one.
public enum LineError: Error, Hashable, Sendable {
  case tooLong
  /// A LF without CR or a CR without LF.
  case bareLineBreak

  public var reply: Reply {
    switch self {
    case .tooLong: Reply(500, "5.5.2", "Line too long")
    case .bareLineBreak: Reply(500, "5.5.2", "Lines must end in CR LF, with neither of them alone")
    }
  }
}

/// Finds command lines at the start of a buffer that the caller keeps and refills.
public struct LineFramer: Sendable {
  public enum Result: Hashable, Sendable {
    /// More octets are needed; drop the first `consumed` (of a line that is too long, none otherwise).
    case incomplete(consumed: Int)
    /// The line without CRLF, and how much to drop once it has been used.
    case line(Range<Int>, consumed: Int)
    /// A line to be answered with ``LineError/reply``.
    case malformed(LineError, consumed: Int)
  }

  /// Octets of a line, CRLF included.
  public let maximumLength: Int
  private var scanned = 0
  private var isSkipping = false

  /// RFC 5321 4.5.3.1.4 asks for 512 octets and what the extensions add; AUTH may need 12288 (RFC 4954 4.1).
  public init(maximumLength: Int = 2048) { self.maximumLength = maximumLength }

  /// Looks for a line at the start of `input`, which holds what the last call left and whatever came since.
  public mutating func next(_ input: UnsafeRawBufferPointer) -> Result {
    guard let feed = input.offset(of: .lineFeed, from: min(scanned, input.count), to: input.count) else {
      if isSkipping || input.count >= maximumLength {
        isSkipping = true
        scanned = 0
        return .incomplete(consumed: input.count)
      }
      scanned = input.count
      return .incomplete(consumed: 0)
    }
    scanned = 0
    let consumed = feed + 1
    if isSkipping || consumed > maximumLength {
      isSkipping = false
      return .malformed(.tooLong, consumed: consumed)
    }
    guard feed > 0, input.offset(of: .carriageReturn, from: 0, to: feed) == feed - 1 else {
      return .malformed(.bareLineBreak, consumed: consumed)
    }
    return .line(0..<(feed - 1), consumed: consumed)
  }
}
