// The header of a load balancer, in both versions: what it says, how long it is, and what is none.

import CChecksum
import Primitives
import Testing

@testable import SMTP

@Suite struct ProxyHeaderTests {
  typealias Parsed = (header: ProxyHeader, length: Int)

  private func parse(_ bytes: [UInt8]) throws(ProxyHeader.Fault) -> Parsed? {
    var result: Result<Parsed?, ProxyHeader.Fault> = .success(nil)
    bytes.withUnsafeBytes { bytes in
      do throws(ProxyHeader.Fault) { result = .success(try ProxyHeader.parse(bytes)) } catch {
        result = .failure(error)
      }
    }
    return try result.get()
  }

  private func ends(_ source: String, _ destination: String) -> ProxyHeader {
    ProxyHeader(ends: .init(source: Endpoint(source)!, destination: Endpoint(destination)!))
  }

  /// A header of version 2.
  private func binary(_ command: UInt8, _ family: UInt8, _ payload: [UInt8]) -> [UInt8] {
    ProxyHeader.signature + [0x20 | command, family, UInt8(payload.count >> 8), UInt8(payload.count & 0xff)] + payload
  }

  private static let ipv4: [UInt8] = [192, 0, 2, 1, 198, 51, 100, 2, 0x30, 0x39, 0, 25]

  // MARK: Version 1

  @Test func lineNamesBothEnds() throws {
    let text = "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\r\n"
    let parsed = try #require(try parse(Array((text + "EHLO x\r\n").utf8)))
    #expect(parsed.header == ends("192.0.2.1:12345", "198.51.100.2:25"))
    #expect(parsed.length == text.utf8.count)
    let six = try #require(try parse(Array("PROXY TCP6 2001:db8::1 ::1 0 65535\r\n".utf8)))
    #expect(six.header == ends("[2001:db8::1]:0", "[::1]:65535"))
  }

