// Questions to the DNS with typed answers, for those who want to know more than an address: what kind of record, its
// TTL, and which kind of silence. The lookup is glibc's (res_nquery(3)), over UDP and, when an answer does not fit, TCP.

import CLinux
import Dispatch
import Glibc
import Primitives

/// The record types that mail needs.
public enum DNSType: String, Sendable, Hashable, CaseIterable {
  case a = "A"
  case aaaa = "AAAA"
  case cname = "CNAME"
  case mx = "MX"
  case ptr = "PTR"
  case txt = "TXT"

  var number: ns_type {
    switch self {
    case .a: ns_t_a
    case .aaaa: ns_t_aaaa
    case .cname: ns_t_cname
    case .mx: ns_t_mx
    case .ptr: ns_t_ptr
    case .txt: ns_t_txt
    }
  }
}

/// One record of an answer. Names are in lower case and without the last dot.
public struct DNSRecord: Sendable, Hashable {
  public enum Value: Sendable, Hashable {
    case address(IPAddress)
    case alias(String)
    case exchanger(preference: UInt16, host: String)
    case pointer(String)
    /// The strings of a TXT record put together, as SPF and DKIM read them (RFC 7208 3.3).
    case text(String)
  }
  public var name: String
  public var value: Value
  /// In seconds.
  public var timeToLive: UInt32

  public init(name: String, value: Value, timeToLive: UInt32 = 300) {
    self.name = name
    self.value = value
    self.timeToLive = timeToLive
  }
}

/// Why a question has no answer. None of these says anything about the records.
public enum DNSFailure: Sendable, Hashable, CustomStringConvertible {
  /// The server says that it failed: the servers of the zone do not answer it, or DNSSEC does not add up.
  case serverFailure
  case refused
  case timedOut
  /// Nobody listens at the server's address.
  case unreachable
  /// The name cannot be asked for, or the answer cannot be read.
  case malformed

  public var description: String {
    switch self {
    case .serverFailure: "the name server failed (SERVFAIL)"
    case .refused: "the name server refuses to answer (REFUSED)"
    case .timedOut: "no name server answered in time"
    case .unreachable: "the name server cannot be reached"
    case .malformed: "the answer cannot be read"
    }
  }
}

/// What came of one question.
public struct DNSAnswer: Sendable, Hashable {
  public enum Status: Sendable, Hashable {
    case found
    /// The name exists and has no record of the type.
    case noData
    case noSuchName
    case failed(DNSFailure)
  }
  public var status: Status
  /// In the order of the answer, the aliases that led to it among them.
  public var records: [DNSRecord]
  /// How long it is good that there is no such name or record, in seconds (RFC 2308 5); nil when the server does not
  /// say.
  public var negativeTimeToLive: UInt32?

  public init(_ status: Status, _ records: [DNSRecord] = []) {
    self.status = status
    self.records = records
  }

  public var addresses: [IPAddress] {
    records.compactMap { if case .address(let address) = $0.value { address } else { nil } }
  }
  public var texts: [String] {
    records.compactMap { if case .text(let text) = $0.value { text } else { nil } }
  }
  public var pointers: [String] {
    records.compactMap { if case .pointer(let name) = $0.value { name } else { nil } }
  }
  /// The lowest preference first.
  public var exchangers: [(preference: UInt16, host: String)] {
    records.compactMap { record -> (preference: UInt16, host: String)? in
      if case .exchanger(let preference, let host) = record.value { (preference, host) } else { nil }
    }.sorted { ($0.preference, $0.host) < ($1.preference, $1.host) }
  }
  /// What the name is an alias of; nil when it is not.
  public var alias: String? {
    for record in records { if case .alias(let target) = record.value { return target } }
    return nil
  }
  /// The shortest of the records; nil without records.
  public var timeToLive: UInt32? { records.map(\.timeToLive).min() }
}

/// Who answers questions: the network in service, a table in tests.
public protocol DNSSource: Sendable {
  func ask(_ name: String, _ type: DNSType) async -> DNSAnswer
}

