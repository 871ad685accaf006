// A TCP connection as a stream of bytes, in clear or under TLS, with deadlines. It belongs to the actor that runs
// the connection: all of it is touched on that actor's event loop.

import CLinux
import COpenSSL
import Glibc
import Primitives

/// A connected socket with an input and an output buffer.
public final class ByteStream {
  public let peer: Endpoint
  /// False when the other end had gone before anybody could see who it was.
  public let hasPeer: Bool
  public let local: Endpoint
  let loop: EventLoop
  let watcher: Watcher
  private var ssl: OpaquePointer?
  /// OpenSSL calls back into the context when a session ticket comes, so it has to live as long as the connection.
  private var context: TLSContext?

  private var input: [UInt8] = []
  private var inputStart = 0
  private var output: [UInt8] = []
  private var outputStart = 0
  /// Octets that came without any wait since the last one.
  private var eagerOctets = 0
  /// How many of them a stream takes before others on its loop have their turn.
  private static let turn = 256 * 1024
  /// Buffers larger than this are given back while the connection idles.
  private static let keptCapacity = 512

  /// Takes over a connected, non-blocking descriptor. On the loop only; the descriptor is closed on failure.
  public convenience init(adopting descriptor: CInt, on loop: EventLoop) throws(NetworkError) {
    let watcher: Watcher
    do { watcher = try loop.watch(descriptor) } catch {
      Glibc.close(descriptor)
      throw error
    }
    self.init(watched: watcher, on: loop)
  }

  init(watched watcher: Watcher, on loop: EventLoop) {
    self.loop = loop
    self.watcher = watcher
    let descriptor = watcher.descriptor
    var one: CInt = 1
    setsockopt(descriptor, CInt(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<CInt>.size))
    let none = Endpoint(address: .ipv4Any, port: 0)
    peer = Socket.endpoint(of: descriptor, peer: true) ?? none
    hasPeer = Socket.hasPeer(descriptor)
    local = Socket.endpoint(of: descriptor, peer: false) ?? none
  }

  deinit { assert(watcher.isClosed, "a stream is closed before it is dropped") }

  // MARK: Reading

  /// The bytes that were received and not yet consumed.
  public var bufferedCount: Int { input.count - inputStart }

  /// Shows the received bytes to `body`, which returns how many of them it has used up.
  public func consume<Result>(_ body: (UnsafeRawBufferPointer) -> (consumed: Int, Result)) -> Result {
    let (consumed, result) = input.withUnsafeBytes { body(UnsafeRawBufferPointer(rebasing: $0[inputStart...])) }
    inputStart += consumed
    if inputStart == input.count {
      input.removeAll(keepingCapacity: true)
      inputStart = 0
    }
    return result
  }

  /// Forgets what was received and not consumed: what came before TLS must not be read after it (RFC 3207 4.2).
  public func discardInput() {
    input = []
    inputStart = 0
  }

  /// Moves the deadline of a ``fill(until:waitingFor:)`` that waits now: what it waits for has changed.
  public func extendFill(to deadline: MonotonicInstant) { watcher.extendReader(to: deadline) }

  /// Ends a ``fill(until:waitingFor:)`` that waits now, as if its deadline had passed.
  public func expireFill() { watcher.expireReader() }

  /// Waits until bytes arrive and appends them to what is buffered. Returns false at the end of the stream.
  public nonisolated(nonsending) func fill(until deadline: MonotonicInstant, waitingFor what: StaticString)
    async
    throws(NetworkError) -> Bool
  {
    if input.isEmpty, input.capacity > Self.keptCapacity { input = [] }
    while true {
      if eagerOctets >= Self.turn {
        eagerOctets = 0
        await loop.pause()
      }
      if !watcher.isReadable, !watcher.isHungUp, ssl.map({ SSL_pending($0) == 0 }) ?? true {
        eagerOctets = 0
        try await settle(watcher.readable(until: deadline), "\(what)")
      }
      if watcher.isClosed { throw .closed }
      switch try receive() {
      case .some(0): return false
      case .some(let count):
        eagerOctets += count
        if inputStart > 0 {
          input.removeFirst(inputStart)
          inputStart = 0
        }
        input.append(contentsOf: UnsafeRawBufferPointer(rebasing: loop.scratch[..<count]))
        return true
      case .none: continue
      }
    }
  }

