// The beginning of a stream that belongs to another protocol than the rest, such as the header of a load balancer.

import CLinux
import Glibc
import Primitives

extension ByteStream {
  /// Reads what a stream begins with, and not an octet more: what follows may be the first octets of TLS, which
  /// OpenSSL reads from the socket itself.
  ///
  /// So the octets are only looked at (`MSG_PEEK`) until `body` knows the length of the head, and then taken out of
  /// the socket by exactly that length. Before the first ``fill(until:waitingFor:)``, in clear.
  /// - Parameters:
  ///   - limit: how many octets `body` is shown at most; it has to decide by then.
  ///   - body: gets all that is there from the beginning; nil asks for more.
  /// - Returns: what `body` made of it; nil at the end of the stream.
  public nonisolated(nonsending) func takeHead<Result>(
    upTo limit: Int, until deadline: MonotonicInstant, waitingFor what: StaticString,
    _ body: (UnsafeRawBufferPointer) -> (length: Int, Result)?
  ) async throws(NetworkError) -> Result? {
    precondition(bufferedCount == 0 && tls == nil, "a head is read before anything else")
    var seen = 0
    while true {
      if watcher.isClosed { throw .closed }
      let room = min(limit, loop.scratch.count)
      let count = recv(watcher.descriptor, loop.scratch.baseAddress, room, CInt(MSG_PEEK))
      if count < 0, errno == EINTR { continue }
      if count < 0, errno != EAGAIN { throw .system("recv", errno) }
      if count == 0 { return nil }
      if count > 0, let (length, result) = body(UnsafeRawBufferPointer(rebasing: loop.scratch[..<count])) {
        try drop(min(length, count))
        // There may be more behind it, and no further edge will come for that.
        watcher.isReadable = true
        return result
      }
      // The peer will say no more, and that was not enough.
      if count > 0, count == limit || (watcher.isHungUp && count == seen) { return nil }
      seen = max(count, 0)
      watcher.isReadable = watcher.isHungUp
      try await settle(watcher.readable(until: deadline), "\(what)")
    }
  }

  /// Takes octets out of the socket that are known to be there.
  private func drop(_ count: Int) throws(NetworkError) {
    var left = count
    while left > 0 {
      let taken = recv(watcher.descriptor, loop.scratch.baseAddress, left, 0)
      if taken < 0, errno == EINTR { continue }
      guard taken > 0 else { throw taken == 0 ? .endOfStream : .system("recv", errno) }
      left -= taken
    }
  }
}
