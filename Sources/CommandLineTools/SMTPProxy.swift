// SMTP on standard input and output (`sendmail -bs`): the daemon speaks, this only carries the octets.

// libcurl's headers bring those of sockets: whole-module builds find the constants there only.
import CCurl
import Glibc
import Primitives

/// Carries octets between two descriptors and a server, with blocking calls: it has a process to itself.
public enum SMTPProxy {
  /// Returns when the server has closed. What standard input still has then is not read.
  /// - Throws: ``CommandFailure`` with status 75 when nobody answers.
  public static func run(to endpoint: Endpoint, input: CInt, output: CInt) throws(CommandFailure) {
    let server = socket(
      endpoint.address.isIPv4 ? AF_INET : AF_INET6, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    defer { if server >= 0 { close(server) } }
    guard server >= 0, connect(server, to: endpoint) == 0 else {
      let reason = String(cString: strerror(errno))
      _ = write(Array("421 4.3.2 The mail system is not running\r\n".utf8)[...], to: output)
      throw CommandFailure(.tryAgain, "nobody answers at \(endpoint) (\(reason)): is the daemon running?")
    }
    var polled = [
      pollfd(fd: input, events: Int16(POLLIN), revents: 0), pollfd(fd: server, events: Int16(POLLIN), revents: 0),
    ]
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
      guard poll(&polled, 2, -1) > 0 else {
        if errno == EINTR { continue }
        return
      }
      if polled[1].revents != 0 {
        let count = read(server, &buffer, buffer.count)
        if count <= 0 || !write(buffer[..<count], to: output) { return }
      }
      if polled[0].revents != 0 {
        let count = read(input, &buffer, buffer.count)
        if count > 0 {
          if !write(buffer[..<count], to: server) { return }
        } else {
          // Commands that came before the end still get their replies.
          shutdown(server, CInt(SHUT_WR))
          polled[0].fd = -1
        }
      }
    }
  }

  private static func connect(_ socket: CInt, to endpoint: Endpoint) -> CInt {
    if endpoint.address.isIPv4 {
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_port = endpoint.port.bigEndian
      withUnsafeMutableBytes(of: &address.sin_addr) { $0.copyBytes(from: endpoint.address.bytes) }
      return withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
      }
    }
    var address = sockaddr_in6()
    address.sin6_family = sa_family_t(AF_INET6)
    address.sin6_port = endpoint.port.bigEndian
    withUnsafeMutableBytes(of: &address.sin6_addr) { $0.copyBytes(from: endpoint.address.bytes) }
    return withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in6>.size))
      }
    }
  }

  private static func write(_ bytes: ArraySlice<UInt8>, to descriptor: CInt) -> Bool {
    var rest = bytes
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      if count <= 0 { return false }
      rest = rest.dropFirst(count)
    }
    return true
  }
}