  @Test(arguments: ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff:f::1 whatever it says\r\n"])
  func unknownSpeaksForTheProxyItself(text: String) throws {
    let parsed = try #require(try parse(Array(text.utf8)))
    #expect(parsed.header == ProxyHeader(ends: nil))
    #expect(parsed.length == text.utf8.count)
  }

  @Test func everyBeginningOfAHeaderAsksForMore() throws {
    let line = Array("PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\r\n".utf8)
    for bytes in [line, binary(1, 0x11, Self.ipv4), binary(0, 0, [1, 2, 3])] {
      for count in 0..<bytes.count { #expect(try parse(Array(bytes[..<count])) == nil, "\(count)") }
      #expect(try parse(bytes)?.length == bytes.count)
    }
  }

  @Test(arguments: [
    "EHLO client.test\r\n", "proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n", "PROXYTCP4\r\n", "PROXY\r\n",
    "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\n", "PROXY TCP4 192.0.2.1 198.51.100.2 12345\r\n",
    "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25 \r\n", "PROXY  TCP4 192.0.2.1 198.51.100.2 12345 25\r\n",
    "PROXY TCP4 2001:db8::1 ::1 1 2\r\n", "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
    "PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n", "PROXY TCP4 192.0.2.1 198.51.100.2 65536 25\r\n",
    "PROXY TCP4 192.0.2.1 198.51.100.2 +1 25\r\n", "PROXY TCP4 192.0.2.1 198.51.100.2 01 25\r\n",
    "PROXY TCP4 192.0.2.1\u{0} 198.51.100.2 1 25\r\n", "PROXY TCP4 host.example 198.51.100.2 1 25\r\n",
  ]) func otherTextIsRefused(text: String) {
    #expect(throws: ProxyHeader.Fault.self) { try parse(Array(text.utf8)) }
  }

  @Test func lineHas107OctetsAtMost() throws {
    let start = "PROXY UNKNOWN "
    let fits = start + String(repeating: "x", count: 105 - start.utf8.count) + "\r\n"
    #expect(try parse(Array(fits.utf8))?.length == 107)
    #expect(throws: ProxyHeader.Fault.tooLong(107)) { try parse(Array(("\(start)x" + fits.dropFirst(14)).utf8)) }
    #expect(try parse(Array(fits.utf8.prefix(106))) == nil)
  }

  // MARK: Version 2

  @Test func binaryNamesBothEnds() throws {
    let four = try #require(try parse(binary(1, 0x11, Self.ipv4) + Array("EHLO".utf8)))
    #expect(four.header == ends("192.0.2.1:12345", "198.51.100.2:25"))
    #expect(four.length == 28)
    let address = IPAddress("2001:db8::1")!.bytes
    let six = try #require(try parse(binary(1, 0x21, address + address + [0, 1, 0, 2])))
    #expect(six.header == ends("[2001:db8::1]:1", "[2001:db8::1]:2"))
    #expect(six.length == 52)
  }

  @Test func localAndUnspecifiedSpeakForTheProxyItself() throws {
    let none = ProxyHeader(ends: nil)
    #expect(try parse(binary(0, 0x00, []))?.header == none)
    #expect(try parse(binary(0, 0x11, Self.ipv4))?.header == none)
    #expect(try parse(binary(0, 0x21, [1, 2, 3]))?.header == none)
    #expect(try parse(binary(1, 0x00, [1, 0, 0]))?.header == none)
    #expect(try parse(binary(1, 0x31, [UInt8](repeating: 0, count: 216)))?.header == none)
  }

  @Test func tlvsArePassedOver() throws {
    let tlvs: [UInt8] = [0x02, 0, 3, 1, 2, 3, 0x20, 0, 0, 0xee, 0, 1, 9]
    let parsed = try #require(try parse(binary(1, 0x11, Self.ipv4 + tlvs) + [1]))
    #expect(parsed.header == ends("192.0.2.1:12345", "198.51.100.2:25"))
    #expect(parsed.length == 28 + tlvs.count)
  }

  @Test func checksumIsCheckedWhenThereIsOne() throws {
    var bytes = binary(1, 0x11, Self.ipv4 + [0x04, 0, 1, 7, 0x03, 0, 4, 0, 0, 0, 0])
    let sum = ssmtp_crc32c(0, bytes, bytes.count)
    for i in 0..<4 { bytes[bytes.count - 4 + i] = UInt8(truncatingIfNeeded: sum >> (24 - 8 * UInt32(i))) }
    #expect(try parse(bytes)?.length == bytes.count)
    bytes[16] ^= 1
    #expect(throws: ProxyHeader.Fault.wrongChecksum) { try parse(bytes) }
  }

  @Test func otherOctetsAreRefused() {
    let faults: [[UInt8]] = [
      binary(2, 0x11, Self.ipv4), binary(1, 0x41, Self.ipv4), binary(1, 0x13, Self.ipv4), binary(1, 0x12, Self.ipv4),
      binary(1, 0x11, Self.ipv4.dropLast()), binary(1, 0x21, Self.ipv4), binary(1, 0x11, Self.ipv4 + [0x02, 0]),
      binary(1, 0x11, Self.ipv4 + [0x02, 0, 9, 1]), binary(1, 0x11, Self.ipv4 + [0x03, 0, 1, 1]),
      ProxyHeader.signature + [0x11, 0x11, 0, 12] + Self.ipv4, ProxyHeader.signature.dropLast() + [0x0b],
    ]
    for (number, bytes) in faults.enumerated() {
      #expect(throws: ProxyHeader.Fault.self, "\(number)") { try parse(bytes) }
    }
  }

  @Test func announcedLengthIsBounded() {
    let head = ProxyHeader.signature + [0x21, 0x11]
    #expect(throws: ProxyHeader.Fault.tooLong(16 + 2049)) { try parse(head + [0x08, 0x01]) }
    #expect(throws: Never.self) { try parse(head + [0x08, 0x00]) }
  }
}
