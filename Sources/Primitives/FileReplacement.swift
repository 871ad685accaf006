// Small files that are replaced as a whole: whoever reads one sees the old or the new, and a crash leaves one of both.

import Glibc

/// Why a file could not be replaced; nothing has changed then.
public struct FileReplacementError: Error, Sendable {
  /// As in "cannot create": `create`, `own`, `write` or `replace`.
  public let step: String
  /// The file that the step was about: the new one beside the old, or the one to replace.
  public let path: String
  /// errno(3).
  public let code: CInt

  public var message: String { String(cString: strerror(code)) }
}

public enum FileReplacement {
  /// The directory that holds `path`; `.` for a name without a slash.
  public static func directory(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }

  /// Writes a file beside `path`, syncs it, and renames it over `path`.
  /// - Parameter owner: whom it belongs to; nil for whoever runs this.
  public static func replace(
    _ path: String, with bytes: [UInt8], mode: mode_t, owner: (user: uid_t, group: gid_t)?
  ) throws(FileReplacementError) {
    let directory = directory(of: path)
    // A name that nobody who looks for files by their ending takes for one of them.
    let temporary = "\(path).new.\(getpid())"
    unlink(temporary)
    let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
    guard descriptor >= 0 else { throw failure("create", temporary) }
    var isDone = false
    defer {
      close(descriptor)
      if !isDone { unlink(temporary) }
    }
    if let owner, fchown(descriptor, owner.user, owner.group) != 0 { throw failure("own", temporary) }
    guard fchmod(descriptor, mode) == 0 else { throw failure("write", temporary) }
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { throw failure("write", temporary) }
      rest = rest.dropFirst(count)
    }
    guard fsync(descriptor) == 0 else { throw failure("write", temporary) }
    guard rename(temporary, path) == 0 else { throw failure("replace", path) }
    isDone = true
    let parent = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if parent >= 0 {
      fsync(parent)
      close(parent)
    }
  }

  private static func failure(_ step: String, _ path: String) -> FileReplacementError {
    FileReplacementError(step: step, path: path, code: errno)
  }
}
