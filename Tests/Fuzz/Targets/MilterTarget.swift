// What mail filters say, and what it makes of a header: no packet is read before it is whole, and no field of a filter
// becomes two.

import Filters
import Message
import SMTP

extension FuzzTarget {
  static let milter = FuzzTarget("milter") { input in
    var rest = input[...]
    let message = Array("From: a@b.test\r\nSubject: s\r\n\tfolded\r\nX: y\r\n\r\n".utf8)
    var header = message.withUnsafeBytes { EditableHeader($0) }
    var count = 3
    reading: while !rest.isEmpty {
      let (reply, length): (MilterReply, Int)
      switch read(rest) {
      case .more: break reading
      case .fault(let text):
        try expect(isOneLine(text), "the error breaks its line")
        break reading
      case .packet(let packet, let octets): (reply, length) = (packet, octets)
      }
      try expect(length >= 5 && length <= rest.count, "a packet of \(length)")
      guard case .packet(let alone, length) = read(rest.prefix(length)), alone == reply else {
        throw Violation(description: "what follows a packet changes it")
      }
      for missing in [1, 2, length - 4] where missing > 0 && missing < length {
        if case .packet = read(rest.prefix(length - missing)) {
          throw Violation(description: "a packet that is not whole is read")
        }
      }
      rest = rest.dropFirst(length)
      switch reply {
      case .reply(let reply):
        try expect((400...599).contains(reply.code), "a filter says \(reply.code)")
        try wellFormed(reply)
      case .addHeader(let name, let value):
        if header.add(name: name, value: value, leadingSpace: false) { count += 1 }
      case .insertHeader(let index, let name, let value):
        if header.insert(at: Int(index), name: name, value: value, leadingSpace: true) { count += 1 }
      case .changeHeader(let index, let name, let value):
        let before = header.fields(leadingSpace: true).count
        _ = header.change(index: Int(clamping: index), name: name, value: value, leadingSpace: false)
        let change = header.fields(leadingSpace: true).count - before
        try expect((-1...1).contains(change), "one change makes \(change) fields")
        count += change
      default: break
      }
      let octets = header.octets
      let fields = octets.withUnsafeBytes { bytes in
        let view = HeaderView(bytes)
        return view.bodyStart == bytes.count && view.malformedLineCount == 0 ? view.fields.count : -1
      }
      try expect(fields == count, "\(fields) fields instead of \(count)")
      try expect(!octets.contains(0), "NUL in the header")
      for (index, byte) in octets.enumerated() {
        let isBare =
          byte == 0x0d
          ? index + 1 == octets.count || octets[index + 1] != 0x0a
          : byte == 0x0a ? index == 0 || octets[index - 1] != 0x0d : false
        try expect(!isBare, "a bare line break in the header")
      }
    }
  }

  private enum Read {
    case packet(MilterReply, Int)
    case more
    case fault(String)
  }

  private static func read(_ bytes: ArraySlice<UInt8>) -> Read {
    Array(bytes).withUnsafeBytes { raw in
      do throws(MilterFault) {
        guard let (reply, length) = try MilterCodec.parse(raw) else { return .more }
        return .packet(reply, length)
      } catch { return .fault(error.description) }
    }
  }
}
