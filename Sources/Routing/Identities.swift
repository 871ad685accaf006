// Who may log in, and from which addresses such a user may send.

import Configuration
import Passwords
import SMTP

/// The `[user:]` sections with a password, as logins.
public struct Identities: Sendable {
  private struct Login: Sendable {
    /// The address as the section writes it.
    var name: String
    var mailbox: Mailbox
    var hash: PasswordHash
    var sendAs: AddressTable<Bool>
  }
  /// By canonical address.
  private let logins: [String: Login]
  /// In the order of the sections.
  private let hashes: [PasswordHash]

  init(_ settings: Settings) {
    var logins: [String: Login] = [:]
    var hashes: [PasswordHash] = []
    for user in settings.users where user.enabled {
      guard let hash = user.passwordHash, let mailbox = try? user.address.substituting(nil) else { continue }
      var table = AddressTable<Bool>()
      for pattern in user.sendAs { table.insert(true, for: pattern) }
      logins[mailbox.canonical] = Login(name: mailbox.description, mailbox: mailbox, hash: hash, sendAs: table)
      hashes.append(hash)
    }
    self.logins = logins
    self.hashes = hashes
  }

  /// Whether anybody may log in.
  public var isEmpty: Bool { logins.isEmpty }

  /// Who logs in as `name`, and the hash to hold the password against.
  ///
  /// A name without a login gets a hash as well, but no identity: whoever checks a password takes the same time for
  /// all names. It is the hash of one of the logins, always the same for a name, so that its cost is one that a login
  /// of this configuration has.
  public func login(_ name: String) -> (identity: String?, hash: PasswordHash?) {
    let mailbox = try? Mailbox(parsing: name)
    if let login = mailbox.flatMap({ logins[$0.canonical] }) { return (login.name, login.hash) }
    guard !hashes.isEmpty else { return (nil, PasswordHash.unattainable) }
    var hasher = Hasher()
    hasher.combine(name.lowercased())
    return (nil, hashes[Int(hasher.finalize().magnitude % UInt(hashes.count))])
  }

  /// Whether `identity` could still log in with the password that `hash` stands for.
  public func isKnown(_ identity: String, as hash: PasswordHash?) -> Bool {
    guard let login = mailbox(of: identity).flatMap({ logins[$0.canonical] }) else { return false }
    return login.hash == hash
  }

  /// Whether `sender` is an address of `identity`: its own, also with a `+tag`, or one of its `send_as`.
  func owns(_ identity: Mailbox, _ sender: Mailbox) -> Bool {
    sender == identity || sender.withoutTag == identity
      || logins[identity.canonical]?.sendAs.match(sender) != nil
  }

  private func mailbox(of identity: String) -> Mailbox? { try? Mailbox(parsing: identity) }
}

extension Mailbox {
  /// `user@domain` for `user+tag@domain`; nil without a tag.
  var withoutTag: Mailbox? {
    guard let plus = localPart.firstIndex(of: "+"), plus != localPart.startIndex else { return nil }
    return try? Mailbox(localPart: String(localPart[..<plus]), domain: domain)
  }
}

extension Router {
  /// The refusal of a MAIL whose sender is not an address of who has logged in (RFC 6409 6.1), or nil.
  ///
  /// The null reverse-path passes: reports that mail clients make, such as those of RFC 8098, have no other.
  func checkOwnership(_ path: ReversePath, _ client: ClientStanding) -> Reply? {
    guard case .authenticated(let name) = client, let sender = path.mailbox else { return nil }
    if let identity = try? Mailbox(parsing: name),
      identities.owns(identity, sender) || isAlias(sender, of: identity)
    {
      return nil
    }
    return Reply(550, "5.7.1", "<\(sender)> is not an address of \(name): send from your own address")
  }
}
