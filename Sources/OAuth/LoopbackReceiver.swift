// Waits on 127.0.0.1 for the browser that comes back from a login (RFC 8252 7.3). The least of an HTTP server: one
// request at a time, its first line alone, and a page that says how it went.

import Glibc
import Primitives

/// A port on 127.0.0.1 that receives one answer.
public final class LoopbackReceiver: Sendable {
  private let socket: CInt
  public let port: UInt16
  public var redirectURI: String { "http://127.0.0.1:\(port)/" }

  /// - Parameter port: 0 takes a free one.
  public init(port wanted: UInt16 = 0) throws(AuthorizationFailure) {
    let descriptor = Glibc.socket(AF_INET, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var one: CInt = 1
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, socklen_t(MemoryLayout<CInt>.size))
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    address.sin_port = wanted.bigEndian
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let isBound = withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, length) == 0 && listen(descriptor, 8) == 0 && getsockname(descriptor, $0, &length) == 0
      }
    }
    guard isBound else {
      let reason = String(cString: strerror(errno))
      if descriptor >= 0 { close(descriptor) }
      throw AuthorizationFailure(
        "cannot listen on 127.0.0.1:\(wanted): \(reason); choose another --port, or use --paste")
    }
    socket = descriptor
    port = UInt16(bigEndian: address.sin_port)
  }

  deinit { close(socket) }

  /// Waits for an answer that `judge` takes; one that it refuses gets a page that says why, and the waiting goes on
  /// unless the refusal is about this very login. A browser also asks for icons; that gets a 404.
  public func receive(
    within limit: Duration, _ judge: @escaping @Sendable (String) throws(AuthorizationFailure) -> String
  ) async throws(AuthorizationFailure) -> String {
    let queue = DispatchWorkQueue("oauth-loopback")
    return try await queue.run { self.wait(SystemTime().now + limit, judge) }.get()
  }

  private func wait(
    _ deadline: MonotonicInstant, _ judge: (String) throws(AuthorizationFailure) -> String
  ) -> Result<String, AuthorizationFailure> {
    while true {
      let left = (deadline - SystemTime().now).nanoseconds / 1_000_000
      var event = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
      guard left > 0 else {
        return .failure(
          AuthorizationFailure("nobody came back from the browser in time: run this again, or with --paste"))
      }
      guard poll(&event, 1, CInt(clamping: left)) > 0 else { continue }
      let client = accept(socket, nil, nil)
      guard client >= 0 else { continue }
      defer { close(client) }
      var patience = timeval(tv_sec: 2, tv_usec: 0)
      setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
      guard let target = Self.target(of: client) else {
        Self.answer(client, "400 Bad Request", "This is not the answer of a login.")
        continue
      }
      let query = WebForm(parsing: target.split(separator: "?", maxSplits: 1).dropFirst().first ?? "")
      guard query["code"]?.isEmpty == false || query["error"]?.isEmpty == false else {
        Self.answer(client, "404 Not Found", "There is nothing here.")
        continue
      }
      do throws(AuthorizationFailure) {
        let code = try judge(target)
        Self.answer(client, "200 OK", "ssmtp-mailer has received the answer. You may close this page.")
        return .success(code)
      } catch {
        Self.answer(client, "400 Bad Request", error.description)
        // Anybody on this machine could send an answer of another login, and end this one by it.
        if !error.isForeign { return .failure(error) }
      }
    }
  }

  /// The target of a GET, such as `/?code=…`.
  private static func target(of client: CInt) -> String? {
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 4096)
    // Browsers open connections on suspicion, and say nothing on them.
    let deadline = SystemTime().now + .seconds(5)
    while bytes.count < 16_384, !bytes.contains(0x0a) {
      guard SystemTime().now < deadline else { return nil }
      let count = recv(client, &piece, piece.count, 0)
      guard count > 0 else { return nil }
      bytes += piece[..<count]
    }
    let line = String(decoding: bytes.prefix { $0 != 0x0a && $0 != 0x0d }, as: UTF8.self)
    let words = line.split(separator: " ")
    return words.count == 3 && words[0] == "GET" ? String(words[1]) : nil
  }

  private static func answer(_ client: CInt, _ status: String, _ text: String) {
    let safe = text.replacing("&", with: "&amp;").replacing("<", with: "&lt;")
    let page = "<!doctype html><meta charset=utf-8><title>ssmtp-mailer</title><p>\(safe)</p>\n"
    let response =
      "HTTP/1.1 \(status)\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: \(page.utf8.count)\r\n"
      + "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n\(page)"
    _ = send(client, response, response.utf8.count, CInt(MSG_NOSIGNAL))
    // Closing with unread bytes would take the page away from the browser.
    shutdown(client, CInt(SHUT_WR))
    var rest = [UInt8](repeating: 0, count: 4096)
    while recv(client, &rest, rest.count, CInt(MSG_DONTWAIT)) > 0 {}
  }
}
