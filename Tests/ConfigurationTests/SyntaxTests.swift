// What the INI reader takes, and what it says about the rest.

import Configuration
import Testing

@Suite struct SyntaxTests {
  @Test(arguments: [
    ("lisen = 127.0.0.1:25", "/c/m.conf:3: unknown key \"lisen\" in [global]; did you mean listen?"),
    ("max_recipents = 3", "/c/m.conf:3: unknown key \"max_recipents\" in [global]; did you mean max_recipients?"),
    ("log_level INFO", "/c/m.conf:3: \"log_level INFO\" has no \"=\"; write key = value"),
    ("= x", "/c/m.conf:3: \"= x\" has no key before \"=\""),
    (
      "log_level = INFO\nlog_level = ERROR",
      "/c/m.conf:4: key \"log_level\" is set twice in [global]; the first is at /c/m.conf:3"
    ),
    ("log_level = \u{0}INFO", "/c/m.conf:3: the line holds a NUL character: \"log_level = ?INFO\""),
    ("[globl]\nx = y", "/c/m.conf:3: unknown section [globl]; did you mean global?"),
    ("[global", "/c/m.conf:3: section \"[global\" does not end in \"]\""),
    ("[global]", "/c/m.conf:3: section [global] appears twice; the first is at /c/m.conf:1"),
    ("[global:x]", "/c/m.conf:3: section [global] takes no name"),
    ("[domain]", "/c/m.conf:3: section [domain] needs a name: [domain:NAME]"),
    ("[domain:a.example]", "/c/m.conf:3: section [domain:a.example] belongs in /c/domains/a.example.conf"),
    ("[mapping:m]", "/c/m.conf:3: section [mapping:m] belongs in /c/mappings/relay-mappings.conf"),
  ])
  func mistakeIsReportedWithItsPlaceAndTheNearestName(line: String, diagnostic: String) {
    #expect(errors(configuration(minimal + line + "\n")) == [diagnostic])
  }

  @Test func keyBeforeAnySectionIsReported() {
    #expect(errors(configuration("a = b\n" + minimal)) == ["/c/m.conf:1: \"a = b\" stands before the first [section]"])
  }

  @Test(arguments: ["password hunter2", "password_file: hunter2", "password = hunter\u{0}2"])
  func lineThatHoldsAPasswordIsNotPrinted(line: String) {
    let found = errors(configuration(minimal + line + "\n"))
    #expect(found.count == 1)
    #expect(!found.joined().contains("hunter"))
  }

  @Test func invalidUTF8IsReportedWithItsLine() {
    var files = configuration()
    files.files[mainFile]?.bytes += [0x61, 0xff, 0x3d, 0x0a]
    #expect(errors(files) == ["/c/m.conf:3: the line is not valid UTF-8: \"a\u{fffd}=\""])
  }

  @Test func globalOutsideTheMainFileIsSentThere() {
    #expect(
      errors(configuration(user: "[global]\n")) == ["/c/users/u.conf:1: section [global] belongs in /c/m.conf"])
  }

  @Test func byteOrderMarkCarriageReturnsAndCommentsAreTolerated() throws {
    let text = "\u{feff}# a comment\r\n  ; another\r\n[global]\r\n\r\n default_hostname =\trelay.example \r\n"
    #expect(try load(configuration(text)).settings.global.defaultHostname == "relay.example")
  }

  @Test func valueKeepsSignsOfComments() throws {
    let domain = upstream.replacing("hunter2", with: "a;b #c = d")
    #expect(try load(configuration(domain: domain)).settings.domains["example.com"]?.password?.reveal() == "a;b #c = d")
  }

  @Test func allProblemsOfAllFilesAreReportedInOrder() {
    let files = configuration(
      minimal + "log_level = LOUD\nmax_connections = many\n", domain: upstream + "use_ssl = maybe\n",
      mapping: "[mapping:m]\nfrom_pattern = a@relay.example\nto_pattern = b@example.com\ndomain = exmple.com\n")
    #expect(
      errors(files) == [
        "/c/m.conf:3: \"LOUD\" is not a value of log_level; known values: DEBUG, INFO, NOTICE, WARNING, ERROR, CRITICAL",
        "/c/m.conf:4: \"many\" is not a value of max_connections, which takes a number from 1 to 1000",
        "/c/domains/d.conf:7: \"maybe\" is not a value of use_ssl, which takes true, false, yes, no, on or off",
        "/c/mappings/m.conf:4: domain \"exmple.com\" has no section [domain:exmple.com]; did you mean example.com?",
      ])
  }

  @Test func sameSectionInTwoFilesNamesBothPlaces() {
    var files = configuration(domain: upstream)
    files.add("/c/domains/e.conf", upstream.replacing("example.com]", with: "Example.com]"))
    #expect(
      errors(files) == [
        "/c/domains/e.conf:1: section [domain:Example.com] appears twice; the first is at /c/domains/d.conf:1"
      ])
  }

  /// Found by the fuzzer: what is quoted from a file reached the terminal and the log as it was.
  @Test func controlCharactersOfAFileAreShownAndNotSent() {
    let lines = errors(configuration(minimal + "[\u{1b}[31mred]\nlo\u{7f}g = x\u{85}y\n"))
    #expect(!lines.isEmpty)
    for line in lines {
      #expect(line.unicodeScalars.allSatisfy { $0.value >= 0x20 && !(0x7f...0x9f).contains($0.value) }, "\(line)")
    }
    #expect(lines.contains { $0.contains("unknown section [\\u{1B}[31mred]") }, "\(lines)")
  }

  @Test(arguments: ["nobody", "ssmtp-mailer", "_smtp", "mail.relay"]) func userIsTheNameOfAnAccount(_ name: String)
    throws
  {
    #expect(try load(configuration(minimal + "user = \(name)\n")).settings.global.user == name)
  }

  @Test(arguments: ["a b", "-x", "a:b", "a/b", "ü"]) func userThatIsNoNameIsRefused(_ name: String) {
    #expect(
      errors(configuration(minimal + "user = \(name)\n")) == [
        "/c/m.conf:3: user \"\(name)\" is not the name of an account"
      ])
  }

  @Test func missingMainFileIsOneClearError() {
    #expect(errors(MemoryFiles()) == ["/c/m.conf: the configuration cannot be read: No such file or directory"])
  }

  @Test func folderThatDoesNotExistIsAWarning() throws {
    let warnings = try load(configuration(minimal + "users_dir = nowhere\n")).warnings
    #expect(warnings.map(\.description) == ["/c/m.conf:3: users_dir \"/c/nowhere\" does not exist"])
  }
}
