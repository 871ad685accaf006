// The keys for load balancers, DNS lists and mail filters: what they take, and what is told of a slip.

import Primitives
import Testing

@testable import Configuration

@Suite struct FilterKeyTests {
  @Test(arguments: [
    ("inet:127.0.0.1:11332", MilterPlace.Kind.host("127.0.0.1", port: 11332)),
    ("inet:11332@127.0.0.1", .host("127.0.0.1", port: 11332)), ("inet:8891@localhost", .host("localhost", port: 8891)),
    ("inet6:[::1]:8891", .host("::1", port: 8891)), ("inet6:8891@::1", .host("::1", port: 8891)),
    ("inet6:8891@[::1]", .host("::1", port: 8891)), ("unix:/run/a.sock", .socket(path: "/run/a.sock")),
    ("local:/run/a.sock", .socket(path: "/run/a.sock")),
  ]) func placesOfFiltersAreRead(text: String, kind: MilterPlace.Kind) {
    #expect(MilterPlace(text)?.kind == kind)
    #expect(MilterPlace(text)?.description == text)
  }

  @Test(arguments: [
    "", "127.0.0.1:11332", "inet:127.0.0.1", "inet:127.0.0.1:0", "inet:@localhost", "inet:1@a:2", "unix:run/a.sock",
    "unix:", "tcp:127.0.0.1:1", "unix:/" + String(repeating: "x", count: 107),
  ]) func otherPlacesAreRefused(text: String) {
    #expect(MilterPlace(text) == nil)
  }

  @Test func listsAreReadWithTheirPatterns() throws {
    #expect(DNSListName("Zen.Example.org")?.domain == "zen.example.org")
    #expect(DNSListName("zen.example.org")?.pattern == nil)
    let ranges: [[ClosedRange<UInt8>]] = [[127...127], [0...0], [0...0], [2...11]]
    #expect(DNSListName("bl.test=127.0.0.[2..11]")?.pattern == ranges)
    #expect(DNSListName("bl.test=127.0.0.2-11")?.pattern == ranges)
    #expect(
      DNSListName("bl.test=127.0.[0;1].[4;6..8]")?.pattern == [[127...127], [0...0], [0...0, 1...1], [4...4, 6...8]])
  }

  @Test(arguments: [
    "", "bl", "bl.test=", "bl.test=127.0.0", "bl.test=127.0.0.256", "bl.test=127.0.0.[2", "bl.test=127.0.0.5-2",
    "bl.test=127.0.0.2;3", "bl.test=127.0.0.[]", "bl test", "=127.0.0.2", "bl.test=127.0.0.1.2",
  ]) func otherListsAreRefused(text: String) {
    #expect(DNSListName(text) == nil)
  }

  private func load(_ lines: String...) throws -> (settings: Settings, warnings: [String]) {
    let (settings, warnings) = try ConfigurationTests.load(configuration(minimal + lines.joined(separator: "\n")))
    return (settings, warnings.map(\.message))
  }

  @Test func allKeysHaveDefaultsThatChangeNothing() throws {
    let filters = try load().settings.global.filters
    #expect(filters.proxyNetworks.isEmpty && filters.milters.isEmpty && filters.dnsLists.isEmpty)
    #expect(filters.milterDefaultAction == .tempfail && filters.dnsListAction == .reject)
    #expect(filters.dnsServer == nil)
  }

  @Test func keysAreRead() throws {
    let (settings, warnings) = try load(
      "proxy_protocol_networks = 192.0.2.0/24, 2001:db8::1", "milters = inet:1@localhost, unix:/a",
      "milter_default_action = Quarantine", "milter_content_timeout = 10m", "dnsbl = a.test, b.test=127.0.0.2",
      "dnsbl_action = log", "dnsbl_timeout = 3", "dnsbl_server = 127.0.0.1:5353")
    let filters = settings.global.filters
    #expect(warnings.isEmpty)
    #expect(filters.proxyNetworks.map(\.description) == ["192.0.2.0/24", "2001:db8::1/128"])
    #expect(filters.milters.map(\.description) == ["inet:1@localhost", "unix:/a"])
    #expect(filters.milterDefaultAction == .quarantine && filters.milterContentTimeout == .seconds(600))
    #expect(filters.dnsLists.map(\.domain) == ["a.test", "b.test"])
    #expect(filters.dnsListAction == .log && filters.dnsListTimeout == .seconds(3))
    #expect(filters.dnsServer == Endpoint("127.0.0.1:5353"))
  }

  @Test func loopbackBehindALoadBalancerIsWarnedOf() throws {
    for network in ["127.0.0.1", "127.0.0.0/8", "::1", "0.0.0.0/0"] {
      let warnings = try load("proxy_protocol_networks = \(network)").warnings
      #expect(warnings.count == 1 && warnings[0].contains("`sendmail`"))
    }
    #expect(try load("proxy_protocol_networks = 127.0.0.2").warnings.isEmpty)
  }

  @Test(arguments: [
    "milters = inet:a", "milters = unix:/a, local:/a", "dnsbl = a.test, A.test=127.0.0.2", "dnsbl_server = ::1",
    "milter_default_action = drop", "dnsbl_action = defer", "proxy_protocol_networks = host.test",
  ]) func slipsAreErrors(line: String) {
    #expect(throws: (any Error).self) { try load(line) }
  }
}
