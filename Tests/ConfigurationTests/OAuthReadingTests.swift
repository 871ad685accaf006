// The keys of OAuth 2: which go together, and what their files must be.

import Configuration
import OAuth
import Testing

@Suite struct OAuthReadingTests {
  private let head =
    "[domain:example.com]\nsmtp_server = smtp.example.com\nauth_method = XOAUTH2\nusername = a@example.com\n"
  private let refresh = "oauth_client_id = id\noauth_client_secret = hunter2\noauth_refresh_token_file = /t\n"

  private func files(_ lines: String, method: String = "XOAUTH2", token: String? = "1//r\n", mode: UInt32 = 0o600)
    -> MemoryFiles
  {
    var files = configuration(domain: head.replacing("XOAUTH2", with: method) + lines)
    if let token { files.add("/t", token, mode: mode) }
    files.add("/j", "{}")
    files.add("/s", "secret from a file\n")
    files.add("/open", "secret\n", mode: 0o644)
    return files
  }

  private func refreshGrant(_ files: MemoryFiles) throws -> (TokenGrant, RefreshTokenGrant) {
    let grant = try #require(try load(files).settings.domains["example.com"]?.tokenGrant)
    guard case .refreshToken(let refresh) = grant.kind else { throw FileError("another kind of grant") }
    return (grant, refresh)
  }

  @Test(arguments: ["XOAUTH2", "OAUTHBEARER"]) func refreshTokenNeedsNoPassword(method: String) throws {
    let (grant, token) = try refreshGrant(files(refresh, method: method))
    #expect(token.client == OAuthClient(id: "id", secret: HiddenText("hunter2")))
    #expect(token.file == "/t" && token.seen == HiddenText("1//r"))
    #expect(grant.tokenURL == "https://oauth2.googleapis.com/token")
    #expect(grant.authorizationURL == "https://accounts.google.com/o/oauth2/v2/auth")
  }

  @Test func secretMayStandInAFileAndEndpointsMayBeOthers() throws {
    let lines =
      refresh.replacing("oauth_client_secret = hunter2", with: "oauth_client_secret_file = /s")
      + "oauth_token_url = https://login.example/token\noauth_auth_url = https://login.example/auth\noauth_ca_file = /s\n"
    let (grant, token) = try refreshGrant(files(lines))
    #expect(token.client.secret == HiddenText("secret from a file"))
    #expect(grant.tokenURL == "https://login.example/token" && grant.authorizationURL == "https://login.example/auth")
    #expect(grant.caFile == "/s")
  }

  @Test func tokenAsAPasswordStaysPossible() throws {
    var files = files("password_command = token")
    files.commands["token"] = "ya29.x\n"
    let domain = try #require(try load(files).settings.domains["example.com"])
    #expect(domain.password?.reveal() == "ya29.x" && domain.tokenGrant == nil)
  }

  @Test func firstLoginIsPossibleBeforeThereIsAToken() throws {
    for token in [nil, "\n"] {
      let files = files(refresh, token: token)
      #expect(try refreshGrant(files).1.seen == nil)
      let warnings = try load(files).warnings.map(\.description)
      #expect(warnings.count == 1)
      #expect(warnings[0].hasPrefix("/c/domains/d.conf:7: oauth_refresh_token_file \"/t\" "))
      #expect(warnings[0].hasSuffix("run: ssmtp-mailer oauth login --account a@example.com"))
    }
  }

  @Test func newRefreshTokenIsAChange() throws {
    let (old, same) = (try refreshGrant(files(refresh)).0, try refreshGrant(files(refresh)).0)
    #expect(old == same)
    #expect(try refreshGrant(files(refresh, token: "1//other")).0 != old)
  }

  @Test(arguments: [
    (
      "oauth_client_id = id",
      "5: oauth_client_id needs oauth_refresh_token_file, where `ssmtp-mailer oauth login` keeps"
    ),
    ("oauth_refresh_token_file = /t", "5: oauth_refresh_token_file needs oauth_client_id, the ID of the OAuth client"),
    ("oauth_client_id = id\noauth_refresh_token_file = /t", "5: oauth_client_id needs oauth_client_secret or"),
    (
      "oauth_client_id = id\noauth_client_secret = x\noauth_client_secret_file = /s\noauth_refresh_token_file = /t",
      "7: oauth_client_secret and oauth_client_secret_file are both set in [domain:example.com]; keep one"
    ),
    (
      "oauth_client_id = id\noauth_client_secret_file = /open\noauth_refresh_token_file = /t",
      "6: oauth_client_secret_file \"/open\" can be read by everyone; run: chmod 640 /open"
    ),
    (
      "oauth_client_id = id\noauth_client_secret = x\noauth_refresh_token_file = /open",
      "7: oauth_refresh_token_file \"/open\" can be read by everyone; run: chmod 640 /open"
    ),
    (
      "password = x\noauth_client_id = id\noauth_client_secret = x\noauth_refresh_token_file = /t",
      "5: password and oauth_client_id are both set in [domain:example.com]; tokens need no password: remove it"
    ),
    (
      "service_account_file = /j\noauth_client_id = id",
      "6: service_account_file and oauth_client_id are both set in [domain:example.com]; keep one way to get tokens"
    ),
    ("service_account_user = a@example.com", "5: service_account_user needs service_account_file, the JSON key"),
    ("service_account_file = /j", "5: service_account_file \"/j\" has no client_email; it takes the JSON key that"),
    ("service_account_file = /s", "5: service_account_file \"/s\" is not the JSON file of a service account"),
    ("service_account_file = /open", "5: service_account_file \"/open\" can be read by everyone; run: chmod 640"),
    ("service_account_file = /none", "5: service_account_file \"/none\" cannot be read: No such file or directory"),
    (
      "oauth_token_url = http://login.example/token",
      "5: \"http://login.example/token\" is not a value of oauth_token_url, which takes an address that begins with https"
    ),
    ("enabled = true", "3: auth_method XOAUTH2 needs oauth_client_id and oauth_refresh_token_file, or"),
  ])
  func mistakeIsNamed(lines: String, message: String) {
    let found = errors(files(lines))
    #expect(found.contains { $0.hasPrefix("/c/domains/d.conf:" + message) }, "\(found)")
  }

  @Test func tokensNeedAMethodThatTakesThem() {
    #expect(
      errors(files(refresh, method: "PLAIN")) == [
        "/c/domains/d.conf:5: oauth_client_id has no effect with auth_method PLAIN; set auth_method = XOAUTH2"
      ])
  }

  @Test func secretInAFileThatEveryoneReadsIsRefused() {
    var files = files(refresh)
    files.add("/c/domains/d.conf", head + refresh, mode: 0o644)
    #expect(
      errors(files) == [
        "/c/domains/d.conf:6: oauth_client_secret stands in a file that everyone can read; run: chmod 640 "
          + "/c/domains/d.conf"
      ])
  }

  @Test func nothingOfASecretIsShown() throws {
    let settings = try load(files(refresh)).settings
    let shown = settings.describe().map { "\($0.key) = \($0.value)" }
    #expect(shown.contains("oauth_client_secret = <redacted>") && shown.contains("oauth_client_id = id"))
    var text = shown.joined()
    dump(settings, to: &text)
    #expect(!text.contains("hunter2") && !text.contains("1//r"))
  }
}
