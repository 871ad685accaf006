// The plain side of a message that was written in HTML, for those who read without it.

/// Text out of HTML: no layout, but nothing of the words lost.
public enum PlainText {
  private static let breaking: Set<String> = [
    "p", "div", "br", "tr", "table", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "hr",
    "section", "article", "header", "footer",
  ]
  private static let hidden: Set<String> = ["script", "style", "head", "title", "template"]
  private static let entities: [String: String] = [
    "amp": "&", "lt": "<", "gt": ">", "quot": "\"", "apos": "'", "nbsp": " ", "copy": "©", "reg": "®", "euro": "€",
    "hellip": "…", "ndash": "–", "mdash": "—", "laquo": "«", "raquo": "»", "auml": "ä", "ouml": "ö", "uuml": "ü",
    "Auml": "Ä", "Ouml": "Ö", "Uuml": "Ü", "szlig": "ß", "eacute": "é", "egrave": "è", "agrave": "à", "ccedil": "ç",
  ]

  public static func of(html: String) -> String {
    var writer = Writer()
    var rest = html[...]
    var link: String?
    while let character = rest.first {
      if character == "<" {
        if rest.hasPrefix("<!--") {
          rest = rest.firstRange(of: "-->").map { rest[$0.upperBound...] } ?? ""
          continue
        }
        guard let close = rest.firstIndex(of: ">") else { break }
        let tag = rest[rest.index(after: rest.startIndex)..<close]
        rest = rest[rest.index(after: close)...]
        let isEnd = tag.hasPrefix("/")
        let name = tag.drop { $0 == "/" }.prefix { $0.isLetter || $0.isNumber }.lowercased()
        if hidden.contains(name), !isEnd {
          rest = after("</\(name)", in: rest)
        } else if name == "a" {
          if isEnd, let target = link, !writer.text.hasSuffix(target) { writer.add(" <\(target)>") }
          link = isEnd ? nil : href(tag)
        } else if name == "li", !isEnd {
          writer.breakLine()
          writer.add("- ")
        } else if breaking.contains(name) {
          writer.breakLine(isParagraph: name == "p" || name.hasPrefix("h"))
        } else if name == "td" || name == "th" {
          writer.add(" ")
        }
      } else if character == "&", let end = rest.prefix(12).firstIndex(of: ";") {
        writer.add(entity(rest[rest.index(after: rest.startIndex)..<end]))
        rest = rest[rest.index(after: end)...]
      } else {
        writer.add(character.isWhitespace ? " " : String(character))
        rest = rest.dropFirst()
      }
    }
    return writer.finish()
  }

  /// From the first place on where `mark` stands, in any case; empty without one.
  private static func after(_ mark: String, in text: Substring) -> Substring {
    var rest = text
    while let less = rest.firstIndex(of: "<") {
      rest = rest[less...]
      if rest.prefix(mark.count).lowercased() == mark { return rest }
      rest = rest.dropFirst()
    }
    return ""
  }

  private static func href(_ tag: Substring) -> String? {
    guard let start = tag.lowercased().firstRange(of: "href=") else { return nil }
    let offset = tag.lowercased().distance(from: tag.lowercased().startIndex, to: start.upperBound)
    let value = tag.dropFirst(offset)
    guard let quote = value.first else { return nil }
    let target =
      quote == "\"" || quote == "'" ? value.dropFirst().prefix { $0 != quote } : value.prefix { !$0.isWhitespace }
    return target.isEmpty || target.hasPrefix("#") ? nil : String(target)
  }

  private static func entity(_ name: Substring) -> String {
    if let text = entities[String(name)] { return text }
    if name.hasPrefix("#") {
      let digits = name.dropFirst()
      let value = digits.lowercased().hasPrefix("x") ? UInt32(digits.dropFirst(), radix: 16) : UInt32(digits)
      if let scalar = value.flatMap({ Unicode.Scalar($0) }) { return String(Character(scalar)) }
    }
    return "&\(name);"
  }

  private struct Writer {
    private(set) var text = ""

    /// Blanks run together.
    mutating func add(_ piece: String) {
      if piece == " ", text.isEmpty || text.last == " " || text.last == "\n" { return }
      text += piece
    }

    mutating func breakLine(isParagraph: Bool = false) {
      while text.last == " " { text.removeLast() }
      if text.isEmpty { return }
      if text.last != "\n" { text += "\n" }
      if isParagraph, !text.hasSuffix("\n\n") { text += "\n" }
    }

    mutating func finish() -> String {
      while let last = text.last, last.isWhitespace { text.removeLast() }
      return text.isEmpty ? "This message is in HTML.\n" : text + "\n"
    }
  }
}
