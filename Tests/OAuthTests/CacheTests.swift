// Access tokens over real HTTPS with a clock that stands still: when one is asked for, how often, and what a refusal
// is taken for.

import Glibc
import Primitives
import TestSupport
import Testing

@testable import OAuth

/// A token endpoint, a refresh token in a file, and the cache over both.
struct Bench {
  static let refreshToken = "1//first-refresh"
  let server: TokenServer
  let time = ManualTime()
  let file: String
  let grant: TokenGrant
  let cache: TokenCache
  let warnings: Warnings

  init(timeout: Duration = .seconds(30), change: (inout TokenGrant) -> Void = { _ in }) throws {
    server = try TokenServer()
    server.honour([Self.refreshToken])
    file = "\(server.folder)/refresh-token"
    try RefreshTokenFile(file).write(HiddenText(Self.refreshToken))
    let client = OAuthClient(id: TokenServer.clientID, secret: HiddenText(TokenServer.clientSecret))
    var grant = TokenGrant(
      .refreshToken(RefreshTokenGrant(client: client, file: file, seen: nil)), tokenURL: server.url)
    grant.caFile = server.caFile
    change(&grant)
    self.grant = grant
    let list = Warnings()
    warnings = list
    cache = TokenCache(
      grant, transport: CurlTransport(timeout: timeout), time: time, random: { 0.5 }, warn: { list.add($0) })
  }

  func end() async {
    unlink(file)
    await server.stop()
  }

  func failure() async -> TokenFailure? {
    do throws(TokenFailure) {
      _ = try await cache.token()
      return nil
    } catch { return error }
  }
}

