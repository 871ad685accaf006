// What can go wrong on a connection, in words for a log line.

import Glibc

public enum NetworkError: Error, Hashable, Sendable, CustomStringConvertible {
  /// A system call failed: its name and errno.
  case system(String, CInt)
  /// The peer did not answer, or did not take our bytes, in time. The text says what was waited for.
  case timedOut(String)
  /// The connection was closed by us while somebody waited for it.
  case closed
  /// The peer closed the connection in the middle of something.
  case endOfStream
  /// TLS failed: the text is OpenSSL's.
  case tls(String)
  /// The certificate of the peer is not acceptable; the text says why and names what was seen.
  case certificate(String)
  /// A name could not be resolved.
  case resolution(String)

  public var description: String {
    switch self {
    case .system(let call, let code): "\(call): \(String(cString: strerror(code)))"
    case .timedOut(let what): "timed out: \(what)"
    case .closed: "the connection was closed here"
    case .endOfStream: "the peer closed the connection"
    case .tls(let text): "TLS: \(text)"
    case .certificate(let text): "certificate not accepted: \(text)"
    case .resolution(let text): text
    }
  }
}
