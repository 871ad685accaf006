// OAuth 2 with the real binary: somebody logs in, mail leaves, the grant is revoked, mail waits, and leaves again once
// somebody has logged in again.

import Glibc
import Network
import Sandbox
import TestSupport
import Testing

extension EndToEnd {
  @Suite struct Tokens {
    private func configure(_ bench: Bench, _ server: TokenServer) throws {
      let domain = "\(bench.folder)/etc/domains/dreamlikelabs.com.conf"
      var text = Files.read(domain)
      text.replace("auth_method = LOGIN", with: "auth_method = XOAUTH2")
      text.replace("password = \(Bench.password)", with: "# once \(Bench.password)")
      text += """
        oauth_client_id = \(TokenServer.clientID)
        oauth_client_secret = \(TokenServer.clientSecret)
        oauth_refresh_token_file = \(bench.folder)/oauth/refresh-token
        oauth_token_url = \(server.url)
        oauth_auth_url = https://accounts.test/auth
        oauth_ca_file = \(server.caFile)

        """
      try Files.write(text, to: domain)
      chmod(domain, 0o600)
      mkdir("\(bench.folder)/oauth", 0o700)
      let upstream = bench.upstream
      server.onIssue { upstream.accept(tokens: [Bench.account: $0]) }
    }

    /// The line of a command's output that is an address to open.
    private func address(in output: String) -> String? {
      output.split(whereSeparator: \.isNewline).first { $0.hasPrefix("https://accounts.test/auth?") }.map(String.init)
    }

    /// Logs in with a browser that comes back to this machine.
    private func logIn(_ bench: Bench, _ server: TokenServer, _ file: String) async throws -> Int32 {
      let output = "\(bench.folder)/\(file)"
      let program = try Program(
        Bench.binary, ["oauth", "login", "--account", Bench.account, "--config", bench.configuration], output: output,
        errors: output)
      try await until("the command waits for the browser") { Files.read(output).contains("Waiting on 127.0.0.1:") }
      let asked = try #require(address(in: Files.read(output)))
      let back = try #require(server.consent(to: asked), "the address asks for the wrong things: \(asked)")
      #expect(browse(to: back).contains("You may close this page"))
      let status = await program.exit()
      #expect(Files.read(output).contains("logged in: the refresh token of \(Bench.account)"), "\(Files.read(output))")
      return status
    }

    private func expectNoToken(_ bench: Bench) {
      for file in Files.all(below: bench.folder) where !file.hasPrefix("\(bench.folder)/etc/") {
        let bytes = Files.bytes(file)
        #expect(!bytes.holds(TokenServer.clientSecret) && !bytes.holds("ya29."), "\(file) shows a secret")
        if !file.hasSuffix("/refresh-token") { #expect(!bytes.holds("1//refresh"), "\(file) shows the refresh token") }
      }
    }

    @Test(.timeLimit(.minutes(3))) func revokedAccessKeepsTheMailUntilSomebodyLogsInAgain() async throws {
      let server = try TokenServer()
      try await Bench.run(starts: false) { bench in
        try configure(bench, server)
        // The daemon starts without a token, says so, and takes mail.
        let check = try await bench.relay("config", "check")
        #expect(check.status == 0 && check.errors.contains("run: ssmtp-mailer oauth login --account \(Bench.account)"))
        try await bench.start()
        let client = try Client(port: bench.port)
        let alias = "contact-sales@mailer.dreamlikelabs.com"
        #expect(try client.deliver(to: alias, Letter.text("1")).hasPrefix("250"))
        try await bench.waitForLog("there is no refresh token yet in")
        let none = try await bench.relay("oauth", "status")
        #expect(none.status == 78 && none.output.contains("✗ refresh token"), "\(none.output)")

        #expect(try await logIn(bench, server, "login-1.out") == 0)
        var status = stat()
        #expect(stat("\(bench.folder)/oauth/refresh-token", &status) == 0 && status.st_mode & 0o7777 == 0o600)
        bench.daemon.signal(SIGHUP)
        #expect(try await bench.arrived(1)[0].authenticatedUser == Bench.account)
        let good = try await bench.relay("oauth", "status", "--json")
        #expect(good.status == 0 && good.output.contains(#""token_present" : true"#), "\(good.output)")
        let test = try await bench.relay("test")
        #expect(test.status == 0 && test.output.contains("✓ auth"), "\(test.output)")

        // Seven days are over: the endpoint no longer honours the grant, nor the upstream its tokens.
        server.honour([])
        bench.upstream.accept(tokens: [:])
        bench.upstream.follow([.answer(.mail, "421 4.7.0 Try again later. gsmtp", times: 1)])
        #expect(try client.deliver(to: alias, Letter.text("2")).hasPrefix("250"))
        try await bench.waitForLog("no connection (tokenRevoked): the token endpoint answered 400 invalid_grant")
        bench.upstream.follow([])
        let held = try await bench.relay("status")
        #expect(held.output.contains("on hold") && held.output.contains("7 days"), "\(held.output)")
        #expect(held.output.contains("ssmtp-mailer oauth login"))
        let waiting = try await bench.relay("queue", "list")
        #expect(waiting.output.contains("1 message,"), "\(waiting.output)")
        let revoked = try await bench.relay("oauth", "status")
        #expect(revoked.status == 78 && revoked.output.contains("invalid_grant"), "\(revoked.output)")

        #expect(try await logIn(bench, server, "login-2.out") == 0)
        bench.daemon.signal(SIGHUP)
        let messages = try await bench.arrived(2)
        #expect(messages.map { $0.field("X-Test-ID") } == ["1", "2"])
        try await bench.emptied()
        #expect(bench.upstream.statistics.violations.isEmpty)
        expectNoToken(bench)
      }
      await server.stop()
    }

    @Test(.timeLimit(.minutes(2))) func pastedAddressLogsInAndAMissingRefreshTokenIsExplained() async throws {
      let server = try TokenServer()
      try await Bench.run(starts: false) { bench in
        try configure(bench, server)
        try await bench.start()
        // Nobody consents in vain.
        rmdir("\(bench.folder)/oauth")
        let early = try await bench.relay("oauth", "login", "--paste")
        #expect(early.status == 78 && early.errors.contains("install -d -m 700"), "\(early.errors)")
        mkdir("\(bench.folder)/oauth", 0o700)
        for isComplete in [false, true] {
          server.giveRefreshToken(isComplete)
          let (pipe, output) = ("\(bench.folder)/paste.\(isComplete)", "\(bench.folder)/login.\(isComplete)")
          try #require(mkfifo(pipe, 0o600) == 0)
          let holder = open(pipe, O_RDWR | O_CLOEXEC)
          defer { close(holder) }
          let login = try Program(
            Bench.binary, ["oauth", "login", "--paste", "--config", bench.configuration], input: pipe, output: output,
            errors: output)
          try await until("the command asks for the address") { Files.read(output).contains("Paste its whole address") }
          let asked = try #require(address(in: Files.read(output)))
          let back = try #require(server.consent(to: asked))
          let line = Array("\(back)\n".utf8)
          #expect(write(holder, line, line.count) == line.count)
          #expect(await login.exit() == (isComplete ? 0 : 77))
          if !isComplete { #expect(Files.read(output).contains("remove it at https://myaccount.google.com/")) }
          #expect(Files.read("\(bench.folder)/oauth/refresh-token").hasPrefix("1//refresh") == isComplete)
        }
        expectNoToken(bench)
      }
      await server.stop()
    }
  }
}
