// Questions to a real name server, NSD, on loopback with zones made for the test.

import Glibc
import Network
import Primitives
import TestSupport
import Testing

/// The path of NSD; nil when Debian's package is not there (scripts/test fetches it).
private let nsd: String? = {
  let named = getenv("SSMTP_MAILER_NSD").map { String(cString: $0) }
  return ([named].compactMap { $0 } + ["/usr/sbin/nsd"]).first { access($0, X_OK) == 0 }
}()

@Suite(.serialized, .timeLimit(.minutes(1))) struct DNSClientTests {
  private static let long = (0..<8).map { "\"\($0)\(String(repeating: "x", count: 199))\"" }.joined(separator: " ")
  private static let zone = """
    $ORIGIN example.
    $TTL 300
    @ IN SOA ns hostmaster 1 3600 600 86400 60
    @ IN NS ns
    ns IN A 127.0.0.1
    mailer 120 IN A 192.0.2.10
    mailer IN AAAA 2001:db8::10
    @ IN MX 20 Mailer
    @ IN MX 10 mx.other.
    @ IN TXT "v=spf1 include:_spf" ".google.com ~all"
    alias IN CNAME mailer
    dangling IN CNAME nowhere
    long IN TXT \(long)
    """
  private static let reverse = """
    $TTL 300
    @ IN SOA ns.example. hostmaster.example. 1 3600 600 86400 60
    @ IN NS ns.example.
    10 IN PTR mailer.example.
    """

  private func withServer(_ body: (DNSClient) async throws -> Void) async throws {
    let server = try await NameServer.start(
      path: #require(nsd), zones: ["example": Self.zone, "2.0.192.in-addr.arpa": Self.reverse, "broken": nil])
    do { try await body(DNSClient(server: server.endpoint)) } catch {
      server.stop()
      throw error
    }
    server.stop()
  }

  @Test(.enabled(if: nsd != nil, "NSD is not installed: apt-get install nsd"))
  func everyTypeIsReadWithItsTTL() async throws {
    try await withServer { client in
      let a = await client.ask("MAILER.example", .a)
      #expect(a.status == .found && a.addresses == [IPAddress("192.0.2.10")] && a.timeToLive == 120)
      let aaaa = await client.ask("mailer.example", .aaaa)
      #expect(aaaa.addresses == [IPAddress("2001:db8::10")] && aaaa.timeToLive == 300)
      let mx = await client.ask("example", .mx)
      #expect(mx.exchangers.map(\.preference) == [10, 20])
      #expect(mx.exchangers.map(\.host) == ["mx.other", "mailer.example"])
      #expect(await client.ask("example", .txt).texts == ["v=spf1 include:_spf.google.com ~all"])
      let address = try #require(IPAddress("192.0.2.10"))
      #expect(await client.ask(address.reverseName, .ptr).pointers == ["mailer.example"])
    }
  }

  @Test(.enabled(if: nsd != nil, "NSD is not installed: apt-get install nsd"))
  func aliasesStayVisible() async throws {
    try await withServer { client in
      let alias = await client.ask("alias.example", .a)
      #expect(alias.alias == "mailer.example" && alias.addresses.count == 1 && alias.timeToLive == 120)
      #expect(await client.ask("alias.example", .cname).alias == "mailer.example")
      #expect(await client.ask("dangling.example", .a).addresses.isEmpty)
    }
  }

  @Test(.enabled(if: nsd != nil, "NSD is not installed: apt-get install nsd"))
  func anAnswerTooLongForUDPComesOverTCP() async throws {
    try await withServer { client in
      #expect(await client.ask("long.example", .txt).texts.first?.utf8.count == 1600)
    }
  }

  @Test(.enabled(if: nsd != nil, "NSD is not installed: apt-get install nsd"))
  func theKindsOfSilenceAreKeptApart() async throws {
    try await withServer { client in
      let nobody = await client.ask("nobody.example", .a)
      #expect(nobody.status == .noSuchName && nobody.negativeTimeToLive == 60, "as the SOA says: \(nobody)")
      let nothing = await client.ask("ns.example", .mx)
      #expect(nothing.status == .noData && nothing.negativeTimeToLive == 60, "\(nothing)")
      // NSD answers SERVFAIL for a zone whose file it cannot read, and refuses what it does not serve.
      #expect(await client.ask("www.broken", .a).status == .failed(.serverFailure))
      #expect(await client.ask("elsewhere.test", .a).status == .failed(.refused))
    }
  }

  @Test func aServerThatIsNotThereAndOneThatIsSilentAreKeptApart() async throws {
    let silent = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
    defer { close(silent) }
    let port = try #require(bindToLoopback(silent))
    let client = DNSClient(server: Endpoint(address: try #require(IPAddress("127.0.0.1")), port: port), patience: 1)
    #expect(await client.ask("example", .a).status == .failed(.timedOut))
    let free = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
    let unused = try #require(bindToLoopback(free))
    close(free)
    let nobody = DNSClient(server: Endpoint(address: try #require(IPAddress("127.0.0.1")), port: unused), patience: 1)
    #expect(await nobody.ask("example", .a).status == .failed(.unreachable))
  }

  @Test func reverseNamesAreAsTheRFCsWriteThem() throws {
    #expect(try #require(IPAddress("192.0.2.10")).reverseName == "10.2.0.192.in-addr.arpa")
    #expect(
      try #require(IPAddress("2001:db8::567:89ab")).reverseName
        == "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa")
  }
}
