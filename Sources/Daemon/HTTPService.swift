// The little HTTP that the daemon speaks, on its admin socket and to monitors: one request a connection, with a bound on
// everything that a client can make it keep or wait for.
//
// It runs on an event loop of its own: whatever clients do here, neither mail nor signals nor the other sockets wait
// for it.

import Network
import Primitives
import Spool

/// What a client may make the daemon keep, and for how long.
struct HTTPLimits: Sendable {
  /// Octets of a request line with all fields.
  var head = 16 << 10
  /// How long a client may take for them.
  var headTime = Duration.seconds(10)
  /// How long it may take to send or to receive the next octet of a body.
  var bodyTime = Duration.seconds(300)
  /// Clients at once; one more is turned away.
  var connections = 50
}

/// Answers requests on some listeners.
final class HTTPService: Sendable {
  typealias Handler = @Sendable (HTTPRequest, AdminRequest.Body) async throws -> AdminResponse

  let loop: EventLoop
  let limits: HTTPLimits
  let handler: Handler
  private struct State {
    var connections = 0
    var acceptors: [Acceptor] = []
  }
  private let state = Mutex(State())

  init(loop: EventLoop, limits: HTTPLimits = HTTPLimits(), handler: @escaping Handler) {
    self.loop = loop
    self.limits = limits
    self.handler = handler
  }

  /// Begins to accept.
  func listen(on listener: Listener) {
    let acceptor = listener.accept(on: loop) { [weak self] descriptor in
      guard let self else { return Listener.turnAway(descriptor) }
      let connection = HTTPConnection(service: self)
      Task(executorPreference: loop) { await connection.run(descriptor) }
    }
    state.withLock { $0.acceptors.append(acceptor) }
  }

  /// Stops accepting; requests that are being answered go on.
  func stop() async {
    for acceptor in state.withLock({ $0.acceptors }) { await acceptor.stop() }
  }

  /// Counts a client in, unless there are too many.
  func enter() -> Bool {
    state.withLock { state in
      guard state.connections < limits.connections else { return false }
      state.connections += 1
      return true
    }
  }

  func leave() { state.withLock { $0.connections -= 1 } }
}

