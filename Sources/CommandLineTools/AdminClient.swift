// The command line's side of the admin socket: HTTP on a Unix socket, by libcurl.

import CCurl
import Glibc

/// Talks to a running daemon. Calls block until the answer is there.
public struct AdminClient: Sendable {
  public struct Response: Sendable, Hashable {
    public var status: Int
    public var body: [UInt8]
  }

  private let socket: String
  private static let timeoutSeconds = 60

  /// - Parameter socket: the path of the daemon's `admin_socket`.
  public init(socket: String) { self.socket = socket }

  /// Sends a request to `path`, which begins with `/`.
  /// - Throws: ``CommandFailure`` with status 69 when no daemon answers.
  public func request(_ method: String, _ path: String) throws(CommandFailure) -> Response {
    guard let handle = curl_easy_init() else { throw CommandFailure(.unavailable, "libcurl cannot be used") }
    defer { curl_easy_cleanup(handle) }
    let body = Body()
    let code = withExtendedLifetime(body) {
      set(CURLOPT_UNIX_SOCKET_PATH, socket, on: handle)
      set(CURLOPT_URL, "http://localhost\(path)", on: handle)
      set(CURLOPT_CUSTOMREQUEST, method, on: handle)
      if method == "POST" {
        curl_set_long(handle, CURLOPT_POSTFIELDSIZE, 0)
        set(CURLOPT_COPYPOSTFIELDS, "", on: handle)
      }
      curl_set_long(handle, CURLOPT_NOSIGNAL, 1)
      curl_set_long(handle, CURLOPT_TIMEOUT, Self.timeoutSeconds)
      // The environment's proxy is for the world outside.
      set(CURLOPT_PROXY, "", on: handle)
      curl_set_write(handle, Self.collect, Unmanaged.passUnretained(body).toOpaque())
      return curl_easy_perform(handle)
    }
    guard code == CURLE_OK else { throw failure(code, handle) }
    var status = 0
    curl_get_long(handle, CURLINFO_RESPONSE_CODE, &status)
    return Response(status: status, body: body.bytes)
  }

  /// `text` as it may stand in the query of a URL (RFC 3986 2.3).
  public static func escaped(_ text: String) -> String {
    var result = ""
    for byte in text.utf8 {
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"),
        UInt8(ascii: "~"):
        result.unicodeScalars.append(Unicode.Scalar(byte))
      default:
        let digits = String(byte, radix: 16, uppercase: true)
        result += byte < 16 ? "%0\(digits)" : "%\(digits)"
      }
    }
    return result
  }

  private final class Body {
    var bytes: [UInt8] = []
  }

  private static let collect: curl_write_callback = { data, size, count, context in
    guard let data, let context else { return 0 }
    let length = size * count
    Unmanaged<Body>.fromOpaque(context).takeUnretainedValue().bytes
      .append(contentsOf: UnsafeRawBufferPointer(start: data, count: length))
    return length
  }

  private func set(_ option: CURLoption, _ value: String, on handle: UnsafeMutableRawPointer) {
    _ = value.withCString { curl_set_pointer(handle, option, $0) }
  }

  private func failure(_ code: CURLcode, _ handle: UnsafeMutableRawPointer) -> CommandFailure {
    guard code == CURLE_COULDNT_CONNECT else {
      return CommandFailure(
        .unavailable, "the daemon did not answer on \(socket): \(String(cString: curl_easy_strerror(code)))")
    }
    var reason = 0
    curl_get_long(handle, CURLINFO_OS_ERRNO, &reason)
    // libcurl keeps no errno for a path that is not there.
    if reason == 0 { reason = access(socket, R_OK | W_OK) == 0 ? 0 : Int(errno) }
    if reason == Int(EACCES) || reason == Int(EPERM) {
      return CommandFailure(
        .unavailable, "no permission for \(socket): run this as root or as a member of the socket's group")
    }
    return CommandFailure(
      .unavailable,
      "the daemon is not running (nobody answers on \(socket)): start it with `systemctl start ssmtp-mailer`, "
        + "or name its configuration with --config")
  }
}
