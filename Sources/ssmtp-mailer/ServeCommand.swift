// The daemon in the foreground: what systemd starts.

import ArgumentParser
import Configuration
import Daemon
import Glibc

struct ServeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve", abstract: "Run the relay in the foreground.",
    discussion: """
      SIGHUP reads the configuration again and opens the log file anew; a broken configuration is refused and the old \
      one stays in force. SIGTERM lets transactions in progress end, for at most 30 seconds.
      """)

  @OptionGroup var configuration: ConfigurationOptions

  func run() async throws {
    let configuration = configuration
    let supervisor = Supervisor { () throws(ConfigurationError) in try configuration.read() }
    do {
      let status = try await supervisor.run()
      throw ExitCode(status)
    } catch let error as ConfigurationError {
      for diagnostic in error.diagnostics { complain(diagnostic.description) }
      throw ExitCode(78)
    } catch let error as DaemonError {
      complain(error.description)
      throw ExitCode(error.exitStatus)
    }
  }

  private func complain(_ text: String) {
    let line = Array("ssmtp-mailer: \(text)\n".utf8)
    _ = line.withUnsafeBytes { write(STDERR_FILENO, $0.baseAddress, $0.count) }
  }
}
