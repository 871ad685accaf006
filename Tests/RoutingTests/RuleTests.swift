// Rules 2 to 4, the sender's policy, and what is said about them.

import Configuration
import Primitives
import Routing
import SMTP
import Testing

@Suite struct RuleTests {
  // MARK: Rule 2

  @Test(arguments: ["nobody@relay.example", "postmaster@relay.example", "postmaster", "noreply@RELAY.example"])
  func localRecipientWithoutAMappingIsUnknown(recipient: String) throws {
    for client in [ClientStanding.untrusted, .trusted, .authenticated("a@example.com")] {
      #expect(try router().summary(recipient, client) == unknownUser)
    }
  }

  @Test(arguments: ["postmaster@relay.example", "postmaster", "PostMaster@Relay.Example"])
  func postmasterGoesWhereItsMappingElseThatOfDefaultFromSays(recipient: String) throws {
    let fallback = "noreply@relay.example -> n@example.com"
    #expect(try router(mappings: mappings(fallback)).summary(recipient) == "n@example.com via example.com")
    let own = mappings(fallback, "postmaster@relay.example -> p@example.com")
    #expect(try router(mappings: own).summary(recipient) == "p@example.com via example.com")
  }

  @Test func everyLocalDomainHasItsPostmaster() throws {
    let router = try router(
      mappings: mappings("noreply@relay.example -> n@example.com"),
      domains: domains + "[domain:second.example]\nsmtp_server = localhost\n")
    #expect(try router.summary("postmaster@second.example") == "n@example.com via example.com")
    #expect(try router.summary("x@second.example", .trusted) == unknownUser)
  }

  // MARK: Rules 3 and 4

  @Test(arguments: [
    // The mapping of the sender, then the sender's domain, the recipient's, the default.
    ("contact@relay.example", "x@example.com", "x@example.com via example.net"),
    ("me@example.net", "x@example.com", "x@example.com via example.net"),
    ("me@Example.NET", "x@foreign.example", "x@foreign.example via example.net"),
    ("me@foreign.example", "x@example.net", "x@example.net via example.net"),
    ("me@foreign.example", "x@foreign.example", "x@foreign.example via example.com"),
    ("", "x@example.net", "x@example.net via example.net"),
    ("", "x@foreign.example", "x@foreign.example via example.com"),
    // A disabled or local [domain:] carries nothing.
    ("me@off.example", "x@off.example", "x@off.example via example.com"),
    ("me@relay.example", "x@foreign.example", "x@foreign.example via example.com"),
  ])
  func clientThatMayRelayIsCarried(sender: String, recipient: String, expected: String) throws {
    let router = try router(mappings: mappings("contact@relay.example -> c@example.net via example.net"))
    #expect(try router.summary(recipient, from: sender, .trusted) == expected)
    #expect(try router.summary(recipient, from: sender, .authenticated("a@example.com")) == expected)
    #expect(try router.summary(recipient, from: sender, .untrusted) == relayingDenied)
  }

  @Test func withoutADefaultDomainThereIsNoRoute() throws {
    let router = try router(global: "")
    #expect(try router.summary("x@foreign.example", .trusted) == noRoute)
    #expect(try router.summary("x@foreign.example", .untrusted) == relayingDenied)
  }

  @Test func disabledDefaultDomainCarriesNothing() throws {
    #expect(try router(global: "default_domain = off.example").summary("x@foreign.example", .trusted) == noRoute)
  }

  @Test(arguments: [
    "x%foreign.example@relay.example", "foreign.example!x@relay.example", "\"x@foreign.example\"@relay.example",
  ])
  func routeHiddenInTheLocalPartIsNoRelay(recipient: String) throws {
    #expect(try router().summary(recipient) == unknownUser)
  }

  @Test func trustFollowsTheNetworks() throws {
    let router = try router(global: "trusted_networks = 192.0.2.0/24, ::1")
    for (text, isTrusted) in [("192.0.2.9", true), ("192.0.3.9", false), ("::1", true), ("127.0.0.1", false)] {
      #expect(router.isTrusted(try #require(IPAddress(text))) == isTrusted)
    }
  }

  // MARK: The sender's policy

  private let table = mappings(
    "sales@relay.example -> s@example.com", "team@relay.example -> s@example.com, x@else.example")

  @Test(arguments: [
    ("[user:u@example.com]\ncan_send_from = false", "u@example.com", false),
    ("[user:u@example.com]\ncan_send_from = false", "U@Example.com", false),
    ("[user:u@example.com]\ncan_send_from = false", "u+tag@example.com", false),
    ("[user:u@example.com]\ncan_send_from = false\nenabled = false", "u@example.com", true),
    ("[user:u@example.com]\ncan_send_from = false", "v@example.com", true),
    ("[user:u@example.com]\ncan_send_from = false", "", true),
    ("[user:no-*@example.com]\ntemplate_address = true\ncan_send_from = false", "no-body@example.com", false),
    ("[user:no-{type}@example.com]\ntemplate_address = true\ncan_send_from = false", "no-body@example.com", false),
    (
      "[user:no-*@example.com]\ntemplate_address = true\ncan_send_from = false\n[user:no-one@example.com]",
      "no-one@example.com", true
    ),
  ])
  func senderMaySendWhenItsUserSaysSo(users: String, sender: String, isAllowed: Bool) throws {
    let refusal = try router(users: users).checkSender(try reverse(sender), client: .trusted)
    #expect(refusal?.description == (isAllowed ? nil : "550 5.7.1 This sender may not send mail"))
  }

