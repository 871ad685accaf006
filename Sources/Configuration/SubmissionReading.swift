// The keys of submission: where users hand in mail, their passwords, what they may send as, and how much guessing is
// borne.

import Passwords
import Primitives

extension GlobalSettings {
  /// Behind the certificate: without one nobody can log in.
  mutating func readSubmission(_ reader: inout SectionReader, _ findings: inout Findings) {
    authMaxFailures = reader.count("auth_max_failures", default: authMaxFailures, in: 0...1000, &findings)
    authBanTime = reader.duration("auth_ban_time", default: authBanTime, &findings)
    var known = Set(listen)
    for (key, endpoints) in [("listen_submission", listenSubmission), ("listen_smtps", listenSMTPS)] {
      if let double = endpoints.first(where: { $0.port != 0 && !known.insert($0).inserted }) {
        findings.error(reader.place(key), "\(key) names \(double), which is listened on already; give it another port")
      }
      guard !endpoints.isEmpty, tlsCertificate == nil, !reader.isSet("tls_key") else { continue }
      findings.error(
        reader.place(key),
        "\(key) needs a certificate, because passwords are sent there: set tls_certificate and tls_key, or put "
          + "cert.pem and key.pem into \(sslDir)")
    }
  }
}

extension UserSettings {
  mutating func readLogin(_ reader: inout SectionReader, files: any FileSource, _ findings: inout Findings) {
    sendAs = reader.list(
      "send_as", default: [], wanted: "addresses, or patterns such as contact-*@example.com", show: \.description,
      &findings
    ) { try? AddressPattern($0.replacing("{type}", with: "*")) }
    guard let text = reader.secret("password_hash")?.reveal() else {
      if !sendAs.isEmpty {
        findings.warning(reader.place("send_as"), "send_as has no effect without password_hash: nobody can log in")
      }
      return
    }
    let place = reader.place("password_hash")
    if address.isWildcard {
      findings.error(
        place,
        "password_hash in \(reader.section.title): nobody can log in as a pattern; give one user the password and "
          + "send_as = \(address)")
      return
    }
    if case .file(let path, _) = place, let mode = files.mode(path), mode & 0o004 != 0 {
      findings.error(place, "password_hash stands in a file that everyone can read; run: chmod 640 \(path)")
      return
    }
    do throws(PasswordHash.Fault) { passwordHash = try PasswordHash(text) } catch {
      findings.error(
        place, "password_hash cannot be used: \(error); set it with: ssmtp-mailer user set-password \(address)")
    }
  }
}

extension CrossChecks {
  /// A door with a lock and no key.
  func checkLogins(_ settings: Settings, _ findings: inout Findings) {
    let global = settings.global
    guard !settings.users.contains(where: { $0.enabled && $0.passwordHash != nil }) else { return }
    for (key, endpoints) in [("listen_submission", global.listenSubmission), ("listen_smtps", global.listenSMTPS)]
    where !endpoints.isEmpty {
      return findings.warning(
        self.global.place(key),
        "\(key) is set, but no [user:] has a password_hash, so that nobody can log in; "
          + "set one with: ssmtp-mailer user set-password ADDRESS")
    }
  }
}
