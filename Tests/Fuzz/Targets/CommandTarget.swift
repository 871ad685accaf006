// Lines of a client, through the parser and the state machine that obeys them.

import SMTP

extension FuzzTarget {
  /// The first octet chooses the settings; the rest are lines, ended by LF or the end.
  static let command = FuzzTarget("command") { input in
    var octets = Octets(input)
    let switches = octets.byte()
    func bit(_ place: Int) -> Bool { switches >> place & 1 == 1 }
    var settings = ServerStateMachine.Settings(
      hostname: "relay.test", maximumMessageSize: 1000, maximumRecipients: 3, offersStartTLS: bit(0),
      offersDSN: bit(1), authMechanisms: bit(2) ? ["PLAIN", "LOGIN"] : [], requiresTLS: bit(3),
      requiresAuthentication: bit(4), maximumErrors: 5)
    settings.allowsAuthenticationWithoutTLS = bit(5)
    var machine = ServerStateMachine(settings: settings, isTLS: bit(6))
    var errors = 0
    for line in octets.rest.split(separator: 0x0a, omittingEmptySubsequences: false) {
      let action = Array(line).withUnsafeBytes { machine.receive(line: $0) }
      try expect(machine.errorCount >= errors, "an error is forgotten")
      errors = machine.errorCount
      guard try follow(action, of: &machine, settings) else { return }
    }
  }

  /// Does what a session does. Returns false at the end of the session.
  private static func follow(
    _ action: ServerStateMachine.Action, of machine: inout ServerStateMachine, _ settings: ServerStateMachine.Settings
  ) throws -> Bool {
    switch action {
    case .reply(let reply): try wellFormed(reply)
    case .close(let reply):
      try wellFormed(reply)
      return false
    case .checkSender(let path, let parameters):
      try expect(machine.heloName != nil && !machine.transactionIsOpen, "MAIL was let through out of order")
      try expect(machine.isTLS || !settings.requiresTLS, "MAIL was let through without TLS")
      try expect(machine.identity != nil || !settings.requiresAuthentication, "MAIL was let through without AUTH")
      try expect((parameters.size ?? 0) <= settings.maximumMessageSize, "a size above the limit was let through")
      if let mailbox = path.mailbox {
        try check(mailbox)
        try expect(parameters.smtpUTF8 || !mailbox.needsSMTPUTF8, "\(mailbox) without SMTPUTF8")
      }
      for text in [parameters.envelopeID, parameters.auth] {
        try expect(text.map { !$0.utf8.contains { $0 < 0x20 || $0 == 0x7f } } ?? true, "a parameter breaks its line")
      }
      let accepted = path.text.utf8.count % 4 != 3
      machine.senderAnswered(accepted: accepted)
      try expect(machine.transactionIsOpen == accepted, "the answer to MAIL does not count")
    case .checkRecipient(let path, let parameters):
      try expect(machine.transactionIsOpen, "RCPT was let through before MAIL")
      if case .mailbox(let mailbox) = path {
        try check(mailbox)
        try expect(machine.transactionIsSMTPUTF8 || !mailbox.needsSMTPUTF8, "\(mailbox) without SMTPUTF8")
      }
      if let original = parameters.originalRecipient {
        let text = original.addressType + original.address
        try expect(!text.utf8.contains { $0 < 0x20 || $0 == 0x7f }, "ORCPT breaks its line")
      }
      machine.recipientAnswered(accepted: path.text.utf8.count % 4 != 3)
    case .startTLS(let reply):
      try wellFormed(reply)
      try expect(settings.offersStartTLS && !machine.isTLS, "STARTTLS where there is none to have")
      machine.tlsStarted()
      try expect(
        machine.isTLS && machine.heloName == nil && machine.identity == nil && !machine.transactionIsOpen,
        "something from before TLS is still known")
    case .receiveData(let reply):
      try wellFormed(reply)
      try expect(machine.transactionIsOpen, "content without a transaction")
      machine.contentFinished()
      try expect(!machine.transactionIsOpen, "the transaction outlives its content")
    case .receiveChunk(let count, let last):
      try expect(count >= 0 && count <= settings.maximumMessageSize, "a chunk of \(count) was let through")
      if last { machine.contentFinished() } else { machine.chunkAccepted() }
    case .discardChunk(let count, let reply):
      try wellFormed(reply)
      try expect(count >= 0, "a chunk of \(count) octets")
    case .authenticate(let mechanism, let response):
      try expect(settings.authMechanisms.contains(mechanism), "\(mechanism) was let through")
      try expect(
        machine.isTLS || settings.allowsAuthenticationWithoutTLS, "a password was let through in the clear")
      _ = response.flatMap { SASL.decodePlain($0) }
      machine.authenticated("user@relay.test")
    }
    return true
  }

  /// What every reply looks like on the wire.
  static func wellFormed(_ reply: Reply) throws {
    try expect((200...599).contains(reply.code), "reply code \(reply.code)")
    let encoded = reply.encoded
    var parser = ReplyParser()
    var consumed = 0
    let read = try encoded.withUnsafeBytes { raw throws(ReplyError) in try parser.next(raw, consumed: &consumed) }
    try expect(read?.code == reply.code && consumed == encoded.count, "the reply reads as \(String(describing: read))")
    for line in encoded.split(separator: 0x0a) {
      try expect(line.count <= 511 && line.last == 0x0d, "a reply line of \(line.count + 1) octets")
      try expect(line.dropLast().allSatisfy { $0 >= 0x20 && $0 < 0x7f }, "a reply line with a control character")
    }
    try expect(isOneLine(reply.description), "the reply breaks the log")
  }
}
