// A server that takes mail without a login, as the daemon does from this machine, in as little code as that needs.

import Glibc
import Network
import Primitives
import SMTP

/// Answers EHLO with PIPELINING, refuses recipients that begin with `no`, puts off those that begin with `later`.
actor OpenRelay {
  nonisolated let endpoint: Endpoint
  private let loop: EventLoop
  private let listener: Listener
  private var acceptor: Acceptor?
  private var line: [UInt8] = []
  private var decoded: [UInt8] = []
  private var isInData = false
  /// The contents as they came, dot-stuffing and final dot removed.
  private(set) var contents: [String] = []
  private(set) var commands: [String] = []

  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  private let recipientLimit: Int
  private var recipients = 0

  /// - Parameter recipientLimit: what a transaction may have.
  init(on loop: EventLoop, recipientLimit: Int = .max) throws {
    self.recipientLimit = recipientLimit
    guard let any = Endpoint("127.0.0.1:0") else { throw NetworkError.closed }
    self.loop = loop
    listener = try Listener(bindingTo: any)
    endpoint = listener.endpoint
  }

  func start() {
    acceptor = listener.accept(on: loop) { [self] descriptor in Task { await serve(descriptor) } }
  }

  func stop() async { await acceptor?.stop() }

  private func serve(_ descriptor: CInt) async {
    guard let stream = try? ByteStream(adopting: descriptor, on: loop) else { return }
    defer { stream.close() }
    let deadline = SystemTime().now + .seconds(120)
    stream.append { $0 += Array("220 relay ESMTP\r\n".utf8) }
    do {
      repeat {
        let received: [UInt8] = stream.consume { ($0.count, Array($0)) }
        let answers = received.flatMap { answer(to: $0) }
        stream.append { $0 += answers }
        try await stream.flush(until: deadline, waitingFor: "the client to read")
      } while try await stream.fill(until: deadline, waitingFor: "a command")
    } catch {}
  }

  private func answer(to byte: UInt8) -> [UInt8] {
    line.append(byte)
    guard line.suffix(2) == [13, 10] else { return [] }
    let text = String(decoding: line.dropLast(2), as: UTF8.self)
    line = []
    if isInData { return content(text) }
    commands.append(text)
    recipients = text.hasPrefix("RCPT") ? recipients + 1 : text.hasPrefix("MAIL") ? 0 : recipients
    let reply =
      switch text.prefix(4) {
      case "EHLO": "250-relay\r\n250-PIPELINING\r\n250 SIZE 100000"
      case "RCPT" where text.contains("<no"): "550 5.1.1 no such address here"
      case "RCPT" where text.contains("<later"): "450 4.2.1 later"
      case "RCPT" where recipients > recipientLimit: "452 4.5.3 Too many recipients"
      case "DATA": "354 go on"
      case "QUIT": "221 2.0.0 bye"
      default: "250 2.0.0 ok"
      }
    isInData = text == "DATA"
    return Array("\(reply)\r\n".utf8)
  }

  private func content(_ text: String) -> [UInt8] {
    if text == "." {
      isInData = false
      contents.append(String(decoding: decoded, as: UTF8.self))
      decoded = []
      return Array("250 2.0.0 Queued as id\(contents.count)\r\n".utf8)
    }
    decoded += Array((text.hasPrefix(".") ? text.dropFirst() : text[...]).utf8) + [13, 10]
    return []
  }
}
