// Names to addresses, with the time each answer may be kept. They come from ``DNSClient``, because getaddrinfo(3) does
// not tell the TTL; /etc/hosts is read first, as people expect.

import Dispatch
import Glibc
import Primitives

/// The addresses of a name and how long they are good for.
public struct AddressAnswer: Sendable, Hashable {
  public var addresses: [IPAddress]
  public var timeToLive: Duration
  /// Whether the answer came from the network, and not from a file or the name itself.
  public var isFromDNS = true

  public init(addresses: [IPAddress], timeToLive: Duration) {
    self.addresses = addresses
    self.timeToLive = timeToLive
  }
}

/// Where addresses come from: DNS in service, a table in tests.
public protocol AddressSource: Sendable {
  /// - Throws: ``NetworkError/resolution(_:)`` with a text that says whether the name does not exist or nobody answered.
  func addresses(of name: String) async throws(NetworkError) -> AddressAnswer
}

/// A cache in front of an ``AddressSource`` that honours the TTL, asks once for many that wait, and goes on with
/// the last good answer while nobody answers (RFC 8767).
public actor Resolver {
  private struct Entry {
    var answer: AddressAnswer
    var expires: MonotonicInstant
  }
  private let source: any AddressSource
  private let time: any Timekeeper
  private var cache: [String: Entry] = [:]
  private var asking: [String: Task<AddressAnswer, any Error>] = [:]
  private static let keptNames = 1024
  private static let staleLimit = Duration.seconds(86_400)

  public init(source: any AddressSource, time: any Timekeeper) {
    self.source = source
    self.time = time
  }

  /// The addresses of `name`, IPv6 and IPv4 in turn as RFC 8305 4 has it.
  public func addresses(of name: String) async throws(NetworkError) -> [IPAddress] {
    if let literal = IPAddress(name) { return [literal] }
    let key = name.lowercased()
    if let entry = cache[key], entry.expires > time.now { return entry.answer.addresses }
    let task: Task<AddressAnswer, any Error>
    if let running = asking[key] {
      task = running
    } else {
      task = Task { [source] in try await source.addresses(of: key) }
      asking[key] = task
    }
    let outcome = await task.result
    if asking[key] == task { asking[key] = nil }
    switch outcome {
    case .success(let answer):
      if cache.count >= Self.keptNames { cache.removeAll() }
      var sorted = answer
      sorted.addresses = Self.interleaved(answer.addresses)
      cache[key] = Entry(answer: sorted, expires: time.now + min(max(answer.timeToLive, .seconds(1)), .seconds(86_400)))
      return sorted.addresses
    case .failure(let error):
      if let stale = cache[key], stale.expires + Self.staleLimit > time.now { return stale.answer.addresses }
      throw error as? NetworkError ?? .resolution("\(name): \(error)")
    }
  }

  static func interleaved(_ addresses: [IPAddress]) -> [IPAddress] {
    let v6 = addresses.filter { !$0.isIPv4 }
    let v4 = addresses.filter(\.isIPv4)
    var result: [IPAddress] = []
    for i in 0..<max(v6.count, v4.count) {
      if i < v6.count { result.append(v6[i]) }
      if i < v4.count { result.append(v4[i]) }
    }
    return result
  }
}

/// The name service of the machine: `/etc/hosts`, then DNS by the servers of `/etc/resolv.conf`.
public struct SystemNames: AddressSource {
  /// Lookups block, so they run here and never on a loop.
  private static let queue = DispatchQueue(label: "dns", attributes: .concurrent)
  private let hostsFile: String

  public init(hostsFile: String = "/etc/hosts") { self.hostsFile = hostsFile }

  public func addresses(of name: String) async throws(NetworkError) -> AddressAnswer {
    let outcome = await withCheckedContinuation { continuation in
      Self.queue.async { continuation.resume(returning: Result { () throws(NetworkError) in try lookUp(name) }) }
    }
    return try outcome.get()
  }

  private func lookUp(_ name: String) throws(NetworkError) -> AddressAnswer {
    let local = fromHosts(name)
    if !local.isEmpty {
      var answer = AddressAnswer(addresses: local, timeToLive: .seconds(10))
      answer.isFromDNS = false
      return answer
    }
    var addresses: [IPAddress] = []
    var timeToLive = UInt32.max
    var problem: NetworkError?
    for type in [DNSType.aaaa, .a] {
      let answer = DNSClient().lookUp(name, type)
      addresses += answer.addresses
      timeToLive = min(timeToLive, answer.timeToLive ?? .max)
      switch answer.status {
      case .found, .noData: continue
      case .noSuchName: problem = .resolution("the name \(name) does not exist")
      case .failed(.unreachable): problem = .resolution("no name server answered for \(name)")
      case .failed(let failure): problem = .resolution("no name server answered for \(name): \(failure)")
      }
    }
    guard !addresses.isEmpty else { throw problem ?? .resolution("\(name) has no address (neither A nor AAAA)") }
    // Half an answer, because one of the questions got none, must not be kept for hours.
    if problem != nil { timeToLive = min(timeToLive, 30) }
    return AddressAnswer(addresses: addresses, timeToLive: .seconds(Int64(timeToLive)))
  }

  /// What the hosts file says about a name in lower case; it wins over the DNS.
  public func fromHosts(_ name: String) -> [IPAddress] {
    if name == "localhost" || name.hasSuffix(".localhost") {  // RFC 6761 6.3
      return ["127.0.0.1", "::1"].compactMap { IPAddress($0) }
    }
    guard let file = fopen(hostsFile, "re") else { return [] }
    defer { fclose(file) }
    var line = [CChar](repeating: 0, count: 4096)
    var found: [IPAddress] = []
    while fgets(&line, CInt(line.count), file) != nil {
      let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      let words = text.prefix { $0 != "#" }.split(whereSeparator: \.isWhitespace)
      guard let first = words.first, words.dropFirst().contains(where: { $0.lowercased() == name }),
        let address = IPAddress(first)
      else { continue }
      found.append(address)
    }
    return found
  }
}
