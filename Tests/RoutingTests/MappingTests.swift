// Rule 1: what a mapping makes of a recipient.

import Configuration
import Routing
import SMTP
import Testing

@Suite struct MappingTests {
  @Test(arguments: [
    // An exact address wins over a pattern, a longer pattern over a shorter one.
    ("sales@relay.example", "exact@example.com via example.com"),
    ("SALES@Relay.EXAMPLE", "exact@example.com via example.com"),
    ("contact-us@relay.example", "us@example.net via example.net"),
    ("contact-x-y@relay.example", "x-y@example.net via example.net"),
    ("contact-urgent-Bob@relay.example", "Bob@urgent.example via example.com"),
    ("anyone@relay.example", "anyone@example.com via example.com"),
    ("contact-@relay.example", "contact-@example.com via example.com"),
    ("info@shop.example", "shop@example.com via example.com"),
    // A tag is set aside when nothing names it exactly, and kept.
    ("sales+2026@relay.example", "exact+2026@example.com via example.com"),
    ("sales+known@relay.example", "known@example.com via example.com"),
    ("sales+a+b@relay.example", "exact+a+b@example.com via example.com"),
    ("contact-us+t@relay.example", "us+t@example.net via example.net"),
    ("+t@relay.example", "+t@example.com via example.com"),
    // Several targets, and chains that stay here for a while.
    ("team@relay.example", "a@example.com via example.com, b@other.example via example.com"),
    ("alias@relay.example", "exact@example.com via example.com"),
    (
      "all@relay.example",
      "a@example.com via example.com, b@other.example via example.com, exact@example.com via example.com"
    ),
    (
      "all+t@relay.example",
      "a+t@example.com via example.com, b+t@other.example via example.com, exact+t@example.com via example.com"
    ),
    // A foreign address that is mapped goes its way for any client.
    ("old@example.org", "new@example.com via example.com"),
  ])
  func mappingGivesTheNewAddressAndItsCarrier(recipient: String, expected: String) throws {
    let table = mappings(
      "sales@relay.example -> exact@example.com", "sales+known@relay.example -> known@example.com",
      "contact-*@relay.example -> *@example.net via example.net",
      "contact-urgent-*@relay.example -> *@urgent.example", "*@relay.example -> *@example.com",
      "info@*.example -> shop@example.com", "team@relay.example -> a@example.com, b@other.example",
      "alias@relay.example -> sales@relay.example",
      "all@relay.example -> team@relay.example, alias@relay.example, sales@relay.example",
      "old@example.org -> new@example.com")
    #expect(try router(mappings: table).summary(recipient) == expected)
  }

  @Test func tagMatchesAPatternOnlyWhenTheWholeAddressDoesNot() throws {
    let router = try router(mappings: mappings("*-in@relay.example -> *@example.com"))
    #expect(try router.summary("bob-in+x@relay.example") == "bob+x@example.com via example.com")
    #expect(try router.summary("bob+x-in@relay.example") == "bob+x@example.com via example.com")
    #expect(try router.summary("bob@relay.example") == unknownUser)
  }

  @Test func disabledMappingIsNotThere() throws {
    let table = mappings("*@relay.example -> any@example.com", "sales@relay.example -> s@example.com")
    #expect(try router(mappings: table).summary("sales@relay.example") == "s@example.com via example.com")
    #expect(
      try router(mappings: table + "enabled = false\n").summary("sales@relay.example")
        == "any@example.com via example.com")
  }

  @Test func mappingToADisabledDomainIsNotThere() throws {
    let router = try router(mappings: mappings("sales@relay.example -> s@x.example via off.example"))
    #expect(try router.summary("sales@relay.example") == unknownUser)
  }

  @Test func newAddressThatIsNotValidIsRefused() throws {
    let router = try router(mappings: mappings("*@relay.example -> list-*@example.com"))
    #expect(
      try router.summary("\"a b\"@relay.example") == "550 5.1.3 The address this recipient stands for is not valid")
    let long = String(repeating: "x", count: 62)
    #expect(
      try router.summary("\(long)@relay.example") == "550 5.1.3 The address this recipient stands for is not valid")
  }

  @Test func loopThatOnlySomeAddressesEnterIsRefused() throws {
    // The check at start tries one address, and that one happens to leave.
    let router = try router(
      mappings: mappings("*@relay.example -> *@relay.example", "someone-else@relay.example -> s@example.com"))
    #expect(try router.summary("someone-else@relay.example") == "s@example.com via example.com")
    #expect(try router.summary("bob@relay.example") == "550 5.4.6 Too many mappings follow each other")
  }

  @Test func quotedLocalPartMatchesItsPlainForm() throws {
    let router = try router(mappings: mappings("sales@relay.example -> s@example.com"))
    #expect(try router.summary("\"sales\"@relay.example") == "s@example.com via example.com")
  }
}
