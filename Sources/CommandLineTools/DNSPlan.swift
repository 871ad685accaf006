// What `dns` looks at, and what it may say about it.

import Network
import Primitives

/// The names of a configuration that the DNS has to know.
public struct DNSPlan: Sendable {
  /// A domain that mail is sent from.
  public struct Sender: Sendable, Hashable {
    public var domain: String
    /// Whether its mail leaves through Google.
    public var isThroughGoogle: Bool
    /// Whether an account lives there that the relay logs in with; otherwise it is only written in addresses.
    public var hasAccount: Bool

    public init(domain: String, isThroughGoogle: Bool, hasAccount: Bool) {
      self.domain = domain
      self.isThroughGoogle = isThroughGoogle
      self.hasAccount = hasAccount
    }
  }

  /// `default_hostname`.
  public var host: String
  /// Domains whose mail comes to this relay.
  public var receiving: [String]
  public var senders: [Sender]
  /// `smtp_server` by the name of the `[domain:]`.
  public var upstreams: [(section: String, host: String)]
  /// The DKIM selector.
  public var selector: String
  /// Names that the hosts file of this machine answers for.
  public var pinned: [String: [IPAddress]] = [:]

  public init(
    host: String, receiving: [String], senders: [Sender], upstreams: [(section: String, host: String)],
    selector: String = "google"
  ) {
    self.host = Self.normal(host)
    self.receiving = Self.unique(receiving.map(Self.normal))
    var merged: [Sender] = []
    for sender in senders {
      let domain = Self.normal(sender.domain)
      if let i = merged.firstIndex(where: { $0.domain == domain }) {
        merged[i].isThroughGoogle = merged[i].isThroughGoogle || sender.isThroughGoogle
        merged[i].hasAccount = merged[i].hasAccount || sender.hasAccount
      } else {
        merged.append(Sender(domain: domain, isThroughGoogle: sender.isThroughGoogle, hasAccount: sender.hasAccount))
      }
    }
    self.senders = merged
    self.upstreams = upstreams.map { ($0.section, Self.normal($0.host)) }
    self.selector = selector
  }

  static func normal(_ name: String) -> String {
    let lower = name.lowercased()
    return lower.hasSuffix(".") ? String(lower.dropLast()) : lower
  }

  private static func unique(_ names: [String]) -> [String] {
    var seen: Set<String> = []
    return names.filter { seen.insert($0).inserted }
  }
}

/// One thing that was found out.
public struct DNSFinding: Codable, Sendable, Hashable {
  public enum Level: String, Codable, Sendable, Hashable {
    case right, notice, wrong
    /// Nobody answered: nothing is known.
    case unanswered
  }
  /// The domain that it is about.
  public var subject: String
  /// `A`, `MX`, `SPF`…
  public var check: String
  public var level: Level
  public var detail: String
  /// What to do.
  public var advice: String?
  /// The record to publish, as a line of a zone file.
  public var record: String?

  public init(
    _ subject: String, _ check: String, _ level: Level, _ detail: String, advice: String? = nil, record: String? = nil
  ) {
    self.subject = subject
    self.check = check
    self.level = level
    self.detail = detail
    self.advice = advice
    self.record = record
  }
}

/// All findings; its JSON is the answer of `dns --json`.
public struct DNSReport: Codable, Sendable, Hashable {
  public var ok: Bool
  public var summary: String
  public var findings: [DNSFinding]

  public init(_ findings: [DNSFinding]) {
    self.findings = findings
    func count(_ level: DNSFinding.Level) -> Int { findings.count { $0.level == level } }
    let (wrong, open, notices) = (count(.wrong), count(.unanswered), count(.notice))
    ok = wrong == 0 && open == 0
    var parts: [String] = []
    if wrong > 0 { parts.append("\(wrong) wrong or missing") }
    if open > 0 { parts.append("\(open) without an answer") }
    if notices > 0 { parts.append("\(notices) to look at") }
    parts.append("\(count(.right)) right")
    summary = (ok ? "all well: " : "not well: ") + parts.joined(separator: ", ")
  }

