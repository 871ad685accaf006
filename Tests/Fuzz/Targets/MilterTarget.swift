// What a mail filter sends: packets that are read the same however they come, replies that can be sent on, and
// changes of the header that stay within the header.

import Filters
import Message
import SMTP

extension FuzzTarget {
  /// The first octet says how values are written; then packets.
  static let milter = FuzzTarget("milter", limit: 8192) { input in
    var octets = Octets(input)
    let leadingSpace = octets.byte() & 1 == 1
    var rest = octets.all()[...]
    var header = Array(sample.utf8).withUnsafeBytes { EditableHeader($0) }
    try expect(header.octets == Array(sample.utf8), "a header that nobody has changed has changed")
    while let (reply, length) = try packet(rest) {
      try expect(length > 4 && length <= rest.count && length <= 4 + MilterCodec.maximumReply, "\(length) octets")
      try expect(try packet(rest.prefix(length))?.0 == reply, "what follows changes the packet")
      try expect(try packet(rest.prefix(length - 1)) == nil, "a packet is read before it is complete")
      rest = rest.dropFirst(length)
      try examine(reply, &header, leadingSpace)
    }
  }

  private static let sample = "From: jane@example.org\r\nSubject: one\r\n two\r\nX-Spam: no\r\nx-spam: maybe\r\n\r\n"

  private static func packet(_ bytes: ArraySlice<UInt8>) throws(Violation) -> (MilterReply, Int)? {
    let outcome: Result<(MilterReply, Int)?, MilterFault> = Array(bytes).withUnsafeBytes { raw in
      do throws(MilterFault) { return .success(try MilterCodec.parse(raw).map { ($0.reply, $0.length) }) } catch {
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

  private static func examine(
    _ reply: MilterReply, _ header: inout EditableHeader, _ leadingSpace: Bool
  ) throws {
    let before = fieldCount(header)
    switch reply {
    case .reply(let reply):
      try expect((400...599).contains(reply.code), "a filter says \(reply.code)")
      try wellFormed(reply)
      try expect(isOneLine(reply.description), "the reply breaks the log")
    case .addHeader(let name, let value):
      let isAdded = header.add(name: name, value: value, leadingSpace: leadingSpace)
      try expect(fieldCount(header) == before + (isAdded ? 1 : 0), "one field more is \(fieldCount(header) - before)")
    case .insertHeader(let index, let name, let value):
      let isAdded = header.insert(
        at: Int(index), name: name, value: value, leadingSpace: leadingSpace)
      try expect(fieldCount(header) == before + (isAdded ? 1 : 0), "one field more is \(fieldCount(header) - before)")
    case .changeHeader(let index, let name, let value):
      _ = header.change(index: Int(index), name: name, value: value, leadingSpace: leadingSpace)
      try expect((-1...1).contains(fieldCount(header) - before), "a change makes \(fieldCount(header) - before) fields")
    default: return
    }
    let octets = header.octets
    let end = octets.withUnsafeBytes { HeaderView($0).bodyStart }
    try expect(end == octets.count, "a part of the header has become body")
    try expect(!octets.contains(0), "a NUL in the header")
  }

  /// As whoever gets the message counts them.
  private static func fieldCount(_ header: EditableHeader) -> Int {
    header.octets.withUnsafeBytes { HeaderView($0).fields.count }
  }
}
