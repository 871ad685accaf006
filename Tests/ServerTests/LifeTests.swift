// The life of sessions: limits on connections, silence, TLS, reload and stop.

import Network
import Primitives
import TestSupport
import Testing

@testable import Server

@Suite struct LifeTests {
  static let open = "MAIL FROM:<a@b>\r\nRCPT TO:<contact@relay.test>\r\n"

  @Test(arguments: [(1, 50), (50, 1)]) func oneConnectionTooManyIsRefusedWithAReply(
    _ total: Int, _ perAddress: Int
  ) async throws {
    let door = try Door {
      $0.maximumConnections = total
      $0.maximumConnectionsPerAddress = perAddress
    }
    try await door.greet { first async throws in
      try await door.connect { second async throws in
        // It talks before it listens: the refusal must reach it all the same.
        try await second.send("EHLO hasty.test\r\n" + String(repeating: "NOOP\r\n", count: 1000))
        #expect(try await second.reply().hasPrefix("421 4.7.0 relay.test has too many connections"))
        #expect(try await second.reply() == "", "an end, not a reset")
      }
      #expect(await door.lines.line(containing: "turned away").hasPrefix("warning: 127.0.0.1"))
      let farewell = try await first.say("QUIT")
      #expect(farewell.hasPrefix("221"), "\(farewell); \(door.lines.all)")
      #expect(try await first.reply() == "")
    }
    #expect(door.server.counters.refusedConnections == 1 && door.server.counters.connections == 2)
    await door.close()
    #expect(door.server.counters.openSessions == 0)
  }

  @Test func placeIsFreeAgainWhenAClientHasGone() async throws {
    let door = try Door { $0.maximumConnections = 1 }
    for _ in 0..<3 {
      // The server counts a client out a moment after the client sees the end.
      var isIn = false
      while !isIn {
        isIn = try await door.connect { client async throws in
          let banner = try await client.reply()
          guard banner.hasPrefix("220") else { return false }
          #expect(try await client.say("QUIT").hasPrefix("221"))
          return true
        }
      }
    }
    await door.close()
  }

  @Test(arguments: ["", "NOO", Self.open + "DATA\r\n", Self.open + "BDAT 10\r\nabc"])
  func silentClientIsToldSoAndSentAway(_ last: String) async throws {
    let door = try Door()
    try await door.greet { client async throws in
      door.losePatience()
      // In one write: the new patience holds from here on, and a slow machine must not run out of it before.
      try await client.send("NOOP\r\n" + last)
      _ = try await client.codes(1 + last.count { $0 == "\r\n" } - (last.contains("BDAT") ? 1 : 0))
      #expect(try await client.reply().hasPrefix("421 4.4.2"))
      #expect(try await client.reply() == "")
    }
    #expect(await door.lines.line(containing: "timed out").hasPrefix("info: 127.0.0.1"))
    await door.close()
    #expect(door.queued.isEmpty)
  }

  @Test func lineThatNeverEndsIsWaitedForOnlySoLong() async throws {
    let door = try Door()
    try await door.greet { client async throws in
      door.losePatience()
      #expect(try await client.say("NOOP").hasPrefix("250"))
      let drip = Task { while !Task.isCancelled { try await client.send("x") } }
      #expect(try await client.reply().hasPrefix("421 4.4.2"), "each octet alone must not win more time")
      drip.cancel()
      _ = await drip.result
    }
    await door.close()
  }

  // MARK: TLS

