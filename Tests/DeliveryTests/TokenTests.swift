// Delivery with OAuth 2: access tokens from an HTTPS endpoint, for an upstream that takes only the newest one.

import Delivery
import Glibc
import OAuth
import Primitives
import Sandbox
import TestSupport
import Testing

/// A delivery whose account logs in with tokens.
private struct TokenBench {
  static let user = "relay@example.test"
  let server: TokenServer
  let file: String
  let bench: Bench

  init(
    _ rules: [Rule] = [], mechanism: Credential.Mechanism = .xoauth2,
    change: (inout UpstreamSettings) -> Void = { _ in }
  ) async throws {
    let server = try TokenServer()
    self.server = server
    server.honour(["1//first"])
    file = "\(server.folder)/refresh-token"
    try RefreshTokenFile(file).write(HiddenText("1//first"))
    let credential = Self.credential(server, file, "1//first", mechanism)
    bench = try await Bench(rules) {
      $0.credential = credential
      change(&$0)
    }
    let upstream = bench.upstream
    server.onIssue { upstream.accept(tokens: [Self.user: $0]) }
  }

  /// As a reload makes it: with what the file holds now.
  static func credential(
    _ server: TokenServer, _ file: String, _ seen: String, _ mechanism: Credential.Mechanism = .xoauth2
  ) -> Credential {
    let client = OAuthClient(id: TokenServer.clientID, secret: HiddenText(TokenServer.clientSecret))
    var grant = TokenGrant(
      .refreshToken(RefreshTokenGrant(client: client, file: file, seen: HiddenText(seen))), tokenURL: server.url)
    grant.caFile = server.caFile
    return Credential(mechanism: mechanism, username: user, tokens: TokenCache(grant, time: SystemTime()))
  }

  func end() async {
    await bench.end()
    unlink(file)
    await server.stop()
  }

