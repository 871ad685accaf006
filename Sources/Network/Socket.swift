// Sockets: the few system calls that make, bind, accept and connect them.

import CLinux
import Glibc
import Primitives

enum Socket {
  /// Calls `body` with the C form of an endpoint.
  static func withAddress<Result>(
    of endpoint: Endpoint, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
  ) -> Result {
    if endpoint.address.isIPv4 {
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_port = endpoint.port.bigEndian
      withUnsafeMutableBytes(of: &address.sin_addr) { $0.copyBytes(from: endpoint.address.bytes) }
      return withUnsafePointer(to: address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
      }
    }
    var address = sockaddr_in6()
    address.sin6_family = sa_family_t(AF_INET6)
    address.sin6_port = endpoint.port.bigEndian
    withUnsafeMutableBytes(of: &address.sin6_addr) { $0.copyBytes(from: endpoint.address.bytes) }
    return withUnsafePointer(to: address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_in6>.size)) }
    }
  }

  static func endpoint(from storage: sockaddr_storage) -> Endpoint? {
    withUnsafePointer(to: storage) { pointer in
      switch CInt(storage.ss_family) {
      case AF_INET:
        pointer.withMemoryRebound(to: sockaddr_in.self, capacity: 1) { v4 in
          let bytes = withUnsafeBytes(of: v4.pointee.sin_addr) { Array($0) }
          return IPAddress(bytes: bytes).map { Endpoint(address: $0, port: UInt16(bigEndian: v4.pointee.sin_port)) }
        }
      case AF_INET6:
        pointer.withMemoryRebound(to: sockaddr_in6.self, capacity: 1) { v6 in
          let bytes = withUnsafeBytes(of: v6.pointee.sin6_addr) { Array($0) }
          return IPAddress(bytes: bytes).map { Endpoint(address: $0, port: UInt16(bigEndian: v6.pointee.sin6_port)) }
        }
      default: nil
      }
    }
  }

  /// Whether there is anybody at the other end, of whatever family.
  static func hasPeer(_ descriptor: CInt) -> Bool { name(of: descriptor, peer: true) != nil }

  static func endpoint(of descriptor: CInt, peer: Bool) -> Endpoint? {
    name(of: descriptor, peer: peer).flatMap(endpoint(from:))
  }

  private static func name(of descriptor: CInt, peer: Bool) -> sockaddr_storage? {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let outcome = withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        peer ? getpeername(descriptor, $0, &length) : getsockname(descriptor, $0, &length)
      }
    }
    return outcome == 0 ? storage : nil
  }

  static func make(for address: IPAddress) throws(NetworkError) -> CInt {
    try make(family: address.isIPv4 ? AF_INET : AF_INET6)
  }

  static func make(family: CInt) throws(NetworkError) -> CInt {
    let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_NONBLOCK.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
    let descriptor = socket(family, kind, 0)
    guard descriptor >= 0 else { throw .system("socket", errno) }
    return descriptor
  }
}

extension ByteStream {
  /// Opens a connection. On the loop only.
  public nonisolated(nonsending) static func connect(
    to endpoint: Endpoint, on loop: EventLoop, until deadline: MonotonicInstant
  ) async throws(NetworkError) -> ByteStream {
    let descriptor = try Socket.make(for: endpoint.address)
    let outcome = Socket.withAddress(of: endpoint) { Glibc.connect(descriptor, $0, $1) }
    if outcome != 0, errno != EINPROGRESS {
      let code = errno
      Glibc.close(descriptor)
      throw .system("connect to \(endpoint)", code)
    }
    // Before the connection stands, its ends have no addresses yet: watch the bare descriptor first.
    let watcher: Watcher
    do { watcher = try loop.watch(descriptor) } catch {
      Glibc.close(descriptor)
      throw error
    }
    let wait = await watcher.writable(until: deadline)
    guard wait == .ready else {
      watcher.close()
      throw wait == .timedOut ? .timedOut("connect to \(endpoint)") : .closed
    }
    var code: CInt = 0
    var length = socklen_t(MemoryLayout<CInt>.size)
    getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &code, &length)
    if code != 0 {
      watcher.close()
      throw .system("connect to \(endpoint)", code)
    }
    return ByteStream(watched: watcher, on: loop)
  }
}

/// A listening socket.
public final class Listener: Sendable {
  public let endpoint: Endpoint
  private let descriptor: CInt

