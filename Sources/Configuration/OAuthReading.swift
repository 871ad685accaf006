// How an upstream's access tokens are obtained: by a refresh token of the mailbox's owner, or by the key of a service
// account of its domain.

import OAuth

struct OAuthReader {
  var files: any FileSource

  /// What belongs to a refresh token, what to a service account, and what to both.
  static let refreshKeys = [
    "oauth_client_id", "oauth_client_secret", "oauth_client_secret_file", "oauth_refresh_token_file", "oauth_auth_url",
  ]
  static let serviceKeys = ["service_account_file", "service_account_user"]
  static let keys = refreshKeys + serviceKeys + ["oauth_token_url", "oauth_ca_file"]

  /// Whether `reader` has any of the keys: then the password is no token.
  static func isUsed(in reader: SectionReader) -> Bool { keys.contains { reader.isSet($0) } }

  /// Reads the keys; nil when there are none or what is there is wrong.
  /// - Parameter isWanted: whether this domain sends at all, so that its files are looked into.
  func read(_ reader: inout SectionReader, of domain: DomainSettings, isWanted: Bool, _ findings: inout Findings)
    -> TokenGrant?
  {
    let clientID = reader.optionalString("oauth_client_id", &findings)
    let plainSecret = reader.secret("oauth_client_secret")
    let secretFile = reader.optionalPath("oauth_client_secret_file")
    let tokenFile = reader.optionalPath("oauth_refresh_token_file")
    let accountFile = reader.optionalPath("service_account_file")
    let accountUser = reader.optionalString("service_account_user", &findings)
    let tokenURL = url("oauth_token_url", TokenGrant.googleTokenURL, &reader, &findings)
    let authorizationURL = url("oauth_auth_url", TokenGrant.googleAuthorizationURL, &reader, &findings)
    let caFile = reader.optionalPath("oauth_ca_file")
    guard isConsistent(reader, domain, &findings), isWanted else { return nil }
    if let caFile, !files.isReadable(caFile) {
      findings.error(reader.place("oauth_ca_file"), "oauth_ca_file \(quoted(caFile)) cannot be read")
    }
    let kind: TokenGrant.Kind
    var url = tokenURL
    if let accountFile {
      guard let account = account(accountFile, reader, &findings) else { return nil }
      if !reader.isSet("oauth_token_url"), let named = account.tokenURL {
        guard Self.isSafe(named) else {
          findings.error(
            reader.place("service_account_file"),
            "service_account_file \(quoted(accountFile)) names a token_uri that does not begin with https://")
          return nil
        }
        url = named
      }
      kind = .serviceAccount(account, user: accountUser ?? domain.username ?? "")
    } else if let tokenFile, let clientID {
      let secret = clientSecret(plainSecret, secretFile, reader, &findings)
      kind = .refreshToken(
        RefreshTokenGrant(
          client: OAuthClient(id: clientID, secret: secret.map { HiddenText($0.reveal()) }), file: tokenFile,
          seen: refreshToken(tokenFile, reader, domain, &findings)))
    } else {
      return nil
    }
    var grant = TokenGrant(kind, tokenURL: url)
    grant.authorizationURL = authorizationURL
    grant.caFile = caFile
    return grant
  }

  // MARK: Which keys go together

  private func isConsistent(_ reader: SectionReader, _ domain: DomainSettings, _ findings: inout Findings) -> Bool {
    let set = Self.keys.filter { reader.isSet($0) }
    guard let first = set.first else { return false }
    let title = reader.section.title
    guard domain.authMethod == .xoauth2 || domain.authMethod == .oauthBearer else {
      findings.error(
        reader.place(first),
        "\(first) has no effect with auth_method \(domain.authMethod.rawValue); set auth_method = XOAUTH2")
      return false
    }
    if let password = PasswordReader.keys.first(where: { reader.isSet($0) }) {
      findings.error(
        reader.place(password), "\(password) and \(first) are both set in \(title); tokens need no password: remove it")
      return false
    }
    if let service = set.first(where: Self.serviceKeys.contains) {
      if let other = set.first(where: Self.refreshKeys.contains) {
        findings.error(
          reader.place(other), "\(service) and \(other) are both set in \(title); keep one way to get tokens")
        return false
      }
      guard set.contains("service_account_file") else {
        findings.error(reader.place(service), "\(service) needs service_account_file, the JSON key, in \(title)")
        return false
      }
      return true
    }
    let hasSecret = set.contains("oauth_client_secret") || set.contains("oauth_client_secret_file")
    if set.contains("oauth_client_secret"), set.contains("oauth_client_secret_file") {
      findings.error(
        reader.place("oauth_client_secret_file"),
        "oauth_client_secret and oauth_client_secret_file are both set in \(title); keep one")
      return false
    }
    for (key, what) in [
      ("oauth_client_id", "the ID of the OAuth client"),
      ("oauth_refresh_token_file", "where `ssmtp-mailer oauth login` keeps the refresh token"),
    ] where !set.contains(key) {
      findings.error(reader.place(first), "\(first) needs \(key), \(what), in \(title)")
      return false
    }
    if !hasSecret, !set.contains("oauth_token_url") {
      findings.error(
        reader.place("oauth_client_id"),
        "oauth_client_id needs oauth_client_secret or oauth_client_secret_file in \(title): Google wants it, also of "
          + "desktop clients")
      return false
    }
    return true
  }

