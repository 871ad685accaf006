// `oauth`: log in to the mailbox of an account, and see whether its access tokens come.

import ArgumentParser
import CommandLineTools
import Configuration
import Daemon
import Delivery
import OAuth
import Primitives
import Telemetry

struct OAuthCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "oauth", abstract: "Log in with OAuth 2, or see whether access tokens come.",
    subcommands: [Login.self, Status.self])
}

// MARK: - login

extension OAuthCommand {
  struct Login: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Let the owner of a mailbox grant access, and keep the refresh token.",
      discussion: """
        Prints an address to open in a browser and waits for the browser to come back to this machine. With --paste \
        the browser may be anywhere: copy the address it ends at (the page itself does not load) and paste it here. \
        The refresh token goes to oauth_refresh_token_file, readable by the owner of its directory alone.
        """)
    @OptionGroup var options: ConfigurationOptions
    @Option(
      help: ArgumentHelp("The account or [domain:] to log in; needed when there are several.", valueName: "account"))
    var account: String?
    @Flag(
      name: [.customLong("paste"), .customLong("no-browser")],
      help: "Ask for the address that the browser ends at, instead of waiting for the browser on this machine.")
    var paste = false
    @Option(help: "The port on 127.0.0.1 that the browser comes back to; 0 takes a free one.")
    var port: UInt16 = 0
    @Option(help: ArgumentHelp("How long to wait for the browser.", valueName: "seconds"))
    var timeout = 600

    /// Where a browser is sent whose answer is pasted: nobody listens there, and no browser forbids it.
    private static let pastePort: UInt16 = 8765

    func run() async throws {
      let (domain, grant, refresh) = try target(options.load())
      do throws(TokenFailure) { try RefreshTokenFile(refresh.file).checkWritable() } catch {
        throw CommandFailure(.configuration, error.description)
      }
      do throws(AuthorizationFailure) {
        let token = paste ? try await pasted(domain, grant, refresh) : try await received(domain, grant, refresh)
        do throws(TokenFailure) { try RefreshTokenFile(refresh.file).write(token) } catch {
          throw AuthorizationFailure("the refresh token could not be kept: \(error)")
        }
      } catch {
        throw CommandFailure(error.isTemporary ? .tryAgain : .refused, error.description)
      }
      Terminal.say("logged in: the refresh token of \(domain.account) is in \(refresh.file)")
      if RefreshTokenFile(refresh.file).isForRootOnly {
        Terminal.complain(
          "only root can read \(refresh.file), because its directory is root's: unless the relay runs as root, "
            + "run: chown ssmtp-mailer \(refresh.file)")
      }
      Terminal.say("now: systemctl reload ssmtp-mailer; ssmtp-mailer test --account \(domain.account)")
    }

    private func received(
      _ domain: DomainSettings, _ grant: TokenGrant, _ refresh: RefreshTokenGrant
    ) async throws(AuthorizationFailure) -> HiddenText {
      let receiver = try LoopbackReceiver(port: port)
      let login = Authorization(grant, client: refresh.client, redirectURI: receiver.redirectURI)
      Terminal.say("Open this address in a browser on this machine, sign in as \(domain.username ?? domain.account):")
      Terminal.say("")
      Terminal.say(login.address(account: domain.username))
      Terminal.say("")
      Terminal.say(
        "Waiting on 127.0.0.1:\(receiver.port). From another machine: ssh -L \(receiver.port):127.0.0.1:\(receiver.port), "
          + "or run this with --paste.")
      let code = try await receiver.receive(within: .seconds(timeout)) { target throws(AuthorizationFailure) in
        try login.code(in: target, isPasted: false)
      }
      return try await login.refreshToken(for: code)
    }

    private func pasted(
      _ domain: DomainSettings, _ grant: TokenGrant, _ refresh: RefreshTokenGrant
    ) async throws(AuthorizationFailure) -> HiddenText {
      let redirectURI = "http://127.0.0.1:\(port == 0 ? Self.pastePort : port)/"
      let login = Authorization(grant, client: refresh.client, redirectURI: redirectURI)
      Terminal.say("Open this address in any browser, sign in as \(domain.username ?? domain.account):")
      Terminal.say("")
      Terminal.say(login.address(account: domain.username))
      Terminal.say("")
      Terminal.say("The browser ends at a page on 127.0.0.1 that does not load. Paste its whole address, or the code:")
      guard let line = readLine() else { throw AuthorizationFailure("nothing was pasted") }
      return try await login.refreshToken(for: login.code(in: line, isPasted: true))
    }

    private func target(
      _ settings: Settings
    ) throws(CommandFailure) -> (DomainSettings, TokenGrant, RefreshTokenGrant) {
      let upstreams = settings.domains.values.filter { !$0.isLocal && $0.enabled }.sorted { $0.name < $1.name }
      let logins = upstreams.filter { if case .refreshToken = $0.tokenGrant?.kind { true } else { false } }
      let wanted = (account == nil ? logins : upstreams).filter { $0.isNamed(account) }
      guard let domain = wanted.first else {
        let names = logins.map { "\($0.account)" }.joined(separator: ", ")
        throw CommandFailure(
          account == nil ? .configuration : .data,
          account.map {
            "there is no enabled upstream \($0); those with a login are: \(names.isEmpty ? "none" : names)"
          }
            ?? "no enabled upstream has oauth_refresh_token_file: set it with auth_method = XOAUTH2, oauth_client_id "
            + "and oauth_client_secret in a [domain:]")
      }
      guard wanted.count == 1 || account != nil else {
        let names = wanted.map(\.account).joined(separator: ", ")
        throw CommandFailure(.usage, "name one of the accounts with --account: \(names)")
      }
      switch domain.tokenGrant?.kind {
      case .refreshToken(let refresh)?:
        guard let grant = domain.tokenGrant else { break }
        return (domain, grant, refresh)
      case .serviceAccount(let account, _)?:
        throw CommandFailure(.data, "\(domain.account) uses the service account \(account): that needs no login")
      case nil: break
      }
      throw CommandFailure(
        .configuration,
        "[domain:\(domain.name)] has no oauth_refresh_token_file: set it with auth_method = XOAUTH2, oauth_client_id and "
          + "oauth_client_secret")
    }
  }
}