  @Test func mailUnderTLSSaysSoAndNothingSurvivesTheHandshake() async throws {
    let tls = try makeTLS()
    let door = try Door { $0.tls = tls.server }
    try await door.connect { client async throws in
      _ = try await client.reply()
      #expect(try await client.say("EHLO client.test").contains("250-STARTTLS"))
      // What an attacker in the middle has added must not be run as the client's.
      try await client.send("STARTTLS\r\nMAIL FROM:<evil@b>\r\nRCPT TO:<contact@relay.test>\r\n")
      #expect(try await client.reply().hasPrefix("220 2.0.0"))
      try await client.startTLS(tls.client)
      #expect(try await client.say("MAIL FROM:<a@b>").hasPrefix("503 5.5.1"), "neither EHLO nor MAIL counts")
      #expect(!(try await client.say("EHLO client.test")).contains("STARTTLS"))
      #expect(try await client.say("STARTTLS").hasPrefix("503"))
      #expect(try await client.mail("under cover").hasPrefix("250"))
      #expect(try await client.say("QUIT").hasPrefix("221"))
      #expect(try await client.reply() == "")
    }
    let text = String(decoding: try await #require(door.queued.first).content.octets(), as: UTF8.self)
    #expect(text.contains("with ESMTPS\r\n\t(TLSv1.3 TLS_"))
    #expect(door.queued.map(\.envelope.reversePath) == ["a@b.test"])
    await door.close()
  }

  @Test func failedHandshakeEndsTheSessionOnly() async throws {
    let tls = try makeTLS()
    let door = try Door { $0.tls = tls.server }
    try await door.greet { client async throws in
      #expect(try await client.say("STARTTLS").hasPrefix("220"))
      try await client.send("EHLO this is no TLS\r\n")
      #expect(await door.lines.line(containing: "TLS").contains("session ended"))
    }
    try await door.greet { client async throws in #expect(try await client.mail("x").hasPrefix("250")) }
    await door.close()
  }

  @Test func startTLSWithoutACertificateIsRefused() async throws {
    let door = try Door()
    try await door.greet { client async throws in #expect(try await client.say("STARTTLS").hasPrefix("502 5.5.1")) }
    await door.close()
  }

  // MARK: Reload

  @Test func newSettingsBeginWithTheNextTransaction() async throws {
    let tls = try makeTLS()
    let door = try Door { $0.tls = tls.server }
    try await door.greet { client async throws in
      try await client.send(Self.open)
      #expect(try await client.codes(2) == ["250 2.1.0", "250 2.1.5"])
      door.server.configure(
        ServerSettings(
          hostname: "relay.test", maximumMessageSize: 100, maximumRecipients: 1,
          router: Door.router(aliases: ["new": ["n@gmail.test"]])))
      #expect(try await client.say("RCPT TO:<new@relay.test>").hasPrefix("550 5.1.1"), "this one sees the old table")
      #expect(try await client.say("DATA").hasPrefix("354"))
      #expect(try await client.say(String(repeating: "x", count: 200) + "\r\n.").hasPrefix("250"))

      #expect(try await client.say("STARTTLS").hasPrefix("502"), "the certificate is gone")
      #expect(try await client.say("MAIL FROM:<a@b> SIZE=101").hasPrefix("552"))
      #expect(try await client.mail(to: "new@relay.test", String(repeating: "x", count: 200)).hasPrefix("552"))
      try await client.send(Self.open + "RCPT TO:<new@relay.test>\r\nRSET\r\n")
      #expect(try await client.codes(4)[2] == "452 4.5.3")
      #expect(try await client.say("EHLO c").contains("SIZE 100\n"))
      #expect(try await client.mail(to: "new@relay.test", "x").hasPrefix("250"))
    }
    #expect(door.queued.map { $0.envelope.recipients.map(\.address) } == [["owner@gmail.test"], ["n@gmail.test"]])
    await door.close()
  }

  // MARK: Stop

  @Test func stopSendsIdleClientsAwayAndLetsMessagesFinish() async throws {
    let door = try Door()
    try await door.greet { busy async throws in
      try await busy.send(Self.open + "DATA\r\nfirst half\r\n")
      _ = try await busy.codes(3)
      let stopping = try await door.greet { idle async throws in
        let stopping = Task { await door.server.stop(within: .seconds(30)) }
        #expect(try await idle.reply().hasPrefix("421 4.3.2 relay.test is shutting down"))
        #expect(try await idle.reply() == "")
        return stopping
      }
      // One more behind it in the same write is not begun.
      try await busy.send("second half\r\n.\r\n" + Self.open)
      #expect(try await busy.reply().hasPrefix("250 2.0.0 Queued"))
      #expect(try await busy.reply().hasPrefix("421 4.3.2"))
      #expect(try await busy.reply() == "")
      await busy.close()
      await stopping.value
    }
    #expect(try await door.bodies() == ["first half\r\nsecond half\r\n"])
    #expect(door.server.counters.openSessions == 0)
    await #expect(throws: NetworkError.self, "nobody listens any more") {
      try await door.connect { client async throws in _ = try await client.reply() }
    }
  }

  @Test func stopWaitsNoLongerThanItsGrace() async throws {
    let door = try Door()
    try await door.greet { busy async throws in
      try await busy.send(Self.open + "DATA\r\nnever ending\r\n")
      _ = try await busy.codes(3)
      let stopping = Task { await door.server.stop(within: .seconds(30)) }
      while door.time.nextDeadline == nil { await Task.yield() }
      door.time.advance(by: .seconds(30))
      #expect(try await busy.reply().hasPrefix("421 4.3.2"))
      await stopping.value
    }
    #expect(door.queued.isEmpty && door.server.counters.openSessions == 0)
  }

  /// While the client does not read, the server waits for it and not for a command.
  @Test func stopIsNotForgottenWhenAClientIsSlowToRead() async throws {
    let door = try Door { $0.limits.commands = .max }
    try await door.greet { client async throws in
      let count = 40_000
      let asking = Task { try await client.send(String(repeating: "HELP\r\n", count: count)) }
      #expect(try await client.reply().hasPrefix("214"))
      let stopping = Task { await door.server.stop(within: .seconds(30)) }
      while door.time.nextDeadline == nil { await Task.yield() }
      var (replies, last) = (1, "")
      while case let reply = try await client.reply(), reply != "" { (replies, last) = (replies + 1, reply) }
      #expect(replies > 1 && replies <= count + 1 && last.hasPrefix("421 4.3.2"), "\(last)")
      try await asking.value
      await client.close()
      await stopping.value
    }
    #expect(door.server.counters.openSessions == 0)
  }

  @Test func stopTwiceReturnsTwice() async throws {
    let door = try Door()
    try await door.greet { busy async throws in
      try await busy.send(Self.open + "DATA\r\n")
      _ = try await busy.codes(3)
      async let first: Void = door.server.stop(within: .seconds(30))
      async let second: Void = door.server.stop(within: .seconds(60))
      #expect(try await busy.say("x\r\n.").hasPrefix("250"))
      await busy.close()
      _ = await (first, second)
    }
    #expect(door.queued.count == 1)
  }

  @Test func stopWithNobodyThereReturnsAtOnce() async throws {
    let door = try Door()
    await door.server.stop(within: .seconds(30))
    #expect(door.server.counters == ServerCounters())
  }
}
