// The login of a person (RFC 6749 4.1 with PKCE, RFC 7636; loopback redirection, RFC 8252 7.3): the address to open,
// what comes back from it, and the refresh token in exchange.

import Glibc
import Primitives

/// Why a login did not give a refresh token. One sentence with what to do.
public struct AuthorizationFailure: Error, Sendable, Hashable, CustomStringConvertible {
  public var description: String
  /// Whether waiting may help.
  public var isTemporary = false
  /// The answer belongs to another login, or to nobody's: it says nothing about this one.
  var isForeign = false

  public init(_ description: String, isTemporary: Bool = false) {
    self.description = description
    self.isTemporary = isTemporary
  }

  static var foreign: Self {
    var failure = Self("the answer belongs to another login: begin again, and use the newest address")
    failure.isForeign = true
    return failure
  }
}

/// PKCE (RFC 7636 4.2, S256).
public enum PKCE {
  public static func challenge(for verifier: String) -> String { Base64URL.encode(Digest.sha256(Array(verifier.utf8))) }
}

/// One login, from the address to the refresh token.
public struct Authorization: Sendable {
  private let grant: TokenGrant
  private let client: OAuthClient
  private let verifier: HiddenText
  private let state: String
  public let redirectURI: String

  /// - Parameter redirectURI: on this machine's loopback: `http://127.0.0.1:PORT/`.
  public init(_ grant: TokenGrant, client: OAuthClient, redirectURI: String) {
    self.grant = grant
    self.client = client
    self.redirectURI = redirectURI
    verifier = HiddenText(Self.random())
    state = Self.random()
  }

  private static func random() -> String {
    var generator = SystemRandomNumberGenerator()
    return Base64URL.encode((0..<32).map { _ in UInt8.random(in: 0...255, using: &generator) })
  }

  /// What to open in a browser. `account` is the mailbox that is to be chosen there.
  public func address(account: String?) -> String {
    var form = WebForm([
      ("response_type", "code"), ("client_id", client.id), ("redirect_uri", redirectURI),
      ("scope", TokenGrant.mailScope),
      // Without these two there is no refresh token, or only the first time.
      ("access_type", "offline"), ("prompt", "consent"),
      ("state", state), ("code_challenge", PKCE.challenge(for: verifier.text)), ("code_challenge_method", "S256"),
    ])
    if let account { form.fields.append(("login_hint", account)) }
    return grant.authorizationURL + (grant.authorizationURL.contains("?") ? "&" : "?") + form.encoded
  }

  /// What the browser was sent back with: the whole address, its query, or, when pasted by a person, the code alone.
  public func code(in text: String, isPasted: Bool) throws(AuthorizationFailure) -> String {
    let text = text.trimmed
    let query = text.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false).last ?? ""
    let answer = WebForm(parsing: query.split(separator: "#").first ?? "")
    if let error = answer["error"] {
      guard answer["state"] == state else { throw .foreign }
      throw AuthorizationFailure(
        error == "access_denied"
          ? "access was denied in the browser: run this again and allow it"
          : "the authorization server refused: \(TokenAnswer.shown(answer["error_description"] ?? error))")
    }
    if let code = answer["code"], !code.isEmpty {
      guard answer["state"] == state else { throw .foreign }
      return code
    }
    let isBare = isPasted && !text.isEmpty && !text.contains("?") && !text.contains(" ") && !text.hasPrefix("http")
    guard isBare else { throw AuthorizationFailure("there is no code in what came back: copy the whole address") }
    // Copied out of an address, where its slash is escaped.
    return WebForm(parsing: "code=\(text.replacing("+", with: "%2B"))")["code"] ?? text
  }

  /// Exchanges the code, and looks whether what was granted is enough.
  public func refreshToken(
    for code: String, transport: any TokenTransport = CurlTransport()
  ) async throws(AuthorizationFailure) -> HiddenText {
    let answer: TokenAnswer
    do throws(TokenFailure) {
      answer = try await TokenEndpoint(grant, transport: transport).exchange(
        code: code, verifier: verifier, redirectURI: redirectURI, client: client)
    } catch {
      let hint =
        error.kind == .revoked
        ? ": the code is used up, too old, or cut off; run this again and finish within a few minutes" : ""
      throw AuthorizationFailure(error.description + hint, isTemporary: error.kind == .unavailable)
    }
    if let scope = answer.scope, !scope.split(separator: " ").contains(Substring(TokenGrant.mailScope)) {
      throw AuthorizationFailure(
        "the granted scope \(TokenAnswer.shown(scope)) does not contain \(TokenGrant.mailScope): run this again and "
          + "leave the box for mail ticked; the scope must be listed in the OAuth consent screen of the project")
    }
    guard let token = answer.refreshToken else {
      throw AuthorizationFailure(
        "access was granted, but without a refresh token, though offline access and a new consent were asked for: "
          + "the account has an older grant of this client (remove it at https://myaccount.google.com/connections "
          + "and run this again), or the client ID is not of the type \"Desktop app\"")
    }
    return token
  }
}

extension String {
  fileprivate var trimmed: String {
    let isBlank: (Character) -> Bool = { $0.isWhitespace || $0.isNewline }
    return String(drop(while: isBlank).reversed().drop(while: isBlank).reversed())
  }
}
