// The keys of submission: what they need, and what is said when it is missing.

import Passwords
import Primitives
import Testing

@testable import Configuration

@Suite struct SubmissionKeyTests {
  static let hash =
    "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"

  private func files(_ global: String = "", user: String? = nil, mode: UInt32 = 0o640, hasCertificate: Bool = true)
    -> MemoryFiles
  {
    var files = configuration(minimal + global + "\n", domain: upstream)
    if let user { files.add("/c/users/u.conf", user, mode: mode) }
    if hasCertificate {
      files.add("/c/ssl/cert.pem", "x")
      files.add("/c/ssl/key.pem", "x")
    }
    return files
  }

  private static let user = "[user:a@example.com]\npassword_hash = \(hash)\n"

  @Test func submissionIsReadWithItsUsers() throws {
    let (settings, warnings) = try load(
      files(
        "listen_submission = 0.0.0.0:587\nlisten_smtps = [::]:465\nauth_max_failures = 3\nauth_ban_time = 1h",
        user: Self.user + "send_as = sales@example.com, contact-{type}@relay.example\n"))
    #expect(warnings.isEmpty)
    #expect(settings.global.listenSubmission == [Endpoint("0.0.0.0:587")!])
    #expect(settings.global.listenSMTPS == [Endpoint("[::]:465")!])
    #expect(settings.global.authMaxFailures == 3 && settings.global.authBanTime == .seconds(3600))
    #expect(settings.users[0].passwordHash?.text == Self.hash)
    #expect(settings.users[0].sendAs.map(\.description) == ["sales@example.com", "contact-*@relay.example"])
    #expect(!settings.describe().contains { $0.value.contains("saltstring") }, "config show keeps the hash")
  }

  @Test(arguments: ["listen_submission", "listen_smtps"]) func submissionNeedsACertificate(_ key: String) {
    let found = errors(files("\(key) = 127.0.0.1:587", user: Self.user, hasCertificate: false))
    #expect(found.count == 1)
    #expect(found.first?.hasPrefix("/c/m.conf:3: \(key) needs a certificate") == true, "\(found)")
    #expect(found.first?.contains("tls_certificate") == true && found.first?.contains("/c/ssl") == true)
  }

  @Test func onePortIsListenedOnOnce() {
    let found = errors(files("listen = 0.0.0.0:587\nlisten_submission = 0.0.0.0:587", user: Self.user))
    #expect(found.first?.contains("listened on already") == true, "\(found)")
  }

  @Test func submissionWithoutAPasswordIsWarnedOf() throws {
    let warnings = try load(files("listen_submission = 0.0.0.0:587")).warnings.map(\.description)
    #expect(warnings.count == 1 && warnings[0].contains("user set-password"), "\(warnings)")
    let disabled = try load(files("listen_submission = 0.0.0.0:587", user: Self.user + "enabled = false\n")).warnings
    #expect(disabled.count == 1)
  }

  @Test func hashThatEveryoneCanReadIsRefused() {
    #expect(
      errors(files(user: Self.user, mode: 0o644)) == [
        "/c/users/u.conf:2: password_hash stands in a file that everyone can read; run: chmod 640 /c/users/u.conf"
      ])
  }

  @Test(arguments: [("secret", "not a hash of crypt(3)"), ("$1$salt$qJH7.N4xYta3aEG/dfqo/0", "method $1$")])
  func hashThatCannotBeUsedIsRefusedWithTheRemedy(_ text: String, _ reason: String) {
    let found = errors(files(user: "[user:a@example.com]\npassword_hash = \(text)\n"))
    #expect(found.count == 1 && found[0].hasPrefix("/c/users/u.conf:2: password_hash cannot be used"), "\(found)")
    #expect(found[0].contains(reason) && found[0].hasSuffix("ssmtp-mailer user set-password a@example.com"))
    #expect(!found[0].contains("qJH7"), "what was meant as a secret is not shown")
  }

  @Test func nobodyLogsInAsAPattern() {
    let found = errors(
      files(user: "[user:a-*@example.com]\ntemplate_address = true\npassword_hash = \(Self.hash)\n"))
    #expect(found.count == 1 && found[0].contains("send_as = a-*@example.com"), "\(found)")
  }

  @Test func domainAtTheSubmissionPortIsThisRelayItself() throws {
    let settings = try load(
      files("listen_submission = 127.0.0.1:5587", user: Self.user + "\n"),
      [("domain:example.com.smtp_server", "localhost:5587")]
    ).settings
    #expect(settings.domains["example.com"]?.isLocal == true)
  }
}
