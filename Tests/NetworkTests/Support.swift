// What the tests of the network share: parties on loops, a pair of connected streams, gates, certificates.

import Glibc
import Network
import Primitives
import Sandbox

/// Later than any test takes when all is well.
var soon: MonotonicInstant { SystemTime().now + .seconds(120) }

/// An actor that lives on a loop and lends its isolation to a closure.
actor Party {
  let loop: EventLoop
  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }
  private(set) var count = 0

  init(_ loop: EventLoop) { self.loop = loop }

  func connect<Result: Sendable>(
    to endpoint: Endpoint, _ body: @Sendable (ByteStream) async throws -> Result
  ) async throws -> Result {
    let stream = try await ByteStream.connect(to: endpoint, on: loop, until: soon)
    defer { stream.close() }
    return try await body(stream)
  }

  func adopt<Result: Sendable>(
    _ descriptor: CInt, _ body: @Sendable (ByteStream) async throws -> Result
  ) async throws -> Result {
    let stream = try ByteStream(adopting: descriptor, on: loop)
    defer { stream.close() }
    return try await body(stream)
  }

  func increment() { count += 1 }
}

/// Connects two parties over TCP, runs both sides, and returns what both found.
func exchange<S: Sendable, C: Sendable>(
  server: @escaping @Sendable (ByteStream) async throws -> S, client: @escaping @Sendable (ByteStream) async throws -> C
) async throws -> (server: Result<S, any Error>, client: Result<C, any Error>) {
  let loops = (try EventLoop(name: "test.server"), try EventLoop(name: "test.client"))
  let listener = try Listener(bindingTo: Endpoint("127.0.0.1:0")!)
  let (descriptors, accepted) = AsyncStream<CInt>.makeStream()
  let acceptor = listener.accept(on: loops.0) { accepted.yield($0) }
  let (near, far) = (Party(loops.0), Party(loops.1))
  let calling = Task { try await far.connect(to: listener.endpoint, client) }
  var descriptor: CInt = -1
  for await next in descriptors {
    descriptor = next
    break
  }
  let answering = Task { [descriptor] in try await near.adopt(descriptor, server) }
  let outcome = (server: await answering.result, client: await calling.result)
  await acceptor.stop()
  return outcome
}

/// A door that is opened once.
final class Gate: Sendable {
  private let state = Mutex<(isOpen: Bool, waiting: [CheckedContinuation<Void, Never>])>((false, []))

  func open() {
    let waiting = state.withLock { s in
      s.isOpen = true
      defer { s.waiting = [] }
      return s.waiting
    }
    for wake in waiting { wake.resume() }
  }

  func pass() async {
    await withCheckedContinuation { wake in
      let isOpen = state.withLock { s in
        if !s.isOpen { s.waiting.append(wake) }
        return s.isOpen
      }
      if isOpen { wake.resume() }
    }
  }
}

/// A directory that goes away with the test.
final class TemporaryDirectory: Sendable {
  let path: String

  init() {
    var template = Array("/tmp/ssmtp-mailer-test.XXXXXX".utf8CString)
    path = mkdtemp(&template).map { String(cString: $0) } ?? "/nonexistent"
  }

  deinit {
    guard let directory = opendir(path) else { return }
    while let entry = readdir(directory) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      if name != ".", name != ".." { unlink("\(path)/\(name)") }
    }
    closedir(directory)
    rmdir(path)
  }
}

/// An authority, and certificates of its making as files.
struct Certificates {
  let directory = TemporaryDirectory()
  let authority: CertificateAuthority
  var caFile: String { directory.path + "/ca.pem" }

  init() throws {
    authority = try CertificateAuthority(commonName: "Test Authority")
    try authority.writeCertificate(to: caFile)
  }

  func server(
    names: [String] = ["mx.example.test", "127.0.0.1"],
    valid: ClosedRange<Duration> = .seconds(-3600) ... .seconds(3600)
  ) throws -> TLSContext {
    let stem = "\(directory.path)/\(names[0])"
    try authority.issue(names: names, valid: valid).write(certificateFile: stem + ".pem", keyFile: stem + ".key")
    return try TLSContext.server(certificateFile: stem + ".pem", keyFile: stem + ".key")
  }

  func client() throws -> TLSContext { try TLSContext.client(caFile: caFile) }
}

extension ByteStream {
  func send(_ text: String) async throws {
    append { $0.append(contentsOf: text.utf8) }
    try await flush(until: soon, waitingFor: "room")
  }

  /// All that comes until the peer has nothing more to say, or `limit` bytes.
  func receive(atMost limit: Int = .max) async throws -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < limit {
      if bufferedCount == 0, try await !fill(until: soon, waitingFor: "bytes") { break }
      bytes += consume { buffer in
        let count = min(buffer.count, limit - bytes.count)
        return (count, Array(buffer[..<count]))
      }
    }
    return bytes
  }

  func receiveText(_ count: Int) async throws -> String {
    String(decoding: try await receive(atMost: count), as: UTF8.self)
  }
}

extension Result {
  var error: Failure? { if case .failure(let error) = self { error } else { nil } }
}

/// Bytes that look random and are the same every time; made by words, because a test build is slow.
func noise(_ count: Int, seed: UInt64) -> [UInt8] {
  var state = seed
  var words = [UInt64](repeating: 0, count: (count + 7) / 8)
  for i in words.indices {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    words[i] = state ^ state >> 29
  }
  return words.withUnsafeBytes { Array($0.prefix(count)) }
}