extension DomainSettings {
  /// Whether `name` is that of the account or of the `[domain:]`; nil names all.
  fileprivate func isNamed(_ name: String?) -> Bool {
    guard let name = name?.lowercased() else { return true }
    return account.lowercased() == name || self.name.lowercased() == name
  }
}

// MARK: - status

extension OAuthCommand {
  struct Status: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Show for each account whether its token is there, and ask for an access token now.",
      discussion: """
        No token is ever shown. Exit status 0 when all access tokens come, 75 when waiting may help, 78 when somebody \
        has to log in or to change the configuration.
        """)
    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var output: JSONOption
    @Option(help: ArgumentHelp("Only this account or [domain:].", valueName: "account"))
    var account: String?

    private struct Report: Encodable {
      var domain: String
      var account: String
      /// `refresh_token` or `service_account`.
      var grant: String
      var file: String?
      var tokenPresent: Bool
      var obtainedAt: String?
      var ok: Bool
      var validForSeconds: Int?
      var error: String?
      var advice: String?
      var isTemporary = false
    }

    func run() async throws {
      let settings = try options.load()
      let domains = settings.domains.values
        .filter { $0.tokenGrant != nil && $0.isNamed(account) }.sorted { $0.name < $1.name }
      guard !domains.isEmpty else {
        throw CommandFailure(
          account == nil ? .configuration : .data,
          account.map { "no enabled upstream \($0) uses OAuth 2" }
            ?? "no enabled upstream uses OAuth 2: see oauth_client_id and service_account_file in docs/configuration.md"
        )
      }
      var reports: [Report] = []
      for domain in domains {
        guard let grant = domain.tokenGrant else { continue }
        let report = await Self.report(domain, grant)
        reports.append(report)
        if !output.json { Terminal.print(Self.lines(report)) }
      }
      if output.json { try Terminal.printJSON(reports) }
      if reports.contains(where: { !$0.ok && !$0.isTemporary }) { throw CommandFailure(.configuration, "") }
      if reports.contains(where: { !$0.ok }) { throw CommandFailure(.tryAgain, "") }
    }

    private static func report(_ domain: DomainSettings, _ grant: TokenGrant) async -> Report {
      var report: Report
      switch grant.kind {
      case .refreshToken(let refresh):
        let file = RefreshTokenFile(refresh.file)
        report = Report(
          domain: domain.name, account: domain.account, grant: "refresh_token", file: refresh.file,
          tokenPresent: refresh.seen != nil, ok: false)
        if refresh.seen != nil {
          report.obtainedAt = file.written.map { ISOTime.format(Timestamp(seconds: $0)) }
        }
      case .serviceAccount(let service, let user):
        report = Report(
          domain: domain.name, account: domain.account, grant: "service_account", file: "\(service) as \(user)",
          tokenPresent: true, ok: false)
      }
      let time = SystemTime()
      do throws(TokenFailure) {
        let token = try await TokenCache(grant, time: time).token()
        report.ok = true
        report.validForSeconds = Int((token.expiresAt - time.now).components.seconds)
      } catch {
        report.error = error.description
        report.advice = AccountFault(error).advice
        report.isTemporary = error.kind == .unavailable
      }
      return report
    }

    private static func lines(_ report: Report) -> [String] {
      var lines = ["\(report.domain)  \(report.account)"]
      let file = report.file ?? ""
      if report.grant == "service_account" {
        lines.append("  ✓ service account  \(file)")
      } else if report.tokenPresent {
        lines.append("  ✓ refresh token    \(file)\(report.obtainedAt.map { ", obtained \($0)" } ?? "")")
      } else {
        lines.append("  ✗ refresh token    \(file): none")
      }
      if report.ok {
        let age = report.validForSeconds.map { ", good for \(Quantity.age($0))" } ?? ""
        lines.append("  ✓ access token     comes\(age)")
      } else {
        lines.append("  ✗ access token     \(TerminalText.clean(report.error ?? ""))")
        if let advice = report.advice { lines.append("    → \(advice)") }
      }
      return lines
    }
  }
}
