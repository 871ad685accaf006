// What the configuration says about itself: where a value came from, and what is wrong with it.

/// Where a value came from.
public enum Origin: Sendable, Hashable, CustomStringConvertible {
  case file(String, line: Int)
  case `default`
  case commandLine

  /// `file:line`, `default` or `command line`.
  public var description: String {
    switch self {
    case .file(let path, let line): line > 0 ? "\(path):\(line)" : path
    case .default: "default"
    case .commandLine: "command line"
    }
  }
}

/// One thing that is wrong, or worth knowing, and its place.
public struct Diagnostic: Sendable, Hashable, CustomStringConvertible {
  public enum Severity: String, Sendable { case error, warning }
  public var severity: Severity
  public var origin: Origin
  public var message: String

  public init(_ severity: Severity, _ origin: Origin, _ message: String) {
    self.severity = severity
    self.origin = origin
    self.message = message
  }

  /// `file:line: message`.
  public var description: String { "\(origin): \(message)" }
}

/// A configuration that cannot be used, with everything that is wrong with it, in the order of files and lines.
public struct ConfigurationError: Error, Sendable, Hashable, CustomStringConvertible {
  public var diagnostics: [Diagnostic]
  public var warnings: [Diagnostic]

  public init(diagnostics: [Diagnostic], warnings: [Diagnostic] = []) {
    self.diagnostics = diagnostics
    self.warnings = warnings
  }

  /// A line for each problem.
  public var description: String { diagnostics.map(\.description).joined(separator: "\n") }
}

/// Gathers what is found, so that one run tells everything.
struct Findings {
  private(set) var errors: [Diagnostic] = []
  private(set) var warnings: [Diagnostic] = []
  /// The files in the order they were read, which is the order of the report.
  var files: [String] = []

  /// A message quotes what stands in the files: a control character there would reach a terminal or break a log line.
  private static func visible(_ text: String) -> String {
    var out = ""
    for scalar in text.unicodeScalars {
      let isHidden =
        scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value) || scalar.value == 0x2028 || scalar.value == 0x2029
      if isHidden { out += scalar.escaped(asASCII: true) } else { out.unicodeScalars.append(scalar) }
    }
    return out
  }

  mutating func error(_ origin: Origin, _ message: String) {
    let diagnostic = Diagnostic(.error, origin, Self.visible(message))
    if !errors.contains(diagnostic) { errors.append(diagnostic) }
  }

  mutating func warning(_ origin: Origin, _ message: String) {
    let diagnostic = Diagnostic(.warning, origin, Self.visible(message))
    if !warnings.contains(diagnostic) { warnings.append(diagnostic) }
  }

  var sortedErrors: [Diagnostic] { sorted(errors) }
  var sortedWarnings: [Diagnostic] { sorted(warnings) }

  private func sorted(_ diagnostics: [Diagnostic]) -> [Diagnostic] {
    func rank(_ diagnostic: Diagnostic) -> (Int, Int) {
      switch diagnostic.origin {
      case .file(let path, let line): (files.firstIndex(of: path) ?? files.count, line)
      case .default: (files.count + 1, 0)
      case .commandLine: (files.count + 2, 0)
      }
    }
    let ranked = diagnostics.enumerated().map { (rank: rank($1), index: $0, diagnostic: $1) }
    return ranked.sorted { ($0.rank.0, $0.rank.1, $0.index) < ($1.rank.0, $1.rank.1, $1.index) }.map(\.diagnostic)
  }
}

/// `text` in quotes, short enough for a line and free of control characters.
func quoted(_ text: some StringProtocol) -> String {
  var clean = ""
  for scalar in text.unicodeScalars.prefix(80) {
    let isUnsafe = scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value) || scalar.value == 0x2028
    clean.unicodeScalars.append(isUnsafe ? "?" : scalar)
  }
  return text.unicodeScalars.count > 80 ? "\"\(clean)…\"" : "\"\(clean)\""
}

// MARK: - Nearest names

/// `; did you mean …?` when a name is close to what was written, else the list of what is known.
public func suggestion(for text: String, among names: [String], noun: String) -> String {
  let ranked = names.map { (distance: editDistance(text.lowercased(), $0.lowercased()), name: $0) }
  guard let best = ranked.min(by: { $0.distance < $1.distance }) else { return "" }
  if best.distance <= max(2, text.count / 2) { return "; did you mean \(best.name)?" }
  return "; known \(noun): \(names.joined(separator: ", "))"
}

/// The number of insertions, deletions, replacements and swaps of neighbours between two short texts.
func editDistance(_ a: String, _ b: String) -> Int {
  // Nobody mistypes a name of hundreds of letters; the bound keeps a hostile file from costing quadratic time.
  let (a, b) = (Array(a.utf8.prefix(100)), Array(b.utf8.prefix(100)))
  var beforePrevious: [Int] = []
  var previous = Array(0...b.count)
  for (i, x) in a.enumerated() {
    var row = [i + 1]
    for (j, y) in b.enumerated() {
      var best = min(previous[j] + (x == y ? 0 : 1), previous[j + 1] + 1, row[j] + 1)
      if i > 0, j > 0, x == b[j - 1], a[i - 1] == y { best = min(best, beforePrevious[j - 1] + 1) }
      row.append(best)
    }
    beforePrevious = previous
    previous = row
  }
  return previous[b.count]
}
