// The scenarios as an upstream acts them out, and the conditions that their rules are made of.

import Network
import Primitives
import Sandbox
import Testing

@Suite(.timeLimit(.minutes(1))) struct ScenarioTests {
  private let message = "MAIL FROM:<a@example.test>\r\nRCPT TO:<b@example.test>\r\nBDAT 2 LAST\r\nhi"

  @Test func theDailyLimitComesAfterItsMessages() async throws {
    let fixture = try await Fixture(Scenario.dailyLimit.rules(2))
    try await fixture.run { [message] client async throws in
      try await client.send(message + message + message)
      let replies = try await client.replies(9)
      #expect(replies.map { $0.prefix(3) } == ["250", "250", "250", "250", "250", "250", "250", "250", "550"])
      #expect(replies[8].hasPrefix("550-5.4.5 Daily user sending limit exceeded."))
      #expect(replies[8].hasSuffix("gsmtp") && !replies[8].contains("{id}"))
    }
    #expect(fixture.upstream.messages.count == 2)
  }

  @Test func aGreylistPutsOffEachRecipientByItself() async throws {
    let fixture = try await Fixture(Scenario.greylist.rules(1))
    try await fixture.run { client async throws in
      _ = try await client.say("MAIL FROM:<a@example.test>")
      var codes: [String] = []
      for name in ["b", "c", "b", "c", "c"] {
        codes.append(String(try await client.say("RCPT TO:<\(name)@example.test>").prefix(3)))
      }
      #expect(codes == ["450", "450", "250", "250", "250"])
    }
  }

  @Test func aMessageThatIsTooLargeIsRefusedAtItsSizeAndAtItsEnd() async throws {
    let fixture = try await Fixture(Scenario.size.rules(10))
    try await fixture.run { client async throws in
      #expect(try await client.say("EHLO client.test").contains("SIZE 35882577"))
      #expect(try await client.say("MAIL FROM:<a@example.test> SIZE=11").hasPrefix("552-5.3.4"))
      _ = try await client.say("MAIL FROM:<a@example.test>")
      _ = try await client.say("RCPT TO:<b@example.test>")
      #expect(try await client.say("BDAT 11 LAST\r\n0123456789a").hasPrefix("552-5.3.4"))
    }
    #expect(fixture.upstream.messages.isEmpty)
  }

  @Test func aRuleEndsWithItsTime() async throws {
    let time = ManualTime()
    let fixture = try await Fixture([.lasting(.seconds(30), .answer(.noop, "451 4.3.0 later"))]) { $0.time = time }
    try await fixture.run { client async throws in
      #expect(try await client.say("NOOP").hasPrefix("451"))
      time.advance(by: .seconds(29))
      #expect(try await client.say("NOOP").hasPrefix("451"))
      time.advance(by: .seconds(1))
      #expect(try await client.say("NOOP").hasPrefix("250"))
    }
  }

  @Test func anAddressDiesWithItsConnectionsAndComesBack() async throws {
    let fixture = try await Fixture()
    let first = fixture.upstream.endpoint
    let second = try #require(Endpoint("127.0.0.2:\(first.port)"))
    try fixture.upstream.listen(on: second)
    let rehearsal = Rehearsal([.init(.drift)], on: fixture.upstream, dying: first)
    try await fixture.run { client async throws in
      #expect(try await client.say("NOOP").hasPrefix("250"))
      await rehearsal.begin()
      #expect(try await client.reply() == "", "its connections are cut")
      try Listener(bindingTo: first).close()
      #expect(throws: NetworkError.self) { try Listener(bindingTo: second) }
      try await rehearsal.end()
      #expect(throws: NetworkError.self) { try Listener(bindingTo: first) }
      try await rehearsal.end()
    }
  }

  @Test func aChoiceIsANameWithOrWithoutANumber() throws {
    for scenario in Scenario.allCases {
      #expect(try ScenarioChoice(parsing: scenario.rawValue) == ScenarioChoice(scenario))
      #expect(try ScenarioChoice(parsing: "\(scenario.rawValue):7").description == "\(scenario.rawValue):7")
    }
    for text in ["", "dailylimit", "daily-limit:", "daily-limit:-1", "daily-limit:+1", "daily-limit:x", "size:1:2"] {
      #expect(throws: ScenarioChoice.Mistake.self, "\(text)") { try ScenarioChoice(parsing: text) }
    }
  }

  @Test(arguments: Scenario.allCases) func whatGoogleSaysHasItsForm(scenario: Scenario) {
    guard let reply = scenario.reply else { return }
    let lines = reply.split(separator: "\n")
    let start = lines[0].prefix(3)
    for (number, line) in lines.enumerated() {
      #expect(line.hasPrefix("\(start)\(number == lines.count - 1 ? " " : "-")"), "\(line)")
      #expect(line.dropFirst(4).prefix(5) == lines[0].dropFirst(4).prefix(5), "the enhanced code is on every line")
    }
    #expect(lines.count == 1 || lines.last?.contains("https://support.google.com/") == true)
    #expect(lines.last?.hasSuffix("{id} - gsmtp") == true)
  }
}
