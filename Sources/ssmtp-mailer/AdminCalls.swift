// What the commands ask the daemon, with its answers as values.

import CommandLineTools
import Configuration
import Daemon
import FoundationEssentials

extension AdminClient {
  /// Asks, and decodes the answer.
  /// - Throws: ``CommandFailure`` with the daemon's own words when it refuses.
  func call<Answer: Decodable>(
    _ method: String, _ path: String, as type: Answer.Type = Answer.self
  ) throws(CommandFailure) -> Answer {
    try Self.decoded(try request(method, path), as: type)
  }

  static func decoded<Answer: Decodable>(
    _ response: Response, as type: Answer.Type
  ) throws(CommandFailure) -> Answer {
    guard response.status == 200 else { throw refusal(response) }
    do { return try decoder.decode(type, from: Data(response.body)) } catch {
      throw CommandFailure(
        .unavailable, "the daemon's answer is not understood: restart it if it is of another version (\(error))")
    }
  }

  private static var decoder: JSONDecoder {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    return decoder
  }

  /// An answer that is none, as the failure of a command.
  static func refusal(_ response: Response) -> CommandFailure {
    let text =
      (try? decoder.decode(AdminResult.self, from: Data(response.body)))?.message
      ?? "it answers HTTP \(response.status)"
    let status: ExitStatus =
      switch response.status {
      case 400: .usage
      case 404, 422, 500: .data
      case 409, 507: .tryAgain
      default: .unavailable
      }
    return CommandFailure(status, text)
  }
}

extension ConfigurationOptions {
  /// Where the daemon answers and where its queue is. A configuration with mistakes must not keep an operator from a
  /// daemon that runs with the one before; but neither may it send him to a queue that he does not mean.
  /// - Parameter changing: whether the command is to change the queue.
  /// - Throws: ``CommandFailure`` with status 78.
  func places(changing: Bool = false) throws(CommandFailure) -> Places {
    do throws(ConfigurationError) {
      let global = try read().settings.global
      return Places(adminSocket: global.adminSocket, queueDir: global.queueDir)
    } catch {
      let count = error.diagnostics.count { $0.severity == .error }
      if let mistake = error.diagnostics.first(where: { $0.origin == .commandLine }) {
        throw CommandFailure(.configuration, mistake.description)
      }
      let places = Settings.places(path: path, overrides: pairs)
      if let why = places.unreadable, isNamed {
        throw CommandFailure(
          .configuration,
          "\(path): the configuration cannot be read: \(why). It was named, so no other is taken instead")
      }
      if changing, let mistake = places.hiding.first, !places.missing.isEmpty {
        let names = places.missing.joined(separator: " and ")
        throw CommandFailure(
          .configuration,
          "a mistake may hide \(names) (\(mistake)), so nothing is changed: correct it, or say "
            + places.missing.map { "--set global.\($0)=PATH" }.joined(separator: " "))
      }
      Terminal.complain(
        "warning: the configuration has \(Quantity.count(count, "mistake")), see `ssmtp-mailer config check`; using "
          + "\(places.adminSocket) and \(places.queueDir)")
      return places
    }
  }

  func adminClient() throws(CommandFailure) -> AdminClient { AdminClient(socket: try places().adminSocket) }
}
