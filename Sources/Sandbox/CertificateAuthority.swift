// A certificate authority for one afternoon: it lets tests and the sandbox show certificates that are good, expired,
// for another name, or from an authority nobody trusts, with the OpenSSL library alone.

import COpenSSL
import Glibc

/// What goes wrong while the sandbox is set up.
public enum SandboxError: Error, Hashable, Sendable, CustomStringConvertible {
  /// A system call failed: what was tried and errno.
  case system(String, CInt)
  /// OpenSSL refused; the text is its reason.
  case certificate(String)

  public var description: String {
    switch self {
    case .system(let what, let code): "\(what): \(String(cString: strerror(code)))"
    case .certificate(let text): "certificate: \(text)"
    }
  }
}

/// An authority with a fresh P-256 key that lives as long as this object.
public final class CertificateAuthority: Sendable {
  // Never changed after `init`; signing only reads them, and their reference counts are atomic.
  nonisolated(unsafe) private let certificate: OpaquePointer
  nonisolated(unsafe) private let key: OpaquePointer

  /// The certificate to trust, in PEM.
  public let certificatePEM: String

  /// A certificate and the key that belongs to it, both in PEM.
  public struct Identity: Sendable, Hashable {
    public let certificatePEM: String
    public let keyPEM: String

    /// Writes both files; the key is readable by its owner only.
    public func write(certificateFile: String, keyFile: String) throws(SandboxError) {
      try PEM.write(certificatePEM, to: certificateFile, mode: 0o644)
      try PEM.write(keyPEM, to: keyFile, mode: 0o600)
    }
  }

  /// - Throws: ``SandboxError/certificate(_:)``.
  public init(commonName: String) throws(SandboxError) {
    let key = try PEM.makeKey()
    do {
      let certificate = try PEM.makeCertificate(
        subject: commonName, issuer: nil, key: key, signedBy: key, valid: .seconds(-86_400) ... .seconds(86_400 * 3650),
        extensions: [
          (NID_basic_constraints, "critical,CA:TRUE"), (NID_key_usage, "critical,keyCertSign,cRLSign"),
          (NID_subject_key_identifier, "hash"),
        ])
      self.certificate = certificate
      self.key = key
      certificatePEM = PEM.text { PEM_write_bio_X509($0, certificate) }
    } catch {
      EVP_PKEY_free(key)
      throw error
    }
  }

  deinit {
    X509_free(certificate)
    EVP_PKEY_free(key)
  }

  /// Issues a server certificate for DNS names and IP addresses. `valid` counts from now: a range that ends before
  /// zero makes an expired certificate.
  /// - Throws: ``SandboxError/certificate(_:)`` when a name cannot be put into a certificate.
  public func issue(
    names: [String], valid: ClosedRange<Duration> = .seconds(-3600) ... .seconds(86_400 * 30)
  ) throws(SandboxError) -> Identity {
    let key = try PEM.makeKey()
    defer { EVP_PKEY_free(key) }
    let alternatives = names.map { (PEM.isAddress($0) ? "IP:" : "DNS:") + $0 }.joined(separator: ",")
    let leaf = try PEM.makeCertificate(
      subject: names.first ?? "nobody", issuer: certificate, key: key, signedBy: self.key, valid: valid,
      extensions: [
        (NID_basic_constraints, "critical,CA:FALSE"), (NID_key_usage, "critical,digitalSignature"),
        (NID_ext_key_usage, "serverAuth"), (NID_subject_key_identifier, "hash"),
        (NID_authority_key_identifier, "keyid"),
      ] + (names.isEmpty ? [] : [(NID_subject_alt_name, alternatives)]))
    defer { X509_free(leaf) }
    return Identity(
      certificatePEM: PEM.text { PEM_write_bio_X509($0, leaf) },
      keyPEM: PEM.text { PEM_write_bio_PrivateKey($0, key, nil, nil, 0, nil, nil) })
  }

  /// Writes the authority's own certificate, for a client to trust.
  public func writeCertificate(to file: String) throws(SandboxError) {
    try PEM.write(certificatePEM, to: file, mode: 0o644)
  }
}

