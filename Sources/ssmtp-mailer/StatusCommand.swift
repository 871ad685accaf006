// `status`: how the daemon is, on one screen.

import ArgumentParser
import CommandLineTools
import Configuration
import Daemon

struct StatusCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show the state of the daemon, its queue and its accounts.",
    discussion: """
      Exit status 0 when the daemon is ready, also while an account is on hold; 69 when it does not run, or is \
      stopping or has failed.
      """)
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var output: JSONOption

  func run() async throws {
    let report: StatusReport = try options.adminClient().call("GET", AdminPath.status)
    if output.json { try Terminal.printJSON(report) } else { Self.show(report) }
    if report.state != "ready" { throw CommandFailure(.unavailable, "the daemon is not ready: \(report.state)") }
  }

  private static func show(_ report: StatusReport) {
    var facts = TextTable(columnCount: 2)
    facts.append(["daemon", "\(report.state), version \(report.version), pid \(report.pid)"])
    facts.append(["up", "\(Quantity.age(report.uptimeSeconds)), since \(report.startedAt)"])
    facts.append(["listening", "\(listening(report).joined(separator: ", ")) as \(report.hostname)"])
    facts.append([
      "queue",
      "\(Quantity.count(report.queueMessages, "message")), \(Quantity.size(report.queueBytes)) "
        + "(\(Quantity.size(report.queueDiskBytes)) on disk)\(kept(report))",
    ])
    if let free = report.queueFreeBytes {
      let needed = report.queueNeedsFreeBytes.map { "until \(Quantity.size($0)) is free" } ?? "until more is free"
      facts.append([
        "space",
        "\(Quantity.size(free)) free"
          + (report.queueIsShortOfSpace ? "; short of space: new mail is refused with 452 4.3.1 \(needed)" : ""),
      ])
    }
    facts.append([
      "sessions", "\(report.sessions) now, \(report.sessionsTotal) in all, \(report.sessionsRefused) refused",
    ])
    facts.append([
      "messages", "\(report.accepted) accepted, \(report.refused) refused",
    ])
    for line in logins(report) { facts.append(line) }
    for fact in doorFacts(report) { facts.append(fact) }
    Terminal.print(facts.lines())
    Terminal.print(filters(report))
    if report.accounts.isEmpty {
      return Terminal.say("\nno accounts: there is no upstream [domain:] in the configuration")
    }
    Terminal.say("")
    var table = TextTable([
      ("DOMAIN", .left), ("STATE", .left), ("QUEUED", .right), ("ACTIVE", .right), ("CONN", .right),
      ("RATE", .left), ("DELIVERED", .right), ("DEFERRED", .right), ("FAILED", .right), ("IN DOUBT", .right),
    ])
    for account in report.accounts {
      var rate = account.ratePerMinute.map { "\($0)/min" } ?? "no limit"
      if let tokens = account.tokens { rate += ", \(tokens) at once" }
      if let slowed = account.slowedToPerMinute { rate = "\(slowed)/min (slowed, \(rate))" }
      table.append([
        account.name, account.state, "\(account.queued)", "\(account.active)",
        "\(account.connections)/\(account.maximumConnections)", rate, "\(account.delivered)", "\(account.deferred)",
        "\(account.failed)", "\(account.inDoubt)",
      ])
    }
    Terminal.print(table.lines())
    for account in report.accounts { Terminal.print(notes(on: account)) }
  }

  private static func listening(_ report: StatusReport) -> [String] {
    let roles = report.listenerRoles ?? []
    return report.listeners.enumerated().map { index, endpoint in
      index < roles.count && roles[index] != "smtp" ? "\(endpoint) (\(roles[index]))" : endpoint
    }
  }

  /// Nothing where nobody has ever logged in or tried to.
  private static func logins(_ report: StatusReport) -> [[String]] {
    guard let logins = report.logins, logins.succeeded + logins.failed + logins.busy > 0 else { return [] }
    var lines = [["logins", "\(logins.succeeded) in all, \(logins.failed) failed, \(logins.busy) put off"]]
    for ban in logins.banned.prefix(10) { lines.append(["banned", "\(ban.address) until \(ban.until)"]) }
    if logins.bannedNow > 10 { lines.append(["", "and \(logins.bannedNow - 10) more"]) }
    return lines
  }

  /// Mail filters and DNS lists, and what is wrong with them; nothing when there are none.
  private static func filters(_ report: StatusReport) -> [String] {
    var lines: [String] = []
    for milter in report.milters {
      lines.append(
        "milter \(milter.name): \(milter.state), \(Quantity.count(milter.messages, "message")), \(milter.changed) changed, "
          + "\(milter.rejected) rejected, \(milter.deferred) put off, \(milter.discarded) discarded, "
          + "\(milter.quarantined) held, \(milter.failures) failures")
      if milter.state == "down", let error = milter.lastError {
        lines.append("  \(TerminalText.clean(error)), \(milter.lastErrorTime ?? "")")
        lines.append("  → start it; until then milter_default_action = \(milter.defaultAction) holds")
      }
    }
    for list in report.dnsLists {
      lines.append(
        "dnsbl \(list.name): \(list.state), \(list.queries) asked, \(list.cacheHits) from memory, \(list.listed) listed, "
          + "\(list.failures) failures")
      if list.failures > 0, let error = list.lastError {
        lines.append("  \(TerminalText.clean(error)), \(list.lastErrorTime ?? "")")
      }
    }
    return lines.isEmpty ? [] : [""] + lines
  }

  private static func kept(_ report: StatusReport) -> String {
    var text = ""
    if report.queueHeld > 0 { text += ", \(report.queueHeld) held" }
    if report.queueDead > 0 { text += ", \(report.queueDead) dead" }
    return text
  }

  /// Why an account does not send and what to do about it; nothing for one that does.
  private static func notes(on account: StatusReport.Account) -> [String] {
    var lines: [String] = []
    if let reason = account.reason {
      let since = account.heldSince.map { " since \($0)" } ?? ""
      lines.append("")
      lines.append("\(account.name) (\(account.account) at \(account.upstream)): \(account.state)\(since)")
      lines.append("  \(TerminalText.clean(reason))")
      if let next = account.nextTry { lines.append("  next try: \(next)") }
      if let advice = account.advice { lines.append("  → \(advice)") }
    } else if let error = account.lastError {
      lines.append("")
      lines.append("\(account.name): last error: \(TerminalText.clean(error))")
    }
    if let carrier = account.carriedBy { lines.append("  carried by \(carrier) while it is on hold") }
    if !account.carriesFor.isEmpty {
      lines.append("\(account.name): carries mail of \(account.carriesFor.joined(separator: ", "))")
    }
    if let rate = account.slowedToPerMinute, let connections = account.slowedToConnections {
      lines.append(
        "\(account.name): the upstream found it too fast: \(rate) messages a minute over "
          + "\(Quantity.count(connections, "connection")) at most; both grow again by themselves")
    }
    if let limit = account.dailyLimit, let used = account.dailyUsed, let left = account.dailyLeft {
      let next = account.dailyNextSlot.map { ", next slot \($0)" } ?? ""
      lines.append("\(account.name): \(used) of \(limit) recipients in 24 hours, \(left) left\(next)")
    }
    return lines
  }
}
