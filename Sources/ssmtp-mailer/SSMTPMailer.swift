import ArgumentParser
import Configuration
import Glibc

struct ConfigurationOptions: ParsableArguments {
  @Option var config: String = "/etc/ssmtp-mailer/ssmtp-mailer.conf"
  @Option(name: .customLong("set")) var overrides: [String] = []
  func read() throws(ConfigurationError) -> (settings: Settings, warnings: [Diagnostic]) {
    let pairs = overrides.map { text in
      let end = text.firstIndex(of: "=") ?? text.endIndex
      return (key: String(text[..<end]), value: String(text[end...].dropFirst()))
    }
    return try Settings.load(path: config, overrides: pairs)
  }
}

@main
struct SSMTPMailer: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ssmtp-mailer", abstract: "A durable SMTP relay in front of Gmail.", subcommands: [ServeCommand.self])
}