/// One client with its one request.
private actor HTTPConnection {
  private let service: HTTPService
  private var stream: ByteStream?
  /// Octets of the body that have not been read yet.
  private var bodyRest = 0

  nonisolated var unownedExecutor: UnownedSerialExecutor { service.loop.asUnownedSerialExecutor() }

  init(service: HTTPService) { self.service = service }

  private var limits: HTTPLimits { service.limits }
  /// What a client may still send after its answer, and for how long, before it is cut off: it has to be able to read.
  private static let farewell = (octets: 1 << 20, time: Duration.seconds(2))

  func run(_ descriptor: CInt) async {
    let stream: ByteStream
    do { stream = try ByteStream(adopting: descriptor, on: service.loop) } catch { return }
    self.stream = stream
    defer {
      self.stream = nil
      stream.close()
    }
    guard service.enter() else {
      Self.put(503, [("Content-Length", "0")], on: stream)
      _ = try? stream.tryFlush()
      return await stream.closeGently(until: SystemTime().now)
    }
    defer { service.leave() }
    do {
      try await serve(stream)
    } catch let refusal as HTTPRequest.Refusal {
      guard let answer = try? AdminResponse(refusal.status, refusal.text) else { return }
      do { try await send(answer, on: stream) } catch { return }
    } catch { return }  // it has gone, or took too long
    await stream.closeGently(until: SystemTime().now + Self.farewell.time, dropping: Self.farewell.octets)
  }

  private func serve(_ stream: ByteStream) async throws {
    guard let request = try await readHead(stream) else { return }
    bodyRest = request.contentLength
    if request.expectsContinue, bodyRest > 0 {
      stream.append { $0.append(contentsOf: "HTTP/1.1 100 Continue\r\n\r\n".utf8) }
      try await stream.flush(until: SystemTime().now + limits.bodyTime, waitingFor: "room for an answer")
    }
    let answer: AdminResponse
    do { answer = try await service.handler(request, HTTPBody(connection: self)) } catch let error as NetworkError {
      throw error
    } catch { answer = try AdminResponse(500, "\(error)") }
    try await send(answer, on: stream)
  }

  /// Reads up to the empty line, each octet once.
  /// - Returns: nil when nothing came.
  private func readHead(_ stream: ByteStream) async throws -> HTTPRequest? {
    let deadline = SystemTime().now + limits.headTime
    var head: [UInt8] = []
    var lineIsEmpty = true
    while true {
      if stream.bufferedCount == 0, try await !stream.fill(until: deadline, waitingFor: "a request") {
        if head.isEmpty { return nil }
        throw HTTPRequest.Refusal.malformed
      }
      let room = limits.head - head.count
      let isWhole = stream.consume { bytes in
        var used = 0
        for byte in bytes.prefix(room) {
          used += 1
          if byte == UInt8(ascii: "\n"), lineIsEmpty {
            // Empty lines before a request are passed over (RFC 9112 2.2).
            if head.contains(where: { $0 != UInt8(ascii: "\r") }) { return (used, true) }
            head = []
            continue
          }
          if byte != UInt8(ascii: "\r") { lineIsEmpty = byte == UInt8(ascii: "\n") }
          head.append(byte)
        }
        return (used, false)
      }
      if isWhole { return try HTTPRequest(head: head) }
      if head.count >= limits.head { throw HTTPRequest.Refusal.tooLarge }
    }
  }

  /// The next piece of the body; nil at its end.
  func nextPiece() async throws -> [UInt8]? {
    guard bodyRest > 0, let stream else { return nil }
    if stream.bufferedCount == 0 {
      let deadline = SystemTime().now + limits.bodyTime
      guard try await stream.fill(until: deadline, waitingFor: "the body of a request") else {
        throw NetworkError.endOfStream
      }
    }
    let wanted = bodyRest
    let piece = stream.consume { bytes in
      let count = min(bytes.count, wanted)
      return (count, Array(bytes.prefix(count)))
    }
    bodyRest -= piece.count
    return piece
  }

  private static let pieceSize = 1 << 18

  /// The first piece of a content, so that one that cannot be read is not promised.
  private func beginning(of content: Content) async throws(QueueError) -> [UInt8] {
    guard case .file(let file) = content, file.count > 0 else { return [] }
    let piece = try await file.read(at: 0, count: Self.pieceSize)
    if piece.isEmpty { throw .corrupt(file: "the content", offset: 0, detail: "nothing of it is there") }
    return piece
  }

  private func send(_ given: AdminResponse, on stream: ByteStream) async throws {
    var answer = given
    var piece: [UInt8] = []
    do throws(QueueError) { piece = try await beginning(of: given.body) } catch {
      answer = try AdminResponse(500, "\(error)")
    }
    var fields = [("Content-Type", answer.contentType), ("Content-Length", "\(answer.body.count)")]
    if answer.status == 405 { fields.append(("Allow", "GET")) }
    Self.put(answer.status, fields, on: stream)
    func flush() async throws {
      try await stream.flush(until: SystemTime().now + limits.bodyTime, waitingFor: "room for an answer")
    }
    switch answer.body {
    case .bytes(let bytes): stream.append { $0 += bytes }
    case .file(let file):
      var offset = 0
      while offset < file.count {
        if offset > 0 { piece = try await file.read(at: offset, count: Self.pieceSize) }
        // The client sees that its answer is too short.
        if piece.isEmpty { throw NetworkError.endOfStream }
        stream.append { $0 += piece }
        try await flush()
        offset += piece.count
      }
    }
    try await flush()
  }

  private static func put(_ status: Int, _ fields: [(String, String)], on stream: ByteStream) {
    let phrases = [
      200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
      411: "Length Required", 422: "Unprocessable Content", 431: "Request Header Fields Too Large",
      500: "Internal Server Error", 503: "Service Unavailable", 507: "Insufficient Storage",
    ]
    var text = "HTTP/1.1 \(status) \(phrases[status] ?? "See body")\r\n"
    for (name, value) in fields { text += "\(name): \(value)\r\n" }
    text += "Connection: close\r\n\r\n"
    stream.append { $0.append(contentsOf: text.utf8) }
  }
}

/// The body of a request, read from its connection as it is asked for.
private struct HTTPBody: AsyncSequence, AsyncIteratorProtocol, Sendable {
  let connection: HTTPConnection
  func next() async throws -> [UInt8]? { try await connection.nextPiece() }
  func makeAsyncIterator() -> HTTPBody { self }
}
