// What the tests of the front door share: the real server on loopback, a queue that can be watched, and a client that
// says what it is told to, right or wrong.

import Glibc
import Logging
import Network
import Primitives
import Routing
import SMTP
import Sandbox
import Server
import Spool
import TestSupport
import Testing

@testable import Configuration

/// Later than any test takes when all is well.
var soon: MonotonicInstant { SystemTime().now + .seconds(30) }

/// A server that listens on a free port of loopback.
final class Door: Sendable {
  let memory = MemoryStore()
  let store: WatchedStore
  let lines = LogLines()
  let time = ManualTime()
  let handed = Mutex<[QueueID]>([])
  let server: SMTPServer
  let endpoint: Endpoint
  private let clients: EventLoop

  init(
    trusting networks: [String] = [], at address: String = "127.0.0.1:0", role: ListenerRole = .smtp,
    _ change: (inout ServerSettings) -> Void = { _ in }
  ) throws {
    store = WatchedStore(memory)
    clients = try EventLoop(name: "test.clients")
    var settings = ServerSettings(hostname: "relay.test", router: Self.router(trusting: networks))
    change(&settings)
    let listener = try Listener(bindingTo: Endpoint(address)!)
    endpoint = listener.endpoint
    let loops = [try EventLoop(name: "test.server.0"), try EventLoop(name: "test.server.1")]
    let box = Box()
    server = SMTPServer(store: store, loops: loops, time: time, settings: settings, log: lines.logger) { id, _, _ in
      box.door?.handed.withLock { $0.append(id) }
    }
    box.door = self
    server.listen(on: listener, role: role)
  }

  /// Breaks the ring of the server and the closure that the door gives it.
  private final class Box: Sendable {
    private struct Weak: Sendable { weak var door: Door? }
    private let state = Mutex(Weak())
    var door: Door? {
      get { state.withLock { $0.door } }
      set { state.withLock { $0.door = newValue } }
    }
  }

  static func router(trusting networks: [String] = [], aliases: [String: [String]] = [:]) -> Router {
    var settings = Settings()
    settings.global.defaultHostname = "relay.test"
    settings.global.defaultFrom = "contact@relay.test"
    settings.global.trustedNetworks = networks.map { IPNetwork($0)! }
    settings.global.defaultDomain = "gmail"
    var gmail = DomainSettings(name: "gmail")
    gmail.host = "smtp.gmail.test"
    settings.domains["gmail"] = gmail
    let known = ["contact": ["owner@gmail.test"], "team": ["a@gmail.test", "b@gmail.test", "c@gmail.test"]]
    for (name, targets) in known.merging(aliases, uniquingKeysWith: { $1 }) {
      settings.mappings.append(
        MappingSettings(
          name: name, from: try! AddressPattern("\(name)@relay.test"), to: targets.map { try! AddressPattern($0) },
          domain: "gmail"))
    }
    return Router(settings)
  }

  /// Connects a client, lends it to `body`, and closes it.
  func connect<Result: Sendable>(_ body: @Sendable (Client) async throws -> Result) async throws -> Result {
    let client = try await Client.connect(to: endpoint, on: clients)
    do {
      let result = try await body(client)
      await client.close()
      return result
    } catch {
      await client.close()
      throw error
    }
  }

  /// The same with a client that has read the banner and said EHLO.
  func greet<Result: Sendable>(_ body: @Sendable (Client) async throws -> Result) async throws -> Result {
    try await connect { client in
      #expect(try await client.reply().hasPrefix("220 relay.test"))
      #expect(try await client.say("EHLO client.test").hasPrefix("250-relay.test"))
      return try await body(client)
    }
  }

  /// Makes the server wait for a client no longer than a moment, from the next command on.
  func losePatience() {
    var settings = server.settings
    settings.clientTimeout = .milliseconds(200)
    server.configure(settings)
  }

  /// Stops the server. No session is left behind, whatever the test did.
  func close() async { await server.stop(within: .zero) }

  var queued: [QueuedMessage] { memory.messages.values.sorted { $0.id < $1.id } }

  /// The contents that are queued, without the Received field on top.
  func bodies() async throws -> [String] {
    var bodies: [String] = []
    for message in queued {
      let text = String(decoding: try await message.content.octets(), as: UTF8.self)
      bodies.append(try withoutTrace(text))
    }
    return bodies
  }
}

/// Takes the first field, with its folded lines, off a message.
func withoutTrace(_ text: String) throws -> String {
  var lines = text.split(separator: "\r\n", omittingEmptySubsequences: false)[...]
  try #require(lines.first?.hasPrefix("Received: ") == true, "\(text.prefix(80))")
  lines = lines.dropFirst().drop { $0.first == "\t" || $0.first == " " }
  return lines.joined(separator: "\r\n")
}

extension Content {
  func octets() async throws -> [UInt8] {
    switch self {
    case .bytes(let bytes): bytes
    case .file(let file): try await file.read(at: 0, count: file.count)
    }
  }
}