/// Asks the name servers of `/etc/resolv.conf`, or one that was named.
public struct DNSClient: DNSSource {
  /// Lookups block, so they run here and never on a loop.
  private static let queue = DispatchQueue(label: "dns-client", attributes: .concurrent)
  private let server: Endpoint?
  private let patience: CInt

  /// - Parameters:
  ///   - server: an IPv4 address with its port; nil asks those of `/etc/resolv.conf`.
  ///   - patience: whole seconds until a question is repeated, once.
  public init(server: Endpoint? = nil, patience: Int = 2) {
    self.server = server
    self.patience = CInt(clamping: max(patience, 1))
  }

  public func ask(_ name: String, _ type: DNSType) async -> DNSAnswer {
    await withCheckedContinuation { continuation in
      Self.queue.async { continuation.resume(returning: lookUp(name, type)) }
    }
  }

  /// The same, blocking for at most a few seconds.
  func lookUp(_ name: String, _ type: DNSType) -> DNSAnswer {
    // Not on the stack, and not moved: glibc keeps pointers into it.
    let state = UnsafeMutablePointer<__res_state>.allocate(capacity: 1)
    memset(state, 0, MemoryLayout<__res_state>.size)
    defer { state.deallocate() }
    guard __res_ninit(state) == 0 else { return DNSAnswer(.failed(.unreachable)) }
    defer { __res_nclose(state) }
    state.pointee.retrans = patience
    state.pointee.retry = 2
    if let server {
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_port = server.port.bigEndian
      withUnsafeMutableBytes(of: &address.sin_addr) { $0.copyBytes(from: server.address.bytes.prefix(4)) }
      state.pointee.nscount = 1
      state.pointee.nsaddr_list.0 = address
    }
    var answer = [UInt8](repeating: 0, count: 65536)
    errno = 0
    let length = res_nquery(
      state, name, CInt(ns_c_in.rawValue), CInt(type.number.rawValue), &answer, CInt(answer.count))
    let code = errno
    guard length > 0 else {
      switch state.pointee.res_h_errno {
      case HOST_NOT_FOUND: return Self.absence(.noSuchName, answer)
      case NO_DATA: return Self.absence(.noData, answer)
      default: return DNSAnswer(.failed(Self.failure(header: answer, code)))
      }
    }
    guard let records = Self.records(of: answer, length) else { return DNSAnswer(.failed(.malformed)) }
    let wanted = records.contains { type == .cname || $0.value.type != .cname }
    return DNSAnswer(wanted ? .found : .noData, records)
  }

  /// An answer without records, with the time it is good for: the SOA record says that, which comes with it. glibc does
  /// not tell the length of such an answer, so that it is walked through in the buffer, which is zeros behind it.
  private static func absence(_ status: DNSAnswer.Status, _ answer: [UInt8]) -> DNSAnswer {
    var result = DNSAnswer(status)
    answer.withUnsafeBufferPointer { bytes in
      guard let start = bytes.baseAddress else { return }
      func number(_ place: Int, _ count: Int) -> UInt32? {
        guard place >= 0, place + count <= bytes.count else { return nil }
        return bytes[place..<(place + count)].reduce(0) { $0 << 8 | UInt32($1) }
      }
      func skipName(_ place: Int) -> Int? {
        guard place < bytes.count else { return nil }
        let length = dn_skipname(start + place, start + bytes.count)
        return length < 0 ? nil : place + Int(length)
      }
      guard let questions = number(4, 2), let answers = number(6, 2), let authorities = number(8, 2) else { return }
      var place = 12
      for _ in 0..<questions {
        guard let next = skipName(place) else { return }
        place = next + 4
      }
      for _ in 0..<(answers + authorities) {
        guard let next = skipName(place), let type = number(next, 2), let life = number(next + 4, 4),
          let length = number(next + 8, 2)
        else { return }
        place = next + 10 + Int(length)
        if type == ns_t_soa.rawValue, let minimum = number(place - 4, 4) {
          result.negativeTimeToLive = min(life, minimum)
          return
        }
      }
    }
    return result
  }

