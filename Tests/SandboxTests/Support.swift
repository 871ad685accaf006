// A client that says what it is told to, right or wrong.

import Glibc
import Network
import Primitives
import Sandbox

var soon: MonotonicInstant { SystemTime().now + .seconds(30) }

/// A raw connection to an upstream.
actor RawClient {
  private let loop: EventLoop
  private let stream: ByteStream
  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  private init(loop: EventLoop, stream: sending ByteStream) {
    self.loop = loop
    self.stream = stream
  }

  /// Connects, lends the client to `body`, and closes.
  static func with<Result: Sendable>(
    _ endpoint: Endpoint, _ body: @Sendable (RawClient) async throws -> Result
  ) async throws -> Result {
    let dialer = Dialer(loop: try EventLoop(name: "test.client"))
    return try await dialer.connect(to: endpoint, body)
  }

  fileprivate actor Dialer {
    let loop: EventLoop
    nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }
    init(loop: EventLoop) { self.loop = loop }

    func connect<Result: Sendable>(
      to endpoint: Endpoint, _ body: @Sendable (RawClient) async throws -> Result
    ) async throws -> Result {
      let stream = try await ByteStream.connect(to: endpoint, on: loop, until: soon)
      let client = RawClient(loop: loop, stream: stream)
      do {
        let result = try await body(client)
        await client.close()
        return result
      } catch {
        await client.close()
        throw error
      }
    }
  }

  func close() { stream.close() }

  func send(_ text: String) async throws {
    stream.append { $0.append(contentsOf: text.utf8) }
    try await stream.flush(until: soon, waitingFor: "room")
  }

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

  func say(_ line: String) async throws -> String {
    try await send(line + "\r\n")
    return try await reply()
  }

  func replies(_ count: Int) async throws -> [String] {
    var result: [String] = []
    for _ in 0..<count { result.append(try await reply()) }
    return result
  }

  func startTLS(_ context: TLSContext) async throws {
    try await stream.startTLS(context, serverName: "smtp.gmail.com", until: soon)
  }

  /// From the banner to an authenticated session.
  func logIn(_ context: TLSContext) async throws {
    _ = try await reply()
    _ = try await say("EHLO client.test")
    _ = try await say("STARTTLS")
    try await startTLS(context)
    _ = try await say("EHLO client.test")
    _ = try await say("AUTH PLAIN AGp1bGlhAHNlY3JldA==")  // julia, secret
  }
}

/// An upstream with its certificate, and a directory that goes away with it.
final class Fixture: Sendable {
  let upstream: Upstream
  let directory: String
  let tls: TLSContext

  init(_ script: [Rule] = [], _ change: (inout UpstreamOptions) -> Void = { _ in }) async throws {
    var template = Array("/tmp/ssmtp-mailer-sandbox.XXXXXX".utf8CString)
    directory = String(cString: mkdtemp(&template)!)
    let authority = try CertificateAuthority(commonName: "Sandbox")
    try authority.writeCertificate(to: directory + "/ca")
    try authority.issue(names: ["smtp.gmail.com"]).write(
      certificateFile: directory + "/cert", keyFile: directory + "/key")
    tls = try TLSContext.client(caFile: directory + "/ca")
    var options = UpstreamOptions(certificateFile: directory + "/cert", keyFile: directory + "/key")
    options.passwords = ["julia": "secret"]
    options.accessTokens = ["julia": "token"]
    options.script = script
    change(&options)
    upstream = try await Upstream.start(options)
  }

  /// Runs `body` with a fresh client, logged in or not, and stops the upstream behind it.
  func run<Result: Sendable>(
    loggedIn: Bool = true, _ body: @Sendable (RawClient) async throws -> Result
  ) async throws -> Result {
    let result = try await RawClient.with(upstream.endpoint) { client in
      if loggedIn { try await client.logIn(tls) }
      return try await body(client)
    }
    await upstream.stop()
    return result
  }

  deinit {
    for name in ["ca", "cert", "key"] { unlink("\(directory)/\(name)") }
    rmdir(directory)
  }
}
