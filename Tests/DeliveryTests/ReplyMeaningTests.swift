// What each reply of Gmail means, in every form in which it comes: with and without enhanced code, in one line or several
// with the address of a help page, signed by Gmail or by a rule of the domain's administrator.

import Delivery
import SMTP
import Testing

/// A row of the table: a reply, where it comes, and what it means.
struct KnownReply: CustomTestStringConvertible, Sendable {
  var code: Int
  var status: String
  var text: String
  var stage: Stage
  var meaning: ReplyMeaning
  var isAboutRate = false

  init(
    _ code: Int, _ status: String, _ text: String, _ stage: Stage, _ meaning: ReplyMeaning, isAboutRate: Bool = false
  ) {
    (self.code, self.status, self.text) = (code, status, text)
    (self.stage, self.meaning, self.isAboutRate) = (stage, meaning, isAboutRate)
  }

  var testDescription: String { "\(code) \(status) \(text) at \(stage.rawValue)" }

  private static let address = "https://support.google.com/mail/answer/81126"

  /// The reply as Gmail may write it. A sentence may break anywhere.
  var forms: [Reply] {
    let words = text.split(separator: " ").map(String.init)
    var forms: [Reply] = []
    for status in [EnhancedStatusCode(parsing: status), nil] {
      for signature in ["gsmtp", "gcdp", "a1-2002sor.53 - gsmtp", "ffacd0b85a97d.12 - gcdp", ""] {
        func form(_ lines: [String]) { forms.append(Reply(code: code, enhanced: status, lines: lines)) }
        form([text + " " + signature])
        form([text + ". Learn more at", " \(Self.address) \(signature)"])
        for place in words.indices.dropFirst() {
          form([
            words[..<place].joined(separator: " "), " " + words[place...].joined(separator: " ") + ". For more, go to",
            " \(Self.address) x7-20 - \(signature)",
          ])
        }
      }
    }
    return forms
  }
}

@Suite struct ReplyMeaningTests {
  static let connection = [
    KnownReply(421, "4.3.0", "Temporary System Problem. Try again later", .mail, .connectionLost),
    KnownReply(421, "4.4.5", "Server busy, try again later.", .data, .connectionLost),
    KnownReply(421, "4.7.0", "Try again later, closing connection.", .recipient, .connectionLost, isAboutRate: true),
    KnownReply(421, "4.7.0", "IP not in whitelist for RCPT domain, closing connection", .hello, .connectionLost),
    KnownReply(
      421, "4.7.28", "Our system has detected an unusual rate of unsolicited mail originating from your IP address",
      .content, .accountHeld(.slowDown), isAboutRate: true),
    KnownReply(
      450, "4.2.1", "Peak SMTP relay limit exceeded for customer", .mail, .accountHeld(.slowDown), isAboutRate: true),
    KnownReply(454, "4.7.0", "Temporary authentication failure", .startTLS, .connectionLost),
  ]
  static let recipient = [
    KnownReply(
      450, "4.2.1", "The user you are trying to contact is receiving mail too quickly", .recipient, .recipientLater),
    KnownReply(
      451, "4.3.0", "Multiple destination domains per transaction is unsupported", .recipient, .nextTransaction),
    KnownReply(452, "4.5.3", "Your message has too many recipients", .recipient, .nextTransaction),
    KnownReply(552, "5.5.3", "Too many recipients", .recipient, .nextTransaction),
    KnownReply(452, "4.2.2", "The email account that you tried to reach is over quota", .recipient, .recipientLater),
    KnownReply(552, "5.2.2", "The email account that you tried to reach is over quota", .recipient, .recipientFailed),
    KnownReply(550, "5.1.1", "The email account that you tried to reach does not exist", .recipient, .recipientFailed),
    KnownReply(550, "5.2.1", "The email account that you tried to reach is disabled", .recipient, .recipientFailed),
    KnownReply(501, "5.1.3", "Bad recipient address syntax", .recipient, .recipientFailed),
    KnownReply(501, "5.1.7", "Bad address syntax", .recipient, .recipientFailed),
    KnownReply(553, "5.1.2", "We weren't able to find the recipient domain", .recipient, .recipientFailed),
    KnownReply(553, "5.1.3", "The recipient address is not a valid RFC 5321 address", .recipient, .recipientFailed),
  ]
  static let account = [
    KnownReply(454, "4.7.0", "Too many login attempts, please try again later", .authentication, .held(.tooManyLogins)),
    KnownReply(
      454, "4.7.0", "Cannot authenticate due to temporary system problem", .authentication, .held(.tooManyLogins)),
    KnownReply(454, "4.7.0", "Too many login attempts, please try again later", .greeting, .held(.tooManyLogins)),
    KnownReply(454, "4.7.0", "Too many login attempts, please try again later", .mail, .held(.tooManyLogins)),
    KnownReply(534, "5.7.9", "Application-specific password required", .authentication, .held(.loginRefused)),
    KnownReply(
      534, "5.7.14", "Please log in via your web browser and then try again", .authentication, .held(.loginRefused)),
    KnownReply(535, "5.7.8", "Username and Password not accepted", .authentication, .held(.badCredentials)),
    KnownReply(535, "5.7.1", "Username and Password not accepted", .authentication, .held(.badCredentials)),
    KnownReply(530, "5.5.1", "Authentication Required", .mail, .held(.loginRefused)),
    KnownReply(530, "5.7.0", "Authentication Required", .mail, .held(.loginRefused)),
    KnownReply(530, "5.7.0", "Must issue a STARTTLS command first", .mail, .held(.loginRefused)),
    KnownReply(550, "5.4.5", "Daily user sending limit exceeded", .mail, .held(.dailyLimit)),
    KnownReply(550, "5.4.5", "Daily user sending quota exceeded", .content, .held(.dailyLimit)),
    KnownReply(550, "5.7.1", "Daily SMTP relay limit exceeded for customer", .mail, .held(.dailyLimit)),
    KnownReply(550, "5.7.0", "Mail relay denied", .mail, .held(.relayDenied)),
    KnownReply(550, "5.7.0", "Mail relay denied", .recipient, .held(.relayDenied)),
    KnownReply(550, "5.7.1", "Invalid credentials for relay [192.0.2.1]", .mail, .held(.relayDenied)),
    KnownReply(550, "5.7.1", "Invalid credentials for relay [192.0.2.1]", .hello, .held(.relayDenied)),
    KnownReply(504, "5.7.4", "Unrecognized Authentication Type", .authentication, .held(.loginRefused)),
  ]
  static let message = [
    KnownReply(
      550, "5.7.1", "Our system has detected that this message is likely unsolicited mail", .content, .messageFailed),
    KnownReply(550, "5.7.1", "The message contains content that is not allowed by policy", .content, .messageFailed),
    KnownReply(
      550, "5.7.26", "This message does not have authentication information or is unauthenticated", .content,
      .messageFailed),
    KnownReply(
      552, "5.7.0", "This message was blocked because its content presents a potential risk", .content, .messageFailed),
    KnownReply(552, "5.3.4", "Your message exceeded Google's message size limits", .mail, .messageFailed),
    KnownReply(554, "5.6.0", "Mail message is malformed. Not accepted", .content, .messageFailed),
    KnownReply(451, "4.3.0", "Mail server temporarily rejected message", .content, .messageLater),
  ]
  static let ours = [
    KnownReply(501, "5.5.2", "Syntax error, cannot decode", .mail, .ourFault),
    KnownReply(502, "5.5.1", "Unrecognized command", .data, .ourFault),
    KnownReply(502, "5.5.1", "Unrecognized command", .recipient, .ourFault),
    KnownReply(503, "5.5.1", "Bad sequence of commands", .data, .ourFault),
    KnownReply(504, "5.7.4", "Unrecognized Authentication Type", .mail, .ourFault),
    KnownReply(554, "5.7.0", "Too many unauthenticated commands", .mail, .ourFault),
    KnownReply(555, "5.5.2", "Syntax error", .recipient, .ourFault),
  ]