  @Test func policyOfTheIdentityHoldsUnderAnotherSender() throws {
    let router = try router(users: "[user:u@example.com]\ncan_send_from = false")
    #expect(router.checkSender(try reverse("v@example.com"), client: .authenticated("u@example.com")) != nil)
    #expect(router.checkSender(try reverse("v@example.com"), client: .authenticated("v@example.com")) == nil)
  }

  @Test(arguments: [
    ("", "x@foreign.example", true),
    ("can_send_to = false", "sales@relay.example", false),
    ("allowed_domains = example.com", "x@example.com", true),
    ("allowed_domains = example.com", "x@foreign.example", false),
    // The new address counts as well as the one that was asked for.
    ("allowed_domains = Example.com", "sales@relay.example", true),
    ("allowed_domains = example.com", "team@relay.example", false),
    ("allowed_domains = relay.example", "team@relay.example", true),
    ("allowed_domains = relay.example", "x@example.com", false),
  ])
  func recipientMustBeAllowedToTheSender(policy: String, recipient: String, isAllowed: Bool) throws {
    let router = try router(mappings: table, users: "[user:u@example.com]\n\(policy)\n")
    let summary = try router.summary(recipient, from: "u@example.com", .trusted)
    #expect((summary == "550 5.7.1 This sender may not send to this recipient") == !isAllowed)
    #expect(try !router.summary(recipient, from: "v@example.com", .trusted).hasPrefix("550"))
  }

  // MARK: Reports and explanations

  @Test func reportGoesBackAlongTheSameRules() throws {
    let router = try router(mappings: table)
    func bounce(_ text: String) throws -> [String] {
      router.routeBounce(to: try Mailbox(parsing: text), from: "example.net").map { "\($0.address) via \($0.account)" }
    }
    #expect(try bounce("sales@relay.example") == ["s@example.com via example.com"])
    #expect(try bounce("x@example.net") == ["x@example.net via example.net"])
    #expect(try bounce("x@foreign.example") == ["x@foreign.example via example.com"])
    #expect(try bounce("nobody@relay.example") == [])
  }

  @Test func reportToAnAliasReachesAllThatItStandsFor() throws {
    let router = try router(mappings: mappings("all@relay.example -> a@example.com, b@example.com"))
    let routes = router.routeBounce(to: try Mailbox(parsing: "all@relay.example"), from: "example.com")
    #expect(routes.map(\.address.description) == ["a@example.com", "b@example.com"])
  }

  @Test func reportThatNoRuleCarriesGoesBackOverTheAccountThatFailed() throws {
    let router = try router(mappings: table, global: "")
    func bounce(_ text: String, from lane: String) throws -> [String] {
      router.routeBounce(to: try Mailbox(parsing: text), from: lane).map { "\($0.address) via \($0.account)" }
    }
    #expect(try bounce("x@foreign.example", from: "example.net") == ["x@foreign.example via example.net"])
    #expect(try bounce("x@foreign.example", from: "example.com") == ["x@foreign.example via example.com"])
    // The one that is disabled, local or gone cannot carry anything; another one can.
    for lane in ["", "relay.example", "gone.example"] {
      #expect(try bounce("x@foreign.example", from: lane) == ["x@foreign.example via example.com"])
    }
    #expect(try bounce("x@example.com", from: "example.net") == ["x@example.com via example.com"])
    #expect(try bounce("nobody@relay.example", from: "example.net") == [], "that is ours, and nobody")
    #expect(try router.summary("x@foreign.example", from: "a@b.example", .trusted) == noRoute)
  }

  @Test func explanationTellsTheStepsAndTheSameDecision() throws {
    let router = try router(mappings: table)
    let explanation = router.explain(
      recipient: try forward("sales@relay.example"), sender: try reverse("a@b.example"), client: .untrusted)
    #expect(
      explanation.steps == [
        "[mapping:m0] sales@relay.example matches the recipient <sales@relay.example>",
        "the new address is <s@example.com>, carried by [domain:example.com]",
      ])
    #expect(explanation.decision.summary == "s@example.com via example.com")
    let relayed = router.explain(
      recipient: try forward("x@foreign.example"), sender: try reverse("a@b.example"), client: .trusted)
    #expect(
      relayed.steps == [
        "no mapping matches the recipient <x@foreign.example>", "the client is trusted",
        "no mapping matches the sender <a@b.example>",
        "no [domain:] that is enabled carries mail of the sender's domain b.example",
        "no [domain:] that is enabled is named after the recipient's domain foreign.example",
        "[domain:example.com] carries it: default_domain",
      ])
  }

  @Test func refusalOfTheSenderIsExplainedFirst() throws {
    let router = try router(users: "[user:u@example.com]\ncan_send_from = false")
    let explanation = router.explain(
      recipient: try forward("x@example.com"), sender: try reverse("u@example.com"), client: .trusted)
    #expect(explanation.steps == ["can_send_from is false for the sender <u@example.com>"])
    #expect(explanation.decision.summary == "550 5.7.1 This sender may not send mail")
  }
}
