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

  func run() async throws { try await run(try begin()) }

  private var supervisor: Supervisor {
    let configuration = configuration
    return Supervisor { () throws(ConfigurationError) in try configuration.read() }
  }

  /// Binds the ports and gives up all rights, while there is only the first thread.
  func begin() throws -> Supervisor.Beginning {
    do { return try supervisor.begin() } catch { throw exitCode(for: error) }
  }

  func run(_ beginning: Supervisor.Beginning) async throws {
    let status: Int32
    do { status = try await supervisor.run(beginning) } catch { throw exitCode(for: error) }
    throw ExitCode(status)
  }

  private func exitCode(for error: any Error) -> any Error {
    switch error {
    case let error as ConfigurationError:
      for diagnostic in error.diagnostics { complain(diagnostic.description) }
      return ExitCode(78)
    case let error as DaemonError:
      complain(error.description)
      return ExitCode(error.exitStatus)
    default: return error
    }
  }

  private func complain(_ text: String) {
    let line = Array("ssmtp-mailer: \(text)\n".utf8)
    _ = line.withUnsafeBytes { write(STDERR_FILENO, $0.baseAddress, $0.count) }
  }
}
