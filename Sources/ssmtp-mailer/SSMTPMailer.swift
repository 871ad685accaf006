// The command line: the list of commands, and how a failure becomes a line on standard error and an exit status.

import ArgumentParser
import CommandLineTools
import Daemon

@main
struct SSMTPMailer: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ssmtp-mailer",
    abstract: "A durable SMTP relay in front of Gmail.",
    discussion: """
      Mail that the daemon (`ssmtp-mailer serve`) has accepted is on disk; it leaves through the accounts of the \
      configuration, no faster than they allow. The other commands look at the daemon, its queue and its upstreams.

      Exit status, from sysexits(3): 0 done, 64 usage, 65 bad data, 69 nobody answers, 74 output or a file \
      takes no more, 75 try again later, 77 refused, 78 configuration.
      """,
    version: relayVersion,
    subcommands: [
      ServeCommand.self,
      SendCommand.self, TestCommand.self, DNSCommand.self, ConfigCommand.self, ExplainCommand.self, QueueCommand.self,
      StatusCommand.self, UserCommand.self, OAuthCommand.self, SandboxCommand.self,
    ])

  static func main() async {
    do {
      if let call = SendmailCall(CommandLine.arguments) { return try await call.run() }
      var command = try parseAsRoot()
      // Before anything is waited for, which would bring more threads.
      if let serve = command as? ServeCommand { return try await serve.run(try serve.begin()) }
      if var command = command as? any AsyncParsableCommand {
        try await command.run()
      } else {
        try command.run()
      }
      try Terminal.finish()
    } catch let failure as CommandFailure {
      Terminal.complain(failure.description)
      if failure.status != .inputOutput {
        do throws(CommandFailure) { try Terminal.finish() } catch { Terminal.complain(error.description) }
      }
      exit(withError: ExitCode(failure.status.rawValue))
    } catch {
      exit(withError: error)
    }
  }
}
