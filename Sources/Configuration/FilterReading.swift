// The keys of [global] for what stands between clients and the queue: load balancers, DNS lists, mail filters.

import Primitives

/// What `[global]` says about load balancers, DNS lists and mail filters.
public struct FilterSettings: Sendable {
  /// Peers whose connections begin with a PROXY header.
  public var proxyNetworks: [IPNetwork] = []
  /// In the order in which they see a message.
  public var milters: [MilterPlace] = []
  /// While a filter cannot be asked.
  public var milterDefaultAction = MilterDefaultAction.tempfail
  public var milterConnectTimeout = Duration.seconds(30)
  public var milterCommandTimeout = Duration.seconds(30)
  public var milterContentTimeout = Duration.seconds(300)
  /// Asked all at once.
  public var dnsLists: [DNSListName] = []
  public var dnsListAction = DNSListAction.reject
  /// For all of them together.
  public var dnsListTimeout = Duration.seconds(5)
  /// Who is asked; nil: those of /etc/resolv.conf.
  public var dnsServer: Endpoint?

  public init() {}
}

/// What happens to mail while a filter cannot be asked.
public enum MilterDefaultAction: String, Sendable, Hashable, CaseIterable {
  case tempfail, accept, reject, quarantine
}

/// What happens to mail from a client that is on a list.
public enum DNSListAction: String, Sendable, Hashable, CaseIterable {
  case reject, log
}

/// Where a mail filter listens: `inet:HOST:PORT`, `inet:PORT@HOST`, `unix:/PATH`; `inet6` and `local` mean the same.
public struct MilterPlace: Sendable, Hashable, CustomStringConvertible {
  public enum Kind: Sendable, Hashable {
    case host(String, port: UInt16)
    case socket(path: String)
  }
  public let kind: Kind
  /// As it was written.
  public let description: String

  public init?(_ text: String) {
    guard let colon = text.firstIndex(of: ":") else { return nil }
    let rest = String(text[text.index(after: colon)...])
    switch text[..<colon].lowercased() {
    case "unix", "local":
      // A relative one would be seen from wherever the daemon was started.
      guard rest.hasPrefix("/"), rest.utf8.count < 108, !rest.utf8.contains(0) else { return nil }
      kind = .socket(path: rest)
    case "inet", "inet6":
      if let at = rest.firstIndex(of: "@") {
        let host = ValueReader.host(String(rest[rest.index(after: at)...]))
        guard let port = ValueReader.port(rest[..<at]), let host, host.port == nil else { return nil }
        kind = .host(host.host, port: port)
      } else {
        guard let host = ValueReader.host(rest), let port = host.port else { return nil }
        kind = .host(host.host, port: port)
      }
    default: return nil
    }
    description = text
  }
}

/// A list of clients in the DNS: `DOMAIN`, or `DOMAIN=PATTERN` of which only some answers count. The pattern is an
/// address whose numbers may be a range or a choice in brackets, as Postfix writes it: `127.0.0.[2..11]`,
/// `127.0.0.[4;6..8]`; `127.0.0.2-11` is the same as the first.
public struct DNSListName: Sendable, Hashable, CustomStringConvertible {
  public let domain: String
  /// Four sets of ranges; nil counts every answer in 127.0.0.0/8.
  public let pattern: [[ClosedRange<UInt8>]]?
  /// As it was written.
  public let description: String

  public init?(_ text: String) {
    let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    let domain = parts[0].lowercased()
    // The longest question is the one about an IPv6 address: 64 octets in front.
    guard ValueReader.isHostname(domain), domain.contains("."), domain.utf8.count <= 180 else { return nil }
    self.domain = domain
    description = text
    guard parts.count == 2 else {
      pattern = nil
      return
    }
    guard let pattern = Self.pattern(parts[1]) else { return nil }
    self.pattern = pattern
  }

