// A token endpoint of the tests' own, over HTTPS: it exchanges refresh tokens, assertions and codes as Google does,
// checks what a client must not get wrong, and misbehaves on demand.

import Glibc
import Network
import OAuth
import Primitives
import Sandbox

public final class TokenServer: Sendable {
  /// What is said instead of the usual answer.
  public enum Reply: Sendable {
    case json(Int, String)
    /// Nothing, until the server is stopped.
    case silence
  }

  /// What a browser was sent with, by the code that it was sent back with.
  private struct Consent {
    var challenge: String
    var redirectURI: String
    var clientID: String
  }

  private struct State {
    var forms: [WebForm] = []
    var script: [Reply] = []
    var refreshTokens: Set<String> = []
    var accessTokens: [String] = []
    var consents: [String: Consent] = [:]
    var scope = TokenGrant.mailScope
    var givesRefreshToken = true
    var lifetime = 3600
    var rotatesTo: String?
    var isHeld = false
    var held: [CheckedContinuation<Void, Never>] = []
    var onIssue: (@Sendable (String) -> Void)?
    var sessions: [Int: TokenSession] = [:]
    var acceptor: Acceptor?
    var count = 0
  }

  public static let clientID = "client-1.apps.googleusercontent.com"
  public static let clientSecret = "GOCSPX-walnut-harbour"

  public let folder: String
  public let port: UInt16
  private let loop: EventLoop
  let tls: TLSContext
  private let state = Mutex(State())

  public var url: String { "https://localhost:\(port)/token" }
  public var caFile: String { "\(folder)/ca.pem" }

  public init() throws {
    var template = Array("/tmp/token-server-XXXXXX".utf8CString)
    guard let made = mkdtemp(&template) else { throw SandboxError.system("mkdtemp", errno) }
    folder = String(cString: made)
    let authority = try CertificateAuthority(commonName: "token test CA")
    try authority.writeCertificate(to: "\(folder)/ca.pem")
    let (certificate, key) = ("\(folder)/cert.pem", "\(folder)/key.pem")
    try authority.issue(names: ["localhost"]).write(certificateFile: certificate, keyFile: key)
    tls = try TLSContext.server(certificateFile: certificate, keyFile: key)
    loop = try EventLoop(name: "token-server")
    guard let anyPort = Endpoint("127.0.0.1:0") else { throw SandboxError.system("endpoint", EINVAL) }
    let listener = try Listener(bindingTo: anyPort)
    port = listener.endpoint.port
    let acceptor = listener.accept(on: loop) { [weak self, loop] descriptor in
      guard let self else {
        close(descriptor)
        return
      }
      let session = TokenSession(server: self, loop: loop)
      let number = state.withLock { state in
        state.count += 1
        state.sessions[state.count] = session
        return state.count
      }
      Task(executorPreference: loop) {
        await session.run(descriptor)
        self.state.withLock { _ = $0.sessions.removeValue(forKey: number) }
      }
    }
    state.withLock { $0.acceptor = acceptor }
  }

  public func stop() async {
    release()
    let (acceptor, sessions) = state.withLock { ($0.acceptor, Array($0.sessions.values)) }
    await acceptor?.stop()
    for session in sessions { await session.stop() }
    for name in ["ca.pem", "cert.pem", "key.pem"] { unlink("\(folder)/\(name)") }
    rmdir(folder)
  }

  // MARK: What tests set and see

  /// All requests so far.
  public var forms: [WebForm] { state.withLock { $0.forms } }
  /// The access tokens that were given out.
  public var accessTokens: [String] { state.withLock { $0.accessTokens } }

  /// Makes these the refresh tokens that are good.
  public func honour(_ refreshTokens: Set<String>) { state.withLock { $0.refreshTokens = refreshTokens } }
  /// Says these first, one a request.
  public func say(_ replies: [Reply]) { state.withLock { $0.script = replies } }
  public func giveTokens(of lifetime: Int) { state.withLock { $0.lifetime = lifetime } }
  public func grant(scope: String) { state.withLock { $0.scope = scope } }
  public func giveRefreshToken(_ gives: Bool) { state.withLock { $0.givesRefreshToken = gives } }
  /// Exchanges the refresh token for this one with the next request.
  public func rotate(to token: String) { state.withLock { $0.rotatesTo = token } }
  public func onIssue(_ body: @escaping @Sendable (String) -> Void) { state.withLock { $0.onIssue = body } }

