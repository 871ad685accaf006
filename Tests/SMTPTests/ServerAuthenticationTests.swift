// The exchange of AUTH as values: challenges, claims, and what is refused.

import Testing

@testable import SMTP

@Suite struct ServerAuthenticationTests {
  /// The outcome of an exchange in a word.
  private func run(_ mechanism: String, _ initial: String?, _ lines: String...) throws -> String {
    var exchange = try #require(ServerAuthentication(mechanism))
    var step = exchange.begin(initial)
    var lines = lines[...]
    var challenges = 0
    while case .challenge(let reply) = step {
      #expect(reply.code == 334 && reply.enhanced == nil)
      challenges += 1
      guard let line = lines.popFirst() else { return "waits after \(challenges)" }
      step = Array(line.utf8).withUnsafeBytes { exchange.receive($0) }
    }
    switch step {
    case .claim(let claim):
      let password = String(decoding: claim.password, as: UTF8.self)
      return "\(claim.username)|\(password)|\(claim.authorizationIdentity)"
    case .refuse(let reply): return "\(reply.code) \(reply.enhanced.map { "\($0)" } ?? "")"
    case .challenge: return "waits"
    }
  }

  @Test func plainAndLoginAreReadInAllTheirForms() throws {
    let plain = SASL.plain(username: "a@b", password: "p w\u{e9}", authorizationIdentity: "z")
    #expect(try run("PLAIN", plain) == "a@b|p w\u{e9}|z")
    #expect(try run("PLAIN", nil, plain) == "a@b|p w\u{e9}|z")
    #expect(try run("PLAIN", nil) == "waits after 1")
    #expect(try run("LOGIN", nil, SASL.login("a@b"), SASL.login("pw")) == "a@b|pw|")
    #expect(try run("LOGIN", SASL.login("a@b"), SASL.login("pw")) == "a@b|pw|")
    #expect(try run("LOGIN", nil, SASL.login("a@b")) == "waits after 2")
    #expect(ServerAuthentication("CRAM-MD5") == nil && ServerAuthentication("plain") == nil)
  }

  @Test(arguments: [
    "*", "", "=", "====", "YQ", "Y Q=", "YQ==\0", "\u{e9}", "EHLO x", "AGEAYgBj", "YWJj", "AAA=", "AGEA",
  ])
  func whatIsNoResponseIsRefused(_ line: String) throws {
    #expect(try run("PLAIN", nil, line).hasPrefix(line == "*" ? "501 5.7.0" : "501 5.5.2"), "\(line)")
  }

  @Test(arguments: ["*", "", "=", "Y Q=", "YQBi", "/w=="]) func loginRefusesNamesAndPasswordsThatAreNone(
    _ line: String
  ) throws {
    let reply = line == "*" ? "501 5.7.0" : "501 5.5.2"
    #expect(try run("LOGIN", nil, line) == reply)
    #expect(try run("LOGIN", SASL.login("a"), line) == reply)
  }
}
