// What is wrong with a configuration: always a place, the offending text, and what to do.

/// A finding about the configuration.
public struct Diagnostic: Sendable, Hashable, CustomStringConvertible {
  public enum Severity: String, Sendable { case error, warning }
  public var severity: Severity
  /// A path, or `command line`.
  public var file: String
  /// From 1; 0 when the finding is about the file as a whole.
  public var line: Int
  public var message: String

  public init(_ severity: Severity, _ place: Place, _ message: String) {
    self.severity = severity
    file = place.file
    line = place.line
    self.message = message
  }

  /// `file:line: message`; a warning says so.
  public var description: String {
    "\(line > 0 ? "\(file):\(line)" : file): \(severity == .warning ? "warning: " : "")\(message)"
  }
}

/// Where a value stands.
public struct Place: Sendable, Hashable, CustomStringConvertible {
  public var file: String
  public var line: Int

  public init(file: String, line: Int) {
    self.file = file
    self.line = line
  }

  /// A value that nobody wrote.
  public static let unset = Place(file: "default", line: 0)
  public var description: String { line > 0 ? "\(file):\(line)" : file }
}

/// All that is wrong with a configuration that cannot be used.
public struct ConfigurationError: Error, Sendable, CustomStringConvertible {
  /// Errors and warnings, in the order of the files.
  public let diagnostics: [Diagnostic]
  public var description: String { diagnostics.map(\.description).joined(separator: "\n") }
}

/// The word of a list that a misspelt one probably means.
enum Nearest {
  static func to(_ word: String, among candidates: some Sequence<String>) -> String? {
    let ranked = candidates.map { ($0, distance(word, $0)) }.min { $0.1 < $1.1 }
    guard let ranked, ranked.1 <= max(2, word.count / 3) else { return nil }
    return ranked.0
  }

  /// The edit distance of Levenshtein.
  static func distance(_ a: String, _ b: String) -> Int {
    let (a, b) = (Array(a.lowercased().utf8), Array(b.lowercased().utf8))
    var row = Array(0...b.count)
    for i in a.indices {
      var diagonal = row[0]
      row[0] = i + 1
      for j in b.indices {
        let changed = diagonal + (a[i] == b[j] ? 0 : 1)
        diagonal = row[j + 1]
        row[j + 1] = min(changed, diagonal + 1, row[j] + 1)
      }
    }
    return row[b.count]
  }
}
