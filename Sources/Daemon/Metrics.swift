// The state of the daemon as metrics in the text format of Prometheus (version 0.0.4). docs/metrics.md lists them.

import Delivery

/// Collects metrics as text.
struct MetricsText {
  private(set) var text = ""

  enum Kind: String { case gauge, counter }

  /// One metric with the values of all its labels.
  mutating func add(
    _ name: String, _ kind: Kind, _ help: String, _ values: [(labels: [(String, String)], value: Double)]
  ) {
    guard !values.isEmpty else { return }
    text += "# HELP ssmtp_mailer_\(name) \(help)\n# TYPE ssmtp_mailer_\(name) \(kind.rawValue)\n"
    for (labels, value) in values {
      let list = labels.map { "\($0.0)=\"\(Self.escaped($0.1))\"" }.joined(separator: ",")
      text += "ssmtp_mailer_\(name)\(list.isEmpty ? "" : "{\(list)}") \(Self.number(value))\n"
    }
  }

  mutating func add(_ name: String, _ kind: Kind, _ help: String, _ value: Int) {
    add(name, kind, help, [([], Double(value))])
  }

  private static func number(_ value: Double) -> String {
    value.rounded() == value && abs(value) < 1e15 ? String(Int(value)) : "\(value)"
  }

  private static func escaped(_ text: String) -> String {
    text.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"").replacing("\n", with: "\\n")
  }
}

extension StatusReport {
  /// The report as metrics.
  var metrics: String {
    var m = MetricsText()
    m.add("info", .gauge, "The version, as a label.", [([("version", version)], 1)])
    m.add("ready", .gauge, "Whether mail is accepted and sent.", state == "ready" ? 1 : 0)
    m.add("uptime_seconds", .gauge, "Time since the start.", uptimeSeconds)
    m.add("queue_messages", .gauge, "Messages in the queue.", queueMessages)
    m.add("queue_held_messages", .gauge, "Messages that the operator holds.", queueHeld)
    m.add("queue_dead_messages", .gauge, "Messages that failed and whose senders were not told.", queueDead)
    m.add("queue_bytes", .gauge, "Octets of the queue that are needed.", queueBytes)
    m.add("queue_disk_bytes", .gauge, "Octets of the queue's files.", queueDiskBytes)
    if let free = queueFreeBytes {
      m.add("queue_free_bytes", .gauge, "Free octets of the queue's file system.", free)
    }
    m.add("queue_short_of_space", .gauge, "Whether new mail is refused for want of space.", queueIsShortOfSpace ? 1 : 0)
    m.add("sessions", .gauge, "Clients that are connected.", sessions)
    m.add("sessions_total", .counter, "Clients that connected.", sessionsTotal)
    m.add("sessions_refused_total", .counter, "Clients that were turned away.", sessionsRefused)
    m.add("messages_accepted_total", .counter, "Messages that were accepted.", accepted)
    m.add("messages_refused_total", .counter, "Messages that were refused after their content.", refused)
    if let logins { logins.add(to: &m) }
    addDoor(to: &m)
    m.add(
      "notifications_total", .counter, "Notifications to senders.",
      notifications.sorted { $0.key < $1.key }.map { ([("kind", $0.key)], Double($0.value)) })
    m.add(
      "notifications_withheld_total", .counter, "Notifications that the limits held back.", notificationsWithheld)
    func each(_ name: String, _ kind: MetricsText.Kind, _ help: String, _ value: (Account) -> Int?) {
      m.add(
        name, kind, help,
        accounts.compactMap { account in value(account).map { ([("account", account.name)], Double($0)) } })
    }
    each("account_queued_messages", .gauge, "Messages that wait for the account.") { $0.queued }
    each("account_active_messages", .gauge, "Messages that are being delivered.") { $0.active }
    each("account_held", .gauge, "Whether the account is on hold.") { $0.isHeld ? 1 : 0 }
    m.add(
      "account_state", .gauge, "1 for the state that the account is in.",
      accounts.map { ([("account", $0.name), ("state", $0.state)], 1) })
    each("account_carried", .gauge, "Whether another account carries its mail.") { $0.carriedBy == nil ? 0 : 1 }
    each("account_carried_messages_total", .counter, "Messages delivered for other accounts.") { $0.carried }
    each("account_slowed_rate", .gauge, "Messages a minute to which the account has slowed down.") {
      $0.slowedToPerMinute
    }
    each("account_slowed_connections", .gauge, "Connections to which the account has slowed down.") {
      $0.slowedToConnections
    }
    each("account_daily_limit", .gauge, "Recipients that the account may have in 24 hours.") { $0.dailyLimit }
    each("account_daily_used", .gauge, "Recipients of the last 24 hours.") { $0.dailyUsed }
    each("account_enabled", .gauge, "Whether the account is enabled.") { $0.state == "disabled" ? 0 : 1 }
    each("account_connections", .gauge, "Connections to the upstream.") { $0.connections }
    each("account_connections_max", .gauge, "Connections that are allowed.") { $0.maximumConnections }
    each("account_rate_tokens", .gauge, "Messages that could leave at once.") { $0.tokens }
    each("account_delivered_total", .counter, "Recipients that were delivered.") { $0.delivered }
    each("account_deferred_total", .counter, "Recipients that were put off.") { $0.deferred }
    each("account_failed_total", .counter, "Recipients that failed for good.") { $0.failed }
    each("account_in_doubt_total", .counter, "Messages whose last reply was lost.") { $0.inDoubt }
    each("account_connections_total", .counter, "Connections begun.") { $0.connectionsOpened }
    each("account_logins_total", .counter, "Logins.") { $0.logins }
    addFilterMetrics(to: &m)
    return m.text
  }
}

extension StatusReport {
  mutating func add(_ counts: NotificationCounts) {
    for kind in NotificationKind.allCases { notifications[kind.rawValue] = counts.sent[kind] ?? 0 }
    notificationsWithheld = counts.withheld
  }
}

/// What monitors are told, over TCP on the addresses of `metrics_listen`.
struct MonitorPages: Sendable {
  let status: @Sendable () async -> StatusReport

  func answer(_ request: HTTPRequest) async throws -> AdminResponse {
    guard ["/metrics", "/healthz", "/readyz"].contains(request.path) else { return Self.text(404, "no such path\n") }
    guard request.method == "GET" else { return Self.text(405, "only GET\n") }
    // Alive is whoever answers; ready is who takes and sends mail.
    if request.path == "/healthz" { return Self.text(200, "ok\n") }
    let report = await status()
    if request.path == "/metrics" { return Self.metrics(report) }
    if report.state != "ready" { return Self.text(503, "\(report.state)\n") }
    return report.queueIsShortOfSpace ? Self.text(503, "short of space\n") : Self.text(200, "ready\n")
  }

  static func metrics(_ report: StatusReport) -> AdminResponse {
    AdminResponse(200, "text/plain; version=0.0.4; charset=utf-8", .bytes(Array(report.metrics.utf8)))
  }

  private static func text(_ status: Int, _ text: String) -> AdminResponse {
    AdminResponse(status, "text/plain; charset=utf-8", .bytes(Array(text.utf8)))
  }
}
