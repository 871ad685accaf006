// Typed values: what each kind takes, its default, and where it came from.

import Configuration
import Primitives
import Testing

@Suite struct ValueTests {
  private func global(_ lines: String) throws -> GlobalSettings {
    try load(configuration(minimal + lines + "\n")).settings.global
  }

  @Test(arguments: [
    ("45", 45), ("45s", 45), ("5m", 300), ("4h", 14_400), ("5d", 432_000),
  ])
  func durationHasAUnit(text: String, seconds: Int) throws {
    #expect(try global("read_timeout = \(text)").readTimeout == .seconds(seconds))
  }

  @Test(arguments: ["-1", "5 m", "m", "1w", "0", "99999999999999999999d", "1.5h"])
  func otherTextIsNoDuration(text: String) {
    #expect(
      errors(configuration(minimal + "read_timeout = \(text)\n")) == [
        "/c/m.conf:3: \"\(text)\" is not a value of read_timeout, which takes a duration such as 30s, 5m, 4h or 5d, "
          + "of 36525d at most"
      ])
  }

  @Test(arguments: [("25M", 26_214_400), ("35882577", 35_882_577), ("64k", 65_536), ("1G", 1_073_741_824)])
  func sizeHasAUnit(text: String, octets: Int) throws {
    #expect(try global("max_message_size = \(text)").maxMessageSize == octets)
  }

  @Test(arguments: [("true", true), ("Yes", true), ("on", true), ("FALSE", false), ("no", false), ("off", false)])
  func booleanHasThreeNames(text: String, value: Bool) throws {
    #expect(try global("enable_rate_limiting = \(text)").enableRateLimiting == value)
  }

  @Test func listsAreSeparatedByCommas() throws {
    let values = try global(
      "listen = 127.0.0.1:2525,[::1]:2525\ntrusted_networks = 10.0.0.0/8 , ::1\nretry_schedule = 1m, 2h")
    #expect(values.listen.map(\.description) == ["127.0.0.1:2525", "[::1]:2525"])
    #expect(values.trustedNetworks.map(\.description) == ["10.0.0.0/8", "::1/128"])
    #expect(values.retrySchedule == [.seconds(60), .seconds(7200)])
  }

  @Test func eachItemOfAListIsChecked() {
    #expect(
      errors(configuration(minimal + "trusted_networks = 10.0.0.0/8, 10.0.0.0/33\nlisten = localhost:25\n")) == [
        "/c/m.conf:3: \"10.0.0.0/33\" is not a value of trusted_networks, which takes addresses and networks such as 192.0.2.0/24",
        "/c/m.conf:4: \"localhost:25\" is not a value of listen, which takes addresses with ports such as 127.0.0.1:25 or [::1]:25, or off",
      ])
  }

  @Test(arguments: [
    ("journal", LogFile.journal), ("stderr", .stderr), ("/var/log/x.log", .path("/var/log/x.log")),
    ("x.log", .path("/c/x.log")),
  ])
  func logGoesToTheJournalToStderrOrToAFile(text: String, destination: LogFile) throws {
    #expect(try global("log_file = \(text)").logFile == destination)
  }

  @Test func durationOfACenturyIsTheLongest() throws {
    let values = try global(
      "queue_lifetime = 36525d\ndelay_warning = 3155760000\nretry_schedule = 36525d, 876600h\nread_timeout = 36525d")
    #expect(values.queueLifetime == .seconds(3_155_760_000) && values.delayWarning == values.queueLifetime)
    #expect(values.retrySchedule == [values.queueLifetime, values.queueLifetime])
    let keys = ["queue_lifetime", "delay_warning", "retry_schedule", "client_timeout", "auth_ban_time"]
    for key in keys {
      for text in ["36526d", "3155760001", "999999999d", "9223372036854775807"] {
        let errors = errors(configuration(minimal + "\(key) = \(text)\n"))
        #expect(errors.first?.contains("/c/m.conf:3") == true, "\(errors)")
        #expect(
          errors.first?.contains(text) == true && errors.first?.contains("of 36525d at most") == true, "\(errors)")
      }
    }
  }

  @Test func defaultsAreThoseOfTheInterface() throws {
    let values = try global("")
    #expect(values.listen.map(\.description) == ["0.0.0.0:25", "[::]:25"])
    #expect(values.trustedNetworks.map(\.description) == ["127.0.0.0/8", "::1/128"])
    #expect(values.maxMessageSize == 35_882_577)
    #expect(values.maxRecipients == 100)
    #expect(values.clientTimeout == .seconds(300))
    #expect(values.queueDir == "/var/lib/ssmtp-mailer")
    #expect(values.queueLifetime == .seconds(432_000))
    #expect(values.retrySchedule == [60, 300, 900, 1800, 3600, 7200, 14_400].map { .seconds($0) })
    #expect(values.rateLimitBurst == 10)
    #expect(values.tlsCertificate == nil)
    #expect(values.domainsDir == "/c/domains")
  }

  @Test func onlyUpstreamIsTheDefaultDomain() throws {
    let two = upstream + upstream.replacing("[domain:example.com]", with: "[domain:example.net]")
    #expect(try load(configuration(domain: upstream)).settings.global.defaultDomain == "example.com")
    #expect(try load(configuration(domain: two)).settings.global.defaultDomain == nil)
  }

  @Test func certificateBesideTheConfigurationIsTakenWithItsKey() throws {
    var files = configuration()
    files.add("/c/ssl/cert.pem", "")
    #expect(try load(files).settings.global.tlsCertificate == nil)
    files.add("/c/ssl/key.pem", "")
    #expect(try load(files).settings.global.tlsCertificate == "/c/ssl/cert.pem")
    #expect(try load(files).settings.global.tlsKey == "/c/ssl/key.pem")
  }

  @Test func describeNamesTheOriginOfEveryValueAndHidesSecrets() throws {
    let settings = try load(configuration(domain: upstream), [("global.listen", "127.0.0.1:2525")]).settings
    func line(_ section: String, _ key: String) -> String? {
      settings.describe().first { $0.section == section && $0.key == key }.map { "\($0.value) (\($0.origin))" }
    }
    #expect(line("global", "default_hostname") == "relay.example (/c/m.conf:2)")
    #expect(line("global", "listen") == "127.0.0.1:2525 (command line)")
    #expect(line("global", "queue_lifetime") == "5d (default)")
    #expect(line("global", "default_domain") == "example.com (default)")
    #expect(line("domain:example.com", "password") == "<redacted> (/c/domains/d.conf:6)")
    #expect(line("domain:example.com", "smtp_port") == "587 (default)")
    #expect(!settings.describe().contains { $0.value.contains("hunter2") })
    var dumped = ""
    dump(settings, to: &dumped)
    #expect(!"\(settings)\(dumped)".contains("hunter2"))
  }

  @Test func commandLineReachesSectionsWithDotsInTheirNames() throws {
    let overrides = [(key: "domain:example.com.smtp_port", value: "2587")]
    #expect(try load(configuration(domain: upstream), overrides).settings.domains["example.com"]?.port == 2587)
  }

  @Test func commandLineIsCheckedLikeAFile() {
    let overrides = [
      (key: "global.lisen", value: "x"), (key: "domain:exampel.com.smtp_port", value: "1"),
      (key: "global.max_recipients", value: "none"), (key: "listen", value: "x"),
    ]
    #expect(
      errors(configuration(domain: upstream), overrides) == [
        "command line: \"listen\" is not SECTION.KEY, such as global.listen",
        "command line: \"none\" is not a value of max_recipients, which takes a number from 1 to 10000",
        "command line: unknown key \"lisen\" in [global]; did you mean listen?",
        "command line: there is no section [domain:exampel.com]; did you mean domain:example.com?",
      ])
  }
}
