// Mappings and users seen together with the domains they name.

import Configuration
import Testing

@Suite struct CrossCheckTests {
  private let local = "[domain:relay.example]\nsmtp_server = localhost\nuse_starttls = no\n"

  private func mapping(_ name: String, _ from: String, _ to: String, _ more: String = "domain = example.com") -> String
  {
    "[mapping:\(name)]\nfrom_pattern = \(from)\nto_pattern = \(to)\n\(more)\n"
  }

  private func mappingErrors(_ text: String) -> [String] {
    errors(configuration(domain: local + upstream, mapping: text))
  }

  @Test(arguments: [
    ("a@relay.example", "b@example.com", "", "1: [mapping:m] needs domain"),
    ("a@relay.example", "", "domain = example.com", "1: [mapping:m] needs to_pattern"),
    (
      "a", "b@example.com", "domain = example.com",
      "2: \"a\" in from_pattern is not an address: the address has no @domain"
    ),
    (
      "*-*@relay.example", "b@example.com", "domain = example.com",
      "2: \"*-*@relay.example\" in from_pattern is not an address: a pattern holds one * at most"
    ),
    (
      "a@relay.example", "b@example.com, *@example.com", "domain = example.com",
      "3: \"*@example.com\" in to_pattern has a *, but from_pattern has none"
    ),
    (
      "a@relay.example", "b@example.com", "domain = example.com\nsmtp_account = c@example.com",
      "5: smtp_account \"c@example.com\" is not the relay_account of [domain:example.com], which is \"a@example.com\""
    ),
    (
      "a@relay.example", "b@example.com", "domain = relay.example",
      "4: domain \"relay.example\" is this relay itself and cannot carry mail to b@example.com; name an upstream"
    ),
    (
      "a@relay.example", "b@relay.example", "domain = example.com",
      "3: \"b@relay.example\" is in a domain of this relay, but no mapping takes it"
    ),
    (
      "a@relay.example", "a+x@relay.example", "domain = example.com",
      "3: the mapping leads back to itself: [mapping:m] → [mapping:m]"
    ),
    (
      "*@relay.example", "*@relay.example", "domain = example.com",
      "3: the mapping leads back to itself: [mapping:m] → [mapping:m]"
    ),
  ])
  func faultyMappingIsReported(from: String, to: String, more: String, diagnostic: String) {
    #expect(mappingErrors(mapping("m", from, to, more)) == ["/c/mappings/m.conf:" + diagnostic])
  }

  @Test func samePatternTwiceNamesBothPlaces() {
    let text = mapping("m", "a@relay.example", "b@example.com") + mapping("n", "A@Relay.Example", "c@example.com")
    #expect(
      mappingErrors(text) == [
        "/c/mappings/m.conf:6: \"A@Relay.Example\" is the pattern of two sections; the other is at /c/mappings/m.conf:2"
      ])
    #expect(mappingErrors(text + "enabled = false\n") == [])
  }

  @Test func loopOfAliasesNamesTheWay() {
    let text =
      mapping("m", "a@relay.example", "b@relay.example") + mapping("n", "b@relay.example", "a@relay.example")
      + mapping("o", "c@relay.example", "a@relay.example")
    #expect(
      mappingErrors(text) == [
        "/c/mappings/m.conf:3: the mapping leads back to itself: [mapping:m] → [mapping:n] → [mapping:m]",
        "/c/mappings/m.conf:7: the mapping leads back to itself: [mapping:n] → [mapping:m] → [mapping:n]",
      ])
  }

  @Test func aliasesThatBranchWithoutEndAreNotFollowedForever() {
    var text = ""
    for level in 0..<9 {
      let targets = (0..<9).map { "l\(level + 1)n\($0)@relay.example" }.joined(separator: ", ")
      for node in 0..<9 { text += mapping("l\(level)n\(node)", "l\(level)n\(node)@relay.example", targets) }
    }
    for node in 0..<9 { text += mapping("l9n\(node)", "l9n\(node)@relay.example", "x@example.com") }
    // What matters is that it returns.
    _ = mappingErrors(text)
  }

  @Test func chainOfAliasesThatLeavesIsFine() {
    #expect(
      mappingErrors(
        mapping("m", "a@relay.example", "b@relay.example", "domain = relay.example")
          + mapping("n", "b@relay.example", "x@example.com")) == [])
  }

  @Test func mappingToADisabledDomainIsAWarning() throws {
    let files = configuration(
      domain: upstream + "enabled = no\n", mapping: mapping("m", "a@relay.example", "b@example.com"))
    #expect(
      try load(files).warnings.map(\.description) == [
        "/c/mappings/m.conf:4: [domain:example.com] is disabled, so [mapping:m] has no effect"
      ])
  }

  @Test func defaultDomainMustBeAnUpstream() {
    #expect(
      errors(configuration(minimal + "default_domain = exampl.com\n", domain: upstream)) == [
        "/c/m.conf:3: default_domain \"exampl.com\" has no section [domain:exampl.com]; did you mean example.com?"
      ])
    #expect(
      errors(configuration(minimal + "default_domain = relay.example\n", domain: local)) == [
        "/c/m.conf:3: default_domain \"relay.example\" is this relay itself; name an upstream"
      ])
  }

  @Test func certificateNeedsItsKeyAndMustBeReadable() {
    #expect(
      errors(configuration(minimal + "tls_certificate = c.pem\n")) == [
        "/c/m.conf:3: tls_certificate \"/c/c.pem\" cannot be read",
        "/c/m.conf:3: tls_certificate needs tls_key as well",
      ])
  }

  @Test(arguments: [
    ("[user:a]", "1: \"a\" is not an address: the address has no @domain"),
    ("[user:*@example.com]", "1: [user:*@example.com] is a pattern; it needs template_address = true"),
    (
      "[user:a@example.com]\ntemplate_address = true",
      "2: template_address needs one * or {type} in [user:a@example.com]"
    ),
    (
      "[user:a@example.com]\ndomain = other.example",
      "2: domain \"other.example\" has no section [domain:other.example]; known domains: example.com"
    ),
    (
      "[user:a@example.com]\nallowed_domains = x y",
      "2: \"x y\" is not a value of allowed_domains, which takes domain names"
    ),
    (
      "[user:x-*@example.com]\ntemplate_address = true\n[user:x-{type}@example.com]\ntemplate_address = true",
      "3: \"x-*@example.com\" is the pattern of two sections; the other is at /c/users/u.conf:1"
    ),
  ])
  func faultyUserIsReported(text: String, diagnostic: String) {
    #expect(errors(configuration(domain: upstream, user: text + "\n")) == ["/c/users/u.conf:" + diagnostic])
  }
}
