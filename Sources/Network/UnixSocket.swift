// Connections to sockets in the file system, which programs on the same machine listen on.

import CLinux
import Glibc
import Primitives

extension ByteStream {
  /// Opens a connection to the socket at `path`. On the loop only.
  public nonisolated(nonsending) static func connect(
    toSocketAt path: String, on loop: EventLoop, until deadline: MonotonicInstant
  ) async throws(NetworkError) -> ByteStream {
    guard let address = sockaddr_un(path: path) else { throw .system("connect to \(path)", ENAMETOOLONG) }
    while true {
      let descriptor = try Socket.make(family: AF_UNIX)
      let outcome = address.withGeneric { Glibc.connect(descriptor, $0, $1) }
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

extension sockaddr_un {
  /// The address of the socket at `path`; nil when that is too long for one.
  init?(path: String) {
    self.init()
    sun_family = sa_family_t(AF_UNIX)
    let name = Array(path.utf8)
    guard name.count < MemoryLayout.size(ofValue: sun_path) else { return nil }
    withUnsafeMutableBytes(of: &sun_path) { $0.copyBytes(from: name) }
  }

  /// As bind(2) and connect(2) want it.
  func withGeneric<Result>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Result) -> Result {
    withUnsafePointer(to: self) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
    }
  }
}
