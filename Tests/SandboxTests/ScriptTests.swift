// The faults an upstream commits on demand.

import Network
import Primitives
import Sandbox
import Testing

@Suite(.timeLimit(.minutes(1))) struct ScriptTests {
  private let message = "MAIL FROM:<a@example.test>\r\nRCPT TO:<b@example.test>\r\nBDAT 2 LAST\r\nhi"

  @Test func strippedSTARTTLSIsNeitherOfferedNorAccepted() async throws {
    let fixture = try await Fixture([.stripSTARTTLS])
    try await fixture.run(loggedIn: false) { client async throws in
      _ = try await client.reply()
      #expect(try await !client.say("EHLO client.test").contains("STARTTLS"))
      #expect(try await client.say("STARTTLS").hasPrefix("502"))
    }
    #expect(fixture.upstream.statistics.credentialsInClear == 0)
    #expect(fixture.upstream.statistics.handshakes == 0)
  }

  @Test func missingExtensionsAreNotOffered() async throws {
    let fixture = try await Fixture([.noPipelining, .noChunking])
    let ehlo = try await fixture.run { client in try await client.say("EHLO client.test") }
    #expect(!ehlo.contains("PIPELINING") && !ehlo.contains("CHUNKING") && ehlo.contains("8BITMIME"))
  }

  @Test func answerIsGivenAsOftenAsWanted() async throws {
    let fixture = try await Fixture([.answer(.mail, "451 4.3.0 later", times: 2)])
    let codes = try await fixture.run { client async throws in
      var codes: [String] = []
      for _ in 0..<3 { codes.append(String(try await client.say("MAIL FROM:<a@example.test>").prefix(3))) }
      return codes
    }
    #expect(codes == ["451", "451", "250"])
  }

  @Test func rulesChangeWhileItRuns() async throws {
    let fixture = try await Fixture()
    try await fixture.run { client async throws in
      #expect(try await client.say("NOOP").hasPrefix("250"))
      fixture.upstream.follow([.answer(.noop, "421 4.3.0 closing")])
      #expect(try await client.say("NOOP") == "421 4.3.0 closing")
      #expect(try await client.reply() == "", "421 closes the connection")
    }
  }

  @Test func refusedContentIsNotKept() async throws {
    let fixture = try await Fixture([.answer(.content, "550 5.7.1 blocked", times: 1)])
    try await fixture.run { [message] client async throws in
      try await client.send(message + message)
      #expect(try await client.replies(6).map { $0.prefix(3) } == ["250", "250", "550", "250", "250", "250"])
    }
    #expect(fixture.upstream.messages.count == 1)
  }

  @Test func disconnectionAfterTheDotLeavesTheMessageThere() async throws {
    let fixture = try await Fixture([.disconnectAfterDot(times: 1)])
    try await fixture.run { [message] client async throws in
      try await client.send(message)
      var replies: [String] = []
      while let reply = try? await client.reply(), !reply.isEmpty { replies.append(reply) }
      #expect(!replies.contains { $0.hasPrefix("250 2.0.0") })
    }
    #expect(fixture.upstream.messages.count == 1)
    #expect(fixture.upstream.statistics.scriptedFaults == 1)
  }

  @Test func disconnectionInDataLeavesNothing() async throws {
    let fixture = try await Fixture([.disconnectInData(afterBytes: 10)])
    try await fixture.run { client async throws in
      _ = try await client.say("MAIL FROM:<a@example.test>")
      _ = try await client.say("RCPT TO:<b@example.test>")
      _ = try await client.say("DATA")
      try await client.send("0123456789\r\n")
      #expect(try await client.reply() == "")
    }
    #expect(fixture.upstream.messages.isEmpty)
  }

  @Test func rejectedAuthenticationUsesTheGivenReply() async throws {
    let fixture = try await Fixture([.rejectAuth("454 4.7.0 Too many login attempts")])
    let reply = try await fixture.run { client in try await client.say("AUTH PLAIN AGp1bGlhAHNlY3JldA==") }
    #expect(reply == "454 4.7.0 Too many login attempts")
    #expect(fixture.upstream.statistics.authenticationFailures == 2)
  }

  @Test func connectionEndsAfterItsMessages() async throws {
    let fixture = try await Fixture([.closeAfterMessages(1)])
    try await fixture.run { [message] client async throws in
      try await client.send(message)
      _ = try await client.replies(3)
      #expect(try await client.say("MAIL FROM:<a@example.test>").hasPrefix("421 4.7.0"))
      #expect(try await client.reply() == "")
    }
  }

  @Test func hangNeverAnswersUntilItIsStopped() async throws {
    let fixture = try await Fixture([.hang(.noop)])
    try await fixture.run { client async throws in
      try await client.send("NOOP\r\nRSET\r\n")
      await fixture.upstream.wait { $0.scriptedFaults == 1 }
      await fixture.upstream.stop()
      #expect(try await client.reply() == "")
    }
  }

  @Test func delayedReplyComesWhenItsTimeHasCome() async throws {
    let time = ManualTime()
    let fixture = try await Fixture([.delay(.noop, .seconds(3600))]) { $0.time = time }
    try await fixture.run { client async throws in
      try await client.send("RSET\r\nNOOP\r\n")
      #expect(try await client.reply().hasPrefix("250 2.1.5 Flushed"), "the replies before it are not held back")
      while time.nextDeadline == nil { await Task.yield() }
      time.advance(by: .seconds(3600))
      #expect(try await client.reply().hasPrefix("250 2.0.0 OK"))
    }
  }

  @Test func anotherCertificateIsShownFromTheNextHandshakeOn() async throws {
    let (fixture, other) = (try await Fixture(), try await Fixture())
    try fixture.upstream.show(certificateFile: other.directory + "/cert", keyFile: other.directory + "/key")
    await #expect(throws: NetworkError.self) { try await fixture.run { _ in } }
    #expect(fixture.upstream.statistics.authentications == 0)
    await fixture.upstream.stop()
    await other.upstream.stop()
  }
}
