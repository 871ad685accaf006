// Session tickets: what a client may resume, for how long, and across a new certificate.

import Primitives
import Testing

@testable import Network

@Suite(.timeLimit(.minutes(1))) struct TicketTests {
  /// Runs one handshake; the client then reads a word, which also brings its session ticket. Returns whether both
  /// sides resumed.
  private func resumes(_ server: TLSContext, _ client: TLSContext) async throws -> Bool {
    let outcome = try await exchange { stream in
      try await stream.startTLS(server, until: soon)
      try await stream.send("word")
      _ = try await stream.fill(until: soon, waitingFor: "the end")
      return stream.tls
    } client: { stream in
      try await stream.startTLS(client, serverName: "mx.example.test", until: soon)
      #expect(try await stream.receiveText(4) == "word")
      return stream.tls
    }
    let (near, far) = (try outcome.server.get()?.isResumed, try outcome.client.get()?.isResumed)
    #expect(near == far)
    return far == true
  }

  private struct Pair {
    let certificates: Certificates
    let time = ManualTime()
    let keys: TicketKeys

    init() throws {
      certificates = try Certificates()
      keys = TicketKeys(time: time)
    }

    /// A new certificate each time, with the same keys for tickets.
    func server() throws -> TLSContext {
      let path = certificates.directory.path
      try certificates.authority.issue(names: ["mx.example.test"]).write(
        certificateFile: path + "/mx.pem", keyFile: path + "/mx.key")
      return try TLSContext.server(certificateFile: path + "/mx.pem", keyFile: path + "/mx.key", tickets: keys)
    }
  }

  @Test func ticketOutlivesTheCertificate() async throws {
    let pair = try Pair()
    let client = try pair.certificates.client()
    #expect(try await !resumes(pair.server(), client))
    #expect(try await resumes(pair.server(), client))
  }

  @Test func ticketOfAnotherServerIsNone() async throws {
    let (one, two) = (try Pair(), try Pair())
    let client = try one.certificates.client()
    let path = one.certificates.directory.path
    #expect(try await !resumes(one.server(), client))
    let other = try TLSContext.server(
      certificateFile: path + "/mx.pem", keyFile: path + "/mx.key", tickets: two.keys)
    #expect(try await !resumes(other, client), "a full handshake, not a failure")
  }

  @Test func keysRotateAndOldTicketsAreGoodForTwoHours() async throws {
    let pair = try Pair()
    let client = try pair.certificates.client()
    let server = try pair.server()
    #expect(try await !resumes(server, client))
    pair.time.advance(by: .seconds(3601))
    #expect(try await resumes(server, client), "sealed with the last key, which is still known")
    pair.time.advance(by: .seconds(3 * 3600))
    #expect(try await !resumes(server, client), "nobody has that key any more")
  }

  @Test func keyIsNewEachHourAndForgottenAfterThree() throws {
    let time = ManualTime()
    let keys = TicketKeys(time: time)
    let first = try #require(keys.current())
    #expect(keys.current() === first)
    time.advance(by: .seconds(3599))
    #expect(keys.current() === first && keys.find(first.name)?.isCurrent == true)
    time.advance(by: .seconds(1))
    #expect(keys.find(first.name)?.isCurrent == false, "a client that comes with it gets a new ticket")
    let second = try #require(keys.current())
    #expect(second !== first && !second.name.elementsEqual(first.name))
    #expect(!second.macKey.elementsEqual(first.macKey) && !second.cipherKey.elementsEqual(first.cipherKey))
    time.advance(by: .seconds(2 * 3600 - 1))
    #expect(keys.find(first.name)?.key === first)
    time.advance(by: .seconds(1))
    #expect(keys.find(first.name) == nil)
  }
}