  /// One read into the loop's scratch memory: the count, 0 at the end, nil when there is nothing yet.
  private func receive() throws(NetworkError) -> Int? {
    if let ssl {
      ERR_clear_error()
      let count = SSL_read(ssl, loop.scratch.baseAddress, CInt(loop.scratch.count))
      if count > 0 { return Int(count) }
      switch SSL_get_error(ssl, count) {
      case SSL_ERROR_WANT_READ:
        watcher.isReadable = false
        if watcher.isHungUp { return 0 }
        return nil
      case SSL_ERROR_ZERO_RETURN: return 0
      case SSL_ERROR_SYSCALL where errno == 0: return 0
      case SSL_ERROR_SYSCALL: throw .system("read", errno)
      default: throw .tls(TLSContext.lastError())
      }
    }
    let count = recv(watcher.descriptor, loop.scratch.baseAddress, loop.scratch.count, 0)
    if count > 0 {
      // A short read has emptied the socket: the next byte brings a new edge (epoll(7)); only a hang-up does not.
      if count < loop.scratch.count, !watcher.isHungUp { watcher.isReadable = false }
      return count
    }
    if count == 0 { return 0 }
    switch errno {
    case EAGAIN:
      watcher.isReadable = false
      return nil
    case EINTR: return nil
    default: throw .system("recv", errno)
    }
  }

  // MARK: Writing

  /// The bytes that wait to be sent.
  public var pendingOutput: Int { output.count - outputStart }

  /// Lets `body` append to the output. Nothing is sent before ``flush(until:waitingFor:)``.
  public func append(_ body: (inout [UInt8]) -> Void) { body(&output) }

  /// Sends as much as the socket takes now. Returns whether all of the output is gone.
  public func tryFlush() throws(NetworkError) -> Bool {
    if watcher.isClosed { throw .closed }
    while outputStart < output.count {
      guard let sent = try transmit() else { return false }
      outputStart += sent
    }
    if output.capacity > 65536 { output = [] } else { output.removeAll(keepingCapacity: output.capacity > 0) }
    outputStart = 0
    return true
  }

  /// Sends all of the output.
  public nonisolated(nonsending) func flush(until deadline: MonotonicInstant, waitingFor what: StaticString)
    async
    throws(NetworkError)
  {
    while try !tryFlush() { try await settle(watcher.writable(until: deadline), "\(what)") }
  }

  /// Gives back the output buffer of a connection that idles.
  public func releaseOutputBuffer() { if output.isEmpty, output.capacity > Self.keptCapacity { output = [] } }

  /// Overwrites what was sent, which held a password. Does nothing while some of it has not gone.
  public func wipeOutputBuffer() {
    guard output.isEmpty else { return }
    output.append(contentsOf: repeatElement(0, count: output.capacity))
    output.wipe()
    output.removeAll(keepingCapacity: true)
    releaseOutputBuffer()
  }

  private func transmit() throws(NetworkError) -> Int? {
    let count = output.count - outputStart
    if let ssl {
      ERR_clear_error()
      let sent = output.withUnsafeBytes {
        SSL_write(ssl, $0.baseAddress?.advanced(by: outputStart), CInt(clamping: count))
      }
      if sent > 0 { return Int(sent) }
      switch SSL_get_error(ssl, sent) {
      case SSL_ERROR_WANT_WRITE:
        watcher.isWritable = false
        return nil
      case SSL_ERROR_SYSCALL: throw errno == 0 ? .endOfStream : .system("write", errno)
      // Renegotiation is off and the handshake is over: a write never waits for the peer to say something.
      default: throw .tls(TLSContext.lastError())
      }
    }
    let sent = output.withUnsafeBytes {
      send(watcher.descriptor, $0.baseAddress?.advanced(by: outputStart), count, CInt(MSG_NOSIGNAL))
    }
    if sent >= 0 { return sent }
    switch errno {
    case EAGAIN:
      watcher.isWritable = false
      return nil
    case EINTR: return 0
    default: throw .system("send", errno)
    }
  }

