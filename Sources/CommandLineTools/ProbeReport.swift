// What a look at an upstream has found, for people and for scripts.

/// What a probe has found; its JSON is the answer of `test --json`.
public struct ProbeReport: Codable, Sendable, Hashable {
  public enum Name: String, Codable, Sendable, Hashable {
    case dns, tcp, banner, ehlo, starttls, tls, chain, name, expiry, features, auth
  }

  public struct Step: Codable, Sendable, Hashable {
    public var name: Name
    public var ok: Bool
    /// It does not stop mail, and somebody should look at it.
    public var warning = false
    public var milliseconds: Double
    public var detail: String
    /// What to do, after a failure or a warning.
    public var advice: String?
  }

  public var domain: String
  public var account: String
  public var upstream: String
  public var ok = true
  /// Whether waiting may help, as against a change of the configuration or of the account.
  public var temporary = false
  public var steps: [Step] = []

  /// Of all steps together.
  public var milliseconds: Double { steps.reduce(0) { $0 + $1.milliseconds } }

  /// 0, 75 when waiting may help, 78 when something has to be changed.
  public var status: ExitStatus { ok ? .success : temporary ? .tryAgain : .configuration }

  /// The report for a terminal.
  public func lines() -> [String] {
    var result = ["\(domain)  \(account) → \(upstream)"]
    for step in steps {
      let name = step.name.rawValue
      let label = name + String(repeating: " ", count: max(11 - name.count, 0))
      let time = Self.time(step.milliseconds)
      let column = String(repeating: " ", count: max(6 - time.count, 0)) + time
      result.append(
        "  \(step.warning ? "!" : step.ok ? "✓" : "✗") \(label) \(column) ms  \(TerminalText.clean(step.detail))")
      if let advice = step.advice { result.append("    → \(advice)") }
    }
    let end =
      if ok {
        "can send"
      } else if let failed = steps.last(where: { !$0.ok }) {
        "cannot send: it ends at \(failed.name.rawValue)"
      } else { "cannot send" }
    let warnings = steps.count { $0.warning }
    let remark = warnings == 0 ? "" : ", \(Quantity.count(warnings, "warning"))"
    result.append("  \(ok ? "✓" : "✗") \(end)\(remark), after \(Self.time(milliseconds)) ms")
    return result
  }

  /// The last line: how many can send, and where the others end.
  public static func summary(of reports: [ProbeReport]) -> String {
    let good = reports.count { $0.ok }
    let warnings = reports.flatMap(\.steps).count { $0.warning }
    let remark = warnings == 0 ? "" : ", with \(Quantity.count(warnings, "warning"))"
    if good == reports.count { return "all well: \(Quantity.count(good, "upstream")) can send\(remark)" }
    let failures = reports.filter { !$0.ok }.map { report in
      "\(report.domain) ends at \(report.steps.last { !$0.ok }?.name.rawValue ?? "its first step")"
    }
    return
      "not well: \(good) of \(Quantity.count(reports.count, "upstream")) can send\(remark); "
      + failures.joined(separator: ", ")
  }

  private static func time(_ milliseconds: Double) -> String {
    milliseconds < 10 ? Quantity.oneDecimal(milliseconds) : "\(Int(milliseconds.rounded()))"
  }
}
