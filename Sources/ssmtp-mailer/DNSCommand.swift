// `dns`: does the DNS say what mail for and from the configured domains needs?

import ArgumentParser
import CommandLineTools
import Configuration
import Network
import Primitives

struct DNSCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "dns", abstract: "Check the DNS records of the domains in the configuration.",
    discussion: """
      A, AAAA, PTR (forward-confirmed), MX, SPF, DKIM and DMARC of default_hostname, of the domains of the mappings and \
      of the relay accounts; what is missing or wrong comes with the record to publish. Nothing is changed. \
      Exit status 0 when nothing is wrong, 65 when a record is wrong or missing, 75 when only answers are missing.
      """)
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var output: JSONOption
  @Option(
    help: ArgumentHelp(
      "Ask this name server, an IPv4 address, instead of those in /etc/resolv.conf.", valueName: "ip[:port]"))
  var server: String?
  @Option(help: ArgumentHelp("The DKIM selector. Default: google.", valueName: "name"))
  var selector = "google"

  func run() async throws {
    let endpoint = try serverEndpoint()
    guard !selector.isEmpty, !selector.contains(where: { $0.isWhitespace || $0 == "/" }) else {
      throw CommandFailure(.usage, "--selector \(selector) is not a selector, such as google")
    }
    let settings = try options.load()
    let report = await DNSSurvey(DNSClient(server: endpoint)).run(DNSPlan(settings, selector: selector))
    if output.json { try Terminal.printJSON(report) } else { Terminal.print(report.lines()) }
    if report.status != .success { throw CommandFailure(report.status, "") }
  }

  private func serverEndpoint() throws(CommandFailure) -> Endpoint? {
    guard let server else { return nil }
    let endpoint = Endpoint(server) ?? IPAddress(server).map { Endpoint(address: $0, port: 53) }
    guard let endpoint, endpoint.address.isIPv4, endpoint.port != 0 else {
      throw CommandFailure(
        .usage, "--server \(server) is not an IPv4 address with or without a port, such as 1.1.1.1:53")
    }
    return endpoint
  }
}

extension DNSPlan {
  init(_ settings: Settings, selector: String) {
    let domains = settings.domains.values.filter(\.enabled).sorted { $0.name < $1.name }
    let upstreams = domains.filter { !$0.isLocal }
    func isGoogle(_ domain: DomainSettings) -> Bool {
      [domain.host.lowercased(), domain.tlsServerName?.lowercased() ?? ""].contains {
        $0 == "smtp.gmail.com" || $0 == "smtp-relay.gmail.com"
      }
    }
    func domain(of address: String) -> String? {
      address.lastIndex(of: "@").map { String(address[address.index(after: $0)...]) }
    }
    var senders = upstreams.map { upstream in
      Sender(
        domain: domain(of: upstream.account) ?? upstream.name, isThroughGoogle: isGoogle(upstream), hasAccount: true)
    }
    if let own = domain(of: settings.global.defaultFrom) {
      senders.append(Sender(domain: own, isThroughGoogle: upstreams.contains(where: isGoogle), hasAccount: false))
    }
    // Senders that are rewritten are checked there, and their bounces come back to it.
    let rewriting = upstreams.filter { $0.envelopeSender == .srs }
    var returning: [String] = []
    if !rewriting.isEmpty {
      let domain = settings.global.effectiveSRSDomain
      returning = [domain]
      senders.append(
        Sender(domain: domain, isThroughGoogle: rewriting.contains(where: isGoogle), hasAccount: false))
    }
    let mapped = settings.mappings.filter(\.enabled).compactMap(\.from.domain)
    self.init(
      host: settings.global.defaultHostname,
      receiving: (domains.filter(\.isLocal).map(\.name) + mapped + returning).filter { $0.contains(".") },
      senders: senders.filter { $0.domain.contains(".") }, upstreams: upstreams.map { ($0.name, $0.host) },
      selector: selector)
    let hosts = SystemNames()
    for upstream in self.upstreams { pinned[upstream.host] = hosts.fromHosts(upstream.host) }
  }
}
