// What answers of the DNS mean, row by row, without a network.

import CommandLineTools
import Network
import Primitives
import Testing

/// A zone as a table; what it does not name does not exist.
private struct Zone: DNSSource {
  var answers: [DNSEvidence.Question: DNSAnswer] = [:]

  /// `NAME TYPE VALUE`, one a line; `!SERVFAIL` and `!TIMEOUT` are no values.
  init(_ text: String) {
    for line in text.split(separator: "\n") {
      let words = line.split(separator: " ", maxSplits: 2).map(String.init)
      guard words.count == 3, let type = DNSType(rawValue: words[1]) else { preconditionFailure("\(line)") }
      let question = DNSEvidence.Question(words[0], type)
      switch words[2] {
      case "!SERVFAIL": answers[question] = DNSAnswer(.failed(.serverFailure))
      case "!TIMEOUT": answers[question] = DNSAnswer(.failed(.timedOut))
      default:
        answers[question, default: DNSAnswer(.found)].records.append(
          DNSRecord(name: words[0], value: Self.value(type, words[2])))
      }
    }
  }

  private static func value(_ type: DNSType, _ text: String) -> DNSRecord.Value {
    switch type {
    case .a, .aaaa: return .address(IPAddress(text)!)
    case .cname: return .alias(text)
    case .ptr: return .pointer(text)
    case .txt: return .text(text)
    case .mx:
      let words = text.split(separator: " ")
      return .exchanger(preference: UInt16(words[0])!, host: words.count > 1 ? String(words[1]) : "")
    }
  }

  func ask(_ name: String, _ type: DNSType) async -> DNSAnswer {
    if let answer = answers[.init(name, type)] { return answer }
    guard let alias = answers[.init(name, .cname)]?.records.first, case .alias(let target) = alias.value else {
      return DNSAnswer(answers.keys.contains { $0.name == name } ? .noData : .noSuchName)
    }
    let rest = await ask(target, type)
    return DNSAnswer(rest.status, [alias] + rest.records)
  }
}

@Suite struct DNSJudgeTests {
  private static let key2048 = String(repeating: "A", count: 392)
  private static let good = """
    mailer.example A 192.0.2.10
    10.2.0.192.in-addr.arpa PTR mailer.example
    mailer.example MX 10 mailer.example
    example.com MX 1 smtp.google.com
    example.com TXT v=spf1 include:_spf.google.com ~all
    _spf.google.com TXT v=spf1 ip4:74.125.0.0/16 ~all
    google._domainkey.example.com TXT v=DKIM1; k=rsa; p=\(key2048)
    _dmarc.example.com TXT v=DMARC1; p=none
    smtp.gmail.com A 142.250.1.108
    """
  private let plan = DNSPlan(
    host: "mailer.example", receiving: ["mailer.example"],
    senders: [.init(domain: "example.com", isThroughGoogle: true, hasAccount: true)],
    upstreams: [("example.com", "smtp.gmail.com")])

  /// The good zone without the lines that begin with one of `without`, with `with` added.
  private func report(without: [String] = [], with: String = "", plan: DNSPlan? = nil) async -> DNSReport {
    let lines = Self.good.split(separator: "\n").filter { line in !without.contains { line.hasPrefix($0) } }
    return await DNSSurvey(Zone(lines.joined(separator: "\n") + "\n" + with)).run(plan ?? self.plan)
  }

  @Test func aCompleteSetIsRight() async {
    let report = await report()
    #expect(report.ok && report.status == .success, "\(report.lines().joined(separator: "\n"))")
    #expect(report.findings.allSatisfy { $0.level == .right }, "\(report.lines().joined(separator: "\n"))")
    #expect(report.findings.map(\.check) == ["A", "PTR", "MX", "MX", "SPF", "DKIM", "DMARC", "address"])
    #expect(report.lines().last == "all well: 8 right")
  }

  struct Row: Sendable, CustomTestStringConvertible {
    var name: String
    var without: [String] = []
    var with = ""
    var check: String
    var level: DNSFinding.Level
    var detail: String
    var record: String?
    var testDescription: String { name }
  }

