// Where log lines go: the journal with fields of its own, a file that logrotate may take away, or standard error.
// Lines are handed to one queue that writes many with one system call, so that logging never blocks an event loop.

import CSystemd
import Dispatch
import Glibc
import Logging
import Primitives

import struct Synchronization.Atomic

/// A place for log lines.
public enum LogDestination: Sendable, Hashable {
  case journal
  case standardError
  case file(String)
}

/// A log file that cannot be opened.
public struct LogError: Error, CustomStringConvertible {
  public let description: String
}

/// Collects lines and writes them in the background.
public final class LogOutput: Sendable {
  private struct Line {
    var level: Logger.Level
    var time: Timestamp
    var text: String
  }
  private struct State {
    var lines: [Line] = []
    var isWriting = false
    var dropped = 0
  }
  private let state = Mutex(State())
  private let threshold: Atomic<Int>
  private let queue = DispatchQueue(label: "log")
  private let time: any Timekeeper

  /// What is open; touched on `queue` only, but for the time before the first line.
  private struct Target {
    var destination: LogDestination
    var descriptor: CInt
  }
  private let target: Mutex<Target>
  /// How long a line waits for others: waking a thread for each would cost more than writing it.
  private static let patience = DispatchTimeInterval.milliseconds(10)
  /// A disk that hangs must not fill the memory: beyond this many waiting lines the newest are counted, not kept.
  private static let waitingLimit = 100_000

  /// - Throws: ``LogError`` when the file cannot be opened.
  public init(_ destination: LogDestination, level: Logger.Level, time: any Timekeeper = SystemTime()) throws(LogError)
  {
    self.time = time
    threshold = Atomic(Self.rank(level))
    target = Mutex(Target(destination: destination, descriptor: try Self.open(destination)))
  }

  private static func open(_ destination: LogDestination) throws(LogError) -> CInt {
    guard case .file(let path) = destination else { return STDERR_FILENO }
    let descriptor = Glibc.open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o640)
    guard descriptor >= 0 else {
      throw LogError(description: "cannot open the log file \(path): \(String(cString: strerror(errno)))")
    }
    return descriptor
  }

  public var level: Logger.Level {
    get { Logger.Level.allCases[threshold.load(ordering: .relaxed)] }
    set { threshold.store(Self.rank(newValue), ordering: .relaxed) }
  }

  private static func rank(_ level: Logger.Level) -> Int { Logger.Level.allCases.firstIndex(of: level) ?? 0 }

  /// Opens the destination anew: after logrotate has renamed the file, or when the configuration names another one.
  /// What was logged before goes to the old one.
  public func reopen(_ destination: LogDestination) throws(LogError) {
    flush()
    let descriptor = try Self.open(destination)
    let old = target.withLock { target in
      let old = target
      target = Target(destination: destination, descriptor: descriptor)
      return old
    }
    if case .file = old.destination { close(old.descriptor) }
  }

  /// A logger that writes here.
  public func logger(_ label: String) -> Logger { Logger(label: label) { _ in RelayLogHandler(output: self) } }

  func write(_ level: Logger.Level, _ text: String) {
    let line = Line(level: level, time: time.wallClock, text: text)
    let isFirst = state.withLock { state in
      if state.lines.count >= Self.waitingLimit {
        state.dropped += 1
        return false
      }
      state.lines.append(line)
      if state.isWriting { return false }
      state.isWriting = true
      return true
    }
    guard isFirst else { return }
    if level >= .error {
      queue.async { [self] in drain() }
    } else {
      queue.asyncAfter(deadline: .now() + Self.patience) { [self] in drain() }
    }
  }

  /// Returns once everything logged so far is written.
  public func flush() { queue.sync { drain() } }

  private func drain() {
    while true {
      let (lines, dropped) = state.withLock { state in
        let taken = (state.lines, state.dropped)
        state.lines = []
        state.dropped = 0
        if taken.0.isEmpty { state.isWriting = false }
        return taken
      }
      if lines.isEmpty { return }
      let target = target.withLock { $0 }
      if target.destination == .journal {
        for line in lines { Journal.send(line.text, priority: line.level.priority) }
      } else {
        write(lines, to: target)
      }
      if dropped > 0 { write(.error, "\(dropped) log lines were lost: the log could not be written fast enough") }
    }
  }

  private func write(_ lines: [Line], to target: Target) {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(lines.count * 160)
    // systemd takes `<6>` from standard error as the priority, and has a time stamp of its own.
    let isSystemd = target.destination == .standardError && Journal.isStandardError
    for line in lines {
      if isSystemd {
        bytes.append(contentsOf: "<\(line.level.priority)>".utf8)
      } else {
        ISOTime.append(line.time, to: &bytes)
        bytes.append(0x20)
        bytes.append(contentsOf: line.level.rawValue.uppercased().utf8)
        bytes.append(0x20)
      }
      LogText.append(line.text, to: &bytes)
      bytes.append(0x0a)
    }
    var offset = 0
    while offset < bytes.count {
      let count = bytes.withUnsafeBytes {
        Glibc.write(target.descriptor, $0.baseAddress?.advanced(by: offset), $0.count - offset)
      }
      if count < 0, errno == EINTR { continue }
      // A log that cannot be written has nobody to complain to; mail goes on.
      if count <= 0 { return }
      offset += count
    }
  }
}

