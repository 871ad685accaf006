// The users' policy: what a sender may do, whoever the client is.

import Configuration
import SMTP

/// The `[user:]` sections that are enabled, by address.
struct SenderPolicy: Sendable {
  private let users: AddressTable<UserSettings>

  init(_ settings: Settings) {
    var users = AddressTable<UserSettings>()
    for user in settings.users where user.enabled { users.insert(user, for: user.address) }
    self.users = users
  }

  /// The policies that hold: that of the reverse-path, and that of the AUTH identity.
  func users(sender: ReversePath, client: ClientStanding) -> [UserSettings] {
    var found: [UserSettings] = []
    if let mailbox = sender.mailbox, let match = users.match(mailbox) { found.append(match.value) }
    if case .authenticated(let identity) = client, let mailbox = try? Mailbox(parsing: identity),
      mailbox != sender.mailbox, let match = users.match(mailbox)
    {
      found.append(match.value)
    }
    return found
  }

  static let mayNotSend = Reply(550, "5.7.1", "This sender may not send mail")
  static let mayNotSendTo = Reply(550, "5.7.1", "This sender may not send to this recipient")

  /// Whether a user may send to `recipient`, which became `targets`.
  ///
  /// A domain list is about who gets the mail, so it is enough that it names the domain the sender wrote, but when it
  /// does not, it must name the domain of every target.
  static func allows(_ user: UserSettings, recipient: Mailbox, targets: [Route]) -> Bool {
    guard user.canSendTo else { return false }
    let allowed = user.allowedDomains
    if allowed.isEmpty || allowed.contains(recipient.domain.lowercased()) { return true }
    return targets.allSatisfy { allowed.contains($0.address.domain.lowercased()) }
  }
}