@Suite(.timeLimit(.minutes(2))) struct CacheTests {
  @Test func tokenIsKeptUntilFiveMinutesBeforeItsEnd() async throws {
    let bench = try Bench()
    let first = try await bench.cache.token()
    #expect(first.reveal() == "ya29.cedar-1")
    // An hour less five and a half minutes.
    bench.time.advance(by: .seconds(3600 - 331))
    #expect(try await bench.cache.token() == first)
    bench.time.advance(by: .seconds(2))
    #expect(try await bench.cache.token().reveal() == "ya29.cedar-2")
    #expect(bench.server.forms.count == 2)
    #expect(bench.server.forms[0]["refresh_token"] == Bench.refreshToken)
    await bench.end()
  }

  @Test func tokenThatIsStillGoodIsUsedWhileTheEndpointIsDown() async throws {
    let bench = try Bench()
    let first = try await bench.cache.token()
    bench.server.say([.json(503, "down"), .json(503, "down")])
    bench.time.advance(by: .seconds(3500))
    #expect(try await bench.cache.token() == first)
    #expect(bench.server.forms.count == 2)
    bench.time.advance(by: .seconds(100))
    #expect(await bench.failure()?.kind == .unavailable)
    await bench.end()
  }

  @Test func twentyWhoAskAtOnceMakeOneRequest() async throws {
    let bench = try Bench()
    bench.server.hold()
    let arrived = Warnings()
    let (cache, server) = (bench.cache, bench.server)
    let tokens = await withTaskGroup(of: String?.self) { group in
      for _ in 0..<20 {
        group.addTask {
          arrived.add("one more")
          return try? await cache.token().reveal()
        }
      }
      while arrived.all.count < 20 || server.forms.isEmpty { await Task.yield() }
      server.release()
      var tokens: [String?] = []
      for await token in group { tokens.append(token) }
      return tokens
    }
    #expect(tokens == Array(repeating: "ya29.cedar-1", count: 20))
    #expect(bench.server.forms.count == 1)
    await bench.end()
  }

  @Test func tokenThatWasRefusedIsReplacedAtOnceAndOnlyThatOne() async throws {
    let bench = try Bench()
    let first = try await bench.cache.token()
    await bench.cache.invalidate(first)
    let second = try await bench.cache.token()
    #expect(second.reveal() == "ya29.cedar-2")
    // A connection that is late with its bad news must not take the new one away.
    await bench.cache.invalidate(first)
    #expect(try await bench.cache.token() == second)
    #expect(bench.server.forms.count == 2)
    await bench.end()
  }

  @Test(arguments: [(#""nan""#, 3600), (#""1800""#, 1800), ("-5", 0), ("1e300", 86_400), ("null", 3600)])
  func lifetimeMayBeWrittenStrangely(text: String, seconds: Int) async throws {
    let bench = try Bench()
    bench.server.say([.json(200, #"{"access_token":"ya29.x","expires_in":\#(text)}"#)])
    #expect(try await bench.cache.token().expiresAt - bench.time.now == .seconds(seconds))
    await bench.end()
  }

  // MARK: Failures

  static let answers: [(TokenServer.Reply, TokenFailure.Kind, String)] = [
    (.json(400, #"{"error":"invalid_grant","error_description":"Bad Request"}"#), .revoked, "invalid_grant"),
    (.json(401, #"{"error":"invalid_client"}"#), .refused, "check oauth_client_id"),
    (.json(400, #"{"error":"invalid_scope"}"#), .refused, "invalid_scope"),
    (.json(500, #"{"error":"internal_failure"}"#), .unavailable, "500"),
    (.json(503, "<html>busy</html>"), .unavailable, "503 without an explanation"),
    (.json(429, #"{"error":"rate_limit_exceeded"}"#), .unavailable, "429"),
    (.json(400, #"{"error":{"code":400}}"#), .unavailable, "400 without an explanation"),
    (.json(200, "<html>sign in to the wireless network</html>"), .unavailable, "something else than a token"),
    (.json(200, "{}"), .unavailable, "something else than a token"),
    (.json(200, #"{"access_token":"a\u0001b","expires_in":3599}"#), .unavailable, "a token that is not one"),
    (.json(200, String(repeating: " ", count: 70_000)), .unavailable, "more than 65536 octets"),
    (.json(302, ""), .unavailable, "302"),
    (
      .json(
        400, #"{"error":"invalid_grant","error_description":"\#(String(repeating: "x", count: 190))1//First-refresh"}"#),
      .revoked, "repeats a secret"
    ),
    (
      .json(400, #"{"error":"invalid_grant","error_description":"1//first-refresh is bad"}"#), .revoked,
      "repeats a secret"
    ),
  ]

  @Test(arguments: answers.indices) func answerIsTakenForWhatItIs(index: Int) async throws {
    let bench = try Bench()
    let (reply, kind, text) = Self.answers[index]
    bench.server.say([reply])
    let failure = try #require(await bench.failure())
    #expect(failure.kind == kind)
    #expect(failure.description.contains(text), "\(failure)")
    #expect(!failure.description.contains(Bench.refreshToken))
    #expect(!failure.description.contains(TokenServer.clientSecret))
    await bench.end()
  }

  @Test func endpointThatSaysNothingIsLeftInTime() async throws {
    let bench = try Bench(timeout: .milliseconds(300))
    bench.server.say([.silence])
    let failure = try #require(await bench.failure())
    #expect(failure.kind == .unavailable)
    #expect(failure.description.contains("did not answer"), "\(failure)")
    await bench.end()
  }

  @Test func endpointThatNobodyVouchesForGetsNoSecret() async throws {
    let bench = try Bench { $0.caFile = nil }
    let failure = try #require(await bench.failure())
    #expect(failure.kind == .unavailable)
    #expect(failure.description.contains("oauth_ca_file"), "\(failure)")
    #expect(bench.server.forms.isEmpty)
    await bench.end()
  }

  @Test func endpointInClearGetsNothing() async throws {
    let bench = try Bench { $0.tokenURL = $0.tokenURL.replacing("https", with: "http") }
    #expect(await bench.failure()?.kind == .unavailable)
    #expect(bench.server.forms.isEmpty)
    await bench.end()
  }

  @Test func failingEndpointIsAskedEverMoreSeldom() async throws {
    let bench = try Bench()
    bench.server.say(Array(repeating: .json(503, ""), count: 4))
    for wait in [1, 2, 4] {
      let before = bench.server.forms.count
      _ = await bench.failure()
      #expect(bench.server.forms.count == before + 1)
      bench.time.advance(by: .milliseconds(wait * 1000 - 1))
      #expect(await bench.failure()?.description.contains("503") == true)
      #expect(bench.server.forms.count == before + 1)
      bench.time.advance(by: .milliseconds(1))
    }
    _ = await bench.failure()
    bench.time.advance(by: .seconds(8))
    #expect(try await bench.cache.token().reveal() == "ya29.cedar-1")
    await bench.end()
  }

  @Test func newRefreshTokenInTheFileIsTriedWithoutWaiting() async throws {
    let bench = try Bench()
    bench.server.honour([])
    #expect(await bench.failure()?.kind == .revoked)
    bench.server.honour(["1//second"])
    #expect(await bench.failure()?.kind == .revoked)
    #expect(bench.server.forms.count == 1)
    try RefreshTokenFile(bench.file).write(HiddenText("1//second"))
    #expect(try await bench.cache.token().reveal() == "ya29.cedar-1")
    await bench.end()
  }

  @Test func missingAndPublicFilesAreNamed() async throws {
    let bench = try Bench()
    chmod(bench.file, 0o644)
    let isPublic = try #require(await bench.failure())
    #expect(isPublic.kind == .refused && isPublic.description.contains("chmod 640 \(bench.file)"))
    unlink(bench.file)
    let isMissing = try #require(await bench.failure())
    #expect(isMissing.kind == .revoked && isMissing.description.contains("no refresh token yet in \(bench.file)"))
    #expect(bench.server.forms.isEmpty)
    await bench.end()
  }

  // MARK: Endpoints that exchange refresh tokens

  @Test func exchangedRefreshTokenIsKept() async throws {
    let bench = try Bench()
    bench.server.rotate(to: "1//rotated")
    await bench.cache.invalidate(try await bench.cache.token())
    #expect(try RefreshTokenFile(bench.file).read() == HiddenText("1//rotated"))
    #expect(try await bench.cache.token().reveal() == "ya29.cedar-2")
    #expect(bench.warnings.all.isEmpty)
    await bench.end()
  }

  @Test func exchangedRefreshTokenThatCannotBeKeptIsUsedAndWarnedOf() async throws {
    let bench = try Bench()
    let obstacle = "\(bench.file).new.\(getpid())"
    try #require(mkdir(obstacle, 0o700) == 0)
    bench.server.rotate(to: "1//rotated")
    await bench.cache.invalidate(try await bench.cache.token())
    #expect(bench.warnings.all.count == 1)
    #expect(bench.warnings.all.first?.contains("cannot create") == true)
    #expect(bench.warnings.all.first?.contains("1//") == false)
    #expect(try RefreshTokenFile(bench.file).read() == HiddenText(Bench.refreshToken))
    #expect(try await bench.cache.token().reveal() == "ya29.cedar-2")
    #expect(bench.server.forms.last?["refresh_token"] == "1//rotated")
    rmdir(obstacle)
    await bench.end()
  }

  @Test func nothingOfASecretIsPrinted() async throws {
    let bench = try Bench()
    let token = try await bench.cache.token()
    var text = "\(bench.grant) \(token)"
    dump(bench.grant, to: &text)
    dump(token, to: &text)
    for secret in [Bench.refreshToken, TokenServer.clientSecret, token.reveal()] { #expect(!text.contains(secret)) }
    await bench.end()
  }
}

/// Lines that come from anywhere: what an operator is told.
final class Warnings: Sendable {
  private let lines = Mutex<[String]>([])
  var all: [String] { lines.withLock { $0 } }
  func add(_ line: String) { lines.withLock { $0.append(line) } }
}
