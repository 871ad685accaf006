// What SPF and DKIM records of a domain mean for mail that leaves through an account (RFC 7208, RFC 6376).

import Network
import Primitives
import SMTP

enum SPFJudge {
  private static let google = "_spf.google.com"
  private static let lookupLimit = 10

  static func findings(_ sender: DNSPlan.Sender, _ evidence: inout DNSEvidence) -> [DNSFinding] {
    let domain = sender.domain
    guard let answer = evidence.ask(domain, .txt) else { return [] }
    if case .failed(let failure) = answer.status { return [DNSJudge.unanswered(domain, "SPF", failure)] }
    let texts = answer.texts.filter(SPFRecord.isMeant)
    let fresh =
      sender.isThroughGoogle ? "v=spf1 include:\(google) ~all" : "v=spf1 include:<name from the provider> ~all"
    func finding(
      _ level: DNSFinding.Level, _ detail: String, _ advice: String? = nil, _ text: String? = nil
    ) -> [DNSFinding] {
      [
        .init(
          domain, "SPF", level, detail, advice: advice,
          record: text.map { "\(domain). IN TXT \"\($0)\"" })
      ]
    }
    guard let text = texts.first else {
      return finding(
        sender.hasAccount ? .wrong : .notice,
        sender.hasAccount
          ? "none: receivers cannot tell this mail from forged mail" : "none, and mail is sent from here",
        "publish one", fresh)
    }
    if texts.count > 1 {
      return finding(
        .wrong, "\(texts.count) records (\(texts.map { "\"\($0)\"" }.joined(separator: ", "))): all of them are void",
        "put them together into one", merged(texts))
    }
    let record: SPFRecord
    do throws(SPFRecord.Mistake) { record = try SPFRecord(parsing: text) } catch {
      return finding(.wrong, "\"\(text)\": \(error)", "correct it", fresh)
    }
    var walk = Walk()
    guard walk.visit([domain], record, &evidence) else { return [] }
    if let failure = walk.failure { return [DNSJudge.unanswered(domain, "SPF", failure)] }
    if let mistake = walk.mistake { return finding(.wrong, "\"\(text)\": \(mistake)", "correct or remove that term") }
    if walk.lookups > lookupLimit {
      return finding(
        .wrong, "\"\(text)\" needs \(walk.lookups) lookups of \(lookupLimit) allowed: it is void",
        "remove includes of services that are no longer used, or name their networks with ip4: and ip6:")
    }
    if record.otherwise == "+" {
      let repaired = text.split(separator: " ").map { ["all", "+all"].contains($0.lowercased()) ? "~all" : $0 }
      return finding(
        .wrong, "\"\(text)\" allows everybody to send as \(domain)", "end it with ~all",
        repaired.joined(separator: " "))
    }
    let count = "\(walk.lookups) of \(lookupLimit) lookups"
    if sender.isThroughGoogle, !walk.names.contains(google) {
      return finding(
        sender.hasAccount ? .wrong : .notice,
        "\"\(text)\" does not name Google, through which its mail leaves (\(count))",
        "add include:\(google)", record.including(google))
    }
    if walk.otherwise == nil || walk.otherwise == "?" {
      return finding(
        .notice, "\"\(text)\" says nothing about everybody else (\(count))", "end it with ~all",
        walk.otherwise == nil ? text + " ~all" : text.replacing("?all", with: "~all"))
    }
    return finding(.right, "\"\(text)\" (\(count))")
  }

  private static func merged(_ texts: [String]) -> String {
    var terms: [String] = []
    for term in texts.flatMap({ $0.split(separator: " ").dropFirst().map(String.init) }) {
      let bare = term.lowercased().drop { "+-~?".contains($0) }
      if bare != "all", !terms.contains(term) { terms.append(term) }
    }
    return (["v=spf1"] + terms + ["~all"]).joined(separator: " ")
  }

  /// A record with all that it includes.
  private struct Walk {
    var lookups = 0
    var names: Set<String> = []
    var mistake: String?
    var failure: DNSFailure?
    var otherwise: Character?

    /// Returns false when answers are still missing.
    /// `path` is how it was come to. A record that is included twice is counted twice, as receivers do.
    mutating func visit(_ path: [String], _ record: SPFRecord, _ evidence: inout DNSEvidence) -> Bool {
      lookups += record.lookups
      if names.isEmpty { otherwise = record.otherwise }
      names.formUnion(path)
      var isComplete = true
      for name in record.references {
        if path.contains(name) {
          mistake = mistake ?? "\(name) includes itself, in a circle"
          continue
        }
        // Beyond the limit the verdict is known; whoever goes on could be led in circles.
        guard lookups <= 3 * SPFJudge.lookupLimit else { return isComplete }
        guard let answer = evidence.ask(name, .txt) else {
          isComplete = false
          continue
        }
        if case .failed(let failure) = answer.status {
          self.failure = failure
          continue
        }
        let texts = answer.texts.filter(SPFRecord.isMeant)
        guard texts.count == 1 else {
          mistake = mistake ?? "\(name), which it includes, has \(texts.isEmpty ? "no SPF record" : "several records")"
          continue
        }
        do throws(SPFRecord.Mistake) {
          let next = try SPFRecord(parsing: texts[0])
          if name == record.redirect, otherwise == nil { otherwise = next.otherwise }
          if !visit(path + [name], next, &evidence) { isComplete = false }
        } catch { mistake = mistake ?? "\(name), which it includes: \(error)" }
      }
      return isComplete
    }
  }
}

