// The bad days of a Gmail account by name, in Google's words: what the documentation describes, what tests run, and
// what users rehearse with `ssmtp-mailer sandbox --scenario` are one and the same.

import Primitives

/// Something that happens to those who send through Gmail.
public enum Scenario: String, Sendable, Hashable, CaseIterable {
  case badCredentials = "bad-credentials"
  case tooManyLogins = "too-many-logins"
  case dailyLimit = "daily-limit"
  case tarpit
  case greylist
  case dropAfterDot = "drop-after-dot"
  case size
  case drift

  /// What happens, for people.
  public var summary: String {
    switch self {
    case .badCredentials: "the app password is dead: every login is refused"
    case .tooManyLogins: "Gmail has seen too many logins: nobody may log in for a while"
    case .dailyLimit: "the messages of a day are used up"
    case .tarpit: "every reply is slow"
    case .greylist: "a recipient gets mail too quickly: try again later"
    case .dropAfterDot: "the connection breaks behind the end of a message, before the reply"
    case .size: "messages are too large"
    case .drift: "the server has two addresses, and the first one dies"
    }
  }

  /// What N means in `NAME:N`.
  public var countMeaning: String {
    switch self {
    case .badCredentials, .tooManyLogins: "logins that are refused (default: all)"
    case .dailyLimit: "messages that still get through (default: 0)"
    case .tarpit: "seconds before each reply (default: 5)"
    case .greylist: "tries that are put off, for each recipient (default: 1)"
    case .dropAfterDot: "messages that it happens to (default: 1)"
    case .size: "octets that a message may have (default: 1000000)"
    case .drift: "messages before it dies (default: 0)"
    }
  }

  /// What Gmail says; nil when it says nothing of its own. `{id}` stands for an id.
  public var reply: String? {
    switch self {
    case .badCredentials:
      "535-5.7.8 Username and Password not accepted. For more information, go to\n"
        + "535 5.7.8  https://support.google.com/mail/?p=BadCredentials {id} - gsmtp"
    case .tooManyLogins:
      "454 4.7.0 Too many login attempts, please try again later. {id} - gsmtp"
    case .dailyLimit:
      "550-5.4.5 Daily user sending limit exceeded. For more information on Gmail\n"
        + "550-5.4.5 sending limits go to\n550 5.4.5  https://support.google.com/a/answer/166852 {id} - gsmtp"
    case .greylist:
      "450-4.2.1 The user you are trying to contact is receiving mail too quickly.\n"
        + "450-4.2.1 Please resend your message at a later time. If the user is able to\n"
        + "450-4.2.1 receive mail at that time, your message will be delivered. For more\n"
        + "450-4.2.1 information, go to\n450 4.2.1  https://support.google.com/mail/?p=ReceivingRate {id} - gsmtp"
    case .size:
      "552-5.3.4 Your message exceeded Google's message size limits. To view our message size\n"
        + "552 5.3.4 guidelines, go to https://support.google.com/mail/?p=MaxSizeError {id} - gsmtp"
    case .tarpit, .dropAfterDot, .drift: nil
    }
  }

  /// The rules of the scenario. `drift` has none: addresses are not a matter of the dialogue.
  public func rules(_ count: Int? = nil) -> [Rule] {
    let text = reply ?? ""
    return switch self {
    case .badCredentials, .tooManyLogins: [.rejectAuth(text, times: count)]
    case .dailyLimit: [.after(messages: count ?? 0, .answer(.content, text))]
    case .tarpit: Step.allCases.filter { $0 != .quit }.map { .delay($0, .seconds(count ?? 5)) }
    case .greylist: [.greylist(text, tries: count ?? 1)]
    case .dropAfterDot: [.disconnectAfterDot(times: count ?? 1)]
    case .size: [.maximumSize(count ?? 1_000_000)]
    case .drift: []
    }
  }
}

/// A scenario with its N, as in `daily-limit:20`.
public struct ScenarioChoice: Sendable, Hashable, CustomStringConvertible {
  public var scenario: Scenario
  public var count: Int?

  /// Why a text is none.
  public struct Mistake: Error, Hashable, Sendable, CustomStringConvertible {
    public var description: String
  }

  public init(_ scenario: Scenario, _ count: Int? = nil) {
    self.scenario = scenario
    self.count = count
  }

  public init(parsing text: String) throws(Mistake) {
    let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    guard let name = parts.first, let scenario = Scenario(rawValue: String(name)) else {
      let names = Scenario.allCases.map(\.rawValue).joined(separator: ", ")
      throw Mistake(description: "there is no scenario \(text); there is: \(names)")
    }
    self.init(scenario)
    guard parts.count == 2 else { return }
    guard let count = Int(parts[1]), (0...1_000_000_000).contains(count), !parts[1].hasPrefix("+") else {
      throw Mistake(description: "\(text): behind the colon is a number: \(scenario.countMeaning)")
    }
    self.count = count
  }

  public var description: String { scenario.rawValue + (count.map { ":\($0)" } ?? "") }
}

/// Scenarios that run on an upstream, and end.
public actor Rehearsal {
  private let upstream: Upstream
  private let choices: [ScenarioChoice]
  /// The address that `drift` takes away, and whether it is away.
  private let dying: Endpoint
  private var isDead = false
  public private(set) var isOver = false

  /// - Parameter dying: where the upstream listens and `drift` makes it stop.
  public init(_ choices: [ScenarioChoice], on upstream: Upstream, dying: Endpoint) {
    self.choices = choices
    self.upstream = upstream
    self.dying = dying
  }

  public func begin() async {
    upstream.follow(choices.flatMap { $0.scenario.rules($0.count) })
    guard let drift = choices.first(where: { $0.scenario == .drift }) else { return }
    let count = drift.count ?? 0
    if count == 0 { return await die() }
    let limit = upstream.statistics.messages + count
    Task {
      await upstream.wait { $0.messages >= limit }
      await self.die()
    }
  }

  private func die() async {
    guard !isOver, !isDead else { return }
    isDead = true
    await upstream.leave(dying)
  }

  /// All is well again. Idempotent.
  /// - Throws: ``NetworkError`` when the address that `drift` took away cannot be bound again.
  public func end() throws {
    if isOver { return }
    isOver = true
    upstream.follow([])
    if isDead { try upstream.listen(on: dying) }
  }
}
