// A whole session: octets into the real server over a real socket, and its answers compared with what a reader of the
// RFCs expects of them. Whoever finds a way to smuggle a message past the server finds a difference here.

import Configuration
import Glibc
import Logging
import Network
import Primitives
import Routing
import SMTP
import Server
import Spool
import TestSupport

extension FuzzTarget {
  static let session = FuzzTarget("session") { input in
    guard let stage = Stage.shared else { throw Violation(description: "the server did not start") }
    let output = try stage.say(input)
    let stored = stage.takeMessages()
    if let line = stage.log.text.withLock({ $0 }) {
      throw Violation(description: "the log has a line that is two: \(line.debugDescription)")
    }
    let judge = try ReferenceSession(input: input, output: output)
    try expect(
      stored.count == judge.contents.count, "\(stored.count) messages queued, \(judge.contents.count) expected")
    for (message, content) in zip(stored, judge.contents) {
      guard case .bytes(let bytes) = message.content else { continue }
      guard let trace = Self.endOfTrace(bytes) else { throw Violation(description: "a message without its Received") }
      try expect(Array(bytes[trace...]) == content, "a message is not what was sent")
      try expect(isOneLine(message.envelope.helo), "the HELO name breaks its line")
      try expect(isOneLine(message.envelope.reversePath), "the reverse-path breaks its line")
      try expect(!message.envelope.recipients.isEmpty, "a message for nobody")
      try expect(message.envelope.recipients.allSatisfy { isOneLine($0.address + $0.original) }, "a recipient")
    }
  }

  private static func endOfTrace(_ bytes: [UInt8]) -> Int? {
    guard bytes.starts(with: "Received: from ".utf8) else { return nil }
    let mark = Array(";\r\n\t".utf8)
    for index in bytes.indices.dropLast(mark.count) where bytes[index..<index + mark.count].elementsEqual(mark) {
      return bytes[(index + mark.count)...].firstIndex(of: 0x0a).map { $0 + 1 }
    }
    return nil
  }
}

/// The server that all inputs go to.
private final class Stage: Sendable {
  static let shared = try? Stage()

  /// The last line that was logged as two.
  final class BadLine: Sendable { let text = Mutex<String?>(nil) }
  let log = BadLine()
  private let store = MemoryStore()
  private let path: String
  private let server: SMTPServer

  private init() throws {
    var settings = Settings()
    settings.global.defaultHostname = "relay.test"
    settings.global.defaultFrom = "contact@relay.test"
    settings.global.trustedNetworks = ["0.0.0.0/0"].compactMap { IPNetwork($0) }
    settings.global.defaultDomain = "gmail"
    var gmail = DomainSettings(name: "gmail")
    gmail.host = "smtp.gmail.test"
    settings.domains["gmail"] = gmail
    var server = ServerSettings(
      hostname: "relay.test", maximumMessageSize: 1500, maximumRecipients: 3, router: Router(settings))
    server.maximumConnectionsPerAddress = 1000
    path = "/tmp/ssmtp-mailer-fuzz.\(getpid()).sock"
    let log = log
    self.server = SMTPServer(
      store: store, loops: [try EventLoop(name: "fuzz")], time: ManualTime(), settings: server,
      log: Logger(label: "fuzz") { _ in Watch(found: { line in log.text.withLock { $0 = line } }) },
      hand: { _, _, _ in })
    self.server.listen(on: try Listener(bindingTo: path, mode: 0o600))
  }

  private struct Watch: LogHandler {
    let found: @Sendable (String) -> Void
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level = .trace
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }
    func log(event: LogEvent) {
      let line = "\(event.message)"
      if !isOneLine(line) { found(line) }
    }
  }

  /// Sends everything at once and returns everything that comes.
  func say(_ input: [UInt8]) throws -> [UInt8] {
    let descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    defer { close(descriptor) }
    var limit = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let isConnected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
      }
    }
    try expect(isConnected, "nobody listens")
    _ = input.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
    shutdown(descriptor, CInt(SHUT_WR))
    var output: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 16384)
    while true {
      let count = recv(descriptor, &piece, piece.count, 0)
      // The fuzzer's own alarm.
      if count < 0, errno == EINTR { continue }
      try expect(count >= 0, "the session hangs or is reset: errno \(errno)")
      if count == 0 { return output }
      output += piece[..<count]
    }
  }

  func takeMessages() -> [QueuedMessage] {
    let messages = store.messages.values.sorted { $0.id < $1.id }
    for message in messages { store.remove(message.id) }
    return messages
  }
}
