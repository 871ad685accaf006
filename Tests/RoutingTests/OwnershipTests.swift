// Who has logged in sends from its own addresses alone.

import Configuration
import Routing
import SMTP
import Testing

@Suite struct OwnershipTests {
  static let hash =
    "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"
  static let users = """
    [user:Alice@example.com]
    password_hash = \(hash)
    send_as = news@example.com, contact-{type}@relay.example
    [user:bob@example.com]
    password_hash = \(hash)
    can_send_from = false
    [user:carol@example.com]
    enabled = false
    password_hash = \(hash)
    [user:news@example.com]
    allowed_domains = example.org

    """
  static let aliases = mappings(
    "team@relay.example -> alice@example.com, bob@example.com", "sales@relay.example -> team@relay.example",
    "*@relay.example -> *@example.com", "other@relay.example -> dave@example.com",
    "deep@relay.example -> alice+deep@example.com")

  private func refusal(_ sender: String, as user: String = "alice@example.com") throws -> String? {
    try router(mappings: Self.aliases, users: Self.users)
      .checkSender(try reverse(sender), client: .authenticated(user))?.description
  }

  @Test(arguments: [
    "alice@example.com", "ALICE@Example.COM", "alice+tag@example.com", "news@example.com", "contact-x@relay.example",
    "team@relay.example", "team+tag@relay.example", "sales@relay.example", "alice@relay.example", "deep@relay.example",
    "",
  ])
  func ownAddressesPass(_ sender: String) throws {
    #expect(try refusal(sender) == nil)
  }

  @Test(arguments: [
    "bob@example.com", "alice@example.org", "alicex@example.com", "other@relay.example", "bob@relay.example",
    "dave@example.com", "contact-@relay.example", "alice@example.com.evil.example", "nobody@relay.example",
  ])
  func othersAddressesAreRefusedByName(_ sender: String) throws {
    #expect(
      try refusal(sender)
        == "550 5.7.1 <\(sender)> is not an address of alice@example.com: send from your own address")
  }

  @Test func policyOfTheIdentityAndOfTheSenderBothHold() throws {
    #expect(try refusal("bob@example.com", as: "bob@example.com") == "550 5.7.1 This sender may not send mail")
    #expect(try refusal("team@relay.example", as: "bob@example.com") == "550 5.7.1 This sender may not send mail")
    #expect(try refusal("", as: "bob@example.com") == "550 5.7.1 This sender may not send mail")
    let relay = try router(mappings: Self.aliases, users: Self.users)
    let alice = ClientStanding.authenticated("alice@example.com")
    #expect(try relay.summary("x@example.net", from: "alice@example.com", alice) == "x@example.net via example.com")
    #expect(
      try relay.summary("x@example.net", from: "news@example.com", alice)
        == "550 5.7.1 This sender may not send to this recipient")
  }

  @Test func othersAreNotAsked() throws {
    let relay = try router(mappings: Self.aliases, users: Self.users)
    for client in [ClientStanding.trusted, .untrusted] {
      #expect(relay.checkSender(try reverse("anyone@example.net"), client: client) == nil)
    }
  }

  @Test func identitiesAreThoseEnabledWithAPassword() throws {
    let identities = try router(mappings: Self.aliases, users: Self.users).identities
    #expect(!identities.isEmpty)
    #expect(identities.login("ALICE@example.com").identity == "Alice@example.com")
    for name in ["carol@example.com", "news@example.com", "alice", "", "alice+tag@example.com", "x@y\0z", "é@x"] {
      let login = identities.login(name)
      #expect(login.identity == nil && login.hash != nil, "\(name) costs as much as a login")
      #expect(login.hash == identities.login(name).hash, "always the same")
      #expect(!identities.isKnown(name, as: login.hash))
    }
    #expect(identities.isKnown("alice@Example.com", as: identities.login("alice@example.com").hash))
    #expect(!identities.isKnown("alice@example.com", as: .unattainable), "another password is another login")
    let nobody = try router().identities
    #expect(nobody.isEmpty && nobody.login("alice@example.com").hash?.method == .yescrypt)
  }

  /// Two mappings that lead to each other through many targets must not cost more than a bound.
  @Test func aliasesThatMultiplyAreGivenUp() throws {
    var lines: [String] = []
    for level in 0..<9 {
      let next = (0..<30).map { "l\(level + 1)-\($0)@relay.example" }.joined(separator: ", ")
      lines.append("l\(level)-*@relay.example -> \(next)")
    }
    lines.append("l9-*@relay.example -> alice@example.com")
    var text = ""
    for (index, line) in lines.enumerated() {
      text += mappings(line).replacing("[mapping:m0]", with: "[mapping:n\(index)]")
    }
    let relay = try router(mappings: text, users: Self.users)
    #expect(relay.checkSender(try reverse("l0-x@relay.example"), client: .authenticated("bob@example.com")) != nil)
  }
}