  /// Answers nobody until ``release()``.
  public func hold() { state.withLock { $0.isHeld = true } }
  public func release() {
    let held = state.withLock { state in
      state.isHeld = false
      let held = state.held
      state.held = []
      return held
    }
    for waiter in held { waiter.resume() }
  }

  /// Plays the browser and the person in front of it: reads the address, checks it, consents, and returns the address
  /// that the browser is sent back to; nil when the address asks for the wrong things.
  public func consent(to address: String) -> String? {
    let query = WebForm(parsing: address.split(separator: "?", maxSplits: 1).last ?? "")
    guard query["response_type"] == "code", query["access_type"] == "offline", query["prompt"] == "consent",
      query["code_challenge_method"] == "S256", query["scope"] == TokenGrant.mailScope,
      let challenge = query["code_challenge"], challenge.utf8.count == 43, let redirectURI = query["redirect_uri"],
      redirectURI.hasPrefix("http://127.0.0.1:"), let clientID = query["client_id"], let state = query["state"],
      state.utf8.count >= 32
    else { return nil }
    let code = self.state.withLock { s in
      s.count += 1
      let code = "4/0A-\(s.count)"
      s.consents[code] = Consent(challenge: challenge, redirectURI: redirectURI, clientID: clientID)
      return code
    }
    return redirectURI + "?" + WebForm([("state", state), ("code", code), ("scope", TokenGrant.mailScope)]).encoded
  }

  // MARK: Answers

  func answer(_ form: WebForm) async -> Reply {
    let scripted: Reply? = state.withLock { state in
      state.forms.append(form)
      return state.script.isEmpty ? nil : state.script.removeFirst()
    }
    await withCheckedContinuation { continuation in
      let isFree = state.withLock { state in
        if state.isHeld { state.held.append(continuation) }
        return !state.isHeld
      }
      if isFree { continuation.resume() }
    }
    return scripted ?? decide(form)
  }

