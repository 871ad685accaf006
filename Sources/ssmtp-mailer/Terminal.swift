// Standard input, output and error, and files named on the command line.

import CommandLineTools
import FoundationEssentials
import Glibc
import Primitives

enum Terminal {
  static func print(_ lines: [String]) { write(Array(lines.map { $0 + "\n" }.joined().utf8)) }

  /// Writes a line at once: a pipe's reader waits for it, and Swift's print(_:) would keep it back, and pass over what
  /// could not be written.
  static func say(_ line: String) { write(Array("\(line)\n".utf8)) }

  /// Writes octets to standard output at once.
  static func write(_ bytes: [UInt8]) { _ = bytes.withUnsafeBytes { write($0) } }

  /// The errno of the first write to standard output that failed; nothing is written behind that.
  private static let outputError = Mutex<CInt>(0)

  /// Whether standard output takes no more, so that there is no use in making more of it.
  static var isClosed: Bool { outputError.withLock { $0 != 0 } }

  /// - Returns: false when standard output takes no more.
  @discardableResult
  static func write(_ bytes: UnsafeRawBufferPointer) -> Bool {
    outputError.withLock { error in
      if error == 0 { error = write(bytes, to: STDOUT_FILENO) }
      return error == 0
    }
  }

  /// - Throws: ``CommandFailure`` with status 74 when not all output has been taken. A reader that has gone away has seen
  ///   all that it wanted.
  static func finish() throws(CommandFailure) {
    let error = outputError.withLock { $0 }
    guard error != 0, error != EPIPE else { return }
    throw CommandFailure(
      .inputOutput, "standard output takes no more, so this is not all of it: \(String(cString: strerror(error)))")
  }

  /// Writes `ssmtp-mailer: text` to standard error; nothing for an empty text.
  static func complain(_ text: String) {
    guard !text.isEmpty else { return }
    _ = Array("ssmtp-mailer: \(text)\n".utf8).withUnsafeBytes { write($0, to: STDERR_FILENO) }
  }

  /// Prints a value as JSON, its keys sorted and in snake case.
  static func printJSON(_ value: some Encodable) throws(CommandFailure) {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
    do { say(String(decoding: try encoder.encode(value), as: UTF8.self)) } catch {
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
        if errno == EINTR || errno == EAGAIN && isReady(descriptor, POLLIN) { continue }
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

  /// - Returns: 0, or the errno of what went wrong.
  private static func write(_ bytes: UnsafeRawBufferPointer, to descriptor: CInt) -> CInt {
    var rest = bytes
    while !rest.isEmpty {
      let count = Glibc.write(descriptor, rest.baseAddress, rest.count)
      if count < 0 {
        // Who started the command may have set the pipe not to block.
        if errno == EINTR || errno == EAGAIN && isReady(descriptor, POLLOUT) { continue }
        return errno
      }
      if count == 0 { return EIO }
      rest = UnsafeRawBufferPointer(rebasing: rest[count...])
    }
    return 0
  }

  /// Waits until a descriptor can be used; false, with errno, when that cannot be waited for.
  private static func isReady(_ descriptor: CInt, _ events: CInt) -> Bool {
    var wait = pollfd(fd: descriptor, events: Int16(events), revents: 0)
    return poll(&wait, 1, -1) >= 0 || errno == EINTR
  }

  /// The value of an environment variable; nil when it is unset or empty.
  static func environment(_ name: String) -> String? {
    guard let value = getenv(name) else { return nil }
    let text = String(cString: value)
    return text.isEmpty ? nil : text
  }
}