  static let rows = [
    Row(
      name: "no address", without: ["mailer.example A"], check: "A", level: .wrong, detail: "no address",
      record: "mailer.example. IN A <public address>"),
    Row(
      name: "no name", without: ["mailer.example", "10.2.0.192"], check: "A", level: .wrong, detail: "does not exist",
      record: "mailer.example. IN A <public address>"),
    Row(
      name: "proxied by Cloudflare", without: ["mailer.example A"], with: "mailer.example A 104.21.3.4", check: "A",
      level: .wrong, detail: "Cloudflare", record: "mailer.example. IN A <public address>"),
    Row(
      name: "proxied by Cloudflare, IPv6", with: "mailer.example AAAA 2606:4700::6810:1", check: "AAAA", level: .wrong,
      detail: "Cloudflare"),
    Row(
      name: "private address", without: ["mailer.example A"], with: "mailer.example A 192.168.1.7", check: "A",
      level: .wrong, detail: "cannot be reached"),
    Row(
      name: "the host is an alias of Gmail", without: ["mailer.example A"],
      with: "mailer.example CNAME smtp.gmail.com", check: "CNAME", level: .wrong, detail: "goes to Google"),
    Row(
      name: "the host is an alias", without: ["mailer.example A"],
      with: "mailer.example CNAME host.example\nhost.example A 192.0.2.10", check: "CNAME", level: .wrong,
      detail: "RFC 2181"),
    Row(
      name: "no PTR", without: ["10.2.0.192"], check: "PTR", level: .wrong, detail: "has no name",
      record: "10.2.0.192.in-addr.arpa. IN PTR mailer.example."),
    Row(
      name: "PTR not confirmed", without: ["10.2.0.192"], with: "10.2.0.192.in-addr.arpa PTR vps-17.hoster.example",
      check: "PTR", level: .wrong, detail: "not forward-confirmed",
      record: "10.2.0.192.in-addr.arpa. IN PTR mailer.example."),
    Row(
      name: "PTR of another name", without: ["10.2.0.192"],
      with: "10.2.0.192.in-addr.arpa PTR vps-17.hoster.example\nvps-17.hoster.example A 192.0.2.10", check: "PTR",
      level: .notice, detail: "calls itself mailer.example"),
    Row(
      name: "PTR unanswered", without: ["10.2.0.192"], with: "10.2.0.192.in-addr.arpa PTR !TIMEOUT", check: "PTR",
      level: .unanswered, detail: "no name server answered"),
    Row(
      name: "no MX, but an address", without: ["mailer.example MX"], check: "MX", level: .notice, detail: "fall back",
      record: "mailer.example. IN MX 10 mailer.example."),
    Row(
      name: "MX of the aliases at Google", without: ["mailer.example MX"], with: "mailer.example MX 1 smtp.google.com",
      check: "MX", level: .wrong, detail: "never see it", record: "mailer.example. IN MX 10 mailer.example."),
    Row(
      name: "null MX", without: ["mailer.example MX"], with: "mailer.example MX 0", check: "MX", level: .wrong,
      detail: "RFC 7505"),
    Row(
      name: "MX names an alias", without: ["mailer.example MX"],
      with: "mailer.example MX 10 mx.example\nmx.example CNAME mailer.example", check: "MX", level: .wrong,
      detail: "an alias of mailer.example"),
    Row(
      name: "Workspace with MX mail.", without: ["example.com MX"],
      with: "example.com MX 10 mail.example.com\nmail.example.com A 192.0.2.10", check: "MX", level: .wrong,
      detail: "not Google's", record: "example.com. IN MX 1 smtp.google.com."),
    Row(
      name: "Workspace behind a filter", without: ["example.com MX"], with: "example.com MX 10 mx.filter.example",
      check: "MX", level: .notice, detail: "not Google's"),
    Row(
      name: "Workspace without MX", without: ["example.com MX"], check: "MX", level: .wrong, detail: "none",
      record: "example.com. IN MX 1 smtp.google.com."),
    Row(
      name: "no SPF", without: ["example.com TXT"], check: "SPF", level: .wrong, detail: "none",
      record: "example.com. IN TXT \"v=spf1 include:_spf.google.com ~all\""),
    Row(
      name: "SPF without Google", without: ["example.com TXT"], with: "example.com TXT v=spf1 ip4:192.0.2.0/24 -all",
      check: "SPF", level: .wrong, detail: "does not name Google",
      record: "example.com. IN TXT \"v=spf1 ip4:192.0.2.0/24 include:_spf.google.com -all\""),
    Row(
      name: "two SPF records", with: "example.com TXT v=spf1 ip4:192.0.2.1 -all", check: "SPF", level: .wrong,
      detail: "2 records",
      record: "example.com. IN TXT \"v=spf1 include:_spf.google.com ip4:192.0.2.1 ~all\""),
    Row(
      name: "SPF allows everybody", without: ["example.com TXT"],
      with: "example.com TXT v=spf1 include:_spf.google.com +all", check: "SPF", level: .wrong, detail: "everybody",
      record: "example.com. IN TXT \"v=spf1 include:_spf.google.com ~all\""),
    Row(
      name: "SPF with a typing error", without: ["example.com TXT"],
      with: "example.com TXT v=spf1 inlcude:_spf.google.com ~all", check: "SPF", level: .wrong,
      detail: "is not a mechanism"),
    Row(
      name: "SPF includes a name without a record", without: ["example.com TXT"],
      with: "example.com TXT v=spf1 include:gone.example include:_spf.google.com ~all", check: "SPF", level: .wrong,
      detail: "gone.example"),
    Row(
      name: "SPF in a circle", without: ["example.com TXT"],
      with: "example.com TXT v=spf1 include:a.example ~all\na.example TXT v=spf1 include:example.com ~all",
      check: "SPF", level: .wrong, detail: "in a circle"),
    Row(
      name: "SPF with eleven lookups", without: ["example.com TXT"],
      with: "example.com TXT v=spf1 include:a.example include:_spf.google.com ~all\n"
        + "a.example TXT v=spf1 a mx ptr exists:x.example a:b.example a:c.example mx:d.example a:e.example a:f.example ~all",
      check: "SPF", level: .wrong, detail: "11 lookups of 10"),
    Row(
      name: "SPF with ten lookups, by a redirect", without: ["example.com TXT"],
      with: "example.com TXT v=spf1 redirect=a.example\n"
        + "a.example TXT v=spf1 a mx ptr exists:x.example a:b.example a:c.example mx:d.example a:e.example "
        + "include:_spf.google.com -all",
      check: "SPF", level: .right, detail: "10 of 10 lookups"),
    Row(
      name: "SPF without an end", without: ["example.com TXT"],
      with: "example.com TXT v=spf1 include:_spf.google.com", check: "SPF", level: .notice, detail: "says nothing",
      record: "example.com. IN TXT \"v=spf1 include:_spf.google.com ~all\""),
    Row(
      name: "SPF unanswered", without: ["example.com TXT"], with: "example.com TXT !SERVFAIL", check: "SPF",
      level: .unanswered, detail: "SERVFAIL"),
    Row(
      name: "an include unanswered", without: ["_spf.google.com"], with: "_spf.google.com TXT !TIMEOUT", check: "SPF",
      level: .unanswered, detail: "in time"),
    Row(
      name: "no DKIM key", without: ["google._domainkey"], check: "DKIM", level: .wrong, detail: "no key",
      record: "google._domainkey.example.com. IN TXT \"v=DKIM1; k=rsa; p=<key from the console>\""),
    Row(
      name: "revoked DKIM key", without: ["google._domainkey"],
      with: "google._domainkey.example.com TXT v=DKIM1; k=rsa; p=", check: "DKIM", level: .wrong, detail: "revoked"),
    Row(
      name: "garbled DKIM key", without: ["google._domainkey"],
      with: "google._domainkey.example.com TXT v=DKIM1; k=rsa; p=AA\"AA", check: "DKIM", level: .wrong,
      detail: "garbled"),
    Row(
      name: "short DKIM key", without: ["google._domainkey"],
      with: "google._domainkey.example.com TXT v=DKIM1; p=" + String(repeating: "A", count: 216), check: "DKIM",
      level: .notice, detail: "1024 bits"),
    Row(
      name: "no DMARC", without: ["_dmarc"], check: "DMARC", level: .wrong, detail: "none",
      record: "_dmarc.example.com. IN TXT \"v=DMARC1; p=none; rua=mailto:postmaster@example.com\""),
    Row(
      name: "DMARC without p", without: ["_dmarc"], with: "_dmarc.example.com TXT v=DMARC1; rua=mailto:x@example.com",
      check: "DMARC", level: .wrong, detail: "no valid p="),
    Row(
      name: "two DMARC records", with: "_dmarc.example.com TXT v=DMARC1; p=reject", check: "DMARC", level: .wrong,
      detail: "2 records"),
    Row(
      name: "smtp. is an alias of Gmail", with: "smtp.example.com CNAME smtp.gmail.com", check: "CNAME",
      level: .notice, detail: "certificate is not good for smtp.example.com"),
    Row(
      name: "Gmail's address written down", with: "mail.example.com A 142.250.1.109", check: "A", level: .notice,
      detail: "written down"),
  ]