  private func decide(_ form: WebForm) -> Reply {
    let isService = form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    if !isService, form["client_id"] != Self.clientID || form["client_secret"] != Self.clientSecret {
      return .json(401, #"{"error":"invalid_client","error_description":"The OAuth client was not found."}"#)
    }
    let bad = Reply.json(
      400, #"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#)
    let (reply, issued, onIssue): (Reply, String?, (@Sendable (String) -> Void)?) = state.withLock { state in
      var refreshToken: String?
      switch form["grant_type"] {
      case "refresh_token":
        guard let token = form["refresh_token"], state.refreshTokens.contains(token) else { return (bad, nil, nil) }
        refreshToken = state.rotatesTo
        if let new = state.rotatesTo { state.refreshTokens = [new] }
        state.rotatesTo = nil
      case "authorization_code":
        // A code works once, for the client, the address and the secret that it was asked for with.
        guard let code = form["code"], let consent = state.consents.removeValue(forKey: code),
          consent.redirectURI == form["redirect_uri"], consent.clientID == form["client_id"],
          let verifier = form["code_verifier"], PKCE.challenge(for: verifier) == consent.challenge
        else { return (bad, nil, nil) }
        if state.givesRefreshToken {
          let token = "1//refresh-\(code.dropFirst(5))"
          state.refreshTokens.insert(token)
          refreshToken = token
        }
      default:
        guard isService, form["assertion"] != nil else {
          return (.json(400, #"{"error":"unsupported_grant_type"}"#), nil, nil)
        }
      }
      let token = "ya29.cedar-\(state.accessTokens.count + 1)"
      state.accessTokens.append(token)
      let extra = refreshToken.map { #","refresh_token":"\#($0)""# } ?? ""
      let body =
        #"{"access_token":"\#(token)","expires_in":\#(state.lifetime),"scope":"\#(state.scope)","#
        + #""token_type":"Bearer"\#(extra)}"#
      return (.json(200, body), token, state.onIssue)
    }
    // Before the answer: whoever gets the token may use it at once.
    if let issued { onIssue?(issued) }
    return reply
  }
}

/// One connection to the token endpoint: one request, one answer.
actor TokenSession {
  private let server: TokenServer
  private let loop: EventLoop
  private var stream: ByteStream?
  private var silence: CheckedContinuation<Void, Never>?
  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  init(server: TokenServer, loop: EventLoop) {
    self.server = server
    self.loop = loop
  }

  func stop() {
    stream?.close()
    silence?.resume()
    silence = nil
  }

  func run(_ descriptor: CInt) async {
    guard let stream = try? ByteStream(adopting: descriptor, on: loop) else { return }
    self.stream = stream
    try? await serve(stream)
    stream.close()
    self.stream = nil
  }

  private func serve(_ stream: ByteStream) async throws {
    let deadline = SystemTime().now + .seconds(60)
    try await stream.startTLS(server.tls, until: deadline)
    var head = ""
    var bytes: [UInt8] = []
    while head.isEmpty {
      guard try await stream.fill(until: deadline, waitingFor: "a request") else { return }
      bytes += stream.consume { (consumed: $0.count, Array($0)) }
      if let end = String(decoding: bytes, as: UTF8.self).firstRange(of: "\r\n\r\n") {
        let text = String(decoding: bytes, as: UTF8.self)
        head = String(text[..<end.lowerBound])
        bytes = Array(text[end.upperBound...].utf8)
      }
    }
    let length = head.lowercased().split(whereSeparator: \.isNewline).first { $0.hasPrefix("content-length:") }
      .flatMap { Int($0.dropFirst(15).filter { $0 != " " }) }
    while bytes.count < length ?? 0 {
      guard try await stream.fill(until: deadline, waitingFor: "a form") else { return }
      bytes += stream.consume { (consumed: $0.count, Array($0)) }
    }
    switch await server.answer(WebForm(parsing: String(decoding: bytes, as: UTF8.self))) {
    case .silence: await withCheckedContinuation { silence = $0 }
    case .json(let status, let body):
      let response =
        "HTTP/1.1 \(status) Answer\r\nContent-Type: application/json\r\nContent-Length: \(body.utf8.count)\r\n"
        + "Connection: close\r\n\r\n\(body)"
      stream.append { $0.append(contentsOf: response.utf8) }
      try await stream.flush(until: deadline, waitingFor: "the client to read")
      await stream.closeGently(until: SystemTime().now + .seconds(1))
    }
  }
}

/// A browser that follows one redirection to this machine: the whole answer, head and page.
public func browse(to address: String) -> String {
  let rest = address.dropFirst("http://127.0.0.1:".count)
  guard address.hasPrefix("http://127.0.0.1:"), let slash = rest.firstIndex(of: "/"), let port = UInt16(rest[..<slash])
  else { return "" }
  let descriptor = socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
  defer { close(descriptor) }
  var name = sockaddr_in()
  name.sin_family = sa_family_t(AF_INET)
  name.sin_port = port.bigEndian
  name.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
  let isConnected = withUnsafePointer(to: &name) {
    $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
    }
  }
  let request = "GET \(rest[slash...]) HTTP/1.1\r\nHost: 127.0.0.1:\(port)\r\n\r\n"
  guard isConnected, send(descriptor, request, request.utf8.count, CInt(MSG_NOSIGNAL)) == request.utf8.count else {
    return ""
  }
  var answer: [UInt8] = []
  var piece = [UInt8](repeating: 0, count: 4096)
  while true {
    let count = recv(descriptor, &piece, piece.count, 0)
    if count <= 0 { return String(decoding: answer, as: UTF8.self) }
    answer += piece[..<count]
  }
}
