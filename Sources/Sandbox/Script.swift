// How an upstream misbehaves, as a list that a reader can take in at a glance: `[.stripSTARTTLS, .hang(.data)]`.

import Primitives

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
/// of a long one; `{id}` stands for the id that Gmail puts there. `times` bounds how often a rule acts, over all
/// connections; nil is always.
public indirect enum Rule: Sendable, Hashable {
  /// Answers so instead. A 4xx or 5xx leaves the command undone; 421 also closes the connection.
  case answer(Step, String, times: Int? = nil)
  /// Answers so to a recipient: a whole mailbox, or the beginning of one such as `nobody@`.
  case recipient(String, String, times: Int? = nil)
  /// Answers so to every exchange of credentials, right or wrong.
  case rejectAuth(String, times: Int? = nil)
  /// Answers so to a recipient the first so many times, each recipient by itself: a greylist.
  case greylist(String, tries: Int)
  /// Refuses messages of more octets, whatever its SIZE (RFC 1870) promises.
  case maximumSize(Int)
  /// Follows the rule only once so many messages were accepted since the script began.
  case after(messages: Int, Rule)
  /// Follows the rule only for so long after the script began.
  case lasting(Duration, Rule)
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
  case noSMTPUTF8
  /// Offers DSN (RFC 3461) and takes its parameters, which Gmail does not.
  case offersDSN
  /// Answers the MAIL after so many messages on a connection with 421, and closes it.
  case closeAfterMessages(Int)

  fileprivate var times: Int? {
    switch self {
    case .answer(_, _, let times), .recipient(_, _, let times), .rejectAuth(_, let times), .hang(_, let times),
      .disconnect(_, let times), .disconnectAfterDot(let times), .disconnectInData(_, let times):
      times
    case .after(_, let rule), .lasting(_, let rule): rule.times
    default: nil
    }
  }
}

/// The rules an upstream follows at the moment, and how often each has acted.
struct Script: Sendable {
  /// A rule without its conditions, and those.
  private struct Entry {
    var rule: Rule
    var left: Int?
    var after = 0
    var end = MonotonicInstant.distantFuture

    init(_ rule: Rule, since start: MonotonicInstant) {
      self.rule = rule
      left = rule.times
      while true {
        switch self.rule {
        case .after(let messages, let inner):
          after = max(after, messages)
          self.rule = inner
        case .lasting(let duration, let inner):
          end = min(end, start + duration)
          self.rule = inner
        default: return
        }
      }
    }
  }

  private var entries: [Entry]
  /// How often a recipient was put off by a greylist.
  private var putOff: [String: Int] = [:]
  /// Messages that were accepted since the script began.
  private var accepted = 0
  /// What the clock says; whoever asks sets it first.
  var now: MonotonicInstant

  init(_ rules: [Rule] = [], now: MonotonicInstant) {
    entries = rules.map { Entry($0, since: now) }
    self.now = now
  }

  var isEmpty: Bool { entries.isEmpty }

  mutating func countMessage() { accepted += 1 }

  private func isActive(_ entry: Entry) -> Bool { entry.left != 0 && accepted >= entry.after && now < entry.end }

  func has(_ rule: Rule) -> Bool { entries.contains { $0.rule == rule && isActive($0) } }

  var messagesPerConnection: Int? {
    for entry in entries where isActive(entry) {
      if case .closeAfterMessages(let count) = entry.rule { return count }
    }
    return nil
  }

  var maximumSize: Int? {
    for entry in entries where isActive(entry) {
      if case .maximumSize(let octets) = entry.rule { return octets }
    }
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
    for i in entries.indices where isActive(entries[i]) {
      switch entries[i].rule {
      case .delay(step, let duration): result.delay = duration
      case .hang(step, _) where !result.hangs: result.hangs = true
      case .disconnect(step, _) where !result.disconnects: result.disconnects = true
      case .answer(step, let text, _) where result.reply == nil: result.reply = text
      case .greylist(let text, let tries) where result.reply == nil && step == .rcpt:
        guard let recipient, putOff[recipient, default: 0] < tries else { continue }
        putOff[recipient, default: 0] += 1
        result.reply = text
      case .recipient(let pattern, let text, _) where result.reply == nil && step == .rcpt:
        guard let recipient, recipient == pattern || pattern.hasSuffix("@") && recipient.hasPrefix(pattern) else {
          continue
        }
        result.reply = text
      default: continue
      }
      entries[i].left? -= 1
    }
    return result
  }

  mutating func authRejection() -> String? {
    for i in entries.indices where isActive(entries[i]) {
      guard case .rejectAuth(let text, _) = entries[i].rule else { continue }
      entries[i].left? -= 1
      return text
    }
    return nil
  }

  mutating func disconnectsAfterDot() -> Bool {
    for i in entries.indices where isActive(entries[i]) {
      guard case .disconnectAfterDot = entries[i].rule else { continue }
      entries[i].left? -= 1
      return true
    }
    return false
  }

  mutating func disconnectsInData(at count: Int) -> Bool {
    for i in entries.indices where isActive(entries[i]) {
      guard case .disconnectInData(let limit, _) = entries[i].rule, count >= limit else { continue }
      entries[i].left? -= 1
      return true
    }
    return false
  }
}
