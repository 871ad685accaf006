// OpenSSL contexts: what a server shows, what a client insists on. Certificates and their names are always verified
// by clients; there is no switch to turn that off.

import COpenSSL
import Glibc
import Primitives

/// The settings shared by many TLS connections, made once and used by all event loops.
public final class TLSContext: Sendable {
  public enum MinimumVersion: String, Sendable, CaseIterable {
    case tls12 = "1.2"
    case tls13 = "1.3"
    var number: CInt { self == .tls12 ? TLS1_2_VERSION : TLS1_3_VERSION }
  }

  /// SSL_CTX is reference-counted and safe to use from several threads once it is set up (openssl-threads(7)).
  nonisolated(unsafe) private let context: OpaquePointer
  private let isClient: Bool
  /// Those of a server.
  let ticketKeys: TicketKeys?
  /// Sessions a server has given us, the newest last, so that the next connection resumes.
  private let sessions = Mutex<[SessionBox]>([])
  private static let keptSessions = 16

  private struct SessionBox: @unchecked Sendable {
    // An SSL_SESSION is never changed after it was made, and its reference count is atomic.
    let session: OpaquePointer
    /// The name the server proved. A resumed handshake shows no certificate: it must not vouch for another name.
    let serverName: String
  }

  private static let optionNoRenegotiation: UInt64 = 1 << 30
  private static let optionIgnoreUnexpectedEOF: UInt64 = 1 << 7
  /// The index under which a connection's SSL_CTX keeps the way back to this object.
  private static let selfIndex = CRYPTO_get_ex_new_index(CRYPTO_EX_INDEX_SSL_CTX, 0, nil, nil, nil, nil)

  private init(isClient: Bool, minimum: MinimumVersion, ticketKeys: TicketKeys? = nil) throws(NetworkError) {
    signal(SIGPIPE, SIG_IGN)  // OpenSSL writes with write(2): a broken pipe must be an error, not the end
    guard let context = SSL_CTX_new(isClient ? TLS_client_method() : TLS_server_method()) else {
      throw .tls(Self.lastError())
    }
    self.context = context
    self.isClient = isClient
    self.ticketKeys = ticketKeys
    SSL_CTX_ctrl(context, SSL_CTRL_SET_MIN_PROTO_VERSION, Int(minimum.number), nil)
    let modes = SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS
    SSL_CTX_ctrl(context, SSL_CTRL_MODE, Int(modes), nil)
    // Many peers close without TLS's farewell. SMTP marks the end of all that matters itself, so a cut cannot pass
    // for a whole; it is an end of the stream like any other.
    SSL_CTX_set_options(context, Self.optionNoRenegotiation | Self.optionIgnoreUnexpectedEOF)
    // One read(2) for a record's head and body.
    SSL_CTX_ctrl(context, SSL_CTRL_SET_READ_AHEAD, 1, nil)
    SSL_CTX_set_ex_data(context, Self.selfIndex, Unmanaged.passUnretained(self).toOpaque())
  }

  deinit {
    for box in sessions.withLock({ $0 }) { SSL_SESSION_free(box.session) }
    SSL_CTX_free(context)
  }