/// The OpenSSL calls behind the authority.
private enum PEM {
  static func failure() -> SandboxError {
    let code = ERR_peek_last_error()
    let reason = ERR_reason_error_string(code).map { String(cString: $0) }
    return .certificate(reason ?? "OpenSSL error \(code)")
  }

  static func isAddress(_ name: String) -> Bool {
    guard let octets = a2i_IPADDRESS(name) else { return false }
    ASN1_OCTET_STRING_free(octets)
    return true
  }

  static func makeKey() throws(SandboxError) -> OpaquePointer {
    ERR_clear_error()
    guard let context = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, nil) else { throw failure() }
    defer { EVP_PKEY_CTX_free(context) }
    var key: OpaquePointer?
    guard EVP_PKEY_keygen_init(context) == 1, EVP_PKEY_CTX_set_group_name(context, "P-256") == 1,
      EVP_PKEY_generate(context, &key) == 1, let key
    else { throw failure() }
    return key
  }

  static func makeCertificate(
    subject: String, issuer: OpaquePointer?, key: OpaquePointer, signedBy signer: OpaquePointer,
    valid: ClosedRange<Duration>, extensions: [(CInt, String)]
  ) throws(SandboxError) -> OpaquePointer {
    ERR_clear_error()
    guard let certificate = X509_new() else { throw failure() }
    var isMine = true
    defer { if isMine { X509_free(certificate) } }
    let name = X509_get_subject_name(certificate)
    // The subject may hold 64 characters of a name at most (RFC 5280 A.1); the alternative names hold it whole.
    guard X509_set_version(certificate, 2) == 1,
      ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate), UInt64.random(in: 1...UInt64(Int64.max))) == 1,
      X509_gmtime_adj(X509_getm_notBefore(certificate), Int(valid.lowerBound.components.seconds)) != nil,
      X509_gmtime_adj(X509_getm_notAfter(certificate), Int(valid.upperBound.components.seconds)) != nil,
      X509_set_pubkey(certificate, key) == 1,
      X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_FLAG, String(subject.prefix(64)), -1, -1, 0) == 1,
      X509_set_issuer_name(certificate, issuer.map { X509_get_subject_name($0) } ?? name) == 1
    else { throw failure() }
    for (identifier, value) in extensions {
      var context = v3_ext_ctx()
      X509V3_set_ctx(&context, issuer ?? certificate, certificate, nil, nil, 0)
      guard let made = X509V3_EXT_conf_nid(nil, &context, identifier, value) else { throw failure() }
      defer { X509_EXTENSION_free(made) }
      guard X509_add_ext(certificate, made, -1) == 1 else { throw failure() }
    }
    guard X509_sign(certificate, signer, EVP_sha256()) > 0 else { throw failure() }
    isMine = false
    return certificate
  }

  static func text(_ body: (OpaquePointer) -> CInt) -> String {
    guard let memory = BIO_new(BIO_s_mem()) else { return "" }
    defer { BIO_free(memory) }
    _ = body(memory)
    var bytes = [UInt8](repeating: 0, count: BIO_ctrl_pending(memory))
    let count = BIO_read(memory, &bytes, CInt(bytes.count))
    return String(decoding: bytes.prefix(Int(max(count, 0))), as: UTF8.self)
  }

  static func write(_ text: String, to file: String, mode: mode_t) throws(SandboxError) {
    try Files.write(Array(text.utf8), to: file, mode: mode)
  }
}

/// Whole files.
enum Files {
  /// Replaces a file; a new file gets exactly `mode`.
  static func write(_ bytes: [UInt8], to file: String, mode: mode_t) throws(SandboxError) {
    // A file that is already there could keep a mode that shows the key to others.
    unlink(file)
    let descriptor = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode)
    guard descriptor >= 0 else { throw .system("create \(file)", errno) }
    defer { close(descriptor) }
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      guard count > 0 else { throw .system("write \(file)", errno) }
      rest = rest.dropFirst(count)
    }
  }
}
