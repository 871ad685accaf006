// `user`: who may log in, and with which password.

import ArgumentParser
import CommandLineTools
import Configuration
import Passwords
import Routing
import SMTP

struct UserCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "user", abstract: "Show who may log in, and set passwords.",
    subcommands: [SetPassword.self, List.self, Check.self], defaultSubcommand: List.self)

  struct SetPassword: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "set-password", abstract: "Set the password of a user.",
      discussion: """
        The password is asked for twice on the terminal, or is the first line of standard input. Its hash (yescrypt) \
        becomes password_hash in the user's section; everything else in the file stays as it is. The daemon takes it \
        over with `systemctl reload ssmtp-mailer`.
        """)
    @OptionGroup var options: ConfigurationOptions
    @Argument(help: "The address of the user.")
    var address: String
    @Flag(help: "Read the password from standard input; the default when that is not a terminal.")
    var stdin = false
    @Flag(help: "Make a password up, and print it once.")
    var generate = false
    @Flag(help: "Make users/ADDRESS.conf when the user has no section yet.")
    var create = false

    private static let shortest = 8

    mutating func validate() throws {
      if stdin, generate { throw ValidationError("--stdin and --generate exclude each other") }
    }

    func run() async throws {
      let mailbox = try UserCommand.mailbox(address)
      // Without a place for it nobody need think of a password.
      _ = try place(of: mailbox)
      let password =
        if generate { PasswordInput.generate() } else if stdin || !PasswordInput.isTerminal {
          try PasswordInput.fromStandardInput()
        } else { try PasswordInput.askTwice(for: "\(mailbox)") }
      guard password.utf8.count >= Self.shortest else {
        throw CommandFailure(.data, "the password is shorter than \(Self.shortest) octets: nothing is changed")
      }
      let hash: PasswordHash
      do throws(PasswordHash.Fault) { hash = try PasswordHash.make(of: password) } catch {
        throw CommandFailure(.data, "\(error): nothing is changed")
      }
      // Anew: somebody may have changed the file meanwhile.
      let place = try place(of: mailbox)
      var file = place.file ?? UserFile.new(mailbox, hash: hash.text)
      if place.file != nil { _ = file.setPassword(hash.text, of: mailbox) }
      try ConfigurationFile.replace(place.path, with: file.bytes)
      if generate { Terminal.say(password) }
      Terminal.complain("the password of \(mailbox) is set in \(place.path); now: systemctl reload ssmtp-mailer")
      // What the daemon would refuse at the reload is better known now.
      do throws(ConfigurationError) { _ = try options.read() } catch {
        for diagnostic in error.diagnostics { Terminal.complain(diagnostic.description) }
        throw CommandFailure(.configuration, "the configuration has mistakes: the daemon will not take it over")
      }
    }

    /// The file with the section of the user; without one, the path of the file to make.
    private func place(of mailbox: Mailbox) throws(CommandFailure) -> (path: String, file: UserFile?) {
      let folder = Settings.usersFolder(path: options.path, overrides: options.pairs)
      guard let names = POSIXFiles().list(folder) else {
        throw CommandFailure(.configuration, "users_dir \(folder) cannot be listed")
      }
      for name in names.sorted() where name.hasSuffix(".conf") && !name.hasPrefix(".") {
        let file = UserFile(try Terminal.read("\(folder)/\(name)"))
        if file.has(mailbox) { return ("\(folder)/\(name)", file) }
      }
      guard create else {
        throw CommandFailure(.noUser, "there is no [user:\(mailbox)] in \(folder); make one with --create")
      }
      let path = "\(folder)/\(mailbox.description.replacing("/", with: "_")).conf"
      guard !POSIXFiles().isReadable(path) else {
        throw CommandFailure(.data, "\(path) is there, but has no section [user:\(mailbox)]: add it by hand")
      }
      return (path, nil)
    }
  }

  struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Show the users, whether they can log in, and what they may send as.")
    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var output: JSONOption

    private struct User: Encodable {
      var address: String
      var enabled: Bool
      var hasPassword: Bool
      var template: Bool
      var sendAs: [String]
    }

    func run() async throws {
      let users = try options.load().users.map { user in
        User(
          address: user.address.description, enabled: user.enabled, hasPassword: user.passwordHash != nil,
          template: user.templateAddress, sendAs: user.sendAs.map(\.description))
      }
      if output.json { return try Terminal.printJSON(users) }
      if users.isEmpty { return Terminal.say("no users") }
      var table = TextTable([
        ("USER", .left), ("ENABLED", .left), ("PASSWORD", .left), ("TEMPLATE", .left), ("SENDS AS", .left),
      ])
      for user in users {
        table.append([
          user.address, user.enabled ? "yes" : "no", user.hasPassword ? "set" : "-", user.template ? "yes" : "-",
          user.sendAs.joined(separator: ", "),
        ])
      }
      Terminal.print(table.lines())
    }
  }

  struct Check: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Hold a password against that of a user.",
      discussion: """
        The password is asked for, or is the first line of standard input. The answer comes from the configuration, \
        as the daemon would give it after a reload. Exit status 0 when it is right, 77 when it is not.
        """)
    @OptionGroup var options: ConfigurationOptions
    @Argument(help: "The address of the user.")
    var address: String

    func run() async throws {
      let mailbox = try UserCommand.mailbox(address)
      let identities = Router(try options.load()).identities
      let password =
        PasswordInput.isTerminal
        ? try PasswordInput.ask("Password for \(mailbox): ") : try PasswordInput.fromStandardInput()
      let (identity, hash) = identities.login("\(mailbox)")
      guard let identity, hash?.matches(password) == true else {
        throw CommandFailure(
          .refused, identity == nil ? "\(mailbox) cannot log in: no enabled user with a password" : "wrong password")
      }
      Terminal.say("ok: \(identity) can log in with this password")
    }
  }

  fileprivate static func mailbox(_ text: String) throws(CommandFailure) -> Mailbox {
    guard !text.contains("*"), !text.contains("{type}") else {
      throw CommandFailure(
        .usage, "\(TerminalText.clean(text)) is a pattern: nobody can log in as that; see send_as in configuration.md")
    }
    do throws(AddressError) { return try Mailbox(parsing: text) } catch {
      throw CommandFailure(.usage, "\(TerminalText.clean(text)) is not the address of a user: \(error)")
    }
  }
}
