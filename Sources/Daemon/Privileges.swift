// What the daemon may do: everything until its ports are bound, as little as possible from then on.
//
// Capabilities, `no_new_privs` and the bounding set belong to threads, and a thread hands them to those that it starts.
// So all of this happens before there is a second one. (glibc changes the user of all threads together, and nothing
// else: the threads of Dispatch block the signals by which one could make them follow.)

import CLinux
import Configuration
import Glibc
import Primitives

enum Privileges {
  /// The account of the packages and of scripts/install.
  static let defaultUser = "ssmtp-mailer"

  /// An entry of passwd(5).
  struct Account: Equatable {
    var name: String
    var user: uid_t
    var group: gid_t
  }

  /// Whom this process is to become.
  enum Plan: Equatable {
    /// Who it is already.
    case stay
    case become(Account)
  }

  // MARK: Before anything else

  /// No memory of this process gets to a disk or to a neighbour: no core file, no debugger of the same user. A password
  /// could be in it.
  static func hideMemory() {
    var none = rlimit(rlim_cur: 0, rlim_max: 0)
    setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
    // A core that goes to a program knows no limit.
    if !isSanitized { _ = ssmtp_set_dumpable(0) }
  }

  /// A sanitizer looks at its own process as a debugger does.
  private static var isSanitized: Bool {
    #if DEBUG
      dlsym(nil, "__asan_init") != nil || dlsym(nil, "__tsan_init") != nil
    #else
      false
    #endif
  }

  // MARK: The decision

  /// Decides by `user =`, and by who runs this.
  static func plan(
    _ global: GlobalSettings, runningAs user: uid_t = geteuid(), account: (String) -> Account? = Self.account
  ) throws(DaemonError) -> Plan {
    guard user == 0 else {
      guard let name = global.user else { return .stay }
      guard let wanted = account(name) else { throw unknown(name) }
      guard wanted.user == user else {
        throw DaemonError(
          "user = \(name): this process runs as user \(user) and only root can become another one; start it as root "
            + "or as \(name), or take `user` out", exitStatus: 78)
      }
      return .stay
    }
    guard let name = global.user else {
      if let found = account(defaultUser), found.user != 0 { return .become(found) }
      throw DaemonError(
        "root does not serve mail: set `user` in [global] to the account that the daemon is to run as once its ports "
          + "are bound (useradd --system --shell /usr/sbin/nologin \(defaultUser) makes the one that is taken by "
          + "default), or start it from systemd", exitStatus: 78)
    }
    guard let wanted = account(name) else { throw unknown(name) }
    if wanted.user == 0 {
      // For tests and for a first try in a container.
      guard
        (global.listen + global.listenSubmission + global.listenSMTPS + global.metricsListen).allSatisfy(
          \.address.isLoopback)
      else {
        throw DaemonError(
          "user = \(name): as root the daemon serves loopback addresses only; name an account without rights, or "
            + "listen on 127.0.0.1 and [::1]", exitStatus: 78)
      }
      return .stay
    }
    return .become(wanted)
  }

  private static func unknown(_ name: String) -> DaemonError {
    DaemonError(
      "user = \(name): there is no such account; useradd --system --shell /usr/sbin/nologin \(name) makes it",
      exitStatus: 78)
  }

  static func account(_ name: String) -> Account? {
    guard let entry = getpwnam(name) else { return nil }
    return Account(name: name, user: entry.pointee.pw_uid, group: entry.pointee.pw_gid)
  }

  // MARK: The change

  /// Makes what the daemon writes to and what is not there yet, as the account's own. What is there is left alone: who
  /// it belongs to is the operator's decision, and the queue says itself when it cannot be used.
  static func prepare(_ global: GlobalSettings, for account: Account) throws(DaemonError) {
    try makeFolder(global.queueDir, 0o700, account, "queue_dir")
    try makeFolder(FileReplacement.directory(of: global.adminSocket), 0o750, account, "admin_socket")
    guard case .path(let path) = global.logFile else { return }
    let file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o640)
    if file < 0, errno == EEXIST { return }
    guard file >= 0, fchown(file, account.user, account.group) == 0 else { throw failed("log_file: create \(path)") }
    close(file)
  }

  private static func makeFolder(
    _ path: String, _ mode: mode_t, _ account: Account, _ key: String
  ) throws(DaemonError) {
    if mkdir(path, mode) != 0 {
      guard errno == EEXIST else { throw failed("\(key): create \(path)") }
      return
    }
    // Nobody else could have replaced it meanwhile, unless its parent is open to all.
    guard lchown(path, account.user, account.group) == 0 else {
      throw failed("\(key): give \(path) to \(account.name)")
    }
  }

  /// Follows the plan, and gives up every capability. To be called while there is one thread.
  static func settle(_ plan: Plan) throws(DaemonError) {
    if case .become(let account) = plan {
      guard initgroups(account.name, account.group) == 0 else { throw failed("take the groups of \(account.name)") }
      guard setresgid(account.group, account.group, account.group) == 0 else {
        throw failed("take the group of \(account.name)")
      }
    }
    // The bounding set can only be changed by who may still change it: before the user does.
    ssmtp_give_up_bounding_set()
    if case .become(let account) = plan {
      guard setresuid(account.user, account.user, account.user) == 0 else { throw failed("become \(account.name)") }
      guard setuid(0) != 0, geteuid() == account.user, getuid() == account.user else {
        throw DaemonError("root can be had back after it was given up", exitStatus: 71)
      }
    }
    let code = ssmtp_give_up_capabilities()
    // Where a filter of system calls forbids it, there is nothing to give up but what the unit has left.
    if code != 0, code != EPERM { throw DaemonError("capabilities: \(message(code))", exitStatus: 71) }
    let refusal = ssmtp_set_no_new_privileges()
    if refusal != 0 { throw DaemonError("no_new_privs: \(message(refusal))", exitStatus: 71) }
    // The change of the user has set it anew.
    hideMemory()
  }

  private static func failed(_ what: String) -> DaemonError {
    let code = errno
    return DaemonError("cannot \(what): \(message(code))", exitStatus: 71)
  }

  private static func message(_ code: CInt) -> String { String(cString: strerror(code)) }
}