  private static func pattern(_ text: Substring) -> [[ClosedRange<UInt8>]]? {
    // The dots within brackets are no separators.
    var fields = [""]
    var depth = 0
    for character in text {
      if character == "[" { depth += 1 }
      if character == "]" { depth -= 1 }
      guard (0...1).contains(depth) else { return nil }
      if character == ".", depth == 0 { fields.append("") } else { fields[fields.count - 1].append(character) }
    }
    guard depth == 0, fields.count == 4 else { return nil }
    var pattern: [[ClosedRange<UInt8>]] = []
    for field in fields {
      let isChoice = field.hasPrefix("[") && field.hasSuffix("]")
      let choices = isChoice ? field.dropFirst().dropLast() : field[...]
      var ranges: [ClosedRange<UInt8>] = []
      for choice in choices.split(separator: ";", omittingEmptySubsequences: false) {
        let ends = choice.replacing("..", with: "-").split(separator: "-", omittingEmptySubsequences: false)
        let numbers = ends.compactMap { ValueReader.count($0).flatMap { UInt8(exactly: $0) } }
        guard numbers.count == ends.count, (1...2).contains(numbers.count), let first = numbers.first,
          let last = numbers.last, first <= last
        else { return nil }
        ranges.append(first...last)
      }
      guard isChoice || ranges.count == 1 else { return nil }
      pattern.append(ranges)
    }
    return pattern
  }
}

extension FilterSettings {
  init(_ reader: inout SectionReader, _ findings: inout Findings) {
    self.init()
    readProxy(&reader, &findings)
    readMilters(&reader, &findings)
    readLists(&reader, &findings)
  }

  private mutating func readMilters(_ reader: inout SectionReader, _ findings: inout Findings) {
    let defaults = FilterSettings()
    milters = reader.list(
      "milters", default: [], wanted: "places such as inet:127.0.0.1:11332 or unix:/run/opendkim/opendkim.sock, or off",
      allowsOff: true, show: \.description, &findings
    ) { MilterPlace($0) }
    for (place, milter) in milters.enumerated() where milters[..<place].contains(where: { $0.kind == milter.kind }) {
      findings.error(reader.place("milters"), "milters names \(quoted(milter.description)) twice")
    }
    milterDefaultAction = reader.choice("milter_default_action", default: defaults.milterDefaultAction, &findings)
    milterConnectTimeout = reader.duration("milter_connect_timeout", default: defaults.milterConnectTimeout, &findings)
    milterCommandTimeout = reader.duration("milter_command_timeout", default: defaults.milterCommandTimeout, &findings)
    milterContentTimeout = reader.duration("milter_content_timeout", default: defaults.milterContentTimeout, &findings)
  }

  private mutating func readLists(_ reader: inout SectionReader, _ findings: inout Findings) {
    let defaults = FilterSettings()
    dnsLists = reader.list(
      "dnsbl", default: [], wanted: "domains such as zen.spamhaus.org, or bl.example.org=127.0.0.[2..11], or off",
      allowsOff: true, show: \.description, &findings
    ) { DNSListName($0) }
    for (place, list) in dnsLists.enumerated() where dnsLists[..<place].contains(where: { $0.domain == list.domain }) {
      findings.error(
        reader.place("dnsbl"), "dnsbl names \(quoted(list.domain)) twice; one pattern can hold both: 127.0.0.[2;4..11]")
    }
    dnsListAction = reader.choice("dnsbl_action", default: defaults.dnsListAction, &findings)
    dnsListTimeout = reader.duration("dnsbl_timeout", default: defaults.dnsListTimeout, &findings)
    dnsServer = reader.value(
      "dnsbl_server", default: Endpoint?.none, wanted: "an IPv4 address with or without a port, such as 127.0.0.1:5353",
      show: Self.text, &findings
    ) { text in
      let endpoint = Endpoint(text) ?? IPAddress(text).map { Endpoint(address: $0, port: 53) }
      return endpoint.flatMap { $0.address.isIPv4 && $0.port > 0 ? .some(.some($0)) : nil }
    }
  }

  private static func text(_ endpoint: Endpoint?) -> String { endpoint?.description ?? "" }

  private mutating func readProxy(_ reader: inout SectionReader, _ findings: inout Findings) {
    proxyNetworks = reader.list(
      "proxy_protocol_networks", default: [],
      wanted: "addresses and networks such as 192.0.2.7 or 192.0.2.0/24, or off",
      allowsOff: true, show: \.description, &findings
    ) { IPNetwork($0) }
    let loopback = ["127.0.0.1", "::1"].compactMap { IPAddress($0) }
    if proxyNetworks.contains(where: { network in loopback.contains { network.contains($0) } }) {
      findings.warning(
        reader.place("proxy_protocol_networks"),
        "proxy_protocol_networks has addresses of this machine: its own programs, `send` and `sendmail` among them, are "
          + "then turned away because they send no PROXY header; let the load balancer connect from another address")
    }
  }
}
