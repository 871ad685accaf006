// The sockets that clients come to: from systemd, or bound here as the configuration says.

import Configuration
import Glibc
import Network
import Primitives
import Server

/// A listening socket and what it is for.
struct RoleListener: Sendable, CustomStringConvertible {
  var listener: Listener
  var role: ListenerRole

  /// `0.0.0.0:25`, `0.0.0.0:587 (submission)`.
  var description: String { role == .smtp ? "\(listener.endpoint)" : "\(listener.endpoint) (\(role))" }

  /// All sockets; makes no thread. What systemd hands over for a role takes the place of the key of that role.
  static func all(_ settings: Settings) throws(DaemonError) -> [RoleListener] {
    var listeners = try SystemdNotifier.listeners()
    let inherited = Set(listeners.map(\.role))
    if let role = inherited.first(where: \.requiresAuthentication), settings.global.tlsCertificate == nil {
      throw DaemonError(
        "systemd handed over a socket named \(role), which needs a certificate: set tls_certificate and tls_key",
        exitStatus: 78)
    }
    let keys: [(ListenerRole, String, [Endpoint])] = [
      (.smtp, "listen", settings.global.listen), (.submission, "listen_submission", settings.global.listenSubmission),
      (.smtps, "listen_smtps", settings.global.listenSMTPS),
    ]
    for (role, key, endpoints) in keys where !inherited.contains(role) {
      for endpoint in endpoints {
        do throws(NetworkError) {
          let listener = try Listener(bindingTo: endpoint)
          listeners.append(RoleListener(listener: listener, role: role))
        } catch {
          // A machine without IPv6 can still serve the default `0.0.0.0:25, [::]:25`.
          if case .system(_, EAFNOSUPPORT) = error, !endpoint.address.isIPv4 { continue }
          for other in listeners { other.listener.close() }
          throw DaemonError("\(error)\(hint(error, key))", exitStatus: 71)
        }
      }
    }
    guard !listeners.isEmpty else { throw DaemonError("there is nothing to listen on: set `listen`", exitStatus: 78) }
    return listeners
  }

  private static func hint(_ error: NetworkError, _ key: String) -> String {
    switch error {
    case .system(_, EACCES): ": a port below 1024 needs CAP_NET_BIND_SERVICE, which the systemd unit gives"
    case .system(_, EADDRINUSE): ": stop whoever has the port (`ss -ltnp` names it), or change `\(key)`"
    default: ""
    }
  }
}
