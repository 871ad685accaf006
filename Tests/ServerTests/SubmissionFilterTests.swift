// A user on the submission port, behind a load balancer, with lists and filters: all of them at once.

import Filters
import Network
import Primitives
import TestSupport
import Testing

@testable import Server

@Suite(.timeLimit(.minutes(1))) struct SubmissionFilterTests {
  @Test(arguments: [ListenerRole.smtps, .submission])
  func userBehindALoadBalancerIsHimselfToFiltersAndNoMatterOfLists(role: ListenerRole) async throws {
    let (ours, theirs) = try makeTLS()
    let milter = try ScriptedMilter()
    let oracle = Oracle("127.0.0.2")
    let router = try LoginTests.router()
    let time = ManualTime()
    let door = try Door(role: role) { settings in
      settings.router = router
      settings.tls = ours
      settings.proxyNetworks = [IPNetwork("127.0.0.1")!]
      settings.proxyPatience = .seconds(60)
      settings.milters = [
        Milter(
          MilterSettings(name: "milter", address: milter.address), time: time,
          resolver: Resolver(source: SystemNames(), time: time), log: LogLines().logger)
      ]
      settings.dnsLists = DNSLists(
        [DNSListSettings(domain: "bl.test")], source: oracle, time: time, timeout: .seconds(5), log: LogLines().logger)
    }
    try await door.connect { client async throws in
      // The ClientHello comes right behind the header.
      try await client.send("PROXY TCP4 203.0.113.9 198.51.100.1 4711 465\r\n")
      if role == .smtps {
        try await client.startTLS(theirs)
        #expect(try await client.reply().hasPrefix("220"))
      } else {
        #expect(try await client.reply().hasPrefix("220"))
        _ = try await client.say("EHLO client.test")
        #expect(try await client.say("STARTTLS").hasPrefix("220"))
        try await client.startTLS(theirs)
      }
      _ = try await client.say("EHLO client.test")
      #expect(try await client.say("AUTH PLAIN \(LoginTests.plain)").hasPrefix("235"))
      try await client.send("MAIL FROM:<\(LoginTests.user)>\r\nRCPT TO:<someone@elsewhere.test>\r\nDATA\r\n")
      #expect(try await client.codes(3) == ["250 2.1.0", "250 2.1.5", "354"], "who has logged in is on no list")
      #expect(try await client.say("Subject: x\r\n\r\nbody\r\n.").hasPrefix("250"))
    }
    let message = try #require(door.queued.first)
    #expect(message.envelope.clientAddress == "203.0.113.9")
    #expect(milter.all("C")[0].words[0].hasPrefix("[203.0.113.9]"))
    #expect(milter.macro("{client_port}", for: "C") == "4711")
    #expect(milter.macro("{if_addr}", for: "C") == "198.51.100.1")
    #expect(milter.macro("{daemon_name}", for: "C") == role.rawValue)
    #expect(milter.macro("{tls_version}", for: "H") == "TLSv1.3")
    #expect(milter.macro("{auth_authen}", for: "M") == LoginTests.user)
    // What the relay completes in a submitted message is there to be signed.
    #expect(Set(milter.all("L").map(\.words[0])) == ["Subject", "Date", "Message-ID"])
    await door.close()
    await milter.stop()
  }
}
