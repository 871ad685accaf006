// Certificates that must not be accepted, and what TLS keeps between connections.

import Network
import Primitives
import Sandbox
import Testing

@Suite(.timeLimit(.minutes(1))) struct TLSTests {
  /// Runs one handshake; the client then reads a word, which also brings its session ticket.
  private func shake(
    _ server: TLSContext, _ client: TLSContext, name: String
  ) async throws -> (server: Result<TLSSummary?, any Error>, client: Result<TLSSummary?, any Error>) {
    try await exchange { stream in
      try await stream.startTLS(server, until: soon)
      try await stream.send("word")
      _ = try await stream.fill(until: soon, waitingFor: "the end")
      return stream.tls
    } client: { stream in
      try await stream.startTLS(client, serverName: name, until: soon)
      #expect(try await stream.receiveText(4) == "word")
      return stream.tls
    }
  }

  private func refusal(_ outcome: Result<TLSSummary?, any Error>) throws -> String {
    guard case .certificate(let text)? = outcome.error as? NetworkError else {
      Issue.record("not refused for its certificate: \(outcome)")
      return ""
    }
    return text
  }

  @Test(arguments: ["mx.example.test", "127.0.0.1"]) func goodCertificateIsAccepted(name: String) async throws {
    let certificates = try Certificates()
    let outcome = try await shake(certificates.server(), certificates.client(), name: name)
    let summary = try #require(try outcome.client.get())
    #expect(summary.version == "TLSv1.3")
    #expect(!summary.isResumed)
    #expect(summary.certificate?.names == ["mx.example.test", "127.0.0.1"])
    #expect(summary.certificate?.daysLeft == 0)
    #expect(try outcome.server.get()?.certificate == nil)
  }

  @Test(arguments: ["other.example.test", "127.0.0.2", "example.test"])
  func wrongNameIsRefusedAndBothNamesAreTold(name: String) async throws {
    let certificates = try Certificates()
    let text = try refusal(await shake(certificates.server(), certificates.client(), name: name).client)
    #expect(text.contains("mismatch"))
    #expect(text.contains("wanted \(name)"))
    #expect(text.contains("mx.example.test"), "what was seen: \(text)")
  }

  @Test func unknownAuthorityIsRefusedAndNamed() async throws {
    let (certificates, others) = (try Certificates(), try Certificates())
    let text = try refusal(await shake(certificates.server(), others.client(), name: "mx.example.test").client)
    #expect(text.contains("wanted mx.example.test"))
    #expect(text.contains("Test Authority"), "who issued it: \(text)")
  }

  @Test func expiredCertificateIsRefusedWithItsDate() async throws {
    let certificates = try Certificates()
    let server = try certificates.server(valid: .seconds(-7200) ... .seconds(-3600))
    let text = try refusal(await shake(server, certificates.client(), name: "mx.example.test").client)
    #expect(text.contains("expired"))
    #expect(text.contains("valid until"), "what was seen: \(text)")
  }

  @Test func secondConnectionResumes() async throws {
    let certificates = try Certificates()
    let (server, client) = (try certificates.server(), try certificates.client())
    let first = try await shake(server, client, name: "mx.example.test")
    let second = try await shake(server, client, name: "mx.example.test")
    #expect(try first.client.get()?.isResumed == false)
    #expect(try second.client.get()?.isResumed == true)
    #expect(try second.server.get()?.isResumed == true)
    #expect(try second.client.get()?.certificate?.names.first == "mx.example.test")
  }

  /// A resumed handshake shows no certificate: a session must not vouch for a name it was not made for.
  @Test func sessionOfOneNameIsNotUsedForAnother() async throws {
    let certificates = try Certificates()
    let (server, client) = (try certificates.server(), try certificates.client())
    _ = try await shake(server, client, name: "mx.example.test").client.get()
    let text = try refusal(await shake(server, client, name: "other.example.test").client)
    #expect(text.contains("wanted other.example.test"))
  }

  @Test func helloOfTLS11IsAnsweredWithAnAlert() async throws {
    let server = try Certificates().server()
    let header: [UInt8] = [0x16, 3, 1, 0, 47, 1, 0, 0, 43, 3, 2]
    let hello = header + [UInt8](repeating: 7, count: 32) + [0, 0, 4, 0x00, 0x2f, 0xc0, 0x13, 1, 0]
    let outcome = try await exchange { stream in
      try await stream.startTLS(server, until: soon)
    } client: { stream in
      stream.append { $0 += hello }
      try await stream.flush(until: soon, waitingFor: "room")
      return try await stream.receive(atMost: 7)
    }
    guard case .tls? = outcome.server.error as? NetworkError else {
      Issue.record("TLS 1.1 was not refused: \(outcome.server)")
      return
    }
    let alert = try outcome.client.get()
    #expect(alert.first == 0x15)
    #expect(alert.suffix(2) == [2, 70], "fatal, protocol_version")
  }

  @Test func clearTextPeerFailsTheHandshakeAtOnce() async throws {
    let client = try Certificates().client()
    let outcome = try await exchange { stream in
      try await stream.send("220 mx.example.test ESMTP\r\n")
      _ = try? await stream.receive()
    } client: { stream in
      try await stream.startTLS(client, serverName: "mx.example.test", until: soon)
    }
    guard case .tls? = outcome.client.error as? NetworkError else {
      Issue.record("the handshake did not fail: \(outcome.client)")
      return
    }
  }

  @Test func peerThatLeavesDuringTheHandshakeIsAnEndOfStream() async throws {
    let client = try Certificates().client()
    let outcome = try await exchange { stream in
      _ = try await stream.fill(until: soon, waitingFor: "a hello")
      stream.consume { ($0.count, ()) }
    } client: { stream in
      try await stream.startTLS(client, serverName: "mx.example.test", until: soon)
    }
    #expect(outcome.client.error as? NetworkError == .endOfStream)
  }

  @Test func silentPeerEndsTheHandshakeAtTheDeadline() async throws {
    let client = try Certificates().client()
    let gate = Gate()
    let outcome = try await exchange { _ in
      await gate.pass()
    } client: { stream in
      defer { gate.open() }
      try await stream.startTLS(
        client, serverName: "mx.example.test", until: SystemTime().now + .milliseconds(20))
    }
    #expect(outcome.client.error as? NetworkError == .timedOut("TLS handshake"))
  }

  @Test func commandsBufferedBeforeTLSAreForgotten() async throws {
    let certificates = try Certificates()
    let (server, client) = (try certificates.server(), try certificates.client())
    let outcome = try await exchange { stream in
      while stream.bufferedCount < 25 { _ = try await stream.fill(until: soon, waitingFor: "STARTTLS") }
      stream.consume { _ in (10, ()) }
      try await stream.send("220 go\r\n")
      try await stream.startTLS(server, until: soon)
      let leftover = stream.bufferedCount
      return (leftover, try await stream.receiveText(6))
    } client: { stream in
      try await stream.send("STARTTLS\r\nRCPT TO:<x@y>\r\n")
      #expect(try await stream.receiveText(8) == "220 go\r\n")
      try await stream.startTLS(client, serverName: "mx.example.test", until: soon)
      try await stream.send("EHLO a")
      _ = try await stream.fill(until: soon, waitingFor: "the end")
    }
    let (leftover, text) = try outcome.server.get()
    #expect(leftover == 0)
    #expect(text == "EHLO a")
  }

  @Test func keyOfAnotherCertificateIsRefused() throws {
    let certificates = try Certificates()
    let path = certificates.directory.path
    let (one, two) = (
      try certificates.authority.issue(names: ["one.test"]), try certificates.authority.issue(names: ["two.test"])
    )
    try one.write(certificateFile: path + "/1.pem", keyFile: path + "/1.key")
    try two.write(certificateFile: path + "/2.pem", keyFile: path + "/2.key")
    #expect(throws: NetworkError.self) {
      try TLSContext.server(certificateFile: path + "/1.pem", keyFile: path + "/2.key")
    }
    #expect(throws: NetworkError.self) { try TLSContext.client(caFile: path + "/none.pem") }
  }
}
