// The login of a person, from the address to the refresh token, with an endpoint that checks PKCE.

import Glibc
import Primitives
import TestSupport
import Testing

@testable import OAuth

@Suite(.timeLimit(.minutes(2))) struct AuthorizationTests {
  private let client = OAuthClient(id: TokenServer.clientID, secret: HiddenText(TokenServer.clientSecret))

  private func login(_ server: TokenServer, redirectURI: String = "http://127.0.0.1:8765/") -> Authorization {
    var grant = TokenGrant(
      .refreshToken(RefreshTokenGrant(client: client, file: "", seen: nil)), tokenURL: server.url)
    grant.caFile = server.caFile
    return Authorization(grant, client: client, redirectURI: redirectURI)
  }

  private func failure(_ body: () async throws(AuthorizationFailure) -> Void) async -> AuthorizationFailure? {
    do throws(AuthorizationFailure) {
      try await body()
      return nil
    } catch { return error }
  }

  @Test func addressAsksForOfflineAccessAConsentAndPKCE() throws {
    let server = try TokenServer()
    let address = login(server).address(account: "sales@example.com")
    #expect(address.hasPrefix("https://accounts.google.com/o/oauth2/v2/auth?"))
    let query = WebForm(parsing: address.split(separator: "?")[1])
    #expect(query["access_type"] == "offline" && query["prompt"] == "consent")
    #expect(query["code_challenge_method"] == "S256" && query["code_challenge"]?.utf8.count == 43)
    #expect(query["scope"] == "https://mail.google.com/" && query["login_hint"] == "sales@example.com")
    #expect(login(server).address(account: nil) != login(server).address(account: nil))
  }

  @Test func browserThatComesBackBringsTheRefreshToken() async throws {
    let server = try TokenServer()
    let receiver = try LoopbackReceiver()
    let login = login(server, redirectURI: receiver.redirectURI)
    let back = try #require(server.consent(to: login.address(account: nil)))
    let browser = Task.detached {
      // What else knocks at such a port, and an answer that is not this login's.
      let pages = [
        "/favicon.ico", "/?code=", "/?error=&code", "/?code=stolen&state=wrong", "/?error=access_denied&state=wrong",
      ].map {
        browse(to: "http://127.0.0.1:\(receiver.port)\($0)")
      }
      return (pages, browse(to: back))
    }
    let code = try await receiver.receive(within: .seconds(60)) { target throws(AuthorizationFailure) in
      try login.code(in: target, isPasted: false)
    }
    let (pages, last) = await browser.value
    let (none, foreign) = ("HTTP/1.1 404", "HTTP/1.1 400")
    #expect(pages.map { String($0.prefix(12)) } == [none, none, none, foreign, foreign])
    #expect(last.hasPrefix("HTTP/1.1 200 OK") && last.contains("You may close this page"))
    let token = try await login.refreshToken(for: code)
    #expect(token.text.hasPrefix("1//refresh-"))
    #expect(server.forms.count == 1)
    await server.stop()
  }

  @Test func addressAndCodeMayBePasted() async throws {
    let server = try TokenServer()
    for isWhole in [true, false] {
      let login = login(server)
      let back = try #require(server.consent(to: login.address(account: nil)))
      let pasted = isWhole ? "  \(back)\n" : WebForm(parsing: back.split(separator: "?")[1])["code"] ?? ""
      let code = try login.code(in: pasted, isPasted: true)
      #expect(try await login.refreshToken(for: code).text.hasPrefix("1//refresh-"))
    }
    await server.stop()
  }

  @Test func codeOfAnotherLoginIsRefusedByStateAndByPKCE() async throws {
    let server = try TokenServer()
    let (mine, other) = (login(server), login(server))
    let back = try #require(server.consent(to: other.address(account: nil)))
    let foreign = await failure { () throws(AuthorizationFailure) in _ = try mine.code(in: back, isPasted: true) }
    #expect(foreign?.isForeign == true)
    let code = try other.code(in: back, isPasted: true)
    let unproven = await failure { () throws(AuthorizationFailure) in _ = try await mine.refreshToken(for: code) }
    #expect(unproven?.description.contains("invalid_grant") == true)
    await server.stop()
  }

  @Test func refusalInTheBrowserEndsTheLogin() async throws {
    let server = try TokenServer()
    let receiver = try LoopbackReceiver()
    let login = login(server, redirectURI: receiver.redirectURI)
    let state = WebForm(parsing: login.address(account: nil).split(separator: "?")[1])["state"] ?? ""
    let address = "http://127.0.0.1:\(receiver.port)/?error=access_denied&state=\(state)"
    let browser = Task.detached { browse(to: address) }
    let denied = await failure { () throws(AuthorizationFailure) in
      _ = try await receiver.receive(within: .seconds(60)) { target throws(AuthorizationFailure) in
        try login.code(in: target, isPasted: false)
      }
    }
    #expect(denied?.description.contains("access was denied") == true)
    #expect(await browser.value.contains("access was denied"))
    await server.stop()
  }

  @Test func browserThatDoesNotComeIsNotWaitedForForever() async throws {
    let receiver = try LoopbackReceiver()
    let late = await failure { () throws(AuthorizationFailure) in
      _ = try await receiver.receive(within: .milliseconds(20)) { $0 }
    }
    #expect(late?.description.contains("--paste") == true)
  }

  @Test func missingRefreshTokenSaysWhy() async throws {
    let server = try TokenServer()
    server.giveRefreshToken(false)
    let login = login(server)
    let back = try #require(server.consent(to: login.address(account: nil)))
    let code = try login.code(in: back, isPasted: true)
    let missing = await failure { () throws(AuthorizationFailure) in _ = try await login.refreshToken(for: code) }
    #expect(missing?.description.contains("older grant") == true)
    #expect(missing?.description.contains("Desktop app") == true)
    await server.stop()
  }

  @Test func scopeWithoutMailIsNotEnough() async throws {
    let server = try TokenServer()
    server.grant(scope: "openid email")
    let login = login(server)
    let back = try #require(server.consent(to: login.address(account: nil)))
    let code = try login.code(in: back, isPasted: true)
    let small = await failure { () throws(AuthorizationFailure) in _ = try await login.refreshToken(for: code) }
    #expect(small?.description.contains("does not contain https://mail.google.com/") == true)
    await server.stop()
  }

  @Test(arguments: ["", "   ", "http://127.0.0.1:8765/", "two words", "?state=x"])
  func textWithoutACodeIsRefused(text: String) async throws {
    let server = try TokenServer()
    let login = login(server)
    let none = await failure { () throws(AuthorizationFailure) in _ = try login.code(in: text, isPasted: true) }
    #expect(none != nil)
    await server.stop()
  }

  // MARK: The file

  @Test func refreshTokenIsReplacedInOneStepForItsOwnerAlone() throws {
    var template = Array("/tmp/oauth-file-XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    defer { rmdir(folder) }
    if geteuid() == 0 { chown(folder, 65534, 65534) }
    let file = RefreshTokenFile("\(folder)/token")
    defer { unlink(file.path) }
    try file.write(HiddenText("one"))
    try file.write(HiddenText("two"))
    #expect(try file.read() == HiddenText("two"))
    var status = stat()
    #expect(stat(file.path, &status) == 0 && status.st_mode & 0o7777 == 0o600)
    // Root has logged in, and the relay must be able to read it.
    if geteuid() == 0 { #expect(status.st_uid == 65534 && status.st_gid == 65534) }
    #expect(throws: TokenFailure.self) { try RefreshTokenFile("\(folder)/none/token").write(HiddenText("x")) }
  }

  /// The relay's user cannot replace it there, and whoever logs in again as root must not take it away from the relay.
  @Test(.enabled(if: geteuid() == 0)) func refreshTokenInADirectoryOfRootStaysWhoseItWas() throws {
    var template = Array("/tmp/oauth-file-XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    let file = RefreshTokenFile("\(folder)/token")
    defer {
      unlink(file.path)
      rmdir(folder)
    }
    try file.write(HiddenText("one"))
    #expect(file.isForRootOnly)
    chown(file.path, 65534, 65534)
    try file.write(HiddenText("two"))
    var status = stat()
    #expect(stat(file.path, &status) == 0 && status.st_uid == 65534 && status.st_gid == 65534)
    #expect(status.st_mode & 0o7777 == 0o600 && !file.isForRootOnly)
  }
}
