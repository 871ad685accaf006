// What is asked of a token endpoint (RFC 6749 3.2), and what its answers mean. Whose fault a refusal is decides what
// happens: wait, change the configuration, or log in again.

import FoundationEssentials
import Primitives

/// A successful answer (RFC 6749 5.1).
public struct TokenAnswer: Sendable {
  public let accessToken: HiddenText
  /// How long the access token is good for.
  public let lifetime: Duration
  /// nil when the endpoint did not say: then it is what was asked for.
  public let scope: String?
  /// Given with a new grant, and by endpoints that exchange refresh tokens for new ones.
  public let refreshToken: HiddenText?
}

/// The token endpoint of a grant.
public struct TokenEndpoint: Sendable {
  private let grant: TokenGrant
  private let transport: any TokenTransport

  public init(_ grant: TokenGrant, transport: any TokenTransport = CurlTransport()) {
    self.grant = grant
    self.transport = transport
  }

  /// Asks for an access token.
  /// - Parameter refreshToken: of a refresh token's grant; a service account needs none.
  func accessToken(_ refreshToken: HiddenText?, now: Timestamp) async throws(TokenFailure) -> TokenAnswer {
    switch grant.kind {
    case .refreshToken(let refresh):
      let token = refreshToken?.text ?? ""
      var form = WebForm([("grant_type", "refresh_token"), ("refresh_token", token)])
      form.identify(refresh.client)
      return try await ask(form, hiding: [token, refresh.client.secret?.text])
    case .serviceAccount(let account, let user):
      let assertion: String
      do throws(ServiceAccount.Fault) {
        assertion = try account.assertion(user: user, audience: grant.tokenURL, now: now)
      } catch { throw TokenFailure(.refused, "the service account's file \(error)") }
      return try await ask(
        WebForm([
          ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", assertion),
        ]), hiding: [assertion])
    }
  }

  /// Exchanges the code of a login (RFC 6749 4.1.3, RFC 7636 4.5).
  func exchange(
    code: String, verifier: HiddenText, redirectURI: String, client: OAuthClient
  ) async throws(TokenFailure) -> TokenAnswer {
    var form = WebForm([
      ("grant_type", "authorization_code"), ("code", code), ("redirect_uri", redirectURI),
      ("code_verifier", verifier.text),
    ])
    form.identify(client)
    return try await ask(form, hiding: [code, verifier.text, client.secret?.text])
  }

  private func ask(_ form: WebForm, hiding secrets: [String?]) async throws(TokenFailure) -> TokenAnswer {
    let answer = try await transport.post(form, to: grant.tokenURL, caFile: grant.caFile)
    return try TokenAnswer(answer, from: grant, hiding: secrets.compactMap { $0 })
  }
}

extension WebForm {
  fileprivate mutating func identify(_ client: OAuthClient) {
    fields.append(("client_id", client.id))
    if let secret = client.secret { fields.append(("client_secret", secret.text)) }
  }
}

// MARK: - Answers

extension TokenAnswer {
  private struct Good: Decodable {
    var accessToken: String
    var expiresIn: Seconds?
    var scope: String?
    var refreshToken: String?
  }

  /// A number, which some endpoints write as a text.
  private struct Seconds: Decodable {
    var value: Double
    init(from decoder: any Decoder) throws {
      let container = try decoder.singleValueContainer()
      if let text = try? container.decode(String.self) {
        // The text may say "nan", and no duration can be made of that.
        value = Double(text).flatMap { $0.isFinite ? $0 : nil } ?? 3600
      } else {
        value = try container.decode(Double.self)
      }
    }
  }

  /// RFC 6749 5.2.
  private struct Bad: Decodable {
    var error: String
    var errorDescription: String?
  }

  init(_ answer: HTTPAnswer, from grant: TokenGrant, hiding secrets: [String]) throws(TokenFailure) {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    let body = Data(answer.body)
    guard (200..<300).contains(answer.status) else {
      guard let bad = try? decoder.decode(Bad.self, from: body) else {
        throw TokenFailure(
          .unavailable, "the token endpoint \(grant.tokenURL) answered \(answer.status) without an explanation")
      }
      throw Self.failure(answer.status, bad, grant, secrets)
    }
    guard let good = try? decoder.decode(Good.self, from: body) else {
      throw TokenFailure(
        .unavailable, "the token endpoint \(grant.tokenURL) answered \(answer.status) with something else than a token")
    }
    // It is put between control characters of SASL, in a command of 12,288 octets at most (RFC 4954 4).
    guard let token = RefreshTokenFile.token(in: good.accessToken.utf8), token.text == good.accessToken else {
      throw TokenFailure(.unavailable, "the token endpoint \(grant.tokenURL) answered with a token that is not one")
    }
    accessToken = token
    lifetime = .seconds(min(max(good.expiresIn?.value ?? 3600, 0), 86_400))
    scope = good.scope
    refreshToken = good.refreshToken.flatMap { RefreshTokenFile.token(in: $0.utf8) }
  }

  private static func failure(
    _ status: Int, _ bad: Bad, _ grant: TokenGrant, _ secrets: [String]
  ) -> TokenFailure {
    let parts = [bad.error, bad.errorDescription].compactMap { $0 }
    let text = parts.map(shown).joined(separator: ": ")
    // Endpoints exist that repeat what they refuse, and this is logged. The whole text is looked through: what is shown
    // may end in the middle of a secret.
    let isRepeating = secrets.contains { secret in
      !secret.isEmpty && parts.contains { $0.lowercased().contains(secret.lowercased()) }
    }
    let what = "the token endpoint answered \(status) \(isRepeating ? "(the text repeats a secret)" : text)"
    let isService = if case .serviceAccount = grant.kind { true } else { false }
    if status >= 500 || status == 429 { return TokenFailure(.unavailable, what) }
    switch bad.error {
    case "invalid_grant" where isService:
      return TokenFailure(
        .refused,
        "\(what); check service_account_user, whether the key still exists, and the clock of this machine")
    case "invalid_grant": return TokenFailure(.revoked, what)
    case "unauthorized_client" where isService:
      return TokenFailure(
        .refused,
        "\(what); allow the client ID of the service account the scope \(TokenGrant.mailScope) under Security, "
          + "API controls, Domain-wide delegation in the Google Admin console")
    case "invalid_client", "unauthorized_client", "deleted_client":
      return TokenFailure(.refused, "\(what); check oauth_client_id and oauth_client_secret")
    case "temporarily_unavailable", "server_error", "slow_down", "internal_failure":
      return TokenFailure(.unavailable, what)
    default: return TokenFailure(.refused, what)
    }
  }

  /// A text of somebody else for a log line: visible characters, 200 at most.
  static func shown(_ text: String) -> String {
    let clean = text.unicodeScalars.prefix(200).map { scalar in
      scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value) || (0x2028...0x202e).contains(scalar.value)
        || (0x2066...0x2069).contains(scalar.value)
        ? " " : Character(scalar)
    }
    return String(clean)
  }
}