  /// glibc reports one error for all of these; the header of the last answer, if there was one, tells more.
  private static func failure(header: [UInt8], _ code: CInt) -> DNSFailure {
    let isAnswer = header[2] & 0x80 != 0
    switch (isAnswer, header[3] & 0x0f) {
    case (true, 2): return .serverFailure
    case (true, 5): return .refused
    case (true, 1): return .malformed
    default: return code == ECONNREFUSED || code == ENETUNREACH || code == EHOSTUNREACH ? .unreachable : .timedOut
    }
  }

  /// The records of the answer section that are of a type known here; nil when it cannot be read.
  package static func records(of answer: [UInt8], _ length: CInt) -> [DNSRecord]? {
    answer.withUnsafeBufferPointer { bytes -> [DNSRecord]? in
      guard let start = bytes.baseAddress else { return nil }
      var message = ns_msg()
      guard ns_initparse(start, length, &message) == 0 else { return nil }
      var records: [DNSRecord] = []
      for i in 0..<Int(message._counts.1) {
        var record = ns_rr()
        guard ns_parserr(&message, ns_s_an, CInt(i), &record) == 0 else { return nil }
        let data = UnsafeBufferPointer(start: record.rdata, count: Int(record.rdlength))
        guard let type = DNSType.allCases.first(where: { $0.number.rawValue == UInt32(record.type) }) else { continue }
        guard let value = value(type, data, start, start + Int(length)) else { return nil }
        let name = withUnsafeBytes(of: &record.name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        records.append(DNSRecord(name: normal(name), value: value, timeToLive: record.ttl))
      }
      return records
    }
  }

  private static func value(
    _ type: DNSType, _ data: UnsafeBufferPointer<UInt8>, _ start: UnsafePointer<UInt8>, _ end: UnsafePointer<UInt8>
  ) -> DNSRecord.Value? {
    func name(at offset: Int) -> String? {
      guard let base = data.baseAddress, offset < data.count else { return nil }
      var text = [CChar](repeating: 0, count: 1025)
      guard dn_expand(start, end, base + offset, &text, CInt(text.count)) >= 0 else { return nil }
      return normal(String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))
    }
    switch type {
    case .a, .aaaa:
      guard data.count == (type == .a ? 4 : 16) else { return nil }
      return IPAddress(bytes: Array(data)).map { .address($0) }
    case .cname: return name(at: 0).map { .alias($0) }
    case .ptr: return name(at: 0).map { .pointer($0) }
    case .mx:
      guard data.count > 2 else { return nil }
      let preference = UInt16(data[0]) << 8 | UInt16(data[1])
      return name(at: 2).map { .exchanger(preference: preference, host: $0) }
    case .txt:
      var text: [UInt8] = []
      var i = 0
      while i < data.count {
        let next = i + 1 + Int(data[i])
        guard next <= data.count else { return nil }
        text += data[(i + 1)..<next]
        i = next
      }
      return .text(String(decoding: text, as: UTF8.self))
    }
  }

  /// dn_expand(3) writes the root as an empty name or a dot.
  private static func normal(_ name: String) -> String {
    let lower = name.lowercased()
    return lower.hasSuffix(".") ? String(lower.dropLast()) : lower
  }
}

extension DNSRecord.Value {
  fileprivate var type: DNSType {
    switch self {
    case .address(let address): address.isIPv4 ? .a : .aaaa
    case .alias: .cname
    case .exchanger: .mx
    case .pointer: .ptr
    case .text: .txt
    }
  }
}

extension IPAddress {
  /// The name whose PTR record tells the name of the address (RFC 1035 3.5, RFC 3596 2.5).
  public var reverseName: String {
    if isIPv4 { return bytes.reversed().map { "\($0)" }.joined(separator: ".") + ".in-addr.arpa" }
    return bytes.reversed().map { byte in
      "\(String(byte & 0x0f, radix: 16)).\(String(byte >> 4, radix: 16))"
    }.joined(separator: ".") + ".ip6.arpa"
  }
}
