// What SASL mechanisms say, as pure functions; all results that go over the wire are base64 text.

public enum SASL {
  /// What a PLAIN response means (RFC 4616 2).
  public struct PlainCredentials: Hashable, Sendable {
    /// The identity to act as; empty for the one that authenticates.
    public var authorizationIdentity: String
    public var username: String
    public var password: String

    public init(authorizationIdentity: String = "", username: String, password: String) {
      self.authorizationIdentity = authorizationIdentity
      self.username = username
      self.password = password
    }
  }

  /// The response of PLAIN (RFC 4616).
  public static func plain(username: String, password: String, authorizationIdentity: String = "") -> String {
    Base64.encode(Array("\(authorizationIdentity)\0\(username)\0\(password)".utf8))
  }

  /// A response of LOGIN: the user name, then the password, each for itself.
  public static func login(_ text: String) -> String { Base64.encode(Array(text.utf8)) }

  /// The challenges of LOGIN as servers send them.
  public static let loginUsernameChallenge = Base64.encode(Array("Username:".utf8))
  public static let loginPasswordChallenge = Base64.encode(Array("Password:".utf8))

  /// The response of XOAUTH2; a server that refuses sends a 334 with a JSON text and wants an empty line.
  public static func xoauth2(username: String, token: String) -> String {
    Base64.encode(Array("user=\(username)\u{1}auth=Bearer \(token)\u{1}\u{1}".utf8))
  }

  /// The response of OAUTHBEARER (RFC 7628 3.1); a server that refuses wants `AQ==` before its final reply.
  public static func oauthBearer(username: String, host: String, port: Int, token: String) -> String {
    let identity = username.replacing("=", with: "=3D").replacing(",", with: "=2C")
    return Base64.encode(
      Array("n,a=\(identity),\u{1}host=\(host)\u{1}port=\(port)\u{1}auth=Bearer \(token)\u{1}\u{1}".utf8))
  }

  /// Reads a PLAIN response; nil when it is not one.
  public static func decodePlain(_ text: some StringProtocol) -> PlainCredentials? {
    guard let bytes = Base64.decode(text) else { return nil }
    let parts = bytes.split(separator: 0, omittingEmptySubsequences: false)
    guard parts.count == 3, !parts[1].isEmpty, !parts[2].isEmpty else { return nil }
    let texts = parts.compactMap { String(validating: $0, as: UTF8.self) }
    guard texts.count == 3 else { return nil }
    return PlainCredentials(authorizationIdentity: texts[0], username: texts[1], password: texts[2])
  }

  /// Reads an XOAUTH2 or OAUTHBEARER response; nil when it is neither.
  public static func decodeBearer(_ text: some StringProtocol) -> (username: String, token: String)? {
    guard let bytes = Base64.decode(text), let plain = String(validating: bytes, as: UTF8.self) else { return nil }
    var username: String?
    var token: String?
    for part in plain.split(separator: "\u{1}") {
      if part.hasPrefix("user=") { username = String(part.dropFirst(5)) }
      if part.hasPrefix("auth=Bearer ") { token = String(part.dropFirst(12)) }
      if part.hasPrefix("n,a="), part.hasSuffix(",") {
        let identity = part.dropFirst(4).dropLast()
        username = String(identity).replacing("=2C", with: ",").replacing("=3D", with: "=")
      }
    }
    guard let username, let token else { return nil }
    return (username, token)
  }
}
