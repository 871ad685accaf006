// How many descriptors the process may have, and how many clients that is good for.

import Configuration
import Glibc
import Logging
import Server

enum DescriptorLimit {
  /// Sessions beyond the limit that are being told so, the queue, the log, listeners, loops, HTTP, name servers.
  private static let overhead = 400

  /// What everything but clients may need at once.
  private static func reserve(_ settings: Settings) -> Int {
    settings.domains.values.reduce(overhead) { $0 + ($1.maxConnections ?? settings.global.maxConnections) }
  }

  /// Raises the soft limit to the hard one, and lowers the number of clients when that is not enough for them: a client
  /// that is told to come later is better off than one whose connection nobody can accept.
  static func raise(for settings: Settings, _ server: inout ServerSettings, _ log: Logger) {
    var limit = rlimit()
    let kind = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
    guard getrlimit(kind, &limit) == 0 else { return }
    if limit.rlim_cur < limit.rlim_max {
      var raised = limit
      raised.rlim_cur = limit.rlim_max
      if setrlimit(kind, &raised) == 0 { limit = raised }
    }
    let available = Int(clamping: limit.rlim_cur)
    let clients = clients(
      available: available, reserve: reserve(settings), milters: settings.global.filters.milters.count)
    guard clients < server.maximumConnections else { return }
    log.warning(
      "max_client_connections = \(server.maximumConnections) needs more files than the process may open (\(available)): \(clients) clients are let in; raise LimitNOFILE= of the unit or `ulimit -n`"
    )
    server.maximumConnections = clients
  }

  /// A client with a large message has a file beside its socket: there is room for a quarter of them to have one. And
  /// each has a connection to each mail filter.
  static func clients(available: Int, reserve: Int, milters: Int) -> Int {
    max((available - reserve) * 4 / (5 + 4 * milters), 10)
  }
}
