// A client's SMTP connection, one command at a time: for a message of our own, or to look at an upstream.

import Network
import Primitives
import SMTP

/// A connection that is opened, spoken on and closed by one task. Close it before dropping it.
public actor SMTPConnection {
  private let loop: EventLoop
  private var stream: ByteStream?
  private var parser = ReplyParser()
  /// Kept as long as the stream: OpenSSL hands session tickets to it while the connection lives.
  private var context: TLSContext?

  public nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  public init(on loop: EventLoop) { self.loop = loop }

  public func connect(to endpoint: Endpoint, within limit: Duration) async throws(NetworkError) {
    stream = try await ByteStream.connect(to: endpoint, on: loop, until: SystemTime().now + limit)
  }

  /// Runs the handshake and forgets what was said before it (RFC 3207 4.2).
  public func startTLS(
    _ context: TLSContext, serverName: String, within limit: Duration
  ) async throws(NetworkError) -> TLSSummary? {
    guard let stream else { throw .closed }
    self.context = context
    try await stream.startTLS(context, serverName: serverName, until: SystemTime().now + limit)
    parser = ReplyParser()
    return stream.tls
  }

  /// Sends `command`, if any, and returns the next reply.
  /// - Throws: ``NetworkError`` or ``ReplyError``.
  public func exchange(_ command: String?, within limit: Duration) async throws -> Reply {
    guard let stream else { throw NetworkError.closed }
    if let command {
      stream.append {
        $0.append(contentsOf: command.utf8)
        $0.append(contentsOf: [13, 10])
      }
      try await stream.flush(until: SystemTime().now + limit, waitingFor: "the server to read")
    }
    return try await reply(stream, within: limit)
  }

  /// Sends one message to the recipients and returns what became of it.
  /// - Throws: ``NetworkError`` or ``ReplyError`` when the connection fails before the outcome is known.
  public func send(
    _ content: [UInt8], through transaction: ClientTransaction, within limit: Duration
  ) async throws -> ClientTransaction.Outcome {
    guard let stream else { throw NetworkError.closed }
    var transaction = transaction
    var style = ClientTransaction.Style.lockStep
    stream.append { style = transaction.flight(into: &$0) }
    if style == .chunked { stream.append { $0.append(contentsOf: content) } }
    try await stream.flush(until: SystemTime().now + limit, waitingFor: "the server to read")
    while true {
      switch transaction.receive(try await reply(stream, within: limit)) {
      case .wait: continue
      case .send(let commands): stream.append { $0.append(contentsOf: commands) }
      case .sendContent(let dotStuffed):
        stream.append { output in
          guard dotStuffed else {
            output.append(contentsOf: content)
            return
          }
          var encoder = DataEncoder()
          content.withUnsafeBytes { encoder.encode($0, into: &output) }
          encoder.finish(into: &output)
        }
      case .finished(let outcome): return outcome
      }
      try await stream.flush(until: SystemTime().now + limit, waitingFor: "the server to read")
    }
  }

  /// Says QUIT, without waiting long for the farewell, and closes.
  public func quit() async {
    _ = try? await exchange("QUIT", within: .seconds(2))
    close()
  }

  public func close() {
    stream?.close()
    stream = nil
  }

  private func reply(_ stream: ByteStream, within limit: Duration) async throws -> Reply {
    let deadline = SystemTime().now + limit
    while true {
      if stream.bufferedCount > 0, let reply = try buffered(stream) { return reply }
      guard try await stream.fill(until: deadline, waitingFor: "a reply") else { throw NetworkError.endOfStream }
    }
  }

  private func buffered(_ stream: ByteStream) throws -> Reply? {
    try stream.consume { bytes in
      var consumed = 0
      let result = Result { try parser.next(bytes, consumed: &consumed) }
      return (consumed, result)
    }.get()
  }
}
