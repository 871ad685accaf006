// A session held against its limits: what becomes of a command, of a message and of a silence when it is too much.

import Network
import Primitives
import SMTP

extension Session {
  /// Looks at what the state machine has decided: the same, or the end of a session that has gone too far.
  func meter(_ action: ServerStateMachine.Action) -> ServerStateMachine.Action {
    switch action {
    case .reply(let reply), .close(let reply), .discardChunk(_, let reply):
      if let limit = ServerLimit(reply) {
        if limit == .errors { server.reached(limit, client, "sent away: \(reply)") } else { server.reached(limit) }
      }
    case .checkSender:
      if meter.sessionIsOver(settings.limits, SystemTime().now) {
        server.reached(.sessionTime)
        return .close(Replies.sessionIsOver)
      }
      if meter.transactions >= settings.limits.messagesPerSession, !isTrustedClient {
        server.reached(.messages)
        return .close(Replies.tooManyTransactions)
      }
    default: break
    }
    guard meter.take(action, limit: settings.limits.commands) else {
      server.reached(.commands, client, "sent away: \(Replies.tooManyCommands)")
      return .close(Replies.tooManyCommands)
    }
    return action
  }

  /// The refusal of a message of a client that sends too many.
  func rateRefusal() -> Reply? {
    if isTrustedClient { return nil }
    if server.admitMessage(from: client, limit: settings.limits.messagesPerMinute) { return nil }
    server.reached(.messageRate, client, "refused: \(Replies.tooFast)")
    return Replies.tooFast
  }

  // MARK: Time

  /// How long the client may be silent, from now on.
  var deadline: MonotonicInstant { SystemTime().now + settings.clientTimeout }

  /// Until when the next command has to be here.
  var commandDeadline: MonotonicInstant {
    meter.commandDeadline(deadline, settings.limits, transactionIsOpen: machine.transactionIsOpen)
  }

  /// Until when more of the message has to be here.
  var contentDeadline: MonotonicInstant {
    meter.contentDeadline(deadline, timeout: settings.clientTimeout, settings.limits)
  }

  /// The last word to a client that was waited for in vain.
  func tooLate(_ what: StaticString) -> Reply {
    switch meter.awaited {
    case .messageTime:
      let reply = Reply(421, "4.4.2", "\(settings.hostname) waited too long for the whole message")
      server.reached(.messageTime, client, "sent away: \(reply)")
      return reply
    case .sessionTime:
      server.reached(.sessionTime)
      return Replies.sessionIsOver
    default:
      server.reached(.commandTime)
      return Reply(421, "4.4.2", "\(settings.hostname) waited too long for \(what)")
    }
  }

  // MARK: TLS

  /// Runs the handshake within its time, and counts how it ended.
  func shakeHands(_ stream: ByteStream, _ context: TLSContext) async throws(NetworkError) {
    do throws(NetworkError) {
      try await stream.startTLS(context, until: SystemTime().now + settings.limits.handshakeTime)
    } catch {
      if case .timedOut = error {
        server.count { $0.handshakes.timedOut += 1 }
        server.reached(.handshakeTime, client, "the TLS handshake took too long")
      } else {
        server.count { $0.handshakes.failed += 1 }
      }
      throw error
    }
    let isResumed = stream.tls?.isResumed == true
    server.count {
      $0.handshakes.done += 1
      if isResumed { $0.handshakes.resumed += 1 }
    }
  }
}
