// `test`: would mail get through? Every step to every upstream, without sending any.

import ArgumentParser
import CommandLineTools
import Configuration
import Delivery
import Network
import OAuth
import Primitives

struct TestCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "test", abstract: "Try every upstream: DNS, TCP, TLS, certificate, EHLO, AUTH. No mail is sent.",
    discussion: """
      Each step shows its time, ✓, ! for what somebody should look at, or ✗; a failed one says what to do. Passwords are only sent under verified TLS. Exit status 0 when all is well, \
      75 when waiting may help, 78 when the configuration or the account has to be changed.
      """)
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var output: JSONOption
  @Option(help: ArgumentHelp("Only the upstream of this account or [domain:].", valueName: "account"))
  var account: String?

  private struct Answer: Encodable {
    var ok: Bool
    var upstreams: [ProbeReport]
  }

  func run() async throws {
    let settings = try options.load()
    let upstreams = settings.domains.values.filter { !$0.isLocal && $0.enabled }.sorted { $0.name < $1.name }
    let wanted = upstreams.filter { domain in
      guard let account = account?.lowercased() else { return true }
      return domain.account.lowercased() == account || domain.name.lowercased() == account
    }
    guard !wanted.isEmpty else {
      let names = upstreams.map { "\($0.name) (\($0.account))" }.joined(separator: ", ")
      throw CommandFailure(
        account == nil ? .configuration : .data,
        account.map { "there is no enabled upstream \($0); there is: \(names.isEmpty ? "none" : names)" }
          ?? "there is no enabled upstream: write a [domain:] in \(settings.global.domainsDir)")
    }
    let loop = try EventLoop.ofCommand()
    var reports: [ProbeReport] = []
    for domain in wanted {
      let report = await UpstreamProbe(ProbeTarget(domain, settings.global)).run(on: loop)
      reports.append(report)
      if !output.json {
        Terminal.print(report.lines())
        Terminal.say("")
      }
    }
    let good = reports.count { $0.ok }
    if output.json {
      try Terminal.printJSON(Answer(ok: good == reports.count, upstreams: reports))
    } else {
      Terminal.say(ProbeReport.summary(of: reports))
    }
    // What has to be changed weighs more than what may pass.
    let statuses = reports.map(\.status)
    if statuses.contains(.configuration) { throw CommandFailure(.configuration, "") }
    if statuses.contains(.tryAgain) { throw CommandFailure(.tryAgain, "") }
  }
}

extension ProbeTarget {
  init(_ domain: DomainSettings, _ global: GlobalSettings) {
    self.init(
      domain: domain.name, account: domain.account, host: domain.host, port: domain.port,
      security: domain.useSSL ? .implicitTLS : domain.useStartTLS ? .startTLS : .none, login: Self.login(domain),
      serverName: domain.tlsServerName, heloName: global.defaultHostname)
    caFile = domain.tlsCAFile
    minimumTLS = domain.tlsMinimum == .tls13 ? .tls13 : .tls12
    timeout = global.connectionTimeout
    maximumMessageSize = global.maxMessageSize
  }

  private static func login(_ domain: DomainSettings) -> Login? {
    guard let username = domain.username, let mechanism = Credential.Mechanism(rawValue: domain.authMethod.rawValue)
    else { return nil }
    if let grant = domain.tokenGrant {
      let tokens = TokenCache(grant, time: SystemTime())
      return Login(mechanism: mechanism, username: username, secret: "", tokens: tokens)
    }
    guard let password = domain.password else { return nil }
    return Login(mechanism: mechanism, username: username, secret: password.reveal())
  }
}
