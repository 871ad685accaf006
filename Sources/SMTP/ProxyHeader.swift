// The header that a load balancer puts in front of a connection, to say whose it is: the PROXY protocol of HAProxy
// (proxy-protocol.txt), version 1 in text and version 2 in binary. Octets in, a value out; no I/O.

import CChecksum
import Primitives

/// What a PROXY header says about its connection.
public struct ProxyHeader: Hashable, Sendable {
  /// Both ends as the proxy saw them.
  public struct Ends: Hashable, Sendable {
    public var source: Endpoint
    public var destination: Endpoint

    public init(source: Endpoint, destination: Endpoint) {
      self.source = source
      self.destination = destination
    }
  }

  /// nil when the proxy speaks for itself, as health checks do (`LOCAL` of version 2), or does not know whom it speaks
  /// for (`UNKNOWN` of version 1, `AF_UNSPEC` and `AF_UNIX` of version 2).
  public var ends: Ends?

  public init(ends: Ends?) { self.ends = ends }

  /// Why something is no PROXY header.
  public enum Fault: Error, Hashable, Sendable, CustomStringConvertible {
    case noSignature
    case malformed(String)
    case tooLong(Int)
    case wrongChecksum

    public var description: String {
      switch self {
      case .noSignature: "it does not begin with a PROXY header"
      case .malformed(let what): "its PROXY header is malformed: \(what)"
      case .tooLong(let count): "its PROXY header has \(count) octets or more, which is too many"
      case .wrongChecksum: "the checksum of its PROXY header is wrong"
      }
    }
  }

  /// The longest line of version 1, CRLF included.
  public static let maximumLine = 107
  /// What version 2 may announce behind its 16 octets: addresses take 36, the rest is for TLVs.
  public static let maximumPayload = 2048
  /// No header is longer than this.
  public static let maximumLength = 16 + maximumPayload

