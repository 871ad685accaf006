// A small relay to route on, and words for what it answers.

import Configuration
import Routing
import SMTP

/// `relay.example` is local; `example.com` is the default upstream, `example.net` another, `off.example` is disabled.
let domains = """
  [domain:relay.example]
  smtp_server = localhost
  [domain:example.com]
  smtp_server = smtp.example.com
  relay_account = a@example.com
  [domain:example.net]
  smtp_server = smtp.example.net
  [domain:off.example]
  enabled = false
  smtp_server = smtp.off.example

  """

/// A mapping for each `from -> to[, to] [@domain]` line.
func mappings(_ lines: String...) -> String {
  var text = ""
  for (index, line) in lines.enumerated() {
    let parts = line.split(separator: " -> ").map(String.init)
    let target = parts[1].split(separator: " via ").map(String.init)
    text += "[mapping:m\(index)]\nfrom_pattern = \(parts[0])\nto_pattern = \(target[0])\n"
    text += "domain = \(target.count > 1 ? target[1] : "example.com")\n"
  }
  return text
}

func router(
  mappings: String = "", users: String = "", domains: String = domains, global: String = "default_domain = example.com"
) throws -> Router {
  let files = MemoryFiles([
    "/c/m.conf": "[global]\ndefault_hostname = relay.example\ndefault_from = noreply@relay.example\n\(global)\n",
    "/c/domains/d.conf": domains, "/c/mappings/m.conf": mappings, "/c/users/u.conf": users,
  ])
  return Router(try Settings.load(path: "/c/m.conf", overrides: [], files: files, environment: [:]).settings)
}

func forward(_ text: String) throws -> ForwardPath { try ForwardPath(parsing: text) }
func reverse(_ text: String) throws -> ReversePath { try ReversePath(parsing: text) }

extension Decision {
  /// `x@example.com via example.com, …`, or the reply.
  var summary: String {
    switch self {
    case .accept(let routes): routes.map { "\($0.address) via \($0.account)" }.joined(separator: ", ")
    case .reject(let reply): reply.description
    }
  }
}

extension Router {
  func summary(
    _ recipient: String, from sender: String = "someone@elsewhere.example", _ client: ClientStanding = .untrusted
  ) throws -> String {
    route(recipient: try forward(recipient), sender: try reverse(sender), client: client).summary
  }
}

let unknownUser = "550 5.1.1 No such user here"
let noRoute = "550 5.1.2 No route to this domain"
let relayingDenied = "550 5.7.1 Relaying denied"
