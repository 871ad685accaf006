// What a server offers: Mozilla's "intermediate" recommendation (https://wiki.mozilla.org/Security/Server_Side_TLS,
// version 5.7) without the DHE ciphers, which need parameters of their own and which no client of today lacks others for.

import COpenSSL
import Primitives

extension TLSContext {
  /// For TLS 1.2; those of TLS 1.3 are OpenSSL's own three.
  private static let ciphers =
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    + "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
  private static let groups = "X25519:P-256:P-384"
  private static let optionNoCompression: UInt64 = 1 << 17
  private static let optionServerPreference: UInt64 = 1 << 22
  private static let optionPrioritizeChaCha: UInt64 = 1 << 21

  /// Sets what is offered to clients. No session cache: what a client may resume is in its ticket.
  static func setUpServer(_ context: OpaquePointer) throws(NetworkError) {
    // Mozilla leaves the order to the client, for the sake of those without AES in hardware; testssl.sh calls that a
    // finding. Ours counts, and who puts ChaCha20 first gets it all the same.
    SSL_CTX_set_options(context, optionNoCompression | optionServerPreference | optionPrioritizeChaCha)
    let groupsAreSet = groups.withCString {
      SSL_CTX_ctrl(context, SSL_CTRL_SET_GROUPS_LIST, 0, UnsafeMutableRawPointer(mutating: $0))
    }
    guard SSL_CTX_set_cipher_list(context, ciphers) == 1, groupsAreSet == 1 else {
      throw .tls("cannot set the ciphers: \(lastError())")
    }
    SSL_CTX_ctrl(context, SSL_CTRL_SET_SESS_CACHE_MODE, Int(SSL_SESS_CACHE_OFF), nil)
    TicketKeys.install(in: context)
  }
}
