import Primitives
import Testing

@Suite struct AddressTests {
  @Test(arguments: ["127.0.0.1", "::1", "2001:db8::25", "0.0.0.0", "::"])
  func addressPrintsAsItWasWritten(text: String) throws {
    #expect(try #require(IPAddress(text)).description == text)
  }

  @Test(arguments: ["", "1.2.3", "1.2.3.4.5", "::1%lo", "[::1]", "localhost"])
  func malformedAddressIsRefused(text: String) { #expect(IPAddress(text) == nil) }

  @Test func mappedAddressIsTheIPv4Address() throws {
    #expect(IPAddress("::ffff:192.0.2.1") == IPAddress("192.0.2.1"))
    #expect(try #require(IPNetwork("192.0.2.0/24")).contains(try #require(IPAddress("::ffff:192.0.2.9"))))
  }

  @Test(arguments: [
    ("127.0.0.0/8", "127.255.0.1", true), ("127.0.0.0/8", "128.0.0.1", false), ("10.0.0.0/9", "10.128.0.1", false),
    ("10.0.0.0/9", "10.127.0.1", true), ("::1", "::1", true), ("::1", "::2", false), ("0.0.0.0/0", "9.9.9.9", true),
    ("0.0.0.0/0", "::9", false), ("2001:db8::/33", "2001:db8:8000::", false),
  ])
  func networkContainsItsAddressesOnly(network: String, address: String, expected: Bool) throws {
    #expect(try #require(IPNetwork(network)).contains(try #require(IPAddress(address))) == expected)
  }

  @Test(arguments: ["10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "x/8", "::/129"])
  func malformedNetworkIsRefused(text: String) { #expect(IPNetwork(text) == nil) }

  @Test func endpointNeedsBracketsAroundIPv6() {
    #expect(Endpoint("[::]:25")?.description == "[::]:25")
    #expect(Endpoint("0.0.0.0:25")?.port == 25)
    #expect(Endpoint(":::25") == nil)
    #expect(Endpoint("0.0.0.0:65536") == nil)
  }
}

@Suite struct ManualTimeTests {
  @Test func sleeperWakesWhenItsTimeHasCome() async throws {
    let time = ManualTime()
    let deadline = time.now + .seconds(5)
    let sleeper = Task { try await time.sleep(until: deadline) }
    while time.nextDeadline == nil { await Task.yield() }
    time.advance(by: .seconds(5))
    try await sleeper.value
  }

  @Test func cancelledSleeperThrows() async {
    let time = ManualTime()
    let deadline = time.now + .seconds(5)
    let sleeper = Task { try await time.sleep(until: deadline) }
    while time.nextDeadline == nil { await Task.yield() }
    sleeper.cancel()
    await #expect(throws: CancellationError.self) { try await sleeper.value }
    #expect(time.nextDeadline == nil)
  }
}
