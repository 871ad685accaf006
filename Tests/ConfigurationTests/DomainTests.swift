// Upstreams: ports, TLS, passwords, and what is this relay itself.

import Configuration
import Testing

@Suite struct DomainTests {
  private func domain(_ lines: String, name: String = "example.com", main: String = minimal) throws -> DomainSettings {
    let settings = try load(configuration(main, domain: "[domain:\(name)]\n\(lines)\n")).settings
    return try #require(settings.domains[name])
  }

  @Test(arguments: [
    ("smtp_server = h", UInt16(25), false, false),
    ("smtp_server = h\nuse_starttls = true", 587, false, true),
    ("smtp_server = h\nuse_ssl = true", 465, true, false),
    ("smtp_server = h:2525", 2525, false, false),
    ("smtp_server = h\nsmtp_port = 465", 465, true, false),
    ("smtp_server = h\nsmtp_port = 587", 587, false, true),
    ("smtp_server = h:465\nuse_starttls = yes", 465, false, true),
    ("smtp_server = h\nauth_method = plain\nusername = u\npassword = p", 587, false, true),
  ])
  func portAndTLSFollowFromEachOther(lines: String, port: UInt16, ssl: Bool, startTLS: Bool) throws {
    let domain = try domain(lines)
    #expect(domain.port == port)
    #expect(domain.useSSL == ssl)
    #expect(domain.useStartTLS == startTLS)
  }

