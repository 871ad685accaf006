// How mail filters and DNS lists are doing, for `status` and for monitors.

import Filters
import Server
import Telemetry

extension StatusReport {
  /// A mail filter of `milters`.
  public struct MilterReport: Codable, Sendable, Equatable {
    /// As it was written.
    public var name: String
    /// `up`, `down`, `unused`: the latter until the first client comes.
    public var state: String
    /// What happens to mail while it is down: the value of `milter_default_action`.
    public var defaultAction: String
    public var connections: Int
    /// Messages that it has judged, and changed.
    public var messages: Int
    public var changed: Int
    public var rejected: Int
    public var deferred: Int
    public var discarded: Int
    public var quarantined: Int
    /// How often it could not be asked.
    public var failures: Int
    public var lastError: String?
    public var lastErrorTime: String?
  }

  /// A list of `dnsbl`.
  public struct DNSListReport: Codable, Sendable, Equatable {
    public var name: String
    /// `ok`, `skipped`: it does not answer, so that it is not asked for a while.
    public var state: String
    public var queries: Int
    public var cacheHits: Int
    /// Clients that were found on it.
    public var listed: Int
    public var failures: Int
    public var lastError: String?
    public var lastErrorTime: String?
  }
}

extension StatusReport.MilterReport {
  init(_ milter: Milter) {
    let health = milter.health
    self.init(
      name: milter.settings.name, state: health.isUp.map { $0 ? "up" : "down" } ?? "unused",
      defaultAction: milter.settings.fallback.rawValue, connections: health.connections, messages: health.messages,
      changed: health.changed, rejected: health.rejected, deferred: health.deferred, discarded: health.discarded,
      quarantined: health.quarantined, failures: health.failures, lastError: health.lastError,
      lastErrorTime: health.lastErrorTime.map(ISOTime.format))
  }
}

extension StatusReport.DNSListReport {
  init(_ name: String, _ health: DNSListHealth) {
    self.init(
      name: name, state: health.isSkipped ? "skipped" : "ok", queries: health.queries, cacheHits: health.cacheHits,
      listed: health.listed, failures: health.failures, lastError: health.lastError,
      lastErrorTime: health.lastErrorTime.map(ISOTime.format))
  }
}

extension StatusReport {
  mutating func addFilters(_ settings: ServerSettings, _ counters: ServerCounters) async {
    milters = settings.milters.map { MilterReport($0) }
    dnsLists = await settings.dnsLists?.health.map { DNSListReport($0.domain, $0.health) } ?? []
    refusedByLists = counters.listed
  }

  /// The metrics of filters and lists, for those that are configured.
  func addFilterMetrics(to m: inout MetricsText) {
    func each(_ name: String, _ kind: MetricsText.Kind, _ help: String, _ value: (MilterReport) -> Int) {
      m.add(name, kind, help, milters.map { ([("milter", $0.name)], Double(value($0))) })
    }
    each("milter_up", .gauge, "Whether the filter answered last time; 1 before it was asked.") {
      $0.state == "down" ? 0 : 1
    }
    each("milter_connections_total", .counter, "Connections to the filter.") { $0.connections }
    each("milter_messages_total", .counter, "Messages that the filter has judged.") { $0.messages }
    each("milter_changed_total", .counter, "Messages that the filter has changed.") { $0.changed }
    m.add(
      "milter_refusals_total", .counter, "What the filter has refused, by what became of it.",
      milters.flatMap { milter in
        [
          ("reject", milter.rejected), ("tempfail", milter.deferred), ("discard", milter.discarded),
          ("quarantine", milter.quarantined),
        ].map { ([("milter", milter.name), ("action", $0.0)], Double($0.1)) }
      })
    each("milter_failures_total", .counter, "How often the filter could not be asked.") { $0.failures }
    func list(_ name: String, _ kind: MetricsText.Kind, _ help: String, _ value: (DNSListReport) -> Int) {
      m.add(name, kind, help, dnsLists.map { ([("list", $0.name)], Double(value($0))) })
    }
    list("dnsbl_skipped", .gauge, "Whether the list is not asked because it did not answer.") {
      $0.state == "skipped" ? 1 : 0
    }
    list("dnsbl_queries_total", .counter, "Questions to the list.") { $0.queries }
    list("dnsbl_cache_hits_total", .counter, "Questions that were answered from memory.") { $0.cacheHits }
    list("dnsbl_listed_total", .counter, "Clients that were found on the list.") { $0.listed }
    list("dnsbl_failures_total", .counter, "Questions without a usable answer.") { $0.failures }
    if !dnsLists.isEmpty {
      m.add("dnsbl_refused_total", .counter, "Recipients refused because the client is on a list.", refusedByLists)
    }
  }
}