  func settle(_ wait: Wait, _ what: String) throws(NetworkError) {
    switch wait {
    case .ready: return
    case .timedOut: throw .timedOut(what)
    case .closed: throw .closed
    }
  }

  // MARK: TLS

  /// What was negotiated, nil in clear.
  public private(set) var tls: TLSSummary?

  /// Runs the handshake of a server or, with `serverName`, of a client that insists on that name.
  /// Whatever was received before is dropped.
  public nonisolated(nonsending) func startTLS(
    _ context: TLSContext, serverName: String? = nil, until deadline: MonotonicInstant
  ) async throws(NetworkError) {
    discardInput()
    let ssl = try context.makeConnection(descriptor: watcher.descriptor, serverName: serverName)
    var isMine = true
    defer { if isMine { SSL_free(ssl) } }
    while true {
      if watcher.isClosed { throw .closed }
      ERR_clear_error()
      let outcome = SSL_do_handshake(ssl)
      if outcome == 1 { break }
      switch SSL_get_error(ssl, outcome) {
      case SSL_ERROR_WANT_READ:
        watcher.isReadable = false
        if watcher.isHungUp { throw .endOfStream }
        try await settle(watcher.readable(until: deadline), "TLS handshake")
      case SSL_ERROR_WANT_WRITE:
        watcher.isWritable = false
        try await settle(watcher.writable(until: deadline), "TLS handshake")
      case SSL_ERROR_ZERO_RETURN: throw .endOfStream
      case SSL_ERROR_SYSCALL: throw errno == 0 ? .endOfStream : .system("TLS handshake", errno)
      default: throw context.handshakeError(of: ssl, serverName: serverName)
      }
    }
    // The handshake may have read the first record behind it, and no further edge will come for that.
    watcher.isReadable = true
    tls = TLSSummary(of: ssl)
    self.ssl = ssl
    self.context = context
    isMine = false
  }

  // MARK: Closing

  /// Closes the connection; whoever waits for it gets ``NetworkError/closed``. Idempotent.
  public func close() {
    endTLS()
    watcher.close()
  }

  private func endTLS() {
    guard let ssl else { return }
    ERR_clear_error()
    _ = SSL_shutdown(ssl)
    SSL_free(ssl)
    self.ssl = nil
  }

  /// Closes the connection so that the peer can read all that was flushed.
  ///
  /// A socket that is closed with unread input is reset (RFC 1122 4.2.2.13), and a reset may overtake or destroy the
  /// last reply. So this says that no more will come, then drops what still arrives until the peer closes too, but
  /// not longer than `deadline` and not more than `limit` octets. A deadline that has passed drops what is there.
  public nonisolated(nonsending) func closeGently(until deadline: MonotonicInstant, dropping limit: Int = 4 << 20) async
  {
    defer { close() }
    if watcher.isClosed { return }
    endTLS()
    guard shutdown(watcher.descriptor, CInt(SHUT_WR)) == 0 else { return }
    var dropped = 0
    while dropped < limit, !watcher.isClosed {
      let count = recv(watcher.descriptor, loop.scratch.baseAddress, loop.scratch.count, 0)
      if count > 0 {
        dropped += count
        continue
      }
      if count == 0 { return }
      switch errno {
      case EINTR: continue
      case EAGAIN:
        watcher.isReadable = false
        if watcher.isHungUp || deadline <= SystemTime().now { return }
        guard await watcher.readable(until: deadline) == .ready else { return }
      default: return
      }
    }
  }
}