/// swift-log's way to a ``LogOutput``.
struct RelayLogHandler: LogHandler {
  let output: LogOutput
  var metadata: Logger.Metadata = [:]

  /// One level for all loggers, so that a reload changes it everywhere.
  var logLevel: Logger.Level {
    get { output.level }
    set { _ = newValue }
  }

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) { output.write(event.level, event.message.description) }
}

extension Logger.Level {
  /// The priority of syslog(3).
  var priority: Int {
    switch self {
    case .trace, .debug: 7
    case .info: 6
    case .notice: 5
    case .warning: 4
    case .error: 3
    case .critical: 2
    }
  }
}

/// Log lines as bytes: what a client typed cannot start a line of its own or reach a terminal's control sequences.
enum LogText {
  static func append(_ text: String, to bytes: inout [UInt8]) {
    let start = bytes.count
    bytes.append(contentsOf: text.utf8)
    // Also C1 (0xc2 0x80 to 0x9f), which some terminals obey.
    guard bytes[start...].contains(where: { $0 < 0x20 || $0 == 0x7f || $0 == 0xc2 }) else { return }
    bytes.removeSubrange(start...)
    for scalar in text.unicodeScalars {
      let isControl = scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value)
      if isControl {
        bytes += "\\x\(scalar.value < 16 ? "0" : "")\(String(scalar.value, radix: 16))".utf8
      } else {
        bytes += UTF8.encode(scalar)?.map { $0 } ?? []
      }
    }
  }
}

/// The native protocol of the journal (sd_journal_sendv(3)).
enum Journal {
  /// Whether standard error is connected to the journal (systemd.exec(5), JOURNAL_STREAM).
  static let isStandardError: Bool = {
    guard let stream = getenv("JOURNAL_STREAM").map({ String(cString: $0) }) else { return false }
    var status = stat()
    return fstat(STDERR_FILENO, &status) == 0 && stream == "\(status.st_dev):\(status.st_ino)"
  }()

  static func send(_ text: String, priority: Int) {
    var fields = ["PRIORITY=\(priority)", "SYSLOG_IDENTIFIER=ssmtp-mailer"].map { Array($0.utf8) }
    var message = Array("MESSAGE=".utf8)
    LogText.append(text, to: &message)
    fields.append(message)
    if let id = queueID(of: text) { fields.append(Array("SSMTP_QUEUE_ID=\(id)".utf8)) }
    withVectors(fields) { _ = sd_journal_sendv($0, CInt($1)) }
  }

  /// Lines about a message begin with its queue id and a colon.
  static func queueID(of text: String) -> Substring? {
    guard let colon = text.utf8.prefix(16).firstIndex(of: 0x3a) else { return nil }
    let id = text[..<colon]
    return id.utf8.count == 11 && id.utf8.allSatisfy { (0x30...0x39).contains($0) || (0x61...0x7a).contains($0) }
      ? id : nil
  }

  private static func withVectors(_ fields: [[UInt8]], _ body: (UnsafePointer<iovec>, Int) -> Void) {
    var joined: [UInt8] = []
    for field in fields { joined.append(contentsOf: field) }
    joined.withUnsafeMutableBytes { buffer in
      guard let base = buffer.baseAddress else { return }
      var offset = 0
      let vectors = fields.map { field in
        defer { offset += field.count }
        return iovec(iov_base: base + offset, iov_len: field.count)
      }
      vectors.withUnsafeBufferPointer { if let first = $0.baseAddress { body(first, $0.count) } }
    }
  }
}

/// RFC 3339 times in UTC with milliseconds, as log files have them.
public enum ISOTime {
  public static func append(_ time: Timestamp, to bytes: inout [UInt8]) {
    var seconds = time_t(time.seconds)
    var parts = tm()
    gmtime_r(&seconds, &parts)
    func put(_ value: CInt, _ width: Int, _ separator: UInt8) {
      var divisor = width == 4 ? 1000 : width == 3 ? 100 : 10
      while divisor > 0 {
        bytes.append(0x30 + UInt8(Int(value) / divisor % 10))
        divisor /= 10
      }
      bytes.append(separator)
    }
    put(parts.tm_year + 1900, 4, 0x2d)
    put(parts.tm_mon + 1, 2, 0x2d)
    put(parts.tm_mday, 2, 0x54)
    put(parts.tm_hour, 2, 0x3a)
    put(parts.tm_min, 2, 0x3a)
    put(parts.tm_sec, 2, 0x2e)
    put(CInt((time.microseconds - time.seconds * 1_000_000) / 1000), 3, 0x5a)
  }

  public static func format(_ time: Timestamp) -> String {
    var bytes: [UInt8] = []
    append(time, to: &bytes)
    return String(decoding: bytes, as: UTF8.self)
  }
}
