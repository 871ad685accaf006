// The content of a message: read after DATA or in chunks, shown to filters, put on disk, and answered for.

import Message
import Network
import Primitives
import SMTP
import Spool

extension Session {
  private func makeReceiver(_ stream: ByteStream) -> ContentReceiver {
    let id = filtered.id ?? server.store.nextID()
    let origin = ReceivedField.Origin(
      helo: machine.heloName, clientAddress: client, isESMTP: machine.isESMTP, isSMTPUTF8: parameters.smtpUTF8,
      tls: stream.tls.map { "\($0.version) \($0.cipher)" }, isAuthenticated: machine.identity != nil)
    let originals = recipients.map(\.original)
    return ContentReceiver(
      id: id, store: server.store, limit: settings.maximumMessageSize, headerLimit: settings.limits.headerSize,
      budget: server.contentBudget, hostname: settings.hostname, recipients: originals,
      completion: role.requiresAuthentication ? server.time.wallClock : nil
    ) {
      ReceivedField.render(
        into: &$0, origin: origin, by: settings.hostname, queueID: id.description,
        for: Set(originals).count == 1 ? originals.first : nil, date: server.time.wallClock)
    }
  }

  func dropReceiver() async {
    await receiver?.discard()
    receiver = nil
  }

  func receiveData(_ stream: ByteStream) async throws(NetworkError) {
    let receiver = makeReceiver(stream)
    self.receiver = receiver
    meter.contentBegins(SystemTime().now)
    while true {
      if stream.bufferedCount > 0 {
        meter.contentCame(stream.bufferedCount)
        let isFinished = stream.consume { receiver.decode($0) }
        await receiver.spill()
        if isFinished { break }
      }
      guard try await fill(stream, until: contentDeadline, waitingFor: "the message") else { throw .endOfStream }
    }
    await finish(receiver)
  }

  func receiveChunk(_ stream: ByteStream, _ count: Int, isLast: Bool) async throws(NetworkError) {
    let receiver = self.receiver ?? makeReceiver(stream)
    self.receiver = receiver
    meter.contentBegins(SystemTime().now)
    try await read(stream, count) { receiver.take($0) }
    guard isLast else {
      machine.chunkAccepted()
      return send(Reply(250, "2.0.0", "\(count) octets received"))
    }
    await finish(receiver)
  }

  func read(_ stream: ByteStream, _ count: Int, _ body: (UnsafeRawBufferPointer) -> Void)
    async
    throws(NetworkError)
  {
    var left = count
    while left > 0 {
      if stream.bufferedCount == 0 {
        // The client may wait for the replies to MAIL and RCPT before it sends the chunk (RFC 2920 3.2).
        try await flush(stream)
        guard try await fill(stream, until: contentDeadline, waitingFor: "the message") else { throw .endOfStream }
      }
      let taken = stream.consume { bytes in
        let taken = min(left, bytes.count)
        body(UnsafeRawBufferPointer(rebasing: bytes[..<taken]))
        return (taken, taken)
      }
      meter.contentCame(taken)
      left -= taken
      await receiver?.spill()
    }
  }

  /// The end of the message: on disk, or refused; then the reply.
  private func finish(_ receiver: ContentReceiver) async {
    self.receiver = nil
    await askMilters(content: receiver)
    let state = initialState
    let envelope = Envelope(
      reversePath: sender.text, recipients: recipients, arrival: server.time.wallClock,
      clientAddress: client.description, helo: machine.heloName ?? "", is8Bit: parameters.body == .eightBitMIME,
      smtpUTF8: parameters.smtpUTF8, envelopeID: parameters.envelopeID,
      returnFull: parameters.ret.map { $0 == .full })
    let reply: Reply
    if let reason = filtered.discarded, !receiver.isRefused {
      await receiver.discard()
      meter.messageTaken()
      server.log.notice("\(receiver.id): discarded, from=<\(envelope.reversePath)>, client=\(client): \(reason)")
      machine.contentFinished()
      resetTransaction()
      return send(Reply(250, "2.0.0", "Queued as \(receiver.id)"))
    }
    switch await receiver.commit(envelope, state) {
    case .success(let content):
      server.count { $0.accepted += 1 }
      meter.messageTaken()
      server.log.info(
        "\(receiver.id): from=<\(envelope.reversePath)>, size=\(receiver.size), nrcpt=\(recipients.count), client=\(client), helo=\(envelope.helo)\(login)"
      )
      if let reason = filtered.quarantine {
        server.log.notice("\(receiver.id): on hold: \(reason)")
      } else {
        server.hand(receiver.id, envelope, content)
      }
      reply = Reply(250, "2.0.0", "Queued as \(receiver.id)")
    case .failure(let refusal):
      server.count { $0.refused += 1 }
      let text = "\(client): refused from=<\(envelope.reversePath)> after the content: \(refusal.reply)"
      if let cause = refusal.cause { server.log.error("\(text): \(cause)") } else { server.log.warning("\(text)") }
      reply = refusal.reply
    }
    machine.contentFinished()
    resetTransaction()
    if let limit = ServerLimit(reply) { server.reached(limit) }
    send(reply)
  }
}
