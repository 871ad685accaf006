// Log lines in files: complete, in order, one line each whatever they hold, and across logrotate.

import Glibc
import Logging
import Primitives
import Testing

@testable import Telemetry

@Suite struct LogOutputTests {
  private let folder: String
  private let time = ManualTime(wallClock: Timestamp(microseconds: 1_795_000_000_123_456))

  init() throws {
    var template = Array("/tmp/log-XXXXXX".utf8CString)
    folder = String(cString: try #require(mkdtemp(&template)))
  }

  private func text(_ name: String) -> String {
    guard let file = fopen("\(folder)/\(name)", "r") else { return "" }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    return String(decoding: bytes[..<fread(&bytes, 1, bytes.count, file)], as: UTF8.self)
  }

  @Test func linesCarryTimeAndLevel() throws {
    let output = try LogOutput(.file("\(folder)/a.log"), level: .info, time: time)
    let log = output.logger("test")
    log.info("first")
    log.error("second")
    output.flush()
    #expect(text("a.log") == "2026-11-18T11:06:40.123Z INFO first\n2026-11-18T11:06:40.123Z ERROR second\n")
  }

  @Test func levelCanBeChangedForAllLoggersAtOnce() throws {
    let output = try LogOutput(.file("\(folder)/a.log"), level: .warning, time: time)
    let log = output.logger("test")
    log.info("hidden")
    output.level = .debug
    log.debug("shown")
    output.flush()
    #expect(!text("a.log").contains("hidden") && text("a.log").contains("shown"))
  }

  @Test func controlCharactersCannotStartALine() throws {
    let output = try LogOutput(.file("\(folder)/a.log"), level: .info, time: time)
    output.logger("test").info("helo=x\r\n2026 ERROR forged\u{1b}[31m\u{7f}\u{9b}2Jü")
    output.flush()
    let lines = text("a.log").split(separator: "\n")
    #expect(lines.count == 1 && lines[0].hasSuffix("helo=x\\x0d\\x0a2026 ERROR forged\\x1b[31m\\x7f\\x9b2Jü"))
  }

  @Test func reopenedLogGoesOnInTheNewFile() throws {
    let output = try LogOutput(.file("\(folder)/a.log"), level: .info, time: time)
    let log = output.logger("test")
    log.info("before")
    rename("\(folder)/a.log", "\(folder)/a.log.1")
    try output.reopen(.file("\(folder)/a.log"))
    log.info("after")
    output.flush()
    #expect(text("a.log.1").contains("before") && !text("a.log.1").contains("after"))
    #expect(text("a.log").contains("after"))
  }

  @Test func fileThatCannotBeOpenedIsNamed() {
    #expect(throws: LogError.self) { try LogOutput(.file("\(folder)/no/such/a.log"), level: .info) }
    do {
      _ = try LogOutput(.file("\(folder)/no/such/a.log"), level: .info)
    } catch { #expect(error.description.contains("\(folder)/no/such/a.log: No such file or directory")) }
  }

  @Test func manyThreadsLoseNoLine() async throws {
    let output = try LogOutput(.file("\(folder)/a.log"), level: .info, time: time)
    await withTaskGroup(of: Void.self) { group in
      for task in 0..<8 {
        group.addTask {
          let log = output.logger("test")
          for line in 0..<500 { log.info("task \(task) line \(line) end") }
        }
      }
    }
    output.flush()
    let lines = text("a.log").split(separator: "\n")
    #expect(lines.count == 4000 && lines.allSatisfy { $0.hasSuffix(" end") })
    for task in 0..<8 {
      let numbers = lines.filter { $0.contains("task \(task) ") }.map { $0.split(separator: " ")[5] }
      #expect(numbers == (0..<500).map { "\($0)" })
    }
  }

  @Test(arguments: [
    ("316m7z3xpk0: from=<a@b>", "316m7z3xpk0"), ("316m7z3xpk: short", nil), ("account x: connection", nil),
    ("316M7Z3XPK0: upper", nil), ("no colon here", nil),
  ])
  func queueIDIsFoundAtTheBeginning(line: String, id: String?) {
    #expect(Journal.queueID(of: line).map { String($0) } == id)
  }
}
