// Standard input, output and error, and files named on the command line.

import CommandLineTools
import FoundationEssentials
import Glibc

enum Terminal {
  static func print(_ lines: [String]) { for line in lines { Swift.print(line) } }

  /// Writes a line at once: a pipe's reader waits for it, and print(_:) would keep it back.
  static func say(_ line: String) { write(line + "\n", to: STDOUT_FILENO) }

  /// Writes octets to standard output at once.
  static func write(_ bytes: [UInt8]) { _ = bytes.withUnsafeBytes { write($0) } }

  /// - Returns: false when the reader is gone.
  @discardableResult
  static func write(_ bytes: UnsafeRawBufferPointer) -> Bool {
    var rest = bytes
    while !rest.isEmpty {
      let count = Glibc.write(STDOUT_FILENO, rest.baseAddress, rest.count)
      if count < 0, errno == EINTR { continue }
      if count <= 0 { return false }
      rest = UnsafeRawBufferPointer(rebasing: rest[count...])
    }
    return true
  }

  /// Writes `ssmtp-mailer: text` to standard error; nothing for an empty text.
  static func complain(_ text: String) {
    guard !text.isEmpty else { return }
    write("ssmtp-mailer: \(text)\n", to: STDERR_FILENO)
  }

  /// Prints a value as JSON, its keys sorted and in snake case.
  static func printJSON(_ value: some Encodable) throws(CommandFailure) {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
    do { Swift.print(String(decoding: try encoder.encode(value), as: UTF8.self)) } catch {
      throw CommandFailure(.data, "the answer cannot be written as JSON: \(error)")
    }
  }

  /// Reads a file whole; `-` is standard input.
  static func read(_ path: String) throws(CommandFailure) -> [UInt8] {
    let descriptor = path == "-" ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw unreadable(path) }
    defer { if descriptor != STDIN_FILENO { close(descriptor) } }
    var result: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = Glibc.read(descriptor, &piece, piece.count)
      if count == 0 { return result }
      if count < 0 {
        if errno == EINTR { continue }
        throw unreadable(path)
      }
      result.append(contentsOf: piece[..<count])
    }
  }

  /// Reads a text; what is not UTF-8 is an error, because it would arrive garbled.
  static func readText(_ path: String) throws(CommandFailure) -> String {
    guard let text = String(validating: try read(path), as: UTF8.self) else {
      throw CommandFailure(.data, "\(path == "-" ? "standard input" : path) is not UTF-8: convert it with iconv first")
    }
    return text
  }

  private static func unreadable(_ path: String) -> CommandFailure {
    CommandFailure(
      .data, "\(path == "-" ? "standard input" : path) cannot be read: \(String(cString: strerror(errno)))")
  }

  private static func write(_ text: String, to descriptor: CInt) {
    let bytes = Array(text.utf8)
    var start = 0
    while start < bytes.count {
      let count = bytes[start...].withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count <= 0 { return }
      start += count
    }
  }

  /// The value of an environment variable; nil when it is unset or empty.
  static func environment(_ name: String) -> String? {
    guard let value = getenv(name) else { return nil }
    let text = String(cString: value)
    return text.isEmpty ? nil : text
  }
}
