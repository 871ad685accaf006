// Who mail is from on its way out, and the way home of what comes back to it.

import Configuration
import Primitives
import SMTP
import Testing

@testable import Routing

@Suite struct SenderTests {
  private static let secret = "a secret of some length"
  private static let noon = Timestamp(seconds: 1_790_000_000)
  private static let day = Duration.seconds(86_400)

  private func scheme(_ secrets: [String] = [secret], domain: String = "relay.example") throws -> SenderRewritingScheme
  {
    try #require(SenderRewritingScheme(secrets: secrets, domain: domain))
  }

  private func mailbox(_ text: String) throws -> Mailbox { try Mailbox(parsing: text) }

  // MARK: SRS

  @Test(arguments: ["jane@example.org", "a=b=c@example.org", "\"jane doe\"@example.org", "Jane.Doe+tag@Example.ORG"])
  func senderComesBackFromItsSRSAddress(sender: String) throws {
    let srs = try scheme()
    let forward = try #require(srs.forward(try mailbox(sender), now: Self.noon))
    #expect(forward.domain == "relay.example" && forward.localPart.hasPrefix("SRS0="))
    #expect(srs.claims(forward))
    #expect(try srs.reverse(forward, now: Self.noon + Self.day * 21).description == (try mailbox(sender)).description)
    let lowered = try mailbox(forward.description.lowercased())
    #expect(try srs.reverse(lowered, now: Self.noon) == (try mailbox(sender)), "the case of a local part may change")
  }