  static let signature: [UInt8] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]
  private static let word = Array("PROXY ".utf8)

  /// Reads the header that `bytes` begin with, and nothing behind it.
  /// - Returns: the header and its length; nil when there has to be more before that can be told.
  public static func parse(_ bytes: UnsafeRawBufferPointer) throws(Fault) -> (header: ProxyHeader, length: Int)? {
    if bytes.isEmpty { return nil }
    if begins(bytes, with: signature) { return bytes.count < 16 ? nil : try binary(bytes) }
    guard begins(bytes, with: word) else { throw .noSignature }
    return try line(bytes)
  }

  /// Whether as much as there is of `bytes` is the beginning of `wanted`, or begins with it.
  private static func begins(_ bytes: UnsafeRawBufferPointer, with wanted: [UInt8]) -> Bool {
    zip(bytes, wanted).allSatisfy { $0 == $1 }
  }

  // MARK: Version 1

  private static func line(_ bytes: UnsafeRawBufferPointer) throws(Fault) -> (ProxyHeader, Int)? {
    let seen = bytes.prefix(maximumLine)
    guard let feed = seen.firstIndex(of: .lineFeed) else {
      if bytes.count >= maximumLine { throw .tooLong(maximumLine) }
      return nil
    }
    guard feed > 0, seen[feed - 1] == .carriageReturn else { throw .malformed("its line does not end with CRLF") }
    let text = seen[..<(feed - 1)]
    guard text.allSatisfy({ $0 >= 0x20 && $0 < 0x7f }) else { throw .malformed("its line is not printable ASCII") }
    let words = String(decoding: text, as: UTF8.self).split(separator: " ", omittingEmptySubsequences: false)
    // What stands behind UNKNOWN is to be ignored.
    if words.count >= 2, words[1] == "UNKNOWN" { return (ProxyHeader(ends: nil), feed + 1) }
    guard words.count == 6 else { throw .malformed("it has \(words.count) words instead of 6") }
    guard words[1] == "TCP4" || words[1] == "TCP6" else { throw .malformed("it is neither TCP4 nor TCP6 nor UNKNOWN") }
    // Told by the text: an IPv4-mapped address is one of TCP6, whatever we make of it.
    let isIPv4 = words[1] == "TCP4"
    guard let source = IPAddress(words[2]), let destination = IPAddress(words[3]),
      words[2].contains(":") != isIPv4, words[3].contains(":") != isIPv4
    else { throw .malformed("its addresses are not of its family") }
    guard let sourcePort = port(words[4]), let destinationPort = port(words[5]) else {
      throw .malformed("its ports are not numbers up to 65535")
    }
    let ends = Ends(
      source: Endpoint(address: source, port: sourcePort),
      destination: Endpoint(address: destination, port: destinationPort))
    return (ProxyHeader(ends: ends), feed + 1)
  }

  private static func port(_ text: Substring) -> UInt16? {
    guard (1...5).contains(text.utf8.count), text.utf8.allSatisfy(\.isDigit), text == "0" || text.first != "0" else {
      return nil
    }
    return UInt16(text)
  }

  // MARK: Version 2

  private static func binary(_ bytes: UnsafeRawBufferPointer) throws(Fault) -> (ProxyHeader, Int)? {
    let version = bytes[12] >> 4
    let command = bytes[12] & 0x0f
    guard version == 2 else { throw .malformed("version \(version) is not 2") }
    guard command <= 1 else { throw .malformed("command \(command) is neither LOCAL nor PROXY") }
    let (family, transport) = (bytes[13] >> 4, bytes[13] & 0x0f)
    guard family <= 3, transport <= 2 else { throw .malformed("its family is unknown") }
    let payload = Int(bytes[14]) << 8 | Int(bytes[15])
    guard payload <= maximumPayload else { throw .tooLong(16 + payload) }
    let length = 16 + payload
    guard bytes.count >= length else { return nil }
    let size: Int
    switch family {
    case 1: size = 12
    case 2: size = 36
    case 3: size = 216
    default: size = 0
    }
    guard payload >= size || command == 0 else { throw .malformed("it is too short for its addresses") }
    // Where the addresses of LOCAL end is not said if they are not of the family: nothing in it counts (2.2).
    if command == 0 { return (ProxyHeader(ends: nil), length) }
    try check(UnsafeRawBufferPointer(rebasing: bytes[..<length]), from: 16 + size)
    guard family == 1 || family == 2 else { return (ProxyHeader(ends: nil), length) }
    guard transport == 1 else { throw .malformed("its transport is not TCP") }
    let width = family == 1 ? 4 : 16
    func port(_ place: Int) -> UInt16 { UInt16(bytes[place]) << 8 | UInt16(bytes[place + 1]) }
    guard let source = IPAddress(bytes: Array(bytes[16..<(16 + width)])),
      let destination = IPAddress(bytes: Array(bytes[(16 + width)..<(16 + 2 * width)]))
    else { throw .malformed("its addresses cannot be read") }
    let ends = Ends(
      source: Endpoint(address: source, port: port(16 + 2 * width)),
      destination: Endpoint(address: destination, port: port(18 + 2 * width)))
    return (ProxyHeader(ends: ends), length)
  }

  /// Walks over the TLVs, which are of no use here, but for the checksum.
  private static func check(_ header: UnsafeRawBufferPointer, from start: Int) throws(Fault) {
    var place = start
    while place < header.count {
      guard place + 3 <= header.count else { throw .malformed("a TLV is cut off") }
      let size = Int(header[place + 1]) << 8 | Int(header[place + 2])
      let value = place + 3
      guard value + size <= header.count else { throw .malformed("a TLV is longer than the header") }
      if header[place] == crc32c {
        guard size == 4 else { throw .malformed("its checksum does not have 4 octets") }
        // Of the whole header, with zeros where the checksum stands.
        var copy = Array(header)
        for i in value..<(value + 4) { copy[i] = 0 }
        let told = header[value..<(value + 4)].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        guard ssmtp_crc32c(0, copy, copy.count) == told else { throw .wrongChecksum }
      }
      place = value + size
    }
  }

  private static let crc32c: UInt8 = 0x03
}