  private func url(
    _ key: String, _ fallback: String, _ reader: inout SectionReader, _ findings: inout Findings
  ) -> String {
    reader.value(key, default: fallback, wanted: "an address that begins with https://", show: \.self, &findings) {
      Self.isSafe($0) ? $0 : nil
    }
  }

  private static func isSafe(_ url: String) -> Bool {
    let rest = url.dropFirst(8)
    return url.lowercased().hasPrefix("https://") && !rest.isEmpty && !rest.hasPrefix("/")
      && url.utf8.allSatisfy { (0x21...0x7e).contains($0) } && !url.contains("#") && !url.contains("@")
  }

  // MARK: Files

  private func clientSecret(
    _ plain: Secret?, _ file: String?, _ reader: SectionReader, _ findings: inout Findings
  ) -> Secret? {
    if let plain {
      let place = reader.place("oauth_client_secret")
      if case .file(let path, _) = place {
        checkPrivate(path, "oauth_client_secret stands in a file that", place, &findings)
      }
      return plain
    }
    guard let file else { return nil }
    let place = reader.place("oauth_client_secret_file")
    let what = "oauth_client_secret_file \(quoted(file))"
    guard checkPrivate(file, what, place, &findings) else { return nil }
    return PasswordReader.secret(place, what, noun: "secret", &findings) { () throws(FileError) in
      try files.read(file)
    }
  }

  /// The token is not there before the first login, which itself needs the configuration: so that is no error.
  private func refreshToken(
    _ file: String, _ reader: SectionReader, _ domain: DomainSettings, _ findings: inout Findings
  ) -> HiddenText? {
    let place = reader.place("oauth_refresh_token_file")
    let what = "oauth_refresh_token_file \(quoted(file))"
    let login = "run: ssmtp-mailer oauth login --account \(domain.relayAccount ?? domain.name)"
    guard files.mode(file) != nil else {
      findings.warning(place, "\(what) is not there yet; \(login)")
      return nil
    }
    guard checkPrivate(file, what, place, &findings) else { return nil }
    let bytes: [UInt8]
    do throws(FileError) { bytes = try files.read(file) } catch {
      findings.error(place, "\(what) cannot be read: \(error)")
      return nil
    }
    guard let token = RefreshTokenFile.token(in: bytes) else {
      findings.warning(place, "\(what) holds no refresh token; \(login)")
      return nil
    }
    return token
  }

  private func account(_ file: String, _ reader: SectionReader, _ findings: inout Findings) -> ServiceAccount? {
    let place = reader.place("service_account_file")
    let what = "service_account_file \(quoted(file))"
    guard checkPrivate(file, what, place, &findings) else { return nil }
    let bytes: [UInt8]
    do throws(FileError) { bytes = try files.read(file) } catch {
      findings.error(place, "\(what) cannot be read: \(error)")
      return nil
    }
    do throws(ServiceAccount.Fault) { return try ServiceAccount(json: bytes) } catch {
      findings.error(
        place, "\(what) \(error); it takes the JSON key that the Google Cloud console gives out for a service account")
      return nil
    }
  }

  @discardableResult
  private func checkPrivate(_ path: String, _ what: String, _ place: Origin, _ findings: inout Findings) -> Bool {
    guard let mode = files.mode(path), mode & 0o004 != 0 else { return true }
    let verb = what.hasSuffix("that") ? "everyone can read" : "can be read by everyone"
    findings.error(place, "\(what) \(verb); run: chmod 640 \(path)")
    return false
  }
}