enum DKIMJudge {
  static func findings(
    _ domain: String, selector: String, _ isThroughGoogle: Bool, _ evidence: inout DNSEvidence
  ) -> [DNSFinding] {
    let name = "\(selector)._domainkey.\(domain)"
    guard let answer = evidence.ask(name, .txt) else { return [] }
    if case .failed(let failure) = answer.status { return [DNSJudge.unanswered(domain, "DKIM", failure)] }
    let console =
      isThroughGoogle
      ? "make a key of 2048 bits in the Google Admin console (Apps, Google Workspace, Gmail, Authenticate email), "
        + "publish it, then press \"Start authentication\" there" : "ask the provider for the record"
    func finding(_ level: DNSFinding.Level, _ detail: String) -> [DNSFinding] {
      [
        .init(
          domain, "DKIM", level, detail, advice: level == .right ? nil : console,
          record: level == .right ? nil : "\(name). IN TXT \"v=DKIM1; k=rsa; p=<key from the console>\"")
      ]
    }
    let keys = answer.texts.compactMap { text -> (text: String, key: String, kind: String)? in
      let tags = tags(of: text)
      guard let key = tags["p"] else { return nil }
      return (text, key, tags["k"] ?? "rsa")
    }
    guard let found = keys.first else {
      return finding(
        .wrong,
        answer.texts.isEmpty
          ? "no key at \(name): mail is signed for gappssmtp.com at best, which DMARC does not accept"
          : "\(name) holds no key: \"\(TerminalText.cut(answer.texts[0], to: 60))\"")
    }
    if keys.count > 1 { return finding(.wrong, "\(keys.count) keys at \(name): keep one") }
    if found.key.isEmpty { return finding(.wrong, "the key at \(name) is revoked (p= is empty)") }
    guard let octets = Base64.decodedCount(found.key) else {
      return finding(.wrong, "the key at \(name) is garbled: p= is not base64")
    }
    guard found.kind == "rsa" else { return finding(.right, "\(name): \(found.kind)") }
    // A SubjectPublicKeyInfo is 38 octets longer than its modulus of 2048 bits, 34 longer than one of 1024.
    let bits = octets >= 550 ? 4096 : octets >= 290 ? 2048 : octets >= 160 ? 1024 : 512
    return bits >= 2048
      ? finding(.right, "\(name): RSA, \(bits) bits") : finding(.notice, "\(name): RSA with only \(bits) bits")
  }

  /// `k=rsa; p=…` (RFC 6376 3.2); white space in a key means nothing.
  private static func tags(of text: String) -> [String: String] {
    var result: [String: String] = [:]
    for part in text.split(separator: ";") {
      guard let equals = part.firstIndex(of: "=") else { continue }
      let name = part[..<equals].filter { !$0.isWhitespace }.lowercased()
      result[name] = part[part.index(after: equals)...].filter { !$0.isWhitespace }
    }
    return result
  }
}

extension Base64 {
  /// How many octets a text stands for; nil when it is not base64.
  fileprivate static func decodedCount(_ text: String) -> Int? {
    let body = text.prefix { $0 != "=" }
    let padding = text.count - body.count
    let isAlphabet = body.utf8.allSatisfy {
      (0x41...0x5a).contains($0) || (0x61...0x7a).contains($0) || (0x30...0x39).contains($0) || $0 == 0x2b || $0 == 0x2f
    }
    guard isAlphabet, padding <= 2, text.dropFirst(body.count).allSatisfy({ $0 == "=" }), text.count % 4 == 0 else {
      return nil
    }
    return text.count / 4 * 3 - padding
  }
}
