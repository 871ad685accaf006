// `config`: is the configuration right, and what does it amount to?

import ArgumentParser
import CommandLineTools
import Configuration

struct ConfigCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "config", abstract: "Check the configuration, or show what it amounts to.",
    subcommands: [Check.self, Show.self], defaultSubcommand: Check.self)

  struct Check: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Name every mistake in the configuration.",
      discussion: "Warnings and errors go to standard error. Exit status 78 when there is any error.")
    @OptionGroup var options: ConfigurationOptions

    func run() async throws {
      let settings: Settings
      do throws(ConfigurationError) {
        let result = try options.read()
        for warning in result.warnings { Terminal.complain(warning.description) }
        settings = result.settings
      } catch {
        for diagnostic in error.diagnostics { Terminal.complain(diagnostic.description) }
        let count = error.diagnostics.filter { $0.severity == .error }.count
        throw CommandFailure(.configuration, "\(Quantity.count(count, "error")) in the configuration \(options.path)")
      }
      let upstreams = settings.domains.values.filter { !$0.isLocal }.sorted { $0.name < $1.name }
      let locals = settings.domains.values.filter(\.isLocal).map(\.name).sorted()
      Terminal.say("configuration ok: \(options.path)")
      for domain in upstreams {
        Terminal.say(
          "  upstream  \(domain.name): \(domain.host):\(domain.port) as \(domain.account)\(domain.enabled ? "" : " (disabled)")"
        )
      }
      if !locals.isEmpty { Terminal.say("  local     \(locals.joined(separator: ", "))") }
      let enabled = settings.mappings.filter(\.enabled).count
      Terminal.say("  aliases   \(Quantity.count(enabled, "mapping")), \(Quantity.count(settings.users.count, "user"))")
      Terminal.say("  listen    \(settings.global.listen.map(\.description).joined(separator: ", "))")
      let doors = [("submission", settings.global.listenSubmission), ("smtps", settings.global.listenSMTPS)]
      for (kind, endpoints) in doors where !endpoints.isEmpty {
        Terminal.say("  listen    \(endpoints.map(\.description).joined(separator: ", ")) (\(kind))")
      }
    }
  }

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Show every value in force and where it comes from.", discussion: "Secrets are not shown.")
    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var output: JSONOption

    private struct Value: Encodable {
      var section: String
      var key: String
      var value: String
      var origin: String
    }

    func run() async throws {
      let values = try options.load().describe()
      if output.json {
        return try Terminal.printJSON(
          values.map { Value(section: $0.section, key: $0.key, value: $0.value, origin: $0.origin) })
      }
      var sections: [String] = []
      for value in values where !sections.contains(value.section) { sections.append(value.section) }
      for (index, section) in sections.enumerated() {
        if index > 0 { Terminal.say("") }
        Terminal.say(section)
        var table = TextTable(columnCount: 2)
        for value in values where value.section == section {
          table.append(["\(value.key) = \(value.value)", "# \(value.origin)"])
        }
        Terminal.print(table.lines())
      }
    }
  }
}

extension DomainSettings {
  /// Who the upstream thinks we are.
  var account: String { relayAccount ?? username ?? name }
}
