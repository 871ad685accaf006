// The command line's side of the admin socket: HTTP on a Unix socket, by libcurl.

import CCurl
import Glibc

/// Talks to a running daemon. Calls block until the answer is there.
public struct AdminClient: Sendable {
  public struct Response: Sendable, Hashable {
    public var status: Int
    public var body: [UInt8]

    public init(status: Int, body: [UInt8]) {
      self.status = status
      self.body = body
    }
  }

  /// The path of the daemon's `admin_socket`.
  public let socket: String
  private static let timeoutSeconds = 60
  private static let transferSeconds = 600

  /// - Parameter socket: the path of the daemon's `admin_socket`.
  public init(socket: String) { self.socket = socket }

  /// Who is behind the socket.
  public enum Presence: Sendable, Hashable {
    case answers
    case nobody
    /// The socket is there, and not for this user.
    case forbidden
  }

  /// Looks whether anybody listens.
  public func presence() -> Presence {
    let descriptor = Glibc.socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { return .nobody }
    defer { close(descriptor) }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let path = Array(socket.utf8)
    guard path.count < MemoryLayout.size(ofValue: address.sun_path) else { return .nobody }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path) }
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    if result == 0 { return .answers }
    return errno == EACCES || errno == EPERM ? .forbidden : .nobody
  }

  /// Sends a request to `path`, which begins with `/`.
  /// - Throws: ``CommandFailure`` with status 69 when no daemon answers.
  public func request(_ method: String, _ path: String) throws(CommandFailure) -> Response {
    try perform(method, path, Transfer())
  }

  /// Gets something large, piece by piece.
  /// - Parameter receive: takes a piece; false ends the transfer, which is then no error: the receiver knows why. Called
  ///   for an answer of status 200 only.
  public func download(
    _ path: String, receive: @escaping (UnsafeRawBufferPointer) -> Bool
  ) throws(CommandFailure) -> Response {
    let transfer = Transfer()
    transfer.receive = receive
    return try perform("GET", path, transfer)
  }

  /// Posts something large, piece by piece.
  /// - Parameters:
  ///   - size: all of it, in octets.
  ///   - send: fills a buffer and says how many octets it has put there; nil ends the transfer.
  public func upload(
    _ path: String, size: Int, send: @escaping (UnsafeMutableRawBufferPointer) -> Int?
  ) throws(CommandFailure) -> Response {
    let transfer = Transfer()
    transfer.send = send
    transfer.size = size
    return try perform("POST", path, transfer)
  }

  private func perform(_ method: String, _ path: String, _ transfer: Transfer) throws(CommandFailure) -> Response {
    guard let handle = curl_easy_init() else { throw CommandFailure(.unavailable, "libcurl cannot be used") }
    defer { curl_easy_cleanup(handle) }
    transfer.handle = handle
    // "Expect: 100-continue" would only be waited for.
    let headers = curl_slist_append(nil, "Expect:")
    defer { curl_slist_free_all(headers) }
    let code = withExtendedLifetime(transfer) {
      let context = Unmanaged.passUnretained(transfer).toOpaque()
      set(CURLOPT_UNIX_SOCKET_PATH, socket, on: handle)
      set(CURLOPT_URL, "http://localhost\(path)", on: handle)
      set(CURLOPT_CUSTOMREQUEST, method, on: handle)
      if transfer.send != nil {
        curl_set_long(handle, CURLOPT_POST, 1)
        curl_set_long(handle, CURLOPT_POSTFIELDSIZE, transfer.size)
        curl_set_pointer(handle, CURLOPT_HTTPHEADER, headers)
        curl_set_read(handle, Self.give, context)
      } else if method == "POST" {
        curl_set_long(handle, CURLOPT_POSTFIELDSIZE, 0)
        set(CURLOPT_COPYPOSTFIELDS, "", on: handle)
      }
      curl_set_long(handle, CURLOPT_NOSIGNAL, 1)
      curl_set_long(handle, CURLOPT_TIMEOUT, transfer.isLarge ? Self.transferSeconds : Self.timeoutSeconds)
      // The environment's proxy is for the world outside.
      set(CURLOPT_PROXY, "", on: handle)
      curl_set_write(handle, Self.collect, context)
      return curl_easy_perform(handle)
    }
    let isEnded = code == CURLE_WRITE_ERROR && transfer.isEnded
    guard code == CURLE_OK || isEnded else { throw failure(code, handle) }
    var status = 0
    curl_get_long(handle, CURLINFO_RESPONSE_CODE, &status)
    return Response(status: status, body: transfer.bytes)
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

  private final class Transfer {
    var bytes: [UInt8] = []
    var receive: ((UnsafeRawBufferPointer) -> Bool)?
    var send: ((UnsafeMutableRawBufferPointer) -> Int?)?
    var size = 0
    /// Whether the receiver wanted no more.
    var isEnded = false
    var handle: UnsafeMutableRawPointer?
    var isLarge: Bool { receive != nil || send != nil }
  }

  private static let collect: curl_write_callback = { data, size, count, context in
    guard let data, let context else { return 0 }
    let length = size * count
    let transfer = Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
    let piece = UnsafeRawBufferPointer(start: data, count: length)
    if let receive = transfer.receive, let handle = transfer.handle {
      var status = 0
      curl_get_long(handle, CURLINFO_RESPONSE_CODE, &status)
      if status == 200 {
        transfer.isEnded = !receive(piece)
        return transfer.isEnded ? 0 : length
      }
    }
    transfer.bytes.append(contentsOf: piece)
    return length
  }

  private static let give: curl_read_callback = { buffer, size, count, context in
    guard let buffer, let context else { return Int(CURL_READFUNC_ABORT) }
    let transfer = Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
    return transfer.send?(UnsafeMutableRawBufferPointer(start: buffer, count: size * count))
      ?? Int(CURL_READFUNC_ABORT)
  }

  private func set(_ option: CURLoption, _ value: String, on handle: UnsafeMutableRawPointer) {
    _ = value.withCString { curl_set_pointer(handle, option, $0) }
  }

  private func failure(_ code: CURLcode, _ handle: UnsafeMutableRawPointer) -> CommandFailure {
    // It has begun to answer, so it is there; what it had to send could not be read.
    if code == CURLE_PARTIAL_FILE {
      return CommandFailure(.data, "the answer ends too early: the log of the daemon, or `queue verify`, may say why")
    }
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