  /// A context for connections to an upstream.
  /// - Parameter caFile: PEM file of the authorities to trust; nil trusts the system's.
  /// - Throws: ``NetworkError/tls(_:)`` when the file cannot be read.
  public static func client(caFile: String?, minimum: MinimumVersion = .tls12) throws(NetworkError) -> TLSContext {
    let result = try TLSContext(isClient: true, minimum: minimum)
    let loaded =
      caFile.map { SSL_CTX_load_verify_file(result.context, $0) } ?? SSL_CTX_set_default_verify_paths(result.context)
    guard loaded == 1 else {
      throw .tls("cannot read the certificate authorities in \(caFile ?? "the system's store"): \(lastError())")
    }
    SSL_CTX_set_verify(result.context, SSL_VERIFY_PEER, nil)
    let mode = SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL
    SSL_CTX_ctrl(result.context, SSL_CTRL_SET_SESS_CACHE_MODE, Int(mode), nil)
    SSL_CTX_sess_set_new_cb(result.context) { ssl, session in
      guard let ssl, let session, let owner = TLSContext.owner(of: ssl) else { return 0 }
      return owner.keep(session, of: ssl) ? 1 : 0
    }
    return result
  }

  /// The object whose context a connection was made with; a connection keeps it alive.
  static func owner(of ssl: OpaquePointer) -> TLSContext? {
    SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), selfIndex).map {
      Unmanaged<TLSContext>.fromOpaque($0).takeUnretainedValue()
    }
  }

  /// A context that shows a certificate (PEM, the chain behind the leaf) and proves its key.
  /// - Parameter tickets: the keys of session tickets; nil makes new ones.
  public static func server(
    certificateFile: String, keyFile: String, minimum: MinimumVersion = .tls12, tickets: TicketKeys? = nil
  ) throws(NetworkError) -> TLSContext {
    let result = try TLSContext(
      isClient: false, minimum: minimum, ticketKeys: tickets ?? TicketKeys(time: SystemTime()))
    try setUpServer(result.context)
    ERR_clear_error()
    guard SSL_CTX_use_certificate_chain_file(result.context, certificateFile) == 1 else {
      throw .tls("cannot use the certificate \(certificateFile): \(lastError())")
    }
    guard SSL_CTX_use_PrivateKey_file(result.context, keyFile, SSL_FILETYPE_PEM) == 1 else {
      throw .tls("cannot use the key \(keyFile): \(lastError())")
    }
    guard SSL_CTX_check_private_key(result.context) == 1 else {
      throw .tls("the key \(keyFile) does not belong to the certificate \(certificateFile)")
    }
    return result
  }

  /// The certificate that a server shows; nil on a client.
  public var ownCertificate: CertificateSummary? {
    SSL_CTX_get0_certificate(context).map { CertificateSummary($0) }
  }

  private func keep(_ session: OpaquePointer, of ssl: OpaquePointer?) -> Bool {
    guard let ssl, let name = Self.wantedName(of: ssl) else { return false }
    let old = sessions.withLock { sessions in
      sessions.append(SessionBox(session: session, serverName: name))
      return sessions.count > Self.keptSessions ? sessions.removeFirst() : nil
    }
    if let old { SSL_SESSION_free(old.session) }
    return true
  }

  /// A connection on `descriptor`. A client insists that the certificate is good for `serverName`.
  func makeConnection(descriptor: CInt, serverName: String?) throws(NetworkError) -> OpaquePointer {
    guard let ssl = SSL_new(context) else { throw .tls(Self.lastError()) }
    guard SSL_set_fd(ssl, descriptor) == 1 else {
      SSL_free(ssl)
      throw .tls(Self.lastError())
    }
    guard isClient else {
      SSL_set_accept_state(ssl)
      return ssl
    }
    guard let name = serverName, configure(ssl, for: name) else {
      SSL_free(ssl)
      throw .tls("cannot ask for a certificate of \(serverName ?? "no name")")
    }
    // A ticket is used once (RFC 8446 C.4); the next one comes with this connection.
    let kept = Self.wantedName(of: ssl).flatMap { wanted in
      sessions.withLock { sessions in
        sessions.lastIndex { $0.serverName == wanted }.map { sessions.remove(at: $0) }
      }
    }
    if let box = kept {
      SSL_set_session(ssl, box.session)
      SSL_SESSION_free(box.session)
    }
    SSL_set_connect_state(ssl)
    return ssl
  }

  private func configure(_ ssl: OpaquePointer, for name: String) -> Bool {
    if IPAddress(name) != nil { return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) == 1 }
    guard SSL_set1_host(ssl, name) == 1 else { return false }
    return name.withCString {
      SSL_ctrl(ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, Int(TLSEXT_NAMETYPE_host_name), UnsafeMutableRawPointer(mutating: $0))
    } == 1
  }

  /// The name or address that the server's certificate has to be good for.
  private static func wantedName(of ssl: OpaquePointer) -> String? {
    let parameters = SSL_get0_param(ssl)
    if let host = X509_VERIFY_PARAM_get0_host(parameters, 0) { return String(cString: host) }
    guard let address = X509_VERIFY_PARAM_get1_ip_asc(parameters) else { return nil }
    defer { CRYPTO_free(address, nil, 0) }
    return String(cString: address)
  }

  // MARK: Errors

  /// The newest reason on this thread's error queue, in OpenSSL's words.
  static func lastError() -> String {
    let code = ERR_peek_last_error()
    guard code != 0 else { return "unknown error" }
    if let reason = ERR_reason_error_string(code) { return String(cString: reason) }
    return "error \(code)"
  }

  /// Why a handshake failed: a verdict on the certificate says what was seen and what was wanted.
  func handshakeError(of ssl: OpaquePointer, serverName: String?) -> NetworkError {
    let verdict = SSL_get_verify_result(ssl)
    guard isClient, verdict != Int(X509_V_OK) else { return .tls(Self.lastError()) }
    let reason = X509_verify_cert_error_string(verdict).map { String(cString: $0) } ?? "error \(verdict)"
    var seen = ""
    if let certificate = CertificateSummary(of: ssl) {
      seen =
        " (it is for \(certificate.names.isEmpty ? certificate.subject : certificate.names.joined(separator: ", "))"
        + ", issued by \(certificate.issuer), valid until \(certificate.notAfter))"
    }
    return .certificate("\(reason); wanted \(serverName ?? "?")\(seen)")
  }
}

