// SPF records as values (RFC 7208): read, counted, and repaired. Nothing is asked here.

/// A record that begins with `v=spf1`.
public struct SPFRecord: Sendable, Hashable {
  /// A mechanism with its qualifier: `-all`, `include:_spf.google.com`.
  public struct Mechanism: Sendable, Hashable {
    public var qualifier: Character
    /// In lower case.
    public var name: String
    /// Behind the colon.
    public var value: String?
  }

  /// Why a record is of no use (permerror).
  public struct Mistake: Error, Hashable, Sendable, CustomStringConvertible {
    public var description: String
  }

  public let text: String
  public private(set) var mechanisms: [Mechanism] = []
  /// Where to look when no mechanism matches.
  public private(set) var redirect: String?

  /// Whether a TXT record is meant to be one.
  public static func isMeant(by text: String) -> Bool {
    let lower = text.lowercased()
    return lower == "v=spf1" || lower.hasPrefix("v=spf1 ")
  }

  /// - Throws: ``Mistake`` that names the first term which cannot be read.
  public init(parsing text: String) throws(Mistake) {
    self.text = text
    for term in text.split(separator: " ").dropFirst() {
      if let equals = term.firstIndex(of: "="), !term[..<equals].contains(where: { $0 == ":" || $0 == "/" }) {
        let value = String(term[term.index(after: equals)...])
        if term[..<equals].lowercased() == "redirect" {
          guard redirect == nil, !value.isEmpty else { throw Mistake(description: "\"\(term)\" is empty or repeated") }
          redirect = Self.normal(value)
        }
        continue  // exp= and what nobody knows does not decide anything (RFC 7208 6)
      }
      mechanisms.append(try Self.mechanism(term))
    }
  }

  private static func mechanism(_ term: Substring) throws(Mistake) -> Mechanism {
    var rest = term
    let qualifier = rest.first.flatMap { "+-~?".contains($0) ? $0 : nil }
    if qualifier != nil { rest = rest.dropFirst() }
    let end = rest.firstIndex { $0 == ":" || $0 == "/" } ?? rest.endIndex
    let name = rest[..<end].lowercased()
    let value = end == rest.endIndex ? nil : String(rest[rest[end] == ":" ? rest.index(after: end)... : end...])
    let needsValue = ["include", "ip4", "ip6", "exists"].contains(name)
    guard needsValue || ["all", "a", "mx", "ptr"].contains(name) else {
      throw Mistake(description: "\"\(term)\" is not a mechanism of SPF")
    }
    guard !needsValue || value?.isEmpty == false else { throw Mistake(description: "\"\(term)\" lacks its value") }
    return Mechanism(
      qualifier: qualifier ?? "+", name: name, value: name == "include" ? value.map(normal) : value)
  }

  private static func normal(_ name: String) -> String {
    let lower = name.lowercased()
    return lower.hasSuffix(".") ? String(lower.dropLast()) : lower
  }

  /// The terms that cost a question each: at most ten in all are allowed (RFC 7208 4.6.4).
  public var lookups: Int {
    mechanisms.count { ["include", "a", "mx", "ptr", "exists"].contains($0.name) } + (redirect == nil ? 0 : 1)
  }

  /// The names whose records count as part of this one. Those with macros are known to the receiver only.
  public var references: [String] {
    let includes = mechanisms.filter { $0.name == "include" }.compactMap(\.value)
    // Beside `all` a redirect is not followed (RFC 7208 6.1).
    let redirects = mechanisms.contains { $0.name == "all" } ? [] : [redirect].compactMap { $0 }
    return (includes + redirects).filter { !$0.contains("%") }
  }

  /// What becomes of a sender that no mechanism names; nil when the record does not say.
  public var otherwise: Character? { mechanisms.first { $0.name == "all" }?.qualifier }

  /// The text with one more `include:`, before what ends the record.
  public func including(_ name: String) -> String {
    var terms = text.split(separator: " ").map(String.init)
    let end = terms.firstIndex { term in
      let bare = term.lowercased().drop { "+-~?".contains($0) }
      return bare == "all" || bare.hasPrefix("redirect=")
    }
    terms.insert("include:\(name)", at: end ?? terms.count)
    return terms.joined(separator: " ")
  }
}