  func expectNoSecret() {
    let secrets = ["1//first", TokenServer.clientSecret, "ya29"]
    for line in bench.lines.all { #expect(!secrets.contains { line.contains($0) }, "\(line)") }
  }
}

@Suite(.timeLimit(.minutes(2))) struct TokenTests {
  @Test(arguments: [Credential.Mechanism.xoauth2, .oauthBearer])
  func mailLeavesWithATokenThatWasAskedForOnce(mechanism: Credential.Mechanism) async throws {
    let tokens = try await TokenBench(mechanism: mechanism) { $0.messagesPerConnection = 1 }
    for _ in 0..<3 { try await tokens.bench.submit() }
    let messages = await tokens.bench.upstream.messages(atLeast: 3)
    #expect(messages.allSatisfy { $0.authenticatedUser == TokenBench.user })
    #expect(tokens.server.forms.count == 1)
    await tokens.end()
    #expect(tokens.bench.upstream.statistics.violations.isEmpty)
    tokens.expectNoSecret()
  }

  @Test(arguments: [Credential.Mechanism.xoauth2, .oauthBearer])
  func tokenThatTheUpstreamRefusesIsReplacedAtOnce(mechanism: Credential.Mechanism) async throws {
    let tokens = try await TokenBench(mechanism: mechanism) { $0.messagesPerConnection = 1 }
    try await tokens.bench.submit()
    #expect(await tokens.bench.upstream.messages(atLeast: 1).count == 1)
    // From now on the token that the account holds is not the one that is good.
    tokens.bench.upstream.accept(tokens: [:])
    try await tokens.bench.submit()
    #expect(await tokens.bench.upstream.messages(atLeast: 2).count == 2)
    let statistics = tokens.bench.upstream.statistics
    #expect(statistics.authenticationFailures == 1 && statistics.authentications == 2)
    #expect(tokens.server.accessTokens == ["ya29.cedar-1", "ya29.cedar-2"])
    #expect(await tokens.bench.account().hold == nil)
    await tokens.end()
    #expect(tokens.bench.upstream.statistics.violations.isEmpty)
    tokens.expectNoSecret()
  }

  @Test func accountWhoseFreshTokenIsRefusedTooIsHeld() async throws {
    let tokens = try await TokenBench()
    tokens.server.onIssue { _ in }
    let id = try await tokens.bench.submit()
    let line = await tokens.bench.lines.line(containing: "no connection (tokenRefused)")
    #expect(line.contains("with a fresh token") && line.contains("username is the mailbox"))
    #expect(tokens.server.forms.count == 2)
    #expect(tokens.bench.upstream.statistics.authenticationFailures == 2)
    #expect(await tokens.bench.account().hold?.fault == .tokenRefused)
    #expect(tokens.bench.store.messages[id]?.state.recipients.isEmpty == true)
    await tokens.end()
    tokens.expectNoSecret()
  }

  @Test func revokedGrantHoldsTheMailUntilSomebodyHasLoggedInAgain() async throws {
    let tokens = try await TokenBench()
    tokens.server.honour([])
    for _ in 0..<3 { try await tokens.bench.submit() }
    let line = await tokens.bench.lines.line(containing: "no connection (tokenRevoked)")
    #expect(line.contains("invalid_grant") && line.contains("7 days") && line.contains("oauth login"))
    // Nobody is logged in for nothing, and nobody's mail ages.
    #expect(tokens.bench.upstream.statistics.connections == 0)
    let hold = try #require(await tokens.bench.account().hold)
    #expect(hold.fault == .tokenRevoked && hold.nextTry - hold.since == .seconds(60))
    #expect(tokens.bench.store.messages.values.allSatisfy { $0.state.lanes.isEmpty && $0.state.recipients.isEmpty })

    tokens.server.honour(["1//second"])
    try RefreshTokenFile(tokens.file).write(HiddenText("1//second"))
    var settings = tokens.bench.settings
    settings.credential = TokenBench.credential(tokens.server, tokens.file, "1//second")
    #expect(settings != tokens.bench.settings)
    await tokens.bench.delivery.configure([settings], DeliverySettings(hostname: "mailer.example.test"))
    #expect(await tokens.bench.upstream.messages(atLeast: 3).count == 3)
    await tokens.end()
    #expect(tokens.bench.store.messages.isEmpty)
    tokens.expectNoSecret()
  }

  @Test func reloadThatChangesNothingKeepsTheConnectionAndTheToken() async throws {
    let tokens = try await TokenBench()
    try await tokens.bench.submit()
    #expect(await tokens.bench.upstream.messages(atLeast: 1).count == 1)
    var settings = tokens.bench.settings
    settings.credential = TokenBench.credential(tokens.server, tokens.file, "1//first")
    await tokens.bench.delivery.configure([settings], DeliverySettings(hostname: "mailer.example.test"))
    try await tokens.bench.submit()
    #expect(await tokens.bench.upstream.messages(atLeast: 2).count == 2)
    #expect(tokens.server.forms.count == 1 && tokens.bench.upstream.statistics.authentications == 1)
    await tokens.end()
  }

  @Test func endpointThatIsDownHoldsLoginsForSecondsOnly() async throws {
    let tokens = try await TokenBench()
    tokens.server.say([.json(503, "busy")])
    try await tokens.bench.submit()
    _ = await tokens.bench.lines.line(containing: "no connection (tokenUnavailable)")
    let hold = try #require(await tokens.bench.account().hold)
    #expect(hold.nextTry - hold.since == .seconds(1))
    #expect(tokens.bench.upstream.statistics.connections == 0)
    // The cache has a clock of its own here, and waits for at most 1.2 seconds.
    while tokens.bench.upstream.statistics.messages == 0 {
      if tokens.bench.time.nextDeadline != nil { tokens.bench.time.advance(by: .seconds(300)) }
      await Task.yield()
    }
    await tokens.end()
    #expect(tokens.bench.store.messages.isEmpty)
  }
}
