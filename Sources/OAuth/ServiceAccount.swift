// A service account of Google: the JSON file that its console gives out, and the signed assertion that is exchanged
// for an access token (RFC 7523, RFC 7515 with RS256).

import COpenSSL
import FoundationEssentials
import Primitives

/// The key of a service account.
public struct ServiceAccount: Sendable, Equatable, CustomStringConvertible {
  public let email: String
  let keyID: String?
  /// PEM.
  let privateKey: HiddenText
  /// The token endpoint that the file names.
  public let tokenURL: String?

  public var description: String { email }

  /// Why a file is not the key of a service account.
  public struct Fault: Error, Sendable, Hashable, CustomStringConvertible {
    public var description: String
  }

  private struct File: Decodable {
    var type: String?
    var clientEmail: String?
    var privateKey: String?
    var privateKeyId: String?
    var tokenUri: String?
  }

  /// Reads the JSON file and checks that the key can sign.
  public init(json: [UInt8]) throws(Fault) {
    let file: File
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    do { file = try decoder.decode(File.self, from: Data(json)) } catch {
      // The decoder's own words may repeat what it has read.
      throw Fault(description: "is not the JSON file of a service account")
    }
    if let type = file.type, type != "service_account" {
      throw Fault(description: "holds the key of another kind (\"type\" is not \"service_account\")")
    }
    guard let email = file.clientEmail, !email.isEmpty else { throw Fault(description: "has no client_email") }
    guard let key = file.privateKey, !key.isEmpty else { throw Fault(description: "has no private_key") }
    self.email = email
    keyID = file.privateKeyId
    privateKey = HiddenText(key)
    tokenURL = file.tokenUri
    _ = try Self.sign([0], with: key)
  }

  // MARK: The assertion

  private struct Header: Encodable {
    var alg = "RS256"
    var typ = "JWT"
    var kid: String?
  }

  private struct Claims: Encodable {
    var iss: String
    var sub: String
    var scope: String
    var aud: String
    var iat: Int64
    var exp: Int64
  }

  /// The assertion that asks `audience` for a token to the mailbox of `user` (RFC 7523 3).
  func assertion(user: String, audience: String, now: Timestamp) throws(Fault) -> String {
    let claims = Claims(
      iss: email, sub: user, scope: TokenGrant.mailScope, aud: audience, iat: now.seconds, exp: now.seconds + 3600)
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    guard let header = try? encoder.encode(Header(kid: keyID)), let body = try? encoder.encode(claims) else {
      throw Fault(description: "gives an assertion that cannot be written as JSON")
    }
    let signed = "\(Base64URL.encode(header)).\(Base64URL.encode(body))"
    return "\(signed).\(Base64URL.encode(try Self.sign(Array(signed.utf8), with: privateKey.text)))"
  }

  private static func sign(_ bytes: [UInt8], with pem: String) throws(Fault) -> [UInt8] {
    ERR_clear_error()
    let parsed = Array(pem.utf8).withUnsafeBytes { text -> OpaquePointer? in
      guard let memory = BIO_new_mem_buf(text.baseAddress, CInt(clamping: text.count)) else { return nil }
      defer { BIO_free(memory) }
      // A password that is asked for on the terminal would stop a daemon.
      return PEM_read_bio_PrivateKey(memory, nil, { _, _, _, _ in -1 }, nil)
    }
    guard let key = parsed else { throw Fault(description: "has a private_key that is not one in PEM") }
    defer { EVP_PKEY_free(key) }
    guard EVP_PKEY_get_base_id(key) == EVP_PKEY_RSA, EVP_PKEY_get_bits(key) >= 2048 else {
      throw Fault(description: "has a private_key that is not RSA of 2048 bits or more")
    }
    guard let context = EVP_MD_CTX_new() else { throw Fault(description: "cannot be used: out of memory") }
    defer { EVP_MD_CTX_free(context) }
    var length = 0
    guard EVP_DigestSignInit(context, nil, EVP_sha256(), nil, key) == 1,
      EVP_DigestSign(context, nil, &length, bytes, bytes.count) == 1
    else { throw Fault(description: "has a private_key that cannot sign") }
    var signature = [UInt8](repeating: 0, count: length)
    guard EVP_DigestSign(context, &signature, &length, bytes, bytes.count) == 1 else {
      throw Fault(description: "has a private_key that cannot sign")
    }
    return Array(signature.prefix(length))
  }
}
