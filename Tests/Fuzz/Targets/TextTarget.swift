// The small notations: base64, SASL, forms, SRS, identifiers, addresses of the network. Each comes back as it went.

import OAuth
import Primitives
import Routing
import SMTP
import Spool

extension FuzzTarget {
  static let text = FuzzTarget("text", limit: 600) { input in
    let text = String(decoding: input, as: UTF8.self)
    try expect(Base64.decode(Base64.encode(input)) == input, "base64 loses something")
    if let bytes = Base64.decode(text) { try expect(Base64.encode(bytes) == text, "two texts for the same octets") }
    for credentials in [SASL.decodePlain(text), SASL.decodePlain(Base64.encode(input))] {
      guard let credentials else { continue }
      let again = SASL.decodePlain(
        SASL.plain(
          username: credentials.username, password: credentials.password,
          authorizationIdentity: credentials.authorizationIdentity))
      try expect(again == credentials, "PLAIN changes what it carries")
    }
    _ = SASL.decodeBearer(Base64.encode(input))?.token
    let form = WebForm(parsing: text)
    try expect(WebForm(parsing: form.encoded) == form, "a form comes back as another one")
    try expect(form.encoded.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f }, "a form with a control character")
    if let id = QueueID(text) { try expect(QueueID("\(id)") == id, "\(id) changes") }
    if let address = IPAddress(text) { try expect(IPAddress("\(address)") == address, "\(address) changes") }
    if let endpoint = Endpoint(text) { try expect(Endpoint("\(endpoint)") == endpoint, "\(endpoint) changes") }
    if let network = IPNetwork(text) { try expect(IPNetwork("\(network)") == network, "\(network) changes") }
    try senders(text)
  }

  private static func senders(_ text: String) throws {
    let now = Timestamp(microseconds: 1_800_000_000_000_000)
    guard let scheme = SenderRewritingScheme(secrets: ["secret-of-the-fuzzer"], domain: "srs.test"),
      let sender = try? Mailbox(parsing: text)
    else { return }
    if scheme.claims(sender), (try? scheme.reverse(sender, now: now)) != nil {
      throw Violation(description: "\(sender) was made by hand and is taken for ours")
    }
    guard let forward = scheme.forward(sender, now: now) else { return }
    try check(forward)
    try expect(forward.domain == "srs.test", "\(forward) is not ours")
    let home = try scheme.reverse(forward, now: now)
    let isFirst = forward.localPart.hasPrefix("SRS0")
    try expect(!isFirst || home == sender, "\(sender) went out as \(forward) and came home as \(home)")
  }
}