  @Test(arguments: connection + recipient + account + message + ours)
  func replyHasItsScopeInEveryForm(known: KnownReply) {
    for reply in known.forms {
      #expect(ReplyMeaning(of: reply, at: known.stage) == known.meaning, "\(reply.lines)")
      #expect((ReplyMeaning.hint(of: reply) != nil) == reply.lines.joined(separator: " ").contains("gcdp"))
    }
  }

  @Test(arguments: connection + recipient + account + message + ours)
  func onlyRepliesAboutTheRateSlowAnAccountDown(known: KnownReply) {
    // In the greeting Gmail means the address; without enhanced code the words have to say it.
    guard known.stage != .hello, known.code != 421 || known.isAboutRate else { return }
    for reply in known.forms { #expect(ReplyMeaning.isAboutRate(reply) == known.isAboutRate, "\(reply)") }
  }

  @Test func ruleOfTheAdministratorIsNamedInTheAdvice() throws {
    let hint = try #require(ReplyMeaning.hint(of: Reply(550, "5.7.1", "blocked by policy - gcdp")))
    #expect(hint.contains("administrator") && hint.contains("Admin console"))
    #expect(ReplyMeaning.hint(of: Reply(550, "5.7.1", "gcdpx is no signature - gsmtp")) == nil)
  }

  @Test(
    arguments: [
      (550, nil, "no", Stage.recipient, ReplyMeaning.recipientFailed), (451, nil, "later", .content, .messageLater),
      (450, nil, "greylisted", .recipient, .recipientLater), (554, nil, "no", .content, .messageFailed),
      (552, nil, "mailbox full", .recipient, .recipientFailed), (421, nil, "bye", .mail, .connectionLost),
      (550, nil, "daily recipient quota of this mailbox", .recipient, .recipientFailed),
      (501, nil, "invalid address", .recipient, .recipientFailed), (501, nil, "syntax error", .mail, .ourFault),
      (501, "5.5.2", "syntax error", .recipient, .ourFault), (501, "5.5.4", "bad parameter", .recipient, .ourFault),
    ] as [(Int, String?, String, Stage, ReplyMeaning)])
  func replyOfAnotherServerIsJudgedByItsCode(
    code: Int, status: String?, text: String, stage: Stage, meaning: ReplyMeaning
  ) {
    #expect(ReplyMeaning(of: Reply(code, status, text), at: stage) == meaning)
  }

  @Test func noFaultOfTheAccountOrOfOursEverBounces() {
    for known in Self.account + Self.ours + Self.connection {
      for reply in known.forms {
        for stage in [Stage.mail, .recipient, .data, .content] {
          // The one reply that is about the address when it comes to a recipient without an enhanced code.
          if reply.code == 501, reply.enhanced == nil, stage == .recipient { continue }
          let meaning = ReplyMeaning(of: reply, at: stage)
          #expect(meaning != .recipientFailed && meaning != .messageFailed, "\(reply) at \(stage)")
        }
      }
    }
  }
}

extension ReplyMeaning {
  fileprivate static func held(_ fault: AccountFault) -> ReplyMeaning { .accountHeld(fault) }
}
