// The types of values, and how their text is read.

import Primitives

/// Where the log goes.
public enum LogFile: Sendable, Hashable, CustomStringConvertible {
  case journal
  case stderr
  case path(String)

  public var description: String {
    switch self {
    case .journal: "journal"
    case .stderr: "stderr"
    case .path(let path): path
    }
  }
}

/// The least severity that is logged.
public enum LogLevel: String, Sendable, Hashable, CaseIterable {
  case debug = "DEBUG"
  case info = "INFO"
  case notice = "NOTICE"
  case warning = "WARNING"
  case error = "ERROR"
  case critical = "CRITICAL"
}

/// How this relay proves to an upstream who it is.
public enum AuthMethod: String, Sendable, Hashable, CaseIterable {
  case none = "NONE"
  case plain = "PLAIN"
  case login = "LOGIN"
  case xoauth2 = "XOAUTH2"
  case oauthBearer = "OAUTHBEARER"
}

/// The oldest version of TLS that is spoken.
public enum TLSVersion: String, Sendable, Hashable, CaseIterable {
  case tls12 = "1.2"
  case tls13 = "1.3"
}

/// What becomes of the envelope sender on the way out.
public enum EnvelopeSenderMode: String, Sendable, Hashable, CaseIterable {
  case keep
  case relayAccount = "relay_account"
  case srs
}

/// What becomes of the From field on the way out.
public enum FromHeaderMode: String, Sendable, Hashable, CaseIterable {
  case keep
  case via
}

// MARK: - Reading

enum ValueReader {
  static func boolean(_ text: String) -> Bool? {
    switch text.lowercased() {
    case "true", "yes", "on": true
    case "false", "no", "off": false
    default: nil
    }
  }

  /// The longest duration, a century: what is longer is a mistake, and sums of a few must still fit where time is
  /// reckoned in nanoseconds (292 years).
  static let longestDuration = Duration.seconds(36_525 * 86_400)

  /// `30`, `30s`, `5m`, `4h`, `5d`, of ``longestDuration`` at most.
  static func duration(_ text: String) -> Duration? {
    let units: [Character: Int] = ["s": 1, "m": 60, "h": 3600, "d": 86_400]
    return scaled(text, units).map { .seconds($0) }.flatMap { $0 <= longestDuration ? $0 : nil }
  }

  /// `35882577`, `64K`, `25M`, `1G`; the letters count in powers of 1024.
  static func size(_ text: String) -> Int? {
    scaled(text, ["K": 1 << 10, "k": 1 << 10, "M": 1 << 20, "m": 1 << 20, "G": 1 << 30, "g": 1 << 30])
  }

  /// Digits alone; no sign, no blanks.
  static func count(_ text: some StringProtocol) -> Int? {
    guard !text.isEmpty, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
    return Int(text)
  }

  private static func scaled(_ text: String, _ units: [Character: Int]) -> Int? {
    guard let last = text.last, let unit = units[last] else { return count(text) }
    guard let number = count(text.dropLast()) else { return nil }
    let (product, overflow) = number.multipliedReportingOverflow(by: unit)
    return overflow || product > 1 << 50 ? nil : product
  }

  /// `host`, `host:port`, `192.0.2.1`, `[2001:db8::1]:587` or a bare IPv6 address.
  static func host(_ text: String) -> (host: String, port: UInt16?)? {
    if IPAddress(text) != nil { return (text, nil) }
    if text.hasPrefix("[") {
      guard let close = text.firstIndex(of: "]") else { return nil }
      let inner = text[text.index(after: text.startIndex)..<close]
      guard IPAddress(inner) != nil else { return nil }
      let rest = text[text.index(after: close)...]
      if rest.isEmpty { return (String(inner), nil) }
      guard rest.hasPrefix(":"), let port = port(rest.dropFirst()) else { return nil }
      return (String(inner), port)
    }
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    guard parts.count <= 2, isHostname(parts[0]) else { return nil }
    if parts.count == 1 { return (text, nil) }
    guard let port = port(parts[1]) else { return nil }
    return (String(parts[0]), port)
  }

  static func port(_ text: some StringProtocol) -> UInt16? {
    count(text).flatMap { (1...65535).contains($0) ? UInt16($0) : nil }
  }

  /// Letters, digits, hyphens and underscores in labels of 1 to 63 octets; octets above 127 pass (IDN).
  static func isHostname(_ text: some StringProtocol) -> Bool {
    guard text.utf8.count <= 255 else { return false }
    return text.utf8.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false).allSatisfy { label in
      let hyphen = UInt8(ascii: "-")
      guard !label.isEmpty, label.count <= 63, label.first != hyphen, label.last != hyphen else { return false }
      return label.allSatisfy {
        switch $0 {
        case 0x30...0x39, 0x41...0x5a, 0x61...0x7a, 0x80..., hyphen, UInt8(ascii: "_"): true
        default: false
        }
      }
    }
  }
}

extension Duration {
  /// Reads `30` (seconds), `30s`, `5m`, `4h`, `5d`, of a century at most.
  public init?(configurationText text: String) {
    guard let value = ValueReader.duration(text) else { return nil }
    self = value
  }

  /// As the configuration writes it: `90s`, `5m`, `4h`, `5d`.
  var configurationText: String {
    let seconds = components.seconds
    for (unit, size) in [("d", Int64(86_400)), ("h", 3600), ("m", 60)] where seconds > 0 && seconds % size == 0 {
      return "\(seconds / size)\(unit)"
    }
    return "\(seconds)s"
  }
}