  /// Binds and listens. Port 0 takes a free port, which ``endpoint`` then tells.
  public init(bindingTo wanted: Endpoint, backlog: CInt = 1024) throws(NetworkError) {
    let descriptor = try Socket.make(for: wanted.address)
    var one: CInt = 1
    let size = socklen_t(MemoryLayout<CInt>.size)
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, size)
    // `[::]:25` stands beside `0.0.0.0:25`; without this it would take both.
    if !wanted.address.isIPv4 { setsockopt(descriptor, CInt(IPPROTO_IPV6), IPV6_V6ONLY, &one, size) }
    guard Socket.withAddress(of: wanted, { Glibc.bind(descriptor, $0, $1) }) == 0,
      Glibc.listen(descriptor, backlog) == 0
    else {
      let code = errno
      Glibc.close(descriptor)
      throw .system("listen on \(wanted)", code)
    }
    self.descriptor = descriptor
    endpoint = Socket.endpoint(of: descriptor, peer: false) ?? wanted
  }

  /// Binds and listens on a path in the file system, in place of whatever stands there. Nobody can connect before it
  /// has `mode`. Its ``endpoint`` says nothing.
  public init(bindingTo path: String, mode: mode_t, backlog: CInt = 128) throws(NetworkError) {
    guard let address = sockaddr_un(path: path) else { throw .system("listen on \(path)", ENAMETOOLONG) }
    let descriptor = try Socket.make(family: AF_UNIX)
    unlink(path)
    let bound = address.withGeneric { Glibc.bind(descriptor, $0, $1) }
    guard bound == 0, chmod(path, mode) == 0, Glibc.listen(descriptor, backlog) == 0 else {
      let code = errno
      Glibc.close(descriptor)
      throw .system("listen on \(path)", code)
    }
    self.descriptor = descriptor
    endpoint = Endpoint(address: .ipv4Any, port: 0)
  }

  /// Takes over a listening descriptor, as systemd hands it out (sd_listen_fds(3)).
  public init(adopting descriptor: CInt) throws(NetworkError) {
    let flags = fcntl(descriptor, F_GETFL)
    guard let endpoint = Socket.endpoint(of: descriptor, peer: false), flags >= 0,
      fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) == 0
    else { throw .system("take over descriptor \(descriptor)", errno) }
    self.descriptor = descriptor
    self.endpoint = endpoint
  }

  /// Accepts connections on `loop` until the returned handle is stopped; `body` gets each descriptor.
  ///
  /// When the process is out of descriptors the listener pauses for a moment instead of spinning: the connections
  /// wait in the backlog.
  public func accept(on loop: EventLoop, _ body: @escaping @Sendable (CInt) -> Void) -> Acceptor {
    let acceptor = Acceptor(loop: loop)
    Task(executorPreference: loop) { [descriptor] in await acceptor.run(descriptor, body) }
    return acceptor
  }

  /// Closes the descriptor of a client that nobody serves any more.
  public static func turnAway(_ descriptor: CInt) { Glibc.close(descriptor) }

  /// Closes a socket that is not being accepted on. ``Acceptor/stop()`` closes it otherwise.
  public func close() { Glibc.close(descriptor) }
}

/// The accepting side of a listener.
public actor Acceptor {
  private let loop: EventLoop
  private var watcher: Watcher?
  private var isStopped = false

  init(loop: EventLoop) { self.loop = loop }

  public nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  func run(_ descriptor: CInt, _ body: @Sendable (CInt) -> Void) async {
    if isStopped {
      Glibc.close(descriptor)
      return
    }
    guard let watcher = try? loop.watch(descriptor) else {
      Glibc.close(descriptor)  // better refused than left to wait in the backlog for ever
      return
    }
    self.watcher = watcher
    let flags = CInt(SOCK_NONBLOCK.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
    var accepted = 0
    while !isStopped {
      // A storm of connections must leave the loop to those that are there already.
      if accepted >= 32 {
        accepted = 0
        await loop.pause()
        continue
      }
      let client = accept4(descriptor, nil, nil, flags)
      if client >= 0 {
        body(client)
        accepted += 1
        continue
      }
      switch errno {
      case EAGAIN:
        watcher.isReadable = false
        if await watcher.readable(until: .distantFuture) == .closed { return }
      case EMFILE, ENFILE, ENOBUFS, ENOMEM: try? await Task.sleep(for: .milliseconds(100))
      // Not a listening socket, as a wrong unit of systemd may hand it over: this will never get better.
      case EBADF, EINVAL, ENOTSOCK, EOPNOTSUPP: return stop()
      default: continue  // the client has gone before it was accepted
      }
    }
  }

  /// Stops accepting and closes the socket.
  public func stop() {
    isStopped = true
    watcher?.close()
    watcher = nil
  }
}
