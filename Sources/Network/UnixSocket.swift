// Connections to sockets in the file system, which programs on the same machine listen on.

import CLinux
import Glibc
import Primitives

extension ByteStream {
  /// Opens a connection to the socket at `path`. On the loop only.
  public nonisolated(nonsending) static func connect(
    toSocketAt path: String, on loop: EventLoop, until deadline: MonotonicInstant
  ) async throws(NetworkError) -> ByteStream {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let name = Array(path.utf8)
    guard name.count < MemoryLayout.size(ofValue: address.sun_path) else {
      throw .system("connect to \(path)", ENAMETOOLONG)
    }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
    while true {
      let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_NONBLOCK.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
      let descriptor = socket(AF_UNIX, kind, 0)
      guard descriptor >= 0 else { throw .system("socket", errno) }
      let outcome = withUnsafePointer(to: address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
      if outcome == 0 { return try ByteStream(adopting: descriptor, on: loop) }
      let code = errno
      Glibc.close(descriptor)
      // The listener's queue is full. There is no event to wait for: such a connect never goes on by itself (unix(7)).
      guard code == EAGAIN || code == EINTR else { throw .system("connect to \(path)", code) }
      guard SystemTime().now < deadline else { throw .timedOut("connect to \(path)") }
      do { try await Task.sleep(for: .milliseconds(20)) } catch { throw .closed }
    }
  }
}
