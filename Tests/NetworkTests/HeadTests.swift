// The beginning of a stream that is taken off without touching what follows, be that TLS or text.

import Network
import Primitives
import Testing

@Suite(.timeLimit(.minutes(1))) struct HeadTests {
  /// Takes a head that ends with a semicolon, once there is more behind it when `withMore`.
  private static func head(_ stream: ByteStream, withMore: Bool = false) async throws -> String? {
    try await stream.takeHead(upTo: 32, until: soon, waitingFor: "the head") { bytes in
      guard let end = bytes.firstIndex(of: UInt8(ascii: ";")), !withMore || bytes.count > end + 1 else { return nil }
      return (end + 1, String(decoding: bytes[..<end], as: UTF8.self))
    }
  }

  @Test func handshakeRightBehindTheHeadIsNotSwallowed() async throws {
    let certificates = try Certificates()
    let (ours, theirs) = (try certificates.server(), try certificates.client())
    let outcome = try await exchange { stream in
      // Only once the ClientHello is there too.
      let head = try await Self.head(stream, withMore: true)
      try await stream.startTLS(ours, until: soon)
      try await stream.send("word")
      _ = try await stream.fill(until: soon, waitingFor: "the end")
      return head
    } client: { stream in
      try await stream.send("head;")
      try await stream.startTLS(theirs, serverName: "mx.example.test", until: soon)
      return try await stream.receiveText(4)
    }
    #expect(try outcome.server.get() == "head")
    #expect(try outcome.client.get() == "word")
  }

  @Test func textBehindTheHeadIsReadNext() async throws {
    let outcome = try await exchange { stream in
      (try await Self.head(stream, withMore: true), String(decoding: try await stream.receive(), as: UTF8.self))
    } client: { stream in
      try await stream.send("head;all the rest")
    }
    let (head, rest) = try outcome.server.get()
    #expect(head == "head")
    #expect(rest == "all the rest")
  }

  @Test func headMayComeInPieces() async throws {
    let gates = (Gate(), Gate())
    let outcome = try await exchange { stream in
      try await stream.takeHead(upTo: 32, until: soon, waitingFor: "the head") { bytes in
        if bytes.count == 1 { gates.0.open() }
        if bytes.count == 3 { gates.1.open() }
        return bytes.count < 5 ? nil : (5, String(decoding: bytes, as: UTF8.self))
      }
    } client: { stream in
      try await stream.send("a")
      await gates.0.pass()
      try await stream.send("bc")
      await gates.1.pass()
      try await stream.send("de")
      _ = try await stream.receive()
    }
    #expect(try outcome.server.get() == "abcde")
  }

  @Test func streamThatEndsInItsHeadHasNone() async throws {
    let outcome = try await exchange { stream in
      try await Self.head(stream)
    } client: { stream in
      try await stream.send("hea")
    }
    #expect(try outcome.server.get() == nil)
  }

  @Test func silenceEndsWithTheDeadline() async throws {
    let outcome = try await exchange { stream in
      try await stream.takeHead(upTo: 32, until: SystemTime().now + .milliseconds(50), waitingFor: "the head") {
        _ in (0, 0)
      }
    } client: { stream in
      _ = try await stream.receive()
    }
    #expect(outcome.server.error as? NetworkError == .timedOut("the head"))
  }
}