/// What a handshake agreed on.
public struct TLSSummary: Sendable, Hashable {
  /// As in `TLSv1.3`.
  public let version: String
  public let cipher: String
  public let isResumed: Bool
  /// The peer's certificate; nil on a server.
  public let certificate: CertificateSummary?
  /// The subjects of the chain that was verified, the server's own first and the trusted authority last; empty on a
  /// server, and when the session was resumed.
  public let chain: [String]

  init(of ssl: OpaquePointer) {
    version = SSL_get_version(ssl).map { String(cString: $0) } ?? "?"
    cipher = SSL_get_current_cipher(ssl).flatMap(SSL_CIPHER_get_name).map { String(cString: $0) } ?? "?"
    isResumed = SSL_session_reused(ssl) == 1
    certificate = SSL_is_server(ssl) == 1 ? nil : CertificateSummary(of: ssl)
    var chain: [String] = []
    if SSL_is_server(ssl) == 0, let links = SSL_get0_verified_chain(ssl) {
      for i in 0..<max(OPENSSL_sk_num(links), 0) {
        guard let link = OPENSSL_sk_value(links, i) else { break }
        chain.append(CertificateSummary.text(X509_get_subject_name(OpaquePointer(link))))
      }
    }
    self.chain = chain
  }
}

/// The parts of a certificate that people ask about.
public struct CertificateSummary: Sendable, Hashable {
  public let subject: String
  public let issuer: String
  /// The DNS names and addresses it is good for.
  public let names: [String]
  /// As in `Nov 24 12:00:00 2026 GMT`.
  public let notAfter: String
  /// Whole days left; negative once it has expired.
  public let daysLeft: Int
  /// Seconds left; negative once it has expired.
  public let secondsLeft: Int

  init?(of ssl: OpaquePointer) {
    // Until a certificate is accepted it is in the chain only, and a refused one is what people ask about most.
    let certificate: OpaquePointer
    if let accepted = SSL_get1_peer_certificate(ssl) {
      certificate = accepted
    } else {
      guard let shown = OPENSSL_sk_value(SSL_get_peer_cert_chain(ssl), 0) else { return nil }
      certificate = OpaquePointer(shown)
      X509_up_ref(certificate)
    }
    defer { X509_free(certificate) }
    self.init(certificate)
  }

  /// Of an X509, which stays the caller's.
  init(_ certificate: OpaquePointer) {
    subject = Self.text(X509_get_subject_name(certificate))
    issuer = Self.text(X509_get_issuer_name(certificate))
    let end = X509_get0_notAfter(certificate)
    var days: CInt = 0
    var seconds: CInt = 0
    ASN1_TIME_diff(&days, &seconds, nil, end)
    secondsLeft = Int(days) * 86_400 + Int(seconds)
    daysLeft = Int(days) - (days == 0 && seconds < 0 ? 1 : 0)
    notAfter = Self.print { ASN1_TIME_print($0, end) }
    let index = X509_get_ext_by_NID(certificate, NID_subject_alt_name, -1)
    var names: [String] = []
    if index >= 0, let alternatives = X509_get_ext(certificate, index) {
      names = Self.print { X509V3_EXT_print($0, alternatives, 0, 0) }.split(separator: ",").map { part in
        let value = part.split(separator: ":", maxSplits: 1)
        return String(value.last ?? part).filter { !$0.isWhitespace }
      }
    }
    self.names = names
  }

  fileprivate static func text(_ name: OpaquePointer?) -> String {
    guard let name, let line = X509_NAME_oneline(name, nil, 0) else { return "?" }
    defer { CRYPTO_free(line, nil, 0) }
    return String(cString: line)
  }

  private static func print(_ body: (OpaquePointer) -> CInt) -> String {
    guard let bio = BIO_new(BIO_s_mem()) else { return "" }
    defer { BIO_free(bio) }
    _ = body(bio)
    var bytes = [UInt8](repeating: 0, count: BIO_ctrl_pending(bio))
    let count = BIO_read(bio, &bytes, CInt(bytes.count))
    return String(decoding: bytes.prefix(Int(max(count, 0))), as: UTF8.self)
  }
}
