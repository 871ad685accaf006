// The keys that seal the session tickets of a server (RFC 5077, RFC 8446 4.6.1). OpenSSL makes its own once for a context
// and never changes them: whoever gets hold of one could read all that was resumed with it, for as long as the process
// lives. So we have our own, which change by the hour and live in memory alone.

import COpenSSL
import Glibc
import Primitives

/// Keys that rotate. One set is shared by all contexts that a server makes one after the other, so that a new certificate
/// does not cost every client a full handshake.
public final class TicketKeys: Sendable {
  /// What the daemon's front door uses, whatever certificate it shows.
  public static let ofDaemon = TicketKeys(time: SystemTime())

  /// How long tickets are sealed with one key.
  static let rotation = Duration.seconds(3600)
  /// How long a ticket is good for; keys are kept until the last ticket that they sealed is not.
  static let lifetime = Duration.seconds(2 * 3600)

  /// One key: its name, which travels in the clear, and its two secrets.
  ///
  /// `@unchecked Sendable` holds because the memory is written before anybody else sees the key, and wiped when nobody
  /// does any more.
  final class Key: @unchecked Sendable {
    static let nameLength = 16
    static let secretLength = 32
    let begun: MonotonicInstant
    private let memory = UnsafeMutableRawBufferPointer.allocate(
      byteCount: nameLength + 2 * secretLength, alignment: 16)

    var name: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: memory[..<Self.nameLength]) }
    var cipherKey: UnsafeMutableRawBufferPointer {
      UnsafeMutableRawBufferPointer(rebasing: memory[Self.nameLength..<(Self.nameLength + Self.secretLength)])
    }
    var macKey: UnsafeMutableRawBufferPointer {
      UnsafeMutableRawBufferPointer(rebasing: memory[(Self.nameLength + Self.secretLength)...])
    }

    /// nil when there is no randomness.
    init?(_ now: MonotonicInstant) {
      begun = now
      let bytes = memory.bindMemory(to: UInt8.self)
      guard RAND_bytes(bytes.baseAddress, CInt(bytes.count)) == 1 else { return nil }
    }

    deinit {
      memory.wipe()
      memory.deallocate()
    }
  }

  private let time: any Timekeeper
  /// The newest first.
  private let keys = Mutex<[Key]>([])

  public init(time: any Timekeeper) { self.time = time }

  /// The key for a new ticket; nil without randomness, and then there is no ticket.
  func current() -> Key? {
    let now = time.now
    return keys.withLock { keys in
      Self.forget(&keys, now)
      if let key = keys.first, now < key.begun + Self.rotation { return key }
      guard let key = Key(now) else { return nil }
      keys.insert(key, at: 0)
      return key
    }
  }

  /// The key that sealed a ticket, and whether it still seals new ones.
  func find(_ name: UnsafeRawBufferPointer) -> (key: Key, isCurrent: Bool)? {
    let now = time.now
    return keys.withLock { keys in
      Self.forget(&keys, now)
      guard let index = keys.firstIndex(where: { $0.name.elementsEqual(name) }) else { return nil }
      return (keys[index], index == 0 && now < keys[index].begun + Self.rotation)
    }
  }

  private static func forget(_ keys: inout [Key], _ now: MonotonicInstant) {
    keys.removeAll { $0.begun + rotation + lifetime <= now }
  }

  /// Makes `context` seal its tickets with these keys. `index` is where it keeps the way back to its ``TLSContext``.
  static func install(in context: OpaquePointer) {
    SSL_CTX_set_timeout(context, Int(lifetime.components.seconds))
    SSL_CTX_set_tlsext_ticket_key_evp_cb(context) { ssl, name, iv, cipher, mac, isNew in
      guard let ssl, let name, let iv, let cipher, let mac, let keys = TLSContext.owner(of: ssl)?.ticketKeys else {
        return -1
      }
      if isNew == 1 {
        guard let key = keys.current() else { return 0 }
        let length = EVP_CIPHER_get_iv_length(EVP_aes_256_cbc())
        guard RAND_bytes(iv, length) == 1 else { return -1 }
        UnsafeMutableRawBufferPointer(start: name, count: Key.nameLength).copyMemory(from: key.name)
        return TicketKeys.seal(key, iv, cipher, mac, isNew: true) ? 1 : -1
      }
      guard let (key, isCurrent) = keys.find(UnsafeRawBufferPointer(start: name, count: Key.nameLength)) else {
        return 0  // a ticket of the past: the handshake is a full one
      }
      guard TicketKeys.seal(key, iv, cipher, mac, isNew: false) else { return -1 }
      return isCurrent ? 1 : 2
    }
  }

  private static func seal(
    _ key: Key, _ iv: UnsafeMutablePointer<UInt8>, _ cipher: OpaquePointer, _ mac: OpaquePointer, isNew: Bool
  ) -> Bool {
    let secret = key.cipherKey.bindMemory(to: UInt8.self).baseAddress
    let started =
      isNew
      ? EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), nil, secret, iv)
      : EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), nil, secret, iv)
    guard started == 1 else { return false }
    // A parameter keeps the pointer to its name, so that has to outlive the call that makes it.
    let parameters = [
      OSSL_PARAM_construct_octet_string(constant("key"), key.macKey.baseAddress, key.macKey.count),
      OSSL_PARAM_construct_utf8_string(constant("digest"), UnsafeMutablePointer(mutating: constant("SHA256")), 0),
      OSSL_PARAM_construct_end(),
    ]
    return EVP_MAC_CTX_set_params(mac, parameters) == 1
  }

  private static func constant(_ text: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
  }
}
