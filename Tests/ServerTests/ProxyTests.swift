// Clients behind a load balancer: the address in the PROXY header is theirs for everything, that of the load balancer
// is good for nothing.

import Primitives
import Testing

@testable import Server

@Suite(.timeLimit(.minutes(1))) struct ProxyTests {
  private func door(trusting networks: [String] = [], _ change: (inout ServerSettings) -> Void = { _ in }) throws
    -> Door
  {
    try Door(trusting: networks) { settings in
      settings.proxyNetworks = [IPNetwork("127.0.0.1")!]
      settings.proxyPatience = .seconds(60)
      change(&settings)
    }
  }

  private static func line(_ source: String) -> String { "PROXY TCP4 \(source) 198.51.100.1 4711 25\r\n" }

  private static let binary: [UInt8] =
    [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 12]
    + [203, 0, 113, 9, 198, 51, 100, 1, 1, 2, 0, 25]

  @Test(arguments: [Array(line("203.0.113.9").utf8), binary]) func headerTellsWhoTheClientIs(header: [UInt8])
    async throws
  {
    let door = try door()
    try await door.connect { client async throws in
      // All in one write: nothing behind the header may be lost.
      try await client.send(header + Array("EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<contact@relay.test>\r\n".utf8))
      #expect(try await client.codes(4).dropFirst(2) == ["250 2.1.0", "250 2.1.5"])
      try await client.send("DATA\r\n")
      #expect(try await client.reply().hasPrefix("354"))
      #expect(try await client.say("Subject: x\r\n\r\nbody\r\n.").hasPrefix("250"))
      try await client.send("RCPT TO:<x@elsewhere.test>\r\n")
    }
    let message = try #require(door.queued.first)
    #expect(message.envelope.clientAddress == "203.0.113.9")
    let text = String(decoding: try await message.content.octets(), as: UTF8.self)
    #expect(text.hasPrefix("Received: from c ([203.0.113.9])\r\n"), "\(text)")
    #expect(!text.contains("127.0.0.1"))
    #expect(await door.lines.line(containing: "\(message.id):").contains("client=203.0.113.9"))
    await door.close()
  }

  @Test func addressInTheHeaderDecidesAboutTrust() async throws {
    let door = try door(trusting: ["192.0.2.0/24", "127.0.0.0/8"])
    // The load balancer is in a trusted network: that makes nobody trusted, whoever it speaks for.
    for (header, reply) in [
      (Self.line("192.0.2.7"), "250 2.1.5"), (Self.line("203.0.113.9"), "550 5.7.1"),
      ("PROXY UNKNOWN\r\n", "550 5.7.1"), (Self.line("127.0.0.1"), "550 5.7.1"), (Self.line("127.0.0.2"), "250 2.1.5"),
    ] {
      try await door.connect { client async throws in
        try await client.send(header + "EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<x@elsewhere.test>\r\n")
        #expect(try await client.codes(4).last == reply, "\(header)")
      }
    }
    await door.close()
  }

  @Test func clientsAreCountedByTheirOwnAddress() async throws {
    let door = try door { $0.maximumConnectionsPerAddress = 1 }
    try await door.connect { first async throws in
      try await first.send(Self.line("203.0.113.9"))
      #expect(try await first.reply().hasPrefix("220"))
      try await door.connect { second async throws in
        try await second.send(Self.line("203.0.113.9"))
        #expect(try await second.reply().contains("from your address"))
      }
      try await door.connect { other async throws in
        try await other.send(Self.line("203.0.113.10"))
        #expect(try await other.reply().hasPrefix("220"))
      }
    }
    await door.close()
  }

  @Test(arguments: ["EHLO client.test\r\n", "PROXY TCP4 nonsense\r\n", "GET / HTTP/1.1\r\n"])
  func connectionWithoutHeaderIsClosed(text: String) async throws {
    let door = try door()
    try await door.connect { client async throws in
      try await client.send(text)
      #expect((try? await client.reply()) ?? "" == "", "not even a banner")
    }
    #expect(await door.lines.line(containing: "PROXY header").contains("proxy_protocol_networks"))
    #expect(door.server.counters.connections == 0)
    await door.close()
  }

  @Test func silentLoadBalancerIsNotWaitedForForEver() async throws {
    let door = try door { $0.proxyPatience = .milliseconds(100) }
    try await door.connect { client async throws in
      try await client.send("PROXY TCP4 203.0.113.9")
      #expect((try? await client.reply()) ?? "" == "")
    }
    #expect(await door.lines.line(containing: "connection closed").contains("timed out: the PROXY header"))
    await door.close()
  }

  @Test func headerFromAnybodyElseIsABadCommand() async throws {
    let door = try Door(trusting: ["192.0.2.0/24"])
    try await door.greet { client async throws in
      #expect(try await client.say("PROXY TCP4 192.0.2.7 198.51.100.1 4711 25").hasPrefix("500 5.5.1"))
      try await client.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<x@elsewhere.test>\r\n")
      #expect(try await client.codes(2) == ["250 2.1.0", "550 5.7.1"])
    }
    await door.close()
  }

  @Test func secondHeaderIsABadCommand() async throws {
    let door = try door(trusting: ["192.0.2.0/24"])
    try await door.connect { client async throws in
      try await client.send(Self.line("203.0.113.9") + Self.line("192.0.2.7"))
      #expect(try await client.codes(2) == ["220 relay.test", "500 5.5.1"])
    }
    await door.close()
  }

  @Test func xclientIsNotOffered() async throws {
    let door = try Door(trusting: ["127.0.0.0/8"])
    try await door.connect { client async throws in
      _ = try await client.reply()
      #expect(try await !client.say("EHLO client.test").contains("XCLIENT"))
      #expect(try await client.say("XCLIENT ADDR=192.0.2.7 NAME=spike").hasPrefix("500 5.5.1"))
    }
    await door.close()
  }

  @Test func headersThatAreAwaitedAreBounded() async throws {
    let door = try door { $0.maximumConnections = 1 }
    try await door.connect { first async throws in
      try await first.send("PROXY ")
      while door.server.proxyWaits == 0 { await Task.yield() }
      try await door.connect { second async throws in #expect(try await second.reply() == "") }
      try await first.send("UNKNOWN\r\n")
      #expect(try await first.reply().hasPrefix("220"))
    }
    await door.close()
  }
}
