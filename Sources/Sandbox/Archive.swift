// Received messages as files: the content exactly as it came, and the envelope beside it.

import Dispatch
import Glibc

/// Writes `NNNN-<first recipient>.eml` and `.json` into a directory, on a queue of its own.
final class Archive: Sendable {
  private let directory: String
  private let queue = DispatchQueue(label: "sandbox.archive")

  private let report: @Sendable (String) -> Void

  init(directory: String, report: @escaping @Sendable (String) -> Void) {
    self.directory = directory
    self.report = report
  }

  func keep(_ message: ReceivedMessage) {
    queue.async { [directory, report] in
      let digits = String(message.number)
      let number = String(repeating: "0", count: max(0, 4 - digits.count)) + digits
      let stem = "\(directory)/\(number)-\(Self.fileName(message.recipients.first ?? "nobody"))"
      do {
        try Files.write(message.content, to: stem + ".eml", mode: 0o600)
        try Files.write(Array(Self.envelope(of: message).utf8), to: stem + ".json", mode: 0o600)
      } catch {
        report("cannot keep message \(message.number): \(error)")
      }
    }
  }

  /// Returns once everything is written.
  func finish() async {
    await withCheckedContinuation { done in queue.async { done.resume() } }
  }

  /// A mailbox as a harmless part of a file name.
  static func fileName(_ mailbox: String) -> String {
    let safe = mailbox.utf8.prefix(100).map { byte -> Character in
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "@"), UInt8(ascii: "-"), UInt8(ascii: "."),
        UInt8(ascii: "+"), UInt8(ascii: "="):
        Character(UnicodeScalar(byte))
      default: "_"
      }
    }
    return String(safe)
  }

  static func envelope(of message: ReceivedMessage) -> String {
    func list(_ items: [String]) -> String { "[\(items.map(quoted).joined(separator: ", "))]" }
    let fields = [
      ("number", "\(message.number)"), ("id", quoted(message.id)), ("reverse_path", quoted(message.reversePath)),
      ("recipients", list(message.recipients)), ("parameters", list(message.parameters)),
      ("client", quoted(message.clientName)), ("user", message.authenticatedUser.map(quoted) ?? "null"),
      ("tls", message.tlsVersion.map(quoted) ?? "null"), ("connection", "\(message.connection)"),
      ("received_at", "\(message.receivedAt.seconds)"), ("size", "\(message.content.count)"),
    ]
    return "{\n" + fields.map { "  \"\($0)\": \($1)" }.joined(separator: ",\n") + "\n}\n"
  }

  private static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case _ where scalar.value < 0x20 || scalar.value == 0x7f:
        let digits = String(scalar.value, radix: 16)
        result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }
}
