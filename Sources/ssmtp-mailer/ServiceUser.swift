// Whose files are whose: the queue belongs to the service's user, what an operator exports to the operator. A command
// that root runs on the queue of a daemon that is down works as the service's user, so that the daemon can still open
// everything afterwards, and looks at the operator's own files as root.

import CLinux
import CommandLineTools
import Glibc
import Primitives

enum ServiceUser {
  private static let isSwitched = Mutex(false)

  /// Makes this process work as the owner of `directory` from now on. Does nothing unless root runs it.
  static func become(ownerOf directory: String) throws(CommandFailure) {
    var status = stat()
    guard stat(directory, &status) == 0 else {
      throw CommandFailure(.data, "there is no queue in \(directory): \(String(cString: strerror(errno)))")
    }
    guard geteuid() == 0, status.st_uid != 0 else { return }
    // All threads of the process change with these two.
    guard setegid(status.st_gid) == 0, seteuid(status.st_uid) == 0 else {
      throw CommandFailure(
        .unavailable, "cannot work as user \(status.st_uid), who owns \(directory): \(String(cString: strerror(errno)))"
      )
    }
    isSwitched.withLock { $0 = true }
  }

  /// Runs `body`, which must not wait for anything, with the operator's own rights on files. Only this thread has them.
  static func asOperator<T>(_ body: () -> T) -> T {
    guard isSwitched.withLock({ $0 }) else { return body() }
    let user = setfsuid(getuid())
    let group = setfsgid(getgid())
    defer {
      setfsgid(gid_t(group))
      setfsuid(uid_t(user))
    }
    return body()
  }
}
