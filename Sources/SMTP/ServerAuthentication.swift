// The server's side of AUTH: a line in, a challenge or what the client claims out. Whether it is true is decided elsewhere.

/// The exchange behind one AUTH command (RFC 4954 4), for PLAIN (RFC 4616) and LOGIN.
public struct ServerAuthentication: Sendable {
  public enum Mechanism: String, Sendable, CaseIterable {
    case plain = "PLAIN"
    case login = "LOGIN"
  }

  /// What a client claims.
  public struct Claim: Hashable, Sendable {
    /// The identity to act as; empty for ``username`` itself.
    public var authorizationIdentity: String
    public var username: String
    public var password: [UInt8]
  }

  public enum Step: Hashable, Sendable {
    /// Send the 334 and read one more line.
    case challenge(Reply)
    case claim(Claim)
    /// The exchange is over without a claim.
    case refuse(Reply)
  }

  /// Octets of a response, CRLF included (RFC 4954 4.1).
  public static let maximumLineLength = 12_288

  public let mechanism: Mechanism
  private var username: String?

  /// - Parameter name: in capitals; nil for a mechanism that is not known here.
  public init?(_ name: String) {
    guard let mechanism = Mechanism(rawValue: name) else { return nil }
    self.mechanism = mechanism
  }

  /// - Parameter response: the initial response, if AUTH had one.
  public mutating func begin(_ response: String?) -> Step {
    if let response { return take(response) }
    return .challenge(mechanism == .plain ? Reply(334, nil, "") : Reply(334, nil, SASL.loginUsernameChallenge))
  }

  /// Takes a line behind a challenge, without its CRLF.
  public mutating func receive(_ line: UnsafeRawBufferPointer) -> Step {
    if line.elementsEqual([UInt8(ascii: "*")]) { return .refuse(Replies.authenticationCancelled) }
    return take(String(decoding: line, as: UTF8.self))
  }

  private mutating func take(_ text: String) -> Step {
    switch mechanism {
    case .plain:
      guard let claim = SASL.decodePlain(text) else { return .refuse(Replies.badResponse) }
      return .claim(
        Claim(
          authorizationIdentity: claim.authorizationIdentity, username: claim.username,
          password: Array(claim.password.utf8)))
    case .login:
      guard let bytes = Base64.decode(text), !bytes.isEmpty, !bytes.contains(0),
        let decoded = String(validating: bytes, as: UTF8.self)
      else { return .refuse(Replies.badResponse) }
      if let username {
        return .claim(Claim(authorizationIdentity: "", username: username, password: bytes))
      }
      username = decoded
      return .challenge(Reply(334, nil, SASL.loginPasswordChallenge))
    }
  }
}

extension Replies {
  public static let authenticated = Reply(235, "2.7.0", "Authentication successful")
  public static let authenticationCancelled = Reply(501, "5.7.0", "Authentication cancelled")
  public static let badResponse = Reply(501, "5.5.2", "Cannot decode this response")
  /// RFC 4954 4.
  public static let responseTooLong = Reply(500, "5.5.6", "Authentication exchange line is too long")
  /// The same for a wrong password, an unknown name and one that may not log in.
  public static let wrongCredentials = Reply(535, "5.7.8", "Authentication credentials invalid")
  public static let authenticationBusy = Reply(
    454, "4.7.0", "Temporary authentication failure: too many logins at once, try again later")
  public static let authenticationBanned = Reply(
    454, "4.7.0", "Too many failed logins from your address, try again later")
}
