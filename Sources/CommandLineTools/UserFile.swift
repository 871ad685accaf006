// One line of a user's file is changed, and everything else in it stays octet for octet: people keep comments there.

import Glibc
import Primitives
import SMTP

/// A file with `[user:]` sections, as its octets.
public struct UserFile: Sendable {
  public private(set) var bytes: [UInt8]

  public init(_ bytes: [UInt8]) { self.bytes = bytes }

  private static let key = "password_hash"

  /// Whether there is a section of this user.
  public func has(_ address: Mailbox) -> Bool { section(address) != nil }

  /// Sets `password_hash` in the section of `address`: its line is replaced, or follows the last key of the section.
  /// - Returns: false when there is no such section.
  public mutating func setPassword(_ hash: String, of address: Mailbox) -> Bool {
    guard let section = section(address) else { return false }
    let lines = Self.lines(bytes)
    let ending = lines[section.lowerBound].hasCarriageReturn ? "\r\n" : "\n"
    var last = section.lowerBound
    for index in section {
      let text = Self.text(bytes, lines[index])
      guard index > section.lowerBound, !text.isEmpty, !text.hasPrefix("#"), !text.hasPrefix(";") else { continue }
      last = index
      let name = text.prefix { $0 != "=" }.trimmed
      guard name == Self.key, text.contains("=") else { continue }
      // Its own line end stays, also that of a last line without one.
      bytes.replaceSubrange(lines[index].content, with: Array("\(Self.key) = \(hash)".utf8))
      return true
    }
    var line = Array("\(Self.key) = \(hash)\(ending)".utf8)
    let end = lines[last].whole.upperBound
    if end == bytes.count, bytes.last != 0x0a { line = Array(ending.utf8) + line }
    bytes.insert(contentsOf: line, at: end)
    return true
  }

  /// The text of a new file for a user.
  public static func new(_ address: Mailbox, hash: String) -> UserFile {
    UserFile(Array("[user:\(address)]\n\(key) = \(hash)\n".utf8))
  }

  // MARK: Lines

  private struct Line {
    /// Without the line end.
    var content: Range<Int>
    var whole: Range<Int>
    var hasCarriageReturn: Bool
  }

  private static func lines(_ bytes: [UInt8]) -> [Line] {
    var lines: [Line] = []
    var start = 0
    while start < bytes.count {
      let feed = bytes[start...].firstIndex(of: 0x0a)
      let next = feed.map { $0 + 1 } ?? bytes.count
      var end = feed ?? bytes.count
      let hasReturn = end > start && bytes[end - 1] == 0x0d
      if hasReturn { end -= 1 }
      lines.append(Line(content: start..<end, whole: start..<next, hasCarriageReturn: hasReturn))
      start = next
    }
    return lines
  }

  private static func text(_ bytes: [UInt8], _ line: Line) -> Substring {
    var content = bytes[line.content]
    if line.whole.lowerBound == 0, content.starts(with: [0xef, 0xbb, 0xbf]) { content = content.dropFirst(3) }
    return Substring(String(decoding: content, as: UTF8.self)).trimmed
  }

  /// The lines of the section, from its header on.
  private func section(_ address: Mailbox) -> Range<Int>? {
    let lines = Self.lines(bytes)
    var start: Int?
    for (index, line) in lines.enumerated() {
      let text = Self.text(bytes, line)
      guard text.hasPrefix("[") else { continue }
      if let start { return start..<index }
      guard text.hasSuffix("]"), let colon = text.firstIndex(of: ":"),
        text[text.index(after: text.startIndex)..<colon].trimmed == "user",
        let named = try? Mailbox(parsing: text[text.index(after: colon)...].dropLast().trimmed)
      else { continue }
      if named == address { start = index }
    }
    return start.map { $0..<lines.count }
  }
}

extension StringProtocol {
  /// Without the blanks and tabs at both ends.
  fileprivate var trimmed: Substring {
    var text = Substring(self)
    while let first = text.first, first == " " || first == "\t" { text.removeFirst() }
    while let last = text.last, last == " " || last == "\t" { text.removeLast() }
    return text
  }
}

/// Replaces files in one step.
public enum ConfigurationFile {
  /// Replaces a file of the configuration. Owner and mode of a file that is there stay, but nobody else can read it
  /// afterwards; a new one belongs to the owner of its directory and has mode 0640.
  public static func replace(_ path: String, with bytes: [UInt8]) throws(CommandFailure) {
    // A link stays a link.
    let target = realpath(path, nil).map { pointer in
      defer { free(pointer) }
      return String(cString: pointer)
    }
    let path = target ?? path
    let directory = FileReplacement.directory(of: path)
    var like = stat()
    let exists = target != nil
    guard stat(exists ? path : directory, &like) == 0 else { throw failure(exists ? path : directory, errno) }
    var group = like.st_gid
    var mode = exists ? like.st_mode & 0o660 : 0o640
    if exists, like.st_mode & 0o004 != 0 {
      // What everybody could read was read as everybody by the daemon: it goes on as the group of the directory.
      var place = stat()
      guard stat(directory, &place) == 0 else { throw failure(directory, errno) }
      group = place.st_gid
      mode |= 0o040
    }
    // Only root can give files away; whoever else runs this keeps what is his.
    let isOurs = like.st_uid == geteuid() && group == getegid()
    do throws(FileReplacementError) {
      try FileReplacement.replace(path, with: bytes, mode: mode, owner: isOurs ? nil : (like.st_uid, group))
    } catch { throw failure(path, error.code) }
  }

  private static func failure(_ path: String, _ code: CInt) -> CommandFailure {
    CommandFailure(.data, "\(path) cannot be written: \(String(cString: strerror(code)))")
  }
}
