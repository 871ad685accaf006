// How an upstream misbehaves, as a list that a reader can take in at a glance: `[.stripSTARTTLS, .hang(.data)]`.

/// A place in the dialogue where the upstream is about to answer.
public enum Step: String, Sendable, Hashable, CaseIterable {
  case banner, ehlo, startTLS, auth, mail, rcpt, data
  /// The reply to a BDAT chunk that is not the last.
  case chunk
  /// The final reply to a message: after the dot, or after the last chunk.
  case content
  case rset, noop, quit
}

/// One departure from what Gmail does. Replies are written as `550 5.1.1 no such user`, with `\n` between the lines
/// of a long one. `times` bounds how often a rule acts, over all connections; nil is always.
public enum Rule: Sendable, Hashable {
  /// Answers so instead. A 4xx or 5xx leaves the command undone; 421 also closes the connection.
  case answer(Step, String, times: Int? = nil)
  /// Answers so to a recipient: a whole mailbox, or the beginning of one such as `nobody@`.
  case recipient(String, String, times: Int? = nil)
  /// Answers so to every exchange of credentials, right or wrong.
  case rejectAuth(String, times: Int? = nil)
  /// Waits before the reply; the replies before it are sent first.
  case delay(Step, Duration)
  /// Never answers, and stays.
  case hang(Step, times: Int? = nil)
  /// Closes the connection instead of answering; the command is not carried out.
  case disconnect(Step, times: Int? = nil)
  /// Accepts the message and closes the connection instead of saying so: the sender is left in doubt.
  case disconnectAfterDot(times: Int? = nil)
  /// Closes the connection once so many bytes of a message have come.
  case disconnectInData(afterBytes: Int, times: Int? = nil)
  /// Neither offers nor accepts STARTTLS, as a meddler on the way would have it.
  case stripSTARTTLS
  case noPipelining
  case noChunking
  /// Offers DSN (RFC 3461) and takes its parameters, which Gmail does not.
  case offersDSN
  /// Answers the MAIL after so many messages on a connection with 421, and closes it.
  case closeAfterMessages(Int)

  fileprivate var times: Int? {
    switch self {
    case .answer(_, _, let times), .recipient(_, _, let times), .rejectAuth(_, let times), .hang(_, let times),
      .disconnect(_, let times), .disconnectAfterDot(let times), .disconnectInData(_, let times):
      times
    default: nil
    }
  }
}

/// The rules an upstream follows at the moment, and how often each has acted.
struct Script: Sendable {
  private var rules: [(rule: Rule, left: Int?)]

  init(_ rules: [Rule] = []) { self.rules = rules.map { ($0, $0.times) } }

  var isEmpty: Bool { rules.isEmpty }

  func has(_ rule: Rule) -> Bool { rules.contains { $0.rule == rule } }

  var messagesPerConnection: Int? {
    for case (.closeAfterMessages(let count), _) in rules { return count }
    return nil
  }

  /// What is to be done at a step, in the order in which it happens.
  struct Directive: Sendable {
    var delay: Duration?
    var hangs = false
    var disconnects = false
    var reply: String?
  }

  mutating func directive(for step: Step, recipient: String?) -> Directive {
    var result = Directive()
    for i in rules.indices where rules[i].left != 0 {
      switch rules[i].rule {
      case .delay(step, let duration): result.delay = duration
      case .hang(step, _) where !result.hangs: result.hangs = true
      case .disconnect(step, _) where !result.disconnects: result.disconnects = true
      case .answer(step, let text, _) where result.reply == nil: result.reply = text
      case .recipient(let pattern, let text, _) where result.reply == nil && step == .rcpt:
        guard let recipient, recipient == pattern || pattern.hasSuffix("@") && recipient.hasPrefix(pattern) else {
          continue
        }
        result.reply = text
      default: continue
      }
      rules[i].left? -= 1
    }
    return result
  }

  mutating func authRejection() -> String? {
    for i in rules.indices where rules[i].left != 0 {
      guard case .rejectAuth(let text, _) = rules[i].rule else { continue }
      rules[i].left? -= 1
      return text
    }
    return nil
  }

  mutating func disconnectsAfterDot() -> Bool {
    for i in rules.indices where rules[i].left != 0 {
      guard case .disconnectAfterDot = rules[i].rule else { continue }
      rules[i].left? -= 1
      return true
    }
    return false
  }

  mutating func disconnectsInData(at count: Int) -> Bool {
    for i in rules.indices where rules[i].left != 0 {
      guard case .disconnectInData(let limit, _) = rules[i].rule, count >= limit else { continue }
      rules[i].left? -= 1
      return true
    }
    return false
  }
}
