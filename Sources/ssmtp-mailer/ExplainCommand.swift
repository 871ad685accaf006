// `explain`: what would become of mail for somebody, and by which rule?

import ArgumentParser
import CommandLineTools
import Configuration
import Primitives
import Routing
import SMTP

struct ExplainCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "explain", abstract: "Tell where mail for an address goes, and why.",
    discussion: """
      Nothing is sent and the daemon is not asked: the answer comes from the configuration. \
      Exit status 0 when the mail would be taken, 77 when it would be refused.
      """)
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var output: JSONOption
  @Argument(help: "The recipient.")
  var recipient: String
  @Option(help: ArgumentHelp("The sender. Default: the null sender of a bounce.", valueName: "address"))
  var from: String?
  @Option(help: ArgumentHelp("The client's address. Default: 127.0.0.1.", valueName: "ip"))
  var client = "127.0.0.1"
  @Flag(help: "As if the client had logged in as the sender.")
  var authenticated = false
  @Option(help: ArgumentHelp("As if the client had logged in as this user.", valueName: "user"))
  var auth: String?

  private struct Answer: Encodable {
    struct Way: Encodable {
      var address: String
      var rule: String
      var domain: String
      var account: String?
      var upstream: String?
      /// Under which envelope sender it leaves, when that is another.
      var envelopeSender: String?
      /// What From becomes, when its author is not of our own domains.
      var fromHeader: String?
      var limits: [String]
    }
    var accepted: Bool
    var reply: String?
    var steps: [String]
    var routes: [Way]
  }

  func run() async throws {
    let settings = try options.load()
    guard let address = IPAddress(client) else {
      throw CommandFailure(.usage, "--client \(client) is not an IP address")
    }
    let path: ForwardPath
    let sender: ReversePath
    do throws(AddressError) { path = try ForwardPath(parsing: recipient) } catch {
      throw CommandFailure(.data, "\(recipient): \(error)")
    }
    do throws(AddressError) { sender = try ReversePath(parsing: from == "<>" ? "" : from ?? "") } catch {
      throw CommandFailure(.data, "--from \(from ?? ""): \(error)")
    }
    let router = Router(settings)
    let standing: ClientStanding =
      if let auth { .authenticated(auth) } else if authenticated, let from {
        .authenticated(from)
      } else if router.isTrusted(address) { .trusted } else {
        .untrusted
      }
    let answer = Self.answer(router, settings, path, sender, standing)
    if output.json {
      try Terminal.printJSON(answer)
    } else {
      Terminal.print(lines(answer, path, sender, standing))
    }
    if !answer.accepted { throw CommandFailure(.refused, "") }
  }

  private static func answer(
    _ router: Router, _ settings: Settings, _ recipient: ForwardPath, _ sender: ReversePath, _ client: ClientStanding
  ) -> Answer {
    if let refusal = router.checkSender(sender, client: client) {
      return Answer(accepted: false, reply: "\(refusal)", steps: ["the policy of the sender is asked"], routes: [])
    }
    let explanation = router.explain(recipient: recipient, sender: sender, client: client)
    switch explanation.decision {
    case .reject(let reply): return Answer(accepted: false, reply: "\(reply)", steps: explanation.steps, routes: [])
    case .accept(let routes):
      return Answer(
        accepted: true, steps: explanation.steps,
        routes: routes.map { route in
          var way = way(route, settings)
          let (account, outbound) = (route.account, router.outbound)
          let path = outbound.reversePath(sender.text, account: account, now: SystemTime().wallClock)
          if path != sender.text { way.envelopeSender = path }
          if let via = outbound.via(account: account, recipients: [recipient.text]) {
            let isOurs = sender.mailbox.map { outbound.isOurs($0) } ?? false
            way.fromHeader = isOurs ? nil : "… via \(via.label) <\(via.address)>"
          }
          return way
        })
    }
  }

  private static func way(_ route: Route, _ settings: Settings) -> Answer.Way {
    guard let domain = settings.domains[route.account.lowercased()] else {
      return Answer.Way(address: "\(route.address)", rule: route.rule.rawValue, domain: route.account, limits: [])
    }
    let global = settings.global
    var limits: [String] = []
    if global.enableRateLimiting {
      limits.append(
        "\(domain.rateLimitPerMinute ?? global.rateLimitPerMinute) a minute, \(global.rateLimitBurst) at once")
    }
    if let daily = domain.dailyLimit { limits.append("\(daily) in 24 hours") }
    limits.append("\(domain.maxConnections ?? global.maxConnections) connections")
    limits.append("\(Quantity.size(global.maxMessageSize)) a message")
    if !domain.enabled { limits.append("disabled: its mail waits in the queue") }
    return Answer.Way(
      address: "\(route.address)", rule: route.rule.rawValue, domain: domain.name, account: domain.account,
      upstream: "\(domain.host):\(domain.port)", limits: limits)
  }

  private func lines(
    _ answer: Answer, _ recipient: ForwardPath, _ sender: ReversePath, _ standing: ClientStanding
  ) -> [String] {
    let word =
      switch standing {
      case .untrusted: "not trusted"
      case .trusted: "trusted"
      case .authenticated(let name): "authenticated as \(name)"
      }
    var result = ["<\(recipient.text)> from <\(sender.text)>, client \(client) (\(word))"]
    result += answer.steps.map { "  - \($0)" }
    if let reply = answer.reply { return result + ["refused: \(reply)"] }
    for route in answer.routes {
      result.append("accepted: goes to <\(route.address)>")
      var facts = TextTable(columnCount: 2)
      facts.append(["  domain", "[domain:\(route.domain)]"])
      if let account = route.account { facts.append(["  account", account]) }
      if let upstream = route.upstream { facts.append(["  upstream", upstream]) }
      if let path = route.envelopeSender { facts.append(["  leaves from", "<\(path)>"]) }
      if let from = route.fromHeader { facts.append(["  From", from]) }
      facts.append(["  limits", route.limits.joined(separator: ", ")])
      result += facts.lines()
    }
    return result
  }
}
