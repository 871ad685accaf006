// The file of a refresh token: one line, readable by its owner alone, replaced in one step.

import Glibc
import Primitives

/// A refresh token on disk. Calls block for a moment of disk time: not on an event loop.
public struct RefreshTokenFile: Sendable {
  public let path: String
  private static let limit = 8192

  public init(_ path: String) { self.path = path }

  /// When it was written, in seconds since 1970; nil when there is none.
  public var written: Int64? {
    var status = stat()
    return stat(path, &status) == 0 ? Int64(status.st_mtim.tv_sec) : nil
  }

  /// Whether the file is there and root's: a relay that runs as another user cannot read it.
  public var isForRootOnly: Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_uid == 0
  }

  /// The token of the first line.
  public func read() throws(TokenFailure) -> HiddenText {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else {
      if errno == ENOENT { throw TokenFailure(.revoked, "there is no refresh token yet in \(path)") }
      throw TokenFailure(.refused, "the refresh token \(path) cannot be read: \(String(cString: strerror(errno)))")
    }
    defer { close(descriptor) }
    var status = stat()
    guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
      throw TokenFailure(.refused, "the refresh token \(path) is not a regular file")
    }
    guard status.st_mode & 0o004 == 0 else {
      throw TokenFailure(.refused, "the refresh token \(path) can be read by everyone; run: chmod 640 \(path)")
    }
    var bytes = [UInt8](repeating: 0, count: Self.limit)
    let count = Glibc.read(descriptor, &bytes, bytes.count)
    guard count >= 0 else {
      throw TokenFailure(.unavailable, "the refresh token \(path) cannot be read: \(String(cString: strerror(errno)))")
    }
    guard let token = Self.token(in: bytes.prefix(count)) else {
      throw TokenFailure(.revoked, "\(path) holds no refresh token")
    }
    return token
  }

  /// The token in the contents of a file: its first line, visible ASCII only; nil when it is none.
  public static func token(in bytes: some Collection<UInt8>) -> HiddenText? {
    var line = Array(bytes.prefix { $0 != 0x0a })
    while let last = line.last, last == 0x0d || last == 0x20 { line.removeLast() }
    guard !line.isEmpty, line.count < limit, line.allSatisfy({ (0x21...0x7e).contains($0) }) else { return nil }
    return HiddenText(String(decoding: line, as: UTF8.self))
  }

  /// Looks whether the file could be written: better before somebody has consented in vain.
  @discardableResult
  public func checkWritable() throws(TokenFailure) -> stat {
    let directory = FileReplacement.directory(of: path)
    var owner = stat()
    guard stat(directory, &owner) == 0, owner.st_mode & S_IFMT == S_IFDIR else {
      throw TokenFailure(
        .refused,
        "the directory \(directory) of the refresh token does not exist; make it with: "
          + "install -d -m 700 -o ssmtp-mailer \(directory)")
    }
    guard access(directory, W_OK | X_OK) == 0 else {
      throw TokenFailure(
        .refused, "the refresh token \(path) cannot be written: \(String(cString: strerror(errno))); run this as root")
    }
    return owner
  }

  /// Replaces the file by one with mode 0600 that belongs to whoever owns its directory, as far as we may say so:
  /// the relay must be able to read what root has logged in. In a directory of root it stays whose it was.
  public func write(_ token: HiddenText) throws(TokenFailure) {
    var owner = try checkWritable()
    var old = stat()
    if owner.st_uid == 0, lstat(path, &old) == 0, old.st_mode & S_IFMT == S_IFREG { owner = old }
    do throws(FileReplacementError) {
      try FileReplacement.replace(
        path, with: Array("\(token.text)\n".utf8), mode: 0o600,
        owner: geteuid() == 0 ? (owner.st_uid, owner.st_gid) : nil)
    } catch { throw TokenFailure(.refused, "cannot \(error.step) \(error.path): \(error.message)") }
  }
}