  @Test(arguments: rows) func everyMistakeIsFoundWithTheRecordToPublish(row: Row) async throws {
    let report = await report(without: row.without, with: row.with)
    let all = report.lines().joined(separator: "\n")
    let found = report.findings.first { $0.check == row.check && $0.detail.contains(row.detail) }
    let finding = try #require(found, "\(all)")
    #expect(finding.level == row.level, "\(all)")
    if let record = row.record { #expect(finding.record == record) }
    if row.level == .wrong { #expect(finding.advice != nil) }
    if row.level == .wrong { #expect(report.status == .data) }
    // Nothing else is made wrong by it, but what depends on it.
    if row.level == .unanswered { #expect(report.status == .tryAgain, "\(all)") }
    if row.level == .notice || row.level == .right { #expect(report.status == .success, "\(all)") }
  }

  @Test(arguments: [
    ("142.250.1.108", "", "written down"), ("192.178.1.108", "", "written down"),
    ("smtp.example.com", "smtp.example.com CNAME smtp.gmail.com", "is an alias of smtp.gmail.com"),
    ("gmail.example.com", "gmail.example.com A 142.250.1.108", "written down"),
    ("nowhere.example", "", "has no address"),
  ]) func aServerThatIsNotGmailsOwnNameIsATrap(host: String, with: String, detail: String) async throws {
    var plan = plan
    plan.upstreams = [("example.com", host)]
    let report = await report(with: with, plan: plan)
    let finding = try #require(report.findings.last { $0.check == "address" })
    #expect(finding.level == .wrong && finding.detail.contains(detail), "\(finding)")
  }

  @Test func aHostsFileThatPinsGmailIsATrap() async throws {
    var plan = plan
    plan.pinned = ["smtp.gmail.com": [IPAddress("142.250.1.108")!]]
    let report = await report(plan: plan)
    #expect(report.findings.last?.check == "hosts")
    #expect(report.findings.last?.level == .wrong)
  }

  @Test func aConsumerAccountHasNothingToPublish() async {
    var plan = plan
    plan.senders = [.init(domain: "gmail.com", isThroughGoogle: true, hasAccount: true)]
    let report = await report(plan: plan)
    #expect(report.status == .success)
    #expect(report.findings.contains { $0.subject == "gmail.com" && $0.level == .right })
  }

  @Test func theDMARCPolicyOfTheDomainAboveCounts() async {
    var plan = plan
    plan.senders = [.init(domain: "news.example.com", isThroughGoogle: true, hasAccount: false)]
    let report = await report(
      with: "news.example.com TXT v=spf1 include:_spf.google.com -all", plan: plan)
    let finding = report.findings.first { $0.check == "DMARC" }
    #expect(finding?.level == .right)
    #expect(finding?.detail.contains("from _dmarc.example.com") == true)
  }

  @Test func includesWithoutEndAreAFinding() async throws {
    /// Whoever is asked for includes another one below itself.
    struct Endless: DNSSource {
      let zone: Zone
      func ask(_ name: String, _ type: DNSType) async -> DNSAnswer {
        guard type == .txt, name.hasSuffix("endless.example") else { return await zone.ask(name, type) }
        return DNSAnswer(.found, [DNSRecord(name: name, value: .text("v=spf1 include:x.\(name) -all"))])
      }
    }
    var zone = Zone(Self.good)
    zone.answers[.init("example.com", .txt)] = DNSAnswer(
      .found, [DNSRecord(name: "example.com", value: .text("v=spf1 include:endless.example ~all"))])
    let report = await DNSSurvey(Endless(zone: zone)).run(plan)
    let finding = try #require(report.findings.first { $0.check == "SPF" })
    #expect(finding.level == .wrong && finding.detail.contains("lookups of 10 allowed"), "\(finding)")
    #expect(report.status == .data)
  }

  @Test func noReplyMayMoveTheCursor() async {
    let report = await report(without: ["_dmarc"], with: "_dmarc.example.com TXT v=DMARC1; p=none\u{1b}[2J")
    #expect(!report.lines().joined().contains("\u{1b}"))
  }
}
