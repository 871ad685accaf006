// What follows DATA and BDAT, and the framing of lines: the same whatever the pieces it comes in, and what a slow reader
// that looks at one octet at a time makes of it.

import SMTP

extension FuzzTarget {
  /// The first octet is the number of cuts, which follow as octets; the rest is the data.
  static let data = FuzzTarget("data") { input in
    var octets = Octets(input)
    let steps = octets.take(octets.byte() & 15).map { Int($0) + 1 }
    let data = octets.all()
    let whole = try decode(data, in: [])
    try expect(try decode(data, in: steps) == whole, "the pieces \(steps) give something else")
    try expect(try decode(data, in: [1]) == whole, "octet by octet gives something else")
    let reference = ReferenceData(data)
    if let end = reference.end {
      try expect(whole.end == end, "the data ends at \(whole.end.map(String.init) ?? "no place"), not \(end)")
      try expect(whole.content == reference.content, "the content is not the reference's")
      try expect(whole.isBare == reference.isBare, "bare line breaks: \(whole.isBare), not \(reference.isBare)")
    } else {
      try expect(whole.end == nil, "the data ends at \(whole.end ?? 0) without <CRLF>.<CRLF>")
    }
    try lines(data, steps)
    try chunks(data, steps)
    try roundTrip(data, steps)
  }

  struct Decoded: Equatable {
    var content: [UInt8] = []
    var end: Int?
    var isBare = false
    var octets = 0
    var longest = 0
  }

  private static func decode(_ data: [UInt8], in steps: [Int]) throws -> Decoded {
    var decoder = DataDecoder()
    var result = Decoded()
    var consumed = 0
    for piece in pieces(data, steps) {
      let (used, isFinished) = try piece.withUnsafeBytes { raw throws(DataError) in
        try decoder.decode(raw, into: &result.content)
      }
      consumed += used
      if isFinished {
        result.end = consumed
        break
      }
      try expect(used == piece.count, "octets are left before the end")
    }
    (result.isBare, result.octets, result.longest) = (
      decoder.sawBareLineBreak, decoder.octetCount, decoder.longestLine
    )
    try expect(result.octets == result.content.count, "\(result.octets) octets counted, \(result.content.count) kept")
    return result
  }

  /// `data` cut after `steps`, over and over; in one piece without steps.
  static func pieces(_ data: [UInt8], _ steps: [Int]) -> [ArraySlice<UInt8>] {
    guard !steps.isEmpty else { return [data[...]] }
    var pieces: [ArraySlice<UInt8>] = []
    var start = 0
    while start < data.count {
      let end = min(start + steps[pieces.count % steps.count], data.count)
      pieces.append(data[start..<end])
      start = end
    }
    return pieces
  }

  // MARK: Lines

  private static func lines(_ data: [UInt8], _ steps: [Int]) throws {
    let whole = frame(data, [])
    try expect(frame(data, steps) == whole, "the pieces \(steps) give other lines")
    try expect(frame(data, [1]) == whole, "octet by octet gives other lines")
    let lines = data.split(separator: 0x0a, omittingEmptySubsequences: false).dropLast()
    try expect(lines.count == whole.count, "\(whole.count) lines, not \(lines.count)")
    for (line, shown) in zip(lines, whole) {
      let isLine = line.count < limit && line.last == 0x0d && line.firstIndex(of: 0x0d) == line.indices.last
      try expect(isLine == (shown.first == "="), "\(shown) for \(line.debugDescription)")
      if isLine { try expect(Array(shown.utf8.dropFirst()) == hex(line.dropLast()), "the line is another one") }
    }
  }

  private static let limit = 64
  private static func hex(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
    bytes.flatMap { [0x40 + $0 >> 4, 0x40 + $0 & 15] }
  }

  private static func frame(_ data: [UInt8], _ steps: [Int]) -> [String] {
    var framer = LineFramer(maximumLength: limit)
    var buffer: [UInt8] = []
    var lines: [String] = []
    for piece in pieces(data, steps) {
      buffer += piece
      reading: while true {
        let (used, goesOn): (Int, Bool) = buffer.withUnsafeBytes { bytes in
          switch framer.next(bytes) {
          case .incomplete(let consumed): return (consumed, false)
          case .malformed(let error, let consumed):
            lines.append("\(error)")
            return (consumed, true)
          case .line(let range, let consumed):
            lines.append("=" + String(decoding: hex(Array(bytes[range])[...]), as: UTF8.self))
            return (consumed, true)
          }
        }
        buffer.removeFirst(used)
        if !goesOn { break reading }
      }
    }
    return lines
  }

  // MARK: Chunks

  private static func chunks(_ data: [UInt8], _ steps: [Int]) throws {
    var isBare = false
    for (index, byte) in data.enumerated() {
      if byte == 0x0d, index + 1 == data.count || data[index + 1] != 0x0a { isBare = true }
      if byte == 0x0a, index == 0 || data[index - 1] != 0x0d { isBare = true }
    }
    for steps in [[], steps, [1]] {
      var scanner = BareLineBreakScanner()
      for piece in pieces(data, steps) { piece.withUnsafeBytes { scanner.scan($0) } }
      scanner.finish()
      try expect(scanner.sawBareLineBreak == isBare, "in the pieces \(steps) bare breaks are \(!isBare)")
      try expect(scanner.endsInLineBreak == data.suffix(2).elementsEqual([0x0d, 0x0a]), "the end is another one")
    }
  }

  // MARK: There and back

  private static func roundTrip(_ data: [UInt8], _ steps: [Int]) throws {
    var encoder = DataEncoder()
    var wire: [UInt8] = []
    for piece in pieces(data, steps) { piece.withUnsafeBytes { encoder.encode($0, into: &wire) } }
    encoder.finish(into: &wire)
    let reference = ReferenceData(wire)
    try expect(reference.end == wire.count, "what we send ends at \(reference.end ?? -1) of \(wire.count)")
    let isWhole = data.isEmpty || data.suffix(2).elementsEqual([0x0d, 0x0a])
    // Only content whose breaks are whole is ever sent; what has others must still not end early.
    if !reference.isBare, data.last != 0x0d {
      try expect(reference.content == data + (isWhole ? [] : [0x0d, 0x0a]), "it arrives otherwise")
    }
  }
}

/// The rules of RFC 5321 4.5.2 read octet by octet: slow, plain, and written without a look at the decoder.
struct ReferenceData {
  var content: [UInt8] = []
  var isBare = false
  /// Octets up to the end of the data, the end included; nil when it has none.
  var end: Int?

  init(_ data: [UInt8]) {
    var line: [UInt8] = []
    var index = 0
    while index < data.count {
      guard data[index] == 0x0d, index + 1 < data.count, data[index + 1] == 0x0a else {
        line.append(data[index])
        index += 1
        continue
      }
      index += 2
      if line == [0x2e] {
        end = index
        return
      }
      if line.first == 0x2e { line.removeFirst() }
      if line.contains(0x0d) || line.contains(0x0a) { isBare = true }
      content += line + [0x0d, 0x0a]
      line = []
    }
  }
}
