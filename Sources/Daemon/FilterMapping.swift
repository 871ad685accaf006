// From the words of the configuration to what the front door wants to know about load balancers, DNS lists and filters.

import Configuration
import Filters
import Logging
import Network
import Primitives
import Server

extension ServerSettings {
  mutating func readFilters(_ settings: Settings, log: Logger, time: any Timekeeper) {
    let filters = settings.global.filters
    proxyNetworks = filters.proxyNetworks
    let resolver = Resolver(source: SystemNames(), time: time)
    milters = filters.milters.map { place in
      var milter = MilterSettings(name: place.description, address: .init(place))
      milter.fallback = .init(filters.milterDefaultAction)
      milter.connectTimeout = filters.milterConnectTimeout
      milter.commandTimeout = filters.milterCommandTimeout
      milter.contentTimeout = filters.milterContentTimeout
      return Milter(milter, time: time, resolver: resolver, log: log)
    }
    refusesListed = filters.dnsListAction == .reject
    guard !filters.dnsLists.isEmpty else { return }
    dnsLists = DNSLists(
      filters.dnsLists.map { DNSListSettings(domain: $0.domain, pattern: $0.pattern) },
      source: DNSClient(server: filters.dnsServer), server: filters.dnsServer.map { "\($0)" } ?? "", time: time,
      timeout: filters.dnsListTimeout, log: log)
  }
}

extension MilterSettings.Address {
  fileprivate init(_ place: MilterPlace) {
    switch place.kind {
    case .socket(let path): self = .socket(path: path)
    case .host(let name, let port):
      self = IPAddress(name).map { .tcp(Endpoint(address: $0, port: port)) } ?? .host(name, port: port)
    }
  }
}

extension MilterSettings.Fallback {
  fileprivate init(_ action: MilterDefaultAction) {
    switch action {
    case .tempfail: self = .temporaryFailure
    case .accept: self = .accept
    case .reject: self = .reject
    case .quarantine: self = .quarantine
    }
  }
}