  @Test(arguments: [
    ("localhost", UInt16(25), "example.com", true), ("127.0.0.1", 25, "example.com", true),
    ("::1", 25, "example.com", true), ("Relay.Example", 25, "example.com", true),
    ("localhost", 26, "example.com", false), ("smtp.example.com", 25, "example.com", false),
    ("localhost", 26, "relay.example", true), ("127.0.0.2", 9, "relay.example", true),
    ("smtp.example.com", 25, "relay.example", false),
  ])
  func relayKnowsItself(server: String, port: UInt16, name: String, isLocal: Bool) throws {
    #expect(
      try domain("smtp_server = \(server)\nsmtp_port = \(port)\nuse_starttls = false", name: name).isLocal == isLocal)
  }

  @Test func otherListenPortMakesAnotherDomainLocal() throws {
    let main = minimal + "listen = 127.0.0.1:2525\n"
    #expect(try domain("smtp_server = localhost:2525", main: main).isLocal)
    #expect(try !domain("smtp_server = localhost:25", main: main).isLocal)
  }

  @Test(arguments: [
    (
      "smtp_server = h\nauth_method = LOGIN\nusername = u\npassword = p\nuse_starttls = false",
      "3: auth_method LOGIN would send the password in clear to h; set use_starttls = true or use_ssl = true"
    ),
    (
      "smtp_server = h\nuse_ssl = true\nuse_starttls = true",
      "3: use_ssl and use_starttls are both true; TLS starts once"
    ),
    (
      "smtp_server = 192.0.2.1\nuse_ssl = true",
      "2: smtp_server \"192.0.2.1\" is an address; TLS needs tls_server_name, the name of its certificate"
    ),
    (
      "smtp_server = 127.0.0.1:2525\nuse_starttls = true",
      "2: smtp_server \"127.0.0.1\" is an address; TLS needs tls_server_name, the name of its certificate"
    ),
    ("smtp_server = h:26\nsmtp_port = 25", "3: smtp_port 25 contradicts the port of smtp_server \"h:26\""),
    ("smtp_server = h:x", "2: \"h:x\" is not a value of smtp_server, which takes a host, or host:port"),
    ("enabled = true", "1: [domain:example.com] needs smtp_server"),
    (
      "smtp_server = h\nauth_method = PLAIN\npassword = p",
      "3: auth_method PLAIN needs username in [domain:example.com]"
    ),
    (
      "smtp_server = h\nauth_method = PLAIN\nusername = u",
      "3: auth_method PLAIN needs password, password_file, password_command or password_credential in [domain:example.com]"
    ),
    ("smtp_server = h\nauth_method = PLAN", "3: \"PLAN\" is not a value of auth_method; did you mean PLAIN?"),
    ("smtp_server = h\ntls_ca_file = ca.pem", "3: tls_ca_file \"/c/domains/ca.pem\" cannot be read"),
    ("smtp_server = h\ntls_minimum = 1.1", "3: \"1.1\" is not a value of tls_minimum; did you mean 1.2?"),
    (
      "smtp_server = h\npassword = a\npassword_file = b",
      "4: password and password_file are both set in [domain:example.com]; keep one"
    ),
  ])
  func contradictionIsReported(lines: String, diagnostic: String) {
    #expect(
      errors(configuration(domain: "[domain:example.com]\n\(lines)\n")) == ["/c/domains/d.conf:" + diagnostic])
  }

  @Test func passwordInClearIsFineTowardsThisMachine() throws {
    let lines =
      "smtp_server = ::1\nsmtp_port = 2525\nauth_method = LOGIN\nusername = u\npassword = p\nuse_starttls = no"
    #expect(try domain(lines).password?.reveal() == "p")
  }

  @Test func disabledUpstreamNeedsNoPassword() throws {
    #expect(try !domain("enabled = no\nsmtp_server = h\nauth_method = LOGIN").enabled)
  }

  // MARK: Passwords

  private func withSource(_ line: String) -> String { upstream.replacing("password = hunter2", with: line) }

  @Test func passwordMayComeFromAFileACommandOrACredential() throws {
    var files = configuration(domain: withSource("password_file = secret"))
    files.add("/c/domains/secret", "from the file\r\nrest\n", mode: 0o600)
    #expect(try load(files).settings.domains["example.com"]?.password?.reveal() == "from the file")

    files.add("/c/domains/d.conf", withSource("password_command = pass show mail"))
    files.commands["pass show mail"] = "from the command\n"
    #expect(try load(files).settings.domains["example.com"]?.password?.reveal() == "from the command")

    files.add("/c/domains/d.conf", withSource("password_credential = mail"))
    files.add("/run/credentials/x/mail", "from systemd")
    let loaded = try load(files, environment: ["CREDENTIALS_DIRECTORY": "/run/credentials/x"])
    #expect(loaded.settings.domains["example.com"]?.password?.reveal() == "from systemd")
  }

  @Test(arguments: [
    ("password_file = /s", "password_file \"/s\" can be read by everyone; run: chmod 640 /s"),
    ("password_file = /e", "password_file \"/e\" gives no password"),
    ("password_file = /n", "password_file \"/n\" cannot be read: No such file or directory"),
    ("password_command = false", "password_command \"false\" cannot be read: exit status 127"),
    (
      "password_credential = x",
      "password_credential \"x\" needs $CREDENTIALS_DIRECTORY, which systemd sets for LoadCredential="
    ),
  ])
  func sourceWithoutAPasswordIsAnError(line: String, message: String) {
    var files = configuration(domain: withSource(line))
    files.add("/s", "p", mode: 0o644)
    files.add("/e", "\n")
    #expect(errors(files) == ["/c/domains/d.conf:6: " + message])
  }

  @Test func passwordInAFileThatEveryoneReadsIsRefused() {
    var files = configuration()
    files.add("/c/domains/d.conf", upstream, mode: 0o644)
    #expect(
      errors(files) == [
        "/c/domains/d.conf:6: password stands in a file that everyone can read; run: chmod 640 /c/domains/d.conf"
      ])
  }

  @Test func placeholderOfTheSampleIsOnlyAWarning() throws {
    var files = configuration()
    files.add("/c/domains/d.conf", withSource("password = your_gmail_app_password_here"), mode: 0o644)
    #expect(
      try load(files).warnings.map(\.description) == [
        "/c/domains/d.conf:6: password is the placeholder of the sample files; replace it with the account's own"
      ])
  }

  @Test(
    arguments: [
      ("smtp.gmail.com", "", 2000), ("SMTP-relay.gmail.com", "", 10_000), ("smtp.example.com", "", nil),
      ("smtp.gmail.com", "daily_limit = 0", nil), ("smtp.example.com", "daily_limit = 300", 300),
    ] as [(String, String, Int?)])
  func dailyLimitComesFromTheHostUnlessItIsSet(host: String, line: String, limit: Int?) throws {
    let section = "[domain:example.com]\nsmtp_server = \(host)\n\(line)\n"
    #expect(try load(configuration(domain: section)).settings.domains["example.com"]?.dailyLimit == limit)
  }

  @Test func fallbackAccountsKeepTheirOrder() throws {
    let files = configuration(domain: chain("a.test: C.test, b.test", "b.test:", "C.test: b.test"))
    let settings = try load(files).settings
    #expect(settings.domains["a.test"]?.fallbackAccounts == ["c.test", "b.test"])
    #expect(settings.domains["c.test"]?.fallbackAccounts == ["b.test"])
  }

  @Test(
    arguments: [
      (["a.test: a.test", "b.test:"], [3: "fallback_account \"a.test\" is [domain:a.test] itself; name another one"]),
      (["a.test: b.tset", "b.test:"], [3: "fallback_account \"b.tset\" has no section [domain:b.tset]"]),
      (["a.test: b.test, b.test", "b.test:"], [3: "fallback_account names \"b.test\" twice"]),
      (
        ["a.test: b.test", "b.test: c.test", "c.test: a.test", "d.test: a.test"],
        [
          3: "[domain:a.test] → [domain:b.test] → [domain:c.test] → [domain:a.test]; one of them has to be the last",
          6: "[domain:b.test] → [domain:c.test] → [domain:a.test] → [domain:b.test]", 9: "leads back to where it began",
        ]
      ),
    ] as [([String], [Int: String])])
  func fallbackThatLeadsNowhereIsAnError(sections: [String], expected: [Int: String]) {
    let found = errors(configuration(domain: chain(sections)))
    #expect(found.count == expected.count, "\(found)")
    for (line, text) in expected {
      #expect(found.contains { $0.hasPrefix("/c/domains/d.conf:\(line): ") && $0.contains(text) }, "\(found)")
    }
  }

  @Test func fallbackThatIsThisRelayOrDisabledIsPointedOut() throws {
    let local = "[domain:relay.example]\nsmtp_server = localhost\n"
    #expect(
      errors(configuration(domain: chain("a.test: relay.example") + local)) == [
        "/c/domains/d.conf:3: fallback_account \"relay.example\" is this relay itself; name an upstream"
      ])
    let files = configuration(domain: chain("a.test: b.test", "b.test:") + "enabled = false\n")
    #expect(
      try load(files).warnings.map(\.description) == [
        "/c/domains/d.conf:3: [domain:b.test] is disabled, so it carries nothing as a fallback_account"
      ])
  }

  private func chain(_ sections: String...) -> String { chain(sections) }

  /// `name: fallback, fallback` as sections of three lines.
  private func chain(_ sections: [String]) -> String {
    sections.map { section in
      let parts = section.split(separator: ":", maxSplits: 1)
      let list = parts.count > 1 ? parts[1].trimmingPrefix(" ") : ""
      let line = list.isEmpty ? "smtp_port = 25" : "fallback_account = \(list)"
      return "[domain:\(parts[0])]\nsmtp_server = smtp.\(parts[0])\n\(line)\n"
    }.joined()
  }
}