/// A connection of a client.
actor Client {
  private let stream: ByteStream
  private let loop: EventLoop
  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  private init(_ stream: sending ByteStream, on loop: EventLoop) {
    self.stream = stream
    self.loop = loop
  }

  static func connect(to endpoint: Endpoint, on loop: EventLoop) async throws -> Client {
    try await Dialer(loop: loop).connect(to: endpoint)
  }

  private actor Dialer {
    let loop: EventLoop
    nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }
    init(loop: EventLoop) { self.loop = loop }
    func connect(to endpoint: Endpoint) async throws -> Client {
      Client(try await ByteStream.connect(to: endpoint, on: loop, until: soon), on: loop)
    }
  }

  func close() { stream.close() }

  func send(_ bytes: [UInt8]) async throws {
    stream.append { $0 += bytes }
    try await stream.flush(until: soon, waitingFor: "room")
  }

  func send(_ text: String) async throws { try await send(Array(text.utf8)) }

  /// The next reply, its lines joined with `\n`; empty at the end of the stream.
  func reply() async throws -> String {
    var lines: [String] = []
    while true {
      let line: String? = stream.consume { bytes in
        guard let end = bytes.firstIndex(of: 0x0a) else { return (0, nil) }
        return (end + 1, String(decoding: bytes[..<(end - 1)], as: UTF8.self))
      }
      if let line {
        lines.append(line)
        if line.dropFirst(3).first != "-" { return lines.joined(separator: "\n") }
      } else if try await !stream.fill(until: soon, waitingFor: "a reply") {
        return ""
      }
    }
  }

  /// The first words of the next replies: code and enhanced code.
  func codes(_ count: Int) async throws -> [String] {
    var codes: [String] = []
    for _ in 0..<count {
      let words = try await reply().split(separator: " ").prefix(2)
      codes.append(
        words.dropFirst().first?.contains(".") == true ? words.joined(separator: " ") : "\(words.first ?? "")")
    }
    return codes
  }

  func say(_ line: String) async throws -> String {
    try await send(line + "\r\n")
    return try await reply()
  }

  /// A transaction with DATA, from MAIL to the last reply, which it returns.
  func mail(to recipient: String = "contact@relay.test", _ content: String) async throws -> String {
    try await send("MAIL FROM:<a@b.test>\r\nRCPT TO:<\(recipient)>\r\nDATA\r\n")
    #expect(try await codes(3) == ["250 2.1.0", "250 2.1.5", "354"])
    return try await say(content + "\r\n.")
  }

  func startTLS(_ context: TLSContext) async throws {
    try await stream.startTLS(context, serverName: "relay.test", until: soon)
  }
}

/// Looks over the shoulder of a queue: what becomes of large contents, and appends that wait for a sign.
final class WatchedStore: QueueStore {
  struct Writers: Equatable {
    var made = 0
    var finished = 0
    var discarded = 0
    var largestPiece = 0
    /// Whether the next write finds the disk full.
    var isFull = false
  }
  private let memory: MemoryStore
  let writers = Mutex(Writers())

  init(_ memory: MemoryStore) { self.memory = memory }

  func makeContentWriter(for id: QueueID) async throws(QueueError) -> any ContentWriter {
    let writer = try await memory.makeContentWriter(for: id)
    writers.withLock { $0.made += 1 }
    return WatchedWriter(writer: writer, store: self)
  }

  func nextID() -> QueueID { memory.nextID() }
  func append(
    _ id: QueueID, _ envelope: Envelope, _ content: Content, _ state: MessageState
  ) async throws(QueueError) {
    try await memory.append(id, envelope, content, state)
  }
  func read(_ id: QueueID) async throws(QueueError) -> QueuedMessage? { try await memory.read(id) }
  func readEnvelope(_ id: QueueID) async throws(QueueError) -> (Envelope, MessageState)? {
    try await memory.readEnvelope(id)
  }
  func update(_ id: QueueID, _ change: @escaping @Sendable (inout MessageState) -> Void) { memory.update(id, change) }
  func remove(_ id: QueueID) { memory.remove(id) }
  func readEnvelopes(
    _ ids: [QueueID]
  ) async throws(QueueError) -> [(id: QueueID, envelope: Envelope, state: MessageState)] {
    try await memory.readEnvelopes(ids)
  }
  func admits(_ octets: Int) -> Bool { memory.admits(octets) }
  func flush() async throws(QueueError) { try await memory.flush() }
  func entries(startingAfter: QueueID?, limit: Int) async -> [QueueEntry] {
    await memory.entries(startingAfter: startingAfter, limit: limit)
  }
  var statistics: QueueStatistics { memory.statistics }
}

private final class WatchedWriter: ContentWriter {
  private let writer: any ContentWriter
  private let store: WatchedStore
  init(writer: any ContentWriter, store: WatchedStore) {
    self.writer = writer
    self.store = store
  }
  func write(_ bytes: [UInt8]) async throws(QueueError) {
    let isFull = store.writers.withLock { state in
      state.largestPiece = max(state.largestPiece, bytes.count)
      return state.isFull
    }
    if isFull { throw .full }
    try await writer.write(bytes)
  }
  func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
    try await writer.read(at: offset, count: count)
  }
  func finish() async throws(QueueError) -> Content {
    store.writers.withLock { $0.finished += 1 }
    return try await writer.finish()
  }
  func discard() async {
    store.writers.withLock { $0.discarded += 1 }
    await writer.discard()
  }
}

/// A server's context and a client's that trusts it.
func makeTLS() throws -> (server: TLSContext, client: TLSContext) {
  var template = Array("/tmp/ssmtp-mailer-server.XXXXXX".utf8CString)
  let directory = String(cString: mkdtemp(&template)!)
  defer {
    for name in ["ca", "cert", "key"] { unlink("\(directory)/\(name)") }
    rmdir(directory)
  }
  let authority = try CertificateAuthority(commonName: "Test Authority")
  try authority.writeCertificate(to: directory + "/ca")
  try authority.issue(names: ["relay.test"]).write(
    certificateFile: directory + "/cert", keyFile: directory + "/key")
  return (
    try TLSContext.server(certificateFile: directory + "/cert", keyFile: directory + "/key"),
    try TLSContext.client(caFile: directory + "/ca")
  )
}
