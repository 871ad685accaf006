// The options that every command has.

import ArgumentParser
import CommandLineTools
import Configuration
import Network
import Primitives

/// Which configuration a command works with.
struct ConfigurationOptions: ParsableArguments {
  static let defaultPath = "/etc/ssmtp-mailer/ssmtp-mailer.conf"

  @Option(
    help: ArgumentHelp(
      "The main configuration file (default: $SSMTP_MAILER_CONFIG, else \(Self.defaultPath)).", valueName: "file"))
  var config: String?

  @Option(
    name: .customLong("set"),
    help: ArgumentHelp(
      "A value that wins over the files: global.KEY=VALUE or domain:NAME.KEY=VALUE. May be repeated.",
      valueName: "key=value"))
  var overrides: [String] = []

  /// Whether somebody has said which file it is.
  var isNamed: Bool { config != nil || Terminal.environment("SSMTP_MAILER_CONFIG") != nil }

  var path: String { config ?? Terminal.environment("SSMTP_MAILER_CONFIG") ?? Self.defaultPath }

  mutating func validate() throws {
    for text in overrides where !text.contains("=") || text.hasPrefix("=") {
      throw ValidationError("--set \(text): write KEY=VALUE, such as --set global.listen=127.0.0.1:2525")
    }
  }

  /// The values of `--set`.
  var pairs: [(key: String, value: String)] {
    overrides.map { text in
      let end = text.firstIndex(of: "=") ?? text.endIndex
      return (key: String(text[..<end]), value: String(text[end...].dropFirst()))
    }
  }

  /// Reads the configuration without complaining about anything.
  func read() throws(ConfigurationError) -> (settings: Settings, warnings: [Diagnostic]) {
    var environment: [String: String] = [:]
    environment["CREDENTIALS_DIRECTORY"] = Terminal.environment("CREDENTIALS_DIRECTORY")
    return try Settings.load(path: path, overrides: pairs, environment: environment)
  }

  /// Reads the configuration.
  /// - Throws: ``CommandFailure`` with status 78, after a line on standard error for each mistake.
  func load() throws(CommandFailure) -> Settings {
    do throws(ConfigurationError) { return try read().settings } catch {
      for diagnostic in error.diagnostics where diagnostic.severity == .error {
        Terminal.complain(diagnostic.description)
      }
      throw CommandFailure(.configuration, "")
    }
  }
}

struct JSONOption: ParsableArguments {
  @Flag(help: "Print JSON, for scripts.")
  var json = false
}

extension EventLoop {
  /// The loop of a command's connections. It lives as long as the process, so no late job can miss it.
  static func ofCommand() throws(CommandFailure) -> EventLoop {
    do throws(NetworkError) { return try shared.get() } catch {
      throw CommandFailure(.unavailable, "no event loop: \(error)")
    }
  }
  private static let shared = Result { () throws(NetworkError) in try EventLoop(name: "command") }
}