  @Test func oldOrFutureAddressIsRefused() throws {
    let srs = try scheme()
    let forward = try #require(srs.forward(try mailbox("jane@example.org"), now: Self.noon))
    for age in [22, 500, -1] {
      #expect(throws: SenderRewritingScheme.Fault.expired) {
        try srs.reverse(forward, now: Self.noon + Self.day * age)
      }
    }
  }

  @Test func everyPartOfTheAddressIsUnderTheHash() throws {
    let srs = try scheme()
    let forward = try #require(srs.forward(try mailbox("jane@example.org"), now: Self.noon))
    let fields = forward.localPart.split(separator: "=").map(String.init)
    let wrong = [1: "AAAAAA", 2: "AA", 3: "example.com", 4: "joe"]
    for (place, text) in wrong {
      var changed = fields
      changed[place] = text
      let address = try Mailbox(localPart: changed.joined(separator: "="), domain: "relay.example")
      #expect(throws: SenderRewritingScheme.Fault.forged, "\(address)") { try srs.reverse(address, now: Self.noon) }
    }
    for short in [
      "SRS0=\(fields[1].prefix(3))=\(fields[2])=example.org=jane", "SRS0==\(fields[2])=example.org=jane", "SRS0=a=b=c=",
    ] {
      let address = try Mailbox(localPart: short, domain: "relay.example")
      #expect(throws: SenderRewritingScheme.Fault.forged) { try srs.reverse(address, now: Self.noon) }
    }
    for broken in ["SRS0=a=b", "SRS1=a=b", "SRS1=a=b=c"] {
      let address = try Mailbox(localPart: broken, domain: "relay.example")
      #expect(throws: SenderRewritingScheme.Fault.self) { try srs.reverse(address, now: Self.noon) }
    }
  }

  @Test func allSecretsVerifyAndTheFirstSigns() throws {
    let old = try scheme()
    let both = try scheme(["another secret of length", Self.secret])
    let sender = try mailbox("jane@example.org")
    let before = try #require(old.forward(sender, now: Self.noon))
    let after = try #require(both.forward(sender, now: Self.noon))
    #expect(before != after)
    #expect(try both.reverse(before, now: Self.noon) == sender)
    #expect(try both.reverse(after, now: Self.noon) == sender)
    #expect(throws: SenderRewritingScheme.Fault.forged) { try old.reverse(after, now: Self.noon) }
  }

  @Test func addressOfAnotherHostIsWrappedOnceAndGoesBackThere() throws {
    let (first, second, third) = (
      try scheme(domain: "one.test"), try scheme(domain: "two.test"), try scheme(["third secret, of length"])
    )
    let one = try #require(first.forward(try mailbox("jane@example.org"), now: Self.noon))
    let two = try #require(second.forward(one, now: Self.noon))
    #expect(two.localPart.hasPrefix("SRS1=") && two.localPart.contains("=one.test=="))
    let three = try #require(third.forward(two, now: Self.noon))
    #expect(three.localPart.contains("=one.test==") && !three.localPart.contains("two.test"))
    #expect(try third.reverse(three, now: Self.noon) == one)
    #expect(try second.reverse(two, now: Self.noon + Self.day * 100) == one, "its age is for the other host to judge")
    let forged = try mailbox(two.description.replacing("one.test", with: "bad.test"))
    #expect(throws: SenderRewritingScheme.Fault.forged) { try second.reverse(forged, now: Self.noon) }
  }

  @Test func separatorOfAnotherHostSurvives() throws {
    let srs = try scheme()
    let theirs = try mailbox("SRS0+abcd=EF=example.org=jane@other.test")
    let ours = try #require(srs.forward(theirs, now: Self.noon))
    #expect(try srs.reverse(ours, now: Self.noon) == theirs)
  }

  @Test func addressThatWouldBeTooLongIsNotMade() throws {
    let sender = try mailbox(String(repeating: "x", count: 50) + "@example.org")
    #expect(try scheme().forward(sender, now: Self.noon) == nil)
  }

  @Test func stampIsTheDayInBase32() {
    #expect(SenderRewritingScheme.stamp(0) == "AA")
    #expect(SenderRewritingScheme.stamp(1023) == "77")
    #expect(SenderRewritingScheme.stamp(1024 + 33) == "BB")
  }

  // MARK: Bounces

  private func srsRouter() throws -> Router {
    try router(
      mappings: mappings("contact-*@relay.example -> *@example.com", "*@relay.example -> all@example.com"),
      domains: domains + "[domain:srs.example]\nsmtp_server = smtp.srs.example\nenvelope_sender = srs\n",
      global: "default_domain = example.com\nsrs_secret = \(Self.secret)")
  }

  private func decide(_ router: Router, _ address: Mailbox, _ sender: String, after: Duration = .zero) -> String {
    guard let path = try? ReversePath(parsing: sender) else { return "no sender" }
    return router.route(recipient: .mailbox(address), sender: path, client: .untrusted, now: Self.noon + after).summary
  }

  @Test func bounceGoesToTheOriginalSenderWhoeverTheClientIs() throws {
    let router = try srsRouter()
    let path = router.outbound.reversePath("jane@elsewhere.test", account: "srs.example", now: Self.noon)
    #expect(path.hasPrefix("SRS0=") && path.hasSuffix("@relay.example"))
    let home = try mailbox(path)
    for sender in ["", "MAILER-DAEMON@mx.test", "Postmaster@mx.test"] {
      #expect(decide(router, home, sender) == "jane@elsewhere.test via example.com")
    }
    let back = router.routeBounce(to: home, from: "srs.example", now: Self.noon)
    #expect(back.map(\.address.description) == ["jane@elsewhere.test"])
  }

  @Test func srsAddressIsNoOpenRelay() throws {
    let router = try srsRouter()
    let home = try mailbox(router.outbound.reversePath("jane@elsewhere.test", account: "srs.example", now: Self.noon))
    #expect(decide(router, home, "spammer@bad.test") == "550 5.7.1 This address takes delivery reports only")
    let refusal = "550 5.7.1 This return address is not valid, or no longer"
    #expect(decide(router, home, "", after: Self.day * 22) == refusal)
    let victim = try mailbox(home.description.replacing("=jane@", with: "=victim@"))
    #expect(decide(router, victim, "") == refusal, "not even the mapping of all addresses takes it")
    let other = try mailbox("SRS0=AAAAAA=AA=bad.test=victim@elsewhere.test")
    #expect(decide(router, other, "") == relayingDenied, "that is another host's")
  }

  @Test(arguments: [
    ("", ""), ("jane@example.com", "jane@example.com"), ("jane@relay.example", "jane@relay.example"),
    ("jane@srs.example", "jane@srs.example"),
  ])
  func nullPathAndOwnSendersStay(path: String, expected: String) throws {
    #expect(try srsRouter().outbound.reversePath(path, account: "srs.example", now: Self.noon) == expected)
  }

  // MARK: From and envelope of an account

  private func outbound(_ keys: String, account: String = "relay@gmail.com") throws -> OutboundSender {
    try router(
      mappings: mappings(
        "contact-*@relay.example -> *@example.com", "sales@relay.example -> s1@example.com, s2@example.com",
        "contact-legal@relay.example -> l@example.com"),
      domains: domains + "[domain:via.example]\nsmtp_server = smtp.via.example\nrelay_account = \(account)\n\(keys)\n"
    ).outbound
  }

  @Test(arguments: [
    (["contact-support@relay.example"], "relay@gmail.com", "Support"),
    (["contact-customer-care+x@relay.example"], "relay@gmail.com", "Customer Care"),
    (["Contact-Legal@relay.example"], "relay@gmail.com", "Legal"),
    (["Sales@relay.example"], "sales@relay.example", "Sales"),
    (["sales@relay.example", "SALES@relay.example"], "sales@relay.example", "Sales"),
    (["sales@relay.example", "contact-a@relay.example"], "relay@gmail.com", "via.example"),
    (["bob@elsewhere.test"], "relay@gmail.com", "via.example"), (["postmaster"], "relay@gmail.com", "via.example"),
  ])
  func aliasIsNamedAndSpeaksForItselfWhenItMay(originals: [String], address: String, label: String) throws {
    let via = try outbound("from_header = via\nsend_as = sales@relay.example, x@relay.example")
      .via(account: "Via.example", recipients: originals)
    let expected = try mailbox(address)
    #expect(via?.address == expected && via?.label == label)
  }

  /// Found by the fuzzer: such an address was rewritten into one whose bounces had no way home.
  @Test func srs1AddressWithoutAHostIsCarriedWhole() throws {
    let scheme = try #require(SenderRewritingScheme(secrets: ["a secret of the tests"], domain: "relay.example"))
    let sender = try mailbox("SRS1=abcdef=hst.==xyz=AA=a.org=j@other.example")
    let forward = try #require(scheme.forward(sender, now: Self.noon))
    #expect(forward.localPart.hasPrefix("SRS0="))
    #expect(try scheme.reverse(forward, now: Self.noon) == sender)
  }

  @Test func accountOfAPublicProviderMakesNobodyElseOurs() throws {
    let outbound = try outbound("from_header = via")
    #expect(outbound.isOurs(try mailbox("relay@gmail.com")))
    #expect(!outbound.isOurs(try mailbox("jane@gmail.com")))
    for own in ["any@example.com", "any@Relay.Example"] { #expect(outbound.isOurs(try mailbox(own))) }
    #expect(outbound.via(account: "example.com", recipients: ["sales@relay.example"]) == nil)
  }

  @Test func relayAccountTakesAllButTheNullPath() throws {
    let outbound = try outbound("envelope_sender = relay_account")
    #expect(outbound.reversePath("jane@example.org", account: "via.example", now: Self.noon) == "relay@gmail.com")
    #expect(outbound.reversePath("jane@example.com", account: "via.example", now: Self.noon) == "relay@gmail.com")
    #expect(outbound.reversePath("", account: "via.example", now: Self.noon) == "")
  }
}
