// What systemd is told (sd_notify(3)) and what it hands over (sd_listen_fds(3)). Everything here is without effect
// where the daemon was not started by systemd.

import CSystemd
import Glibc
import Network
import Server

enum SystemdNotifier {
  static func ready(status: String) { send("READY=1\nSTATUS=\(singleLine(status))") }
  static func status(_ text: String) { send("STATUS=\(singleLine(text))") }
  static func stopping() { send("STOPPING=1\nSTATUS=Stopping: transactions in progress may finish") }
  static func watchdog() { send("WATCHDOG=1") }

  /// Type=notify-reload wants the moment the reload began on the monotonic clock.
  static func reloading() {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    send("RELOADING=1\nMONOTONIC_USEC=\(Int64(now.tv_sec) * 1_000_000 + Int64(now.tv_nsec) / 1000)")
  }

  private static func send(_ state: String) { sd_notify(0, state) }

  private static func singleLine(_ text: String) -> String { String(text.map { $0.isNewline ? " " : $0 }) }

  /// How often the watchdog wants to hear of us, nil when it does not.
  static var watchdogInterval: Duration? {
    var microseconds: UInt64 = 0
    return sd_watchdog_enabled(0, &microseconds) > 0 ? .microseconds(Int64(clamping: microseconds)) : nil
  }

  /// The listening sockets that systemd has opened for us, and what each is for by its FileDescriptorName=: `smtp`,
  /// `submission` or `smtps`. Another name is refused.
  static func listeners() throws(DaemonError) -> [RoleListener] {
    var names: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
    let count = sd_listen_fds_with_names(1, &names)
    guard count > 0, let names else { return [] }
    defer {
      for i in 0..<Int(count) { free(names[i]) }
      free(names)
    }
    var listeners: [RoleListener] = []
    for i in 0..<count {
      let name = names[Int(i)].map { String(cString: $0) } ?? ""
      // The last two are what systemd says when the unit says nothing.
      let role = ["unknown", "ssmtp-mailer.socket"].contains(name) ? .smtp : ListenerRole(rawValue: name)
      guard let role else {
        throw DaemonError(
          "systemd handed over a socket named \(name): set FileDescriptorName= to smtp, submission or smtps in the "
            + "socket unit")
      }
      do throws(NetworkError) {
        let listener = try Listener(adopting: CInt(SD_LISTEN_FDS_START) + i)
        listeners.append(RoleListener(listener: listener, role: role))
      } catch { throw DaemonError("the socket that systemd handed over cannot be used: \(error)") }
    }
    return listeners
  }
}

/// Why the daemon cannot start or go on, in a sentence for the operator.
public struct DaemonError: Error, Sendable, CustomStringConvertible {
  public let description: String
  /// As in sysexits(3).
  public let exitStatus: Int32

  public init(_ description: String, exitStatus: Int32 = 69) {
    self.description = description
    self.exitStatus = exitStatus
  }
}
