// A password as a person types it, as a pipe brings it, or as this machine makes it up.

import CommandLineTools
import Glibc
import Passwords

enum PasswordInput {
  /// Reads twice from the terminal, without showing it.
  static func askTwice(for address: String) throws(CommandFailure) -> String {
    let first = try ask("Password for \(address): ")
    guard try ask("Again: ") == first else {
      throw CommandFailure(.data, "the two passwords differ: nothing is changed")
    }
    return first
  }

  /// The first line of standard input.
  static func fromStandardInput() throws(CommandFailure) -> String {
    let text = try Terminal.readText("-")
    var line = text.utf8.prefix { $0 != 0x0a }
    if line.last == 0x0d { line = line.dropLast() }
    return String(Substring(line))
  }

  static var isTerminal: Bool { isatty(STDIN_FILENO) == 1 }

  /// Four groups of five letters and digits that nobody takes for each other: 97 bits.
  static func generate() -> String {
    let letters = Array("abcdefghijkmnpqrstuvwxyz23456789")
    return (0..<4).map { _ in String((0..<5).compactMap { _ in letters.randomElement() }) }.joined(separator: "-")
  }

  /// Asks on the terminal itself, so that a redirected output does not swallow the question.
  static func ask(_ question: String) throws(CommandFailure) -> String {
    let terminal = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY)
    var before = termios()
    guard terminal >= 0, tcgetattr(terminal, &before) == 0 else {
      throw CommandFailure(.usage, "there is no terminal to ask on: use --stdin or --generate")
    }
    defer { close(terminal) }
    // No echo; and no signals, so that the terminal is never left without echo.
    var silent = before
    silent.c_lflag &= ~tcflag_t(ECHO | ICANON | ISIG)
    tcsetattr(terminal, TCSAFLUSH, &silent)
    defer {
      tcsetattr(terminal, TCSAFLUSH, &before)
      put("\n", on: terminal)
    }
    put(question, on: terminal)
    var line: [UInt8] = []
    while true {
      var byte: UInt8 = 0
      let count = read(terminal, &byte, 1)
      if count < 0, errno == EINTR { continue }
      guard count == 1, byte != 0x03, !(byte == 0x04 && line.isEmpty) else {
        throw CommandFailure(.usage, "given up: nothing is changed")
      }
      switch byte {
      case 0x0a, 0x0d, 0x04:
        guard let text = String(validating: line, as: UTF8.self) else {
          throw CommandFailure(.data, "the password is not UTF-8")
        }
        return text
      case 0x08, 0x7f:
        // A whole character, also one of several octets.
        while let last = line.popLast(), last & 0xc0 == 0x80 {}
      case 0x15: line = []
      default: line.append(byte)
      }
    }
  }

  private static func put(_ text: String, on descriptor: CInt) {
    let bytes = Array(text.utf8)
    _ = write(descriptor, bytes, bytes.count)
  }
}
