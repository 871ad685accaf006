// Numbers and tables as people read them in a terminal.

/// Columns under each other, as wide as their widest cell.
public struct TextTable: Sendable {
  public enum Alignment: Sendable { case left, right }

  private let alignments: [Alignment]
  private var rows: [[String]]

  /// - Parameter columns: the headings, with how the cells below them are aligned.
  public init(_ columns: [(heading: String, alignment: Alignment)]) {
    alignments = columns.map(\.alignment)
    rows = [columns.map(\.heading)]
  }

  /// A table without headings, all of it aligned to the left.
  public init(columnCount: Int) {
    alignments = Array(repeating: .left, count: columnCount)
    rows = []
  }

  /// Appends a row; missing cells are empty, control characters become blanks.
  public mutating func append(_ cells: [String]) {
    rows.append(alignments.indices.map { $0 < cells.count ? TerminalText.clean(cells[$0]) : "" })
  }

  /// The lines, two blanks between the columns and none at the end of a line.
  public func lines() -> [String] {
    let widths = alignments.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
      var line = ""
      for (column, cell) in row.enumerated() {
        let padding = String(repeating: " ", count: widths[column] - cell.count)
        if column > 0 { line += "  " }
        line += alignments[column] == .right ? padding + cell : cell + padding
      }
      while line.last == " " { line.removeLast() }
      return line
    }
  }
}

/// Columns that are printed while rows still come: as wide as the widest cell of the first rows, so that a table of any
/// size need not be held in memory.
public struct RunningTable: Sendable {
  private let columns: [(heading: String, alignment: TextTable.Alignment)]
  private var widths: [Int] = []

  public init(_ columns: [(heading: String, alignment: TextTable.Alignment)]) { self.columns = columns }

  /// The lines of further rows; before the first ones the headings. Control characters become blanks.
  public mutating func lines(_ rows: [[String]]) -> [String] {
    var rows = rows.map { row in columns.indices.map { $0 < row.count ? TerminalText.clean(row[$0]) : "" } }
    if widths.isEmpty {
      if rows.isEmpty { return [] }
      rows.insert(columns.map(\.heading), at: 0)
      widths = columns.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    }
    return rows.map { row in
      var line = ""
      for (column, cell) in row.enumerated() {
        let padding = String(repeating: " ", count: max(widths[column] - cell.count, 0))
        if column > 0 { line += "  " }
        line += columns[column].alignment == .right ? padding + cell : cell + padding
      }
      while line.last == " " { line.removeLast() }
      return line
    }
  }
}

/// Text that came over a network, made fit for a terminal.
public enum TerminalText {
  /// Control characters (C0, DEL, C1) and line separators become blanks: no reply may move the cursor. Those that turn
  /// the direction of the text (UAX #9) are shown as `\u{202E}`: an address is to be read as it is.
  public static func clean(_ text: String) -> String {
    func isControl(_ value: UInt32) -> Bool {
      value < 0x20 || (0x7f...0x9f).contains(value) || value == 0x2028 || value == 0x2029
    }
    func turns(_ value: UInt32) -> Bool {
      (0x202a...0x202e).contains(value) || (0x2066...0x2069).contains(value) || value == 0x200e || value == 0x200f
        || value == 0x061c
    }
    guard text.unicodeScalars.contains(where: { isControl($0.value) || turns($0.value) }) else { return text }
    var result = String.UnicodeScalarView()
    for scalar in text.unicodeScalars {
      if turns(scalar.value) {
        result.append(contentsOf: scalar.escaped(asASCII: true).unicodeScalars)
      } else {
        result.append(isControl(scalar.value) ? " " : scalar)
      }
    }
    return String(result)
  }

  /// As many characters as fit, with `…` in place of the rest.
  public static func cut(_ text: String, to limit: Int) -> String {
    text.count <= limit ? text : String(text.prefix(max(limit - 1, 0))) + "…"
  }
}

/// Quantities for people.
public enum Quantity {
  /// `812 B`, `9.8 KiB`, `34.2 MiB`.
  public static func size(_ octets: Int) -> String {
    var value = Double(octets)
    for unit in ["B", "KiB", "MiB", "GiB"] {
      if value < 1024 { return unit == "B" ? "\(octets) B" : "\(oneDecimal(value)) \(unit)" }
      value /= 1024
    }
    return "\(oneDecimal(value)) TiB"
  }

  /// The two largest units of a time span in seconds: `45s`, `3m20s`, `4h`, `2d3h`.
  public static func age(_ seconds: Int) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")]
    guard let first = units.firstIndex(where: { seconds >= $0.0 }) else { return "0s" }
    let (length, name) = units[first]
    let text = "\(seconds / length)\(name)"
    guard first + 1 < units.count else { return text }
    let (smaller, smallerName) = units[first + 1]
    let rest = seconds % length / smaller
    return rest == 0 ? text : "\(text)\(rest)\(smallerName)"
  }

  /// `1 message`, `2 messages`.
  public static func count(_ number: Int, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : "s")" }

  static func oneDecimal(_ value: Double) -> String {
    let tenths = Int((value * 10).rounded())
    return "\(tenths / 10).\(tenths % 10)"
  }
}
