// The key of a service account: what is taken for one, and whether its assertion is what RFC 7523 and Google want.

import COpenSSL
import FoundationEssentials
import Primitives
import TestSupport
import Testing

@testable import OAuth

/// An RSA key with its public half.
struct TestKey {
  let pem: String
  let publicPEM: String

  init(bits: Int = 2048) throws {
    let context = try #require(EVP_PKEY_CTX_new_id(EVP_PKEY_RSA, nil))
    defer { EVP_PKEY_CTX_free(context) }
    var key: OpaquePointer?
    try #require(EVP_PKEY_keygen_init(context) == 1 && EVP_PKEY_CTX_set_rsa_keygen_bits(context, CInt(bits)) == 1)
    try #require(EVP_PKEY_generate(context, &key) == 1)
    defer { EVP_PKEY_free(key) }
    pem = Self.text { PEM_write_bio_PrivateKey($0, key, nil, nil, 0, nil, nil) }
    publicPEM = Self.text { PEM_write_bio_PUBKEY($0, key) }
  }

  private static func text(_ body: (OpaquePointer?) -> CInt) -> String {
    let memory = BIO_new(BIO_s_mem())
    defer { BIO_free(memory) }
    _ = body(memory)
    var bytes = [UInt8](repeating: 0, count: 8192)
    let count = BIO_read(memory, &bytes, CInt(bytes.count))
    return String(decoding: bytes.prefix(Int(max(count, 0))), as: UTF8.self)
  }

  /// Whether `signature` is that of `text`, by the public key alone.
  func verifies(_ signature: [UInt8], of text: String) -> Bool {
    let key = Array(publicPEM.utf8).withUnsafeBytes { bytes -> OpaquePointer? in
      let memory = BIO_new_mem_buf(bytes.baseAddress, CInt(bytes.count))
      defer { BIO_free(memory) }
      return PEM_read_bio_PUBKEY(memory, nil, nil, nil)
    }
    defer { EVP_PKEY_free(key) }
    let context = EVP_MD_CTX_new()
    defer { EVP_MD_CTX_free(context) }
    let bytes = Array(text.utf8)
    return EVP_DigestVerifyInit(context, nil, EVP_sha256(), nil, key) == 1
      && EVP_DigestVerify(context, signature, signature.count, bytes, bytes.count) == 1
  }

  func json(type: String = "service_account", url: String = "https://oauth2.googleapis.com/token") throws -> [UInt8] {
    let fields = [
      "type": type, "client_email": "relay@project.iam.gserviceaccount.com", "private_key": pem,
      "private_key_id": "key-7", "token_uri": url,
    ]
    return Array(try JSONEncoder().encode(fields))
  }
}

private func decode(_ part: Substring) -> [UInt8] {
  let text = part.replacing("-", with: "+").replacing("_", with: "/")
  return Array(Data(base64Encoded: text + String(repeating: "=", count: (4 - text.utf8.count % 4) % 4)) ?? Data())
}

@Suite(.timeLimit(.minutes(2))) struct ServiceAccountTests {
  private struct Claims: Decodable, Equatable {
    var iss: String
    var sub: String
    var scope: String
    var aud: String
    var iat: Int64
    var exp: Int64
  }

  @Test func assertionIsSignedAndSaysWhoAsksForWhom() async throws {
    let key = try TestKey()
    let server = try TokenServer()
    let account = try ServiceAccount(json: key.json(url: server.url))
    var grant = TokenGrant(.serviceAccount(account, user: "sales@example.com"), tokenURL: server.url)
    grant.caFile = server.caFile
    let time = ManualTime()
    let cache = TokenCache(grant, time: time)
    #expect(try await cache.token().reveal() == "ya29.cedar-1")

    let form = try #require(server.forms.first)
    #expect(form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer")
    let assertion = try #require(form["assertion"])
    let parts = assertion.split(separator: ".")
    try #require(parts.count == 3)
    #expect(key.verifies(decode(parts[2]), of: "\(parts[0]).\(parts[1])"))
    #expect(!key.verifies(decode(parts[2]), of: "\(parts[0]).\(parts[0])"))
    let header = try JSONDecoder().decode([String: String].self, from: Data(decode(parts[0])))
    #expect(header == ["alg": "RS256", "typ": "JWT", "kid": "key-7"])
    let now = time.wallClock.seconds
    #expect(
      try JSONDecoder().decode(Claims.self, from: Data(decode(parts[1])))
        == Claims(
          iss: "relay@project.iam.gserviceaccount.com", sub: "sales@example.com", scope: "https://mail.google.com/",
          aud: server.url, iat: now, exp: now + 3600))

    server.say([.json(401, #"{"error":"unauthorized_client","error_description":"Client is unauthorized"}"#)])
    time.advance(by: .seconds(3600))
    do throws(TokenFailure) {
      _ = try await cache.token()
      Issue.record("a token without delegation")
    } catch {
      #expect(error.kind == .refused && error.description.contains("Domain-wide delegation"))
    }
    await server.stop()
  }

  @Test func fileThatIsNoKeySaysWhy() throws {
    func fault(_ json: [UInt8]) -> String {
      do throws(ServiceAccount.Fault) {
        _ = try ServiceAccount(json: json)
        return ""
      } catch { return error.description }
    }
    let key = try TestKey()
    #expect(fault(try key.json()).isEmpty)
    #expect(fault(Array("not json".utf8)).contains("is not the JSON file"))
    #expect(fault(try key.json(type: "authorized_user")).contains("another kind"))
    #expect(fault(Array(#"{"type":"service_account","client_email":"a"}"#.utf8)) == "has no private_key")
    #expect(
      fault(Array(#"{"client_email":"a","private_key":"secret stuff"}"#.utf8))
        == "has a private_key that is not one in PEM")
    #expect(fault(try TestKey(bits: 1024).json()).contains("2048 bits"))
  }

  @Test func keyIsNotPrinted() throws {
    let key = try TestKey()
    let account = try ServiceAccount(json: key.json())
    var text = "\(account)"
    dump(account, to: &text)
    dump(TokenGrant(.serviceAccount(account, user: "u")), to: &text)
    #expect(!text.contains("PRIVATE KEY"))
  }
}