  /// 0 when nothing is wrong, 65 when a record is wrong or missing, 75 when somebody did not answer.
  public var status: ExitStatus {
    if findings.contains(where: { $0.level == .wrong }) { return .data }
    return findings.contains { $0.level == .unanswered } ? .tryAgain : .success
  }

  /// The report for a terminal.
  public func lines() -> [String] {
    var result: [String] = []
    var subjects: [String] = []
    for finding in findings where !subjects.contains(finding.subject) { subjects.append(finding.subject) }
    for subject in subjects {
      result.append(TerminalText.clean(subject))
      for finding in findings where finding.subject == subject {
        let sign =
          switch finding.level {
          case .right: "✓"
          case .wrong: "✗"
          case .notice, .unanswered: "!"
          }
        let padding = String(repeating: " ", count: max(9 - finding.check.count, 1))
        result.append("  \(sign) \(finding.check)\(padding)\(TerminalText.clean(finding.detail))")
        if let advice = finding.advice { result.append("    → \(TerminalText.clean(advice))") }
        if let record = finding.record { result.append("      \(TerminalText.clean(record))") }
      }
      result.append("")
    }
    return result + [summary]
  }
}

/// Ranges of addresses that tell a trap.
enum KnownNetworks {
  /// cloudflare.com/ips: its proxy carries HTTP only.
  static let cloudflare = [
    "173.245.48.0/20", "103.21.244.0/22", "103.22.200.0/22", "103.31.4.0/22", "141.101.64.0/18", "108.162.192.0/18",
    "190.93.240.0/20", "188.114.96.0/20", "197.234.240.0/22", "198.41.128.0/17", "162.158.0.0/15", "104.16.0.0/13",
    "104.24.0.0/14", "172.64.0.0/13", "131.0.72.0/22", "2400:cb00::/32", "2606:4700::/32", "2803:f800::/32",
    "2405:b500::/32", "2405:8100::/32", "2a06:98c0::/29", "2c0f:f248::/32",
  ].compactMap { IPNetwork($0) }

  /// Where Google's mail servers are (the networks of _spf.google.com, and the front ends of smtp.gmail.com).
  static let google = [
    "64.233.160.0/19", "66.102.0.0/20", "66.249.80.0/20", "72.14.192.0/18", "74.125.0.0/16", "108.177.0.0/17",
    "142.250.0.0/15", "172.217.0.0/16", "172.253.0.0/16", "173.194.0.0/16", "192.178.0.0/15", "209.85.128.0/17",
    "216.58.192.0/19", "216.239.32.0/19", "2001:4860:4000::/36", "2404:6800:4000::/36", "2607:f8b0:4000::/36",
    "2800:3f0:4000::/36",
    "2a00:1450:4000::/36", "2c0f:fb50:4000::/36",
  ].compactMap { IPNetwork($0) }

  /// Not reachable from outside (RFC 6890), without the ranges that examples use.
  static let local = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
    "::/127", "fc00::/7", "fe80::/10",
  ].compactMap { IPNetwork($0) }

  static func contains(_ networks: [IPNetwork], _ address: IPAddress) -> Bool {
    networks.contains { $0.contains(address) }
  }

  /// The mail servers of a Workspace domain, the present name and those of before 2023.
  static func isGoogleExchanger(_ host: String) -> Bool {
    host == "smtp.google.com" || host == "aspmx.l.google.com" || host.hasSuffix(".aspmx.l.google.com")
      || host.hasPrefix("aspmx") && host.hasSuffix(".googlemail.com")
  }

  static func isGoogleName(_ host: String) -> Bool {
    ["google.com", "gmail.com", "googlemail.com"].contains { host == $0 || host.hasSuffix(".\($0)") }
  }
}
