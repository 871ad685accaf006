// The files of a configuration behind a protocol, so that tests need no disk and a check can look without touching.

#if canImport(Glibc)
  import Glibc
#endif

/// Why a file could not be read or a command gave no output.
public struct FileError: Error, Sendable, Hashable, CustomStringConvertible {
  public var description: String
  public init(_ description: String) { self.description = description }
}

/// Where the configuration's files come from.
public protocol FileSource: Sendable {
  /// The whole file, 16 MiB at most.
  func read(_ path: String) throws(FileError) -> [UInt8]
  /// The names in a directory, in any order; nil when there is no such directory.
  func list(_ directory: String) -> [String]?
  /// The permission bits (`0o640`); nil when there is no such file.
  func mode(_ path: String) -> UInt32?
  /// Whether this process may read the file.
  func isReadable(_ path: String) -> Bool
  /// What a shell command prints, 64 KiB at most; it fails when the command does or takes longer than 30 seconds.
  func output(of command: String) throws(FileError) -> [UInt8]
}

/// The files of this machine.
public struct POSIXFiles: FileSource {
  public init() {}

  public func read(_ path: String) throws(FileError) -> [UInt8] {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else { throw .lastError }
    defer { close(descriptor) }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw .lastError }
    // A fifo or a directory in the place of a file would block or confuse.
    guard status.st_mode & S_IFMT == S_IFREG else { throw FileError("not a regular file") }
    return try Self.drain(descriptor, limit: 16 << 20, deadline: nil)
  }

  public func list(_ directory: String) -> [String]? {
    guard let stream = opendir(directory) else { return nil }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
      let name = withUnsafeBytes(of: &entry.pointee.d_name) {
        String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names
  }

  public func mode(_ path: String) -> UInt32? {
    var status = stat()
    return stat(path, &status) == 0 ? UInt32(status.st_mode) & 0o7777 : nil
  }

  public func isReadable(_ path: String) -> Bool { access(path, R_OK) == 0 }

  public func output(of command: String) throws(FileError) -> [UInt8] {
    var ends: [CInt] = [-1, -1]
    guard pipe(&ends) == 0 else { throw .lastError }
    for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    defer { close(ends[0]) }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
    // A group of its own, so that a command that hangs can be ended with its children.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    // A daemon blocks and ignores signals; what it starts must not inherit that.
    var signals = sigset_t()
    sigemptyset(&signals)
    posix_spawnattr_setsigmask(&attributes, &signals)
    sigfillset(&signals)
    posix_spawnattr_setsigdefault(&attributes, &signals)
    let flags = CInt(POSIX_SPAWN_SETPGROUP) | CInt(POSIX_SPAWN_SETSIGMASK) | CInt(POSIX_SPAWN_SETSIGDEF)
    posix_spawnattr_setflags(&attributes, Int16(flags))
    var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("/bin/sh"), strdup("-c"), strdup(command), nil]
    defer { for argument in arguments { free(argument) } }
    var child = pid_t()
    let status = posix_spawn(&child, "/bin/sh", &actions, &attributes, &arguments, environ)
    close(ends[1])
    guard status == 0 else { throw FileError(String(cString: strerror(status))) }
    let deadline = time(nil) + Self.patience
    let result: Result<[UInt8], FileError>
    do throws(FileError) {
      result = .success(try Self.drain(ends[0], limit: 64 << 10, deadline: deadline))
    } catch {
      kill(-child, SIGKILL)
      result = .failure(error)
    }
    let exit = Self.end(of: child, deadline: deadline)
    let bytes = try result.get()
    guard let exit else { throw FileError("its exit status is lost") }
    guard exit == 0 else {
      throw FileError(exit & 0x7f == 0 ? "exit status \((exit >> 8) & 0xff)" : "ended by signal \(exit & 0x7f)")
    }
    return bytes
  }

  /// How long a command may take, in seconds.
  private static let patience = 30

  /// The wait status of a child; nil when somebody else has collected it. One that closes its output and goes on
  /// running is killed at the deadline.
  private static func end(of child: pid_t, deadline: Int) -> CInt? {
    var status: CInt = 0
    while true {
      let ended = waitpid(child, &status, WNOHANG)
      if ended == child { return status }
      if ended < 0, errno != EINTR { return nil }
      if time(nil) > deadline { kill(-child, SIGKILL) }
      usleep(2000)
    }
  }

  private static func drain(_ descriptor: CInt, limit: Int, deadline: Int?) throws(FileError) -> [UInt8] {
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 16384)
    // It may be a password that goes through here.
    defer { buffer.wipe() }
    while true {
      if let deadline {
        var wait = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&wait, 1, CInt(max(0, deadline - time(nil)) * 1000)) > 0 else {
          throw FileError("took longer than 30 seconds")
        }
      }
      let count = Glibc.read(descriptor, &buffer, buffer.count)
      if count < 0, errno == EINTR { continue }
      guard count >= 0 else { throw .lastError }
      if count == 0 { return bytes }
      bytes.append(contentsOf: buffer[..<count])
      guard bytes.count <= limit else { throw FileError("longer than \(limit) octets") }
    }
  }
}

extension FileError {
  static var lastError: FileError { FileError(String(cString: strerror(errno))) }
}

// MARK: - Paths

/// `path` seen from `folder`, with `.` and `..` left as they are.
func resolve(_ path: String, in folder: String) -> String {
  if path.hasPrefix("/") { return path }
  return folder.isEmpty ? path : folder.hasSuffix("/") ? folder + path : "\(folder)/\(path)"
}

/// The directory that holds `path`; empty for a name without a slash.
func folder(of path: String) -> String {
  guard let slash = path.lastIndex(of: "/") else { return "" }
  return slash == path.startIndex ? "/" : String(path[..<slash])
}
