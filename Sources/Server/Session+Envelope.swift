// MAIL and RCPT: what policy, space, limits, lists and filters say of a sender and of each recipient.

import Primitives
import Routing
import SMTP
import Spool

extension Session {
  func checkSender(_ path: ReversePath, _ parameters: MailParameters) async {
    resetTransaction()
    if let refusal = refusalOfIdentity() ?? settings.router.checkSender(path, client: standing) {
      server.log.notice("\(client): refused from=<\(path.text)>\(login): \(refusal)")
      return refuseSender(refusal)
    }
    let announced = min(parameters.size ?? 0, settings.maximumMessageSize)
    guard server.store.admits(announced) else {
      server.log.warning("\(client): refused from=<\(path.text)>, size=\(announced): the disk is short of space")
      return refuseSender(Replies.insufficientStorage)
    }
    if let refusal = rateRefusal() { return refuseSender(refusal) }
    if let refusal = await askMilters(sender: path, parameters) {
      server.log.notice("\(client): refused from=<\(path.text)> by a milter: \(refusal)")
      return refuseSender(refusal)
    }
    sender = path
    self.parameters = parameters
    meter.transactionBegins(SystemTime().now)
    machine.senderAnswered(accepted: true)
    send(Replies.senderOK)
  }

  private func refuseSender(_ reply: Reply) {
    machine.senderAnswered(accepted: false)
    send(reply)
  }

  func checkRecipient(_ path: ForwardPath, _ parameters: RecipientParameters) async {
    let now = server.time.wallClock
    switch settings.router.route(recipient: path, sender: sender, client: standing, now: now) {
    case .reject(let reply):
      server.log.notice("\(client): refused from=<\(sender.text)> to=<\(path.text)>: \(reply)")
      refuseRecipient(reply)
    case .accept(let routes):
      if let refusal = await refusalByLists(of: path) { return refuseRecipient(refusal) }
      if let refusal = await askMilters(recipient: path) {
        server.log.notice("\(client): refused from=<\(sender.text)> to=<\(path.text)> by a milter: \(refusal)")
        return refuseRecipient(refusal)
      }
      accept(
        path.text,
        routes.map { route in
          Recipient(
            address: route.address.description, original: path.text, account: route.account,
            notify: parameters.notify?.rawValue,
            originalRecipient: parameters.originalRecipient.map { "\($0.addressType);\($0.address)" })
        })
      machine.recipientAnswered(accepted: true)
      send(Replies.recipientOK)
    }
  }

  private func refuseRecipient(_ reply: Reply) {
    machine.recipientAnswered(accepted: false)
    meter.recipientRefused()
    send(reply)
  }

  /// Takes over what a recipient has come to.
  func accept(_ original: String, _ new: [Recipient]) {
    if !milters.isEmpty { filtered.asked.append((original, new)) }
    for recipient in new { addRecipient(recipient) }
  }

  /// Whoever is named twice gets one copy, and the sender every report that either asked for.
  func addRecipient(_ recipient: Recipient) {
    let known = recipients.firstIndex { $0.address == recipient.address && $0.account == recipient.account }
    guard let known else { return recipients.append(recipient) }
    if recipients[known].notify == recipient.notify { return }
    func asked(_ notify: UInt8?) -> UInt8 {
      notify ?? RecipientParameters.Notify([.failure, .delay]).rawValue
    }
    recipients[known].notify = asked(recipients[known].notify) | asked(recipient.notify)
  }

  func resetTransaction() {
    recipients = []
    sender = .null
  }

  /// What RSET, EHLO or a refused chunk has ended must neither cost memory nor reach the next message.
  func forgetTransaction() async {
    meter.transactionEnds()
    if receiver != nil { await dropReceiver() }
    if filtered.id != nil { abortMilters() }
    if !recipients.isEmpty { resetTransaction() }
  }
}
