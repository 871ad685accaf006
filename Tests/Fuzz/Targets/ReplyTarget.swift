// What an upstream says: the same replies whatever the pieces, bounded, and safe to log and to put into a report.

import SMTP

extension FuzzTarget {
  /// As for `data`: cuts, then the octets.
  static let reply = FuzzTarget("reply", limit: 8192) { input in
    var octets = Octets(input)
    let steps = octets.take(octets.byte() & 15).map { Int($0) + 1 }
    let stream = octets.all()
    let whole = try read(stream, [])
    try expect(try read(stream, steps) == whole, "the pieces \(steps) give other replies")
    try expect(try read(stream, [1]) == whole, "octet by octet gives other replies")
    for reply in whole.replies {
      try expect((200...599).contains(reply.code), "code \(reply.code)")
      try expect(reply.lines.count <= ReplyParser.maximumLines, "\(reply.lines.count) lines")
      try expect(reply.lines.allSatisfy(isOneLine), "a line of the reply is two")
      try expect(isOneLine(reply.description), "the reply breaks the log")
      if let enhanced = reply.enhanced {
        try expect(Int(enhanced.class) == reply.code / 100, "\(enhanced) with \(reply.code)")
        try expect(EnhancedStatusCode(parsing: "\(enhanced)") == enhanced, "\(enhanced) does not come back")
      }
      try wellFormed(reply)
      let capabilities = Capabilities(ehlo: reply)
      try expect(capabilities.authMechanisms.allSatisfy(isOneLine), "a mechanism breaks a line")
    }
  }

  private struct Read: Equatable {
    var replies: [Reply] = []
    var error: String?
  }

  private static func read(_ stream: [UInt8], _ steps: [Int]) throws -> Read {
    var parser = ReplyParser()
    var result = Read()
    for piece in pieces(stream, steps) {
      var consumed = 0
      while true {
        let outcome: Result<Reply?, ReplyError> = Array(piece).withUnsafeBytes { raw in
          do throws(ReplyError) { return .success(try parser.next(raw, consumed: &consumed)) } catch {
            return .failure(error)
          }
        }
        switch outcome {
        case .success(let reply?): result.replies.append(reply)
        case .success(nil):
          try expect(consumed == piece.count, "octets are left")
        case .failure(let error):
          try expect(isOneLine(error.description), "the error breaks the log")
          result.error = error.description
          return result
        }
        if case .success(nil) = outcome { break }
      }
    }
    return result
  }
}
