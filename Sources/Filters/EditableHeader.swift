// The header of a message as mail filters see and change it.

import Message

/// A header section as a list of fields. What is not touched keeps its octets.
public struct EditableHeader: Sendable {
  private struct Line: Sendable {
    /// nil for a line that is no field: it is kept where it is and shown to nobody.
    var name: [UInt8]?
    /// With its line end.
    var octets: [UInt8]
    /// Where the value begins.
    var valueStart: Int
    /// Still counted: a filter numbers the fields as it has seen them.
    var isDeleted = false
  }
  private var lines: [Line] = []
  /// The empty line, if there was one.
  private var separator: [UInt8] = []

  /// Takes apart a header section, up to and with the empty line that ends it.
  public init(_ bytes: UnsafeRawBufferPointer) {
    let view = HeaderView(bytes)
    var place = 0
    for field in view.fields {
      if field.field.lowerBound > place { keep(bytes[place..<field.field.lowerBound]) }
      let octets = Array(bytes[field.field])
      lines.append(
        Line(
          name: Array(bytes[field.name]), octets: octets, valueStart: field.value.lowerBound - field.field.lowerBound))
      place = field.field.upperBound
    }
    let rest = bytes[place..<view.bodyStart]
    let isTerminated = rest.suffix(2).elementsEqual([0x0d, 0x0a]) && (rest.count == 2 || Self.endsEmpty(rest))
    if isTerminated {
      if rest.count > 2 { keep(rest.dropLast(2)) }
      separator = [0x0d, 0x0a]
    } else {
      if !rest.isEmpty { keep(rest) }
      // There is no body, not even an empty one.
    }
  }

  private static func endsEmpty(_ rest: Slice<UnsafeRawBufferPointer>) -> Bool {
    rest.dropLast(2).suffix(1).elementsEqual([0x0a])
  }

  private mutating func keep(_ octets: Slice<UnsafeRawBufferPointer>) {
    lines.append(Line(name: nil, octets: Array(octets), valueStart: 0))
  }

  // MARK: What filters see

  /// Name and value of each field. Lines of a folded value are separated by LF, as filters expect it.
  /// - Parameter leadingSpace: whether the value keeps the blank behind the colon.
  public func fields(leadingSpace: Bool) -> [(name: [UInt8], value: [UInt8])] {
    lines.compactMap { line in
      guard let name = line.name, !line.isDeleted else { return nil }
      var value = line.octets[line.valueStart...].filter { $0 != 0x0d }
      if value.last == 0x0a { value.removeLast() }
      if !leadingSpace, let first = value.first, first == 0x20 || first == 0x09 { value.removeFirst() }
      return (name, value)
    }
  }

  public var octets: [UInt8] {
    var octets: [UInt8] = []
    for line in lines where !line.isDeleted {
      octets += line.octets
      // The last line of a message without a body may lack its end.
      if line.octets.last != 0x0a { octets += [0x0d, 0x0a] }
    }
    return octets + separator
  }

  /// Ends the header, so that a body can follow where there was none.
  public mutating func terminate() { separator = [0x0d, 0x0a] }

  /// Forgets what was deleted: the next filter counts anew.
  public mutating func settle() { lines.removeAll(where: \.isDeleted) }

  // MARK: What filters change

  /// Adds a field behind all others.
  /// - Returns: false for a name that cannot be one.
  public mutating func add(name: [UInt8], value: [UInt8], leadingSpace: Bool) -> Bool {
    guard let line = Self.line(name, value, leadingSpace) else { return false }
    lines.append(line)
    return true
  }

  /// Inserts a field so that `index` fields stand before it; behind all others when there are not so many.
  public mutating func insert(at index: Int, name: [UInt8], value: [UInt8], leadingSpace: Bool) -> Bool {
    guard let line = Self.line(name, value, leadingSpace) else { return false }
    var seen = 0
    for place in lines.indices where lines[place].name != nil {
      if seen == index {
        lines.insert(line, at: place)
        return true
      }
      seen += 1
    }
    lines.append(line)
    return true
  }

  /// Replaces the value of the `index`th field of that name, from 1, or removes it when the value is empty. A field
  /// that is not there is added.
  public mutating func change(index: Int, name: [UInt8], value: [UInt8], leadingSpace: Bool) -> Bool {
    guard let line = Self.line(name, value, leadingSpace) else { return false }
    let wanted = Self.lowercased(name)
    var seen = 0
    for place in lines.indices where lines[place].name.map({ Self.lowercased($0) == wanted }) == true {
      seen += 1
      guard seen == max(index, 1) else { continue }
      if value.isEmpty { lines[place].isDeleted = true } else { lines[place] = line }
      return true
    }
    if !value.isEmpty { lines.append(line) }
    return true
  }

  private static func lowercased(_ name: [UInt8]) -> [UInt8] {
    name.map { (0x41...0x5a).contains($0) ? $0 | 0x20 : $0 }
  }

  /// A field made of what a filter says, in which nothing can begin a field or a body of its own: a line end is one
  /// of folding or is made so, and a CR or NUL alone becomes a blank.
  private static func line(_ name: [UInt8], _ value: [UInt8], _ leadingSpace: Bool) -> Line? {
    guard !name.isEmpty, name.count <= 256, name.allSatisfy({ $0 > 0x20 && $0 < 0x7f && $0 != 0x3a }) else {
      return nil
    }
    var octets = name + [0x3a]
    let valueStart = octets.count
    if !leadingSpace { octets.append(0x20) }
    for (number, part) in value.split(separator: 0x0a, omittingEmptySubsequences: false).enumerated() {
      let text = (part.last == 0x0d ? part.dropLast() : part).map { $0 == 0x0d || $0 == 0 ? 0x20 : $0 }
      if number > 0 {
        // A line of nothing but blanks could be taken for the end of the header.
        if text.allSatisfy({ $0 == 0x20 || $0 == 0x09 }) { continue }
        octets += [0x0d, 0x0a]
        if text[0] != 0x20, text[0] != 0x09 { octets.append(0x09) }
      }
      octets += text
    }
    return Line(name: name, octets: octets + [0x0d, 0x0a], valueStart: valueStart)
  }
}
