// What the commands ask the daemon, with its answers as values.

import CommandLineTools
import Daemon
import FoundationEssentials

extension AdminClient {
  /// Asks, and decodes the answer.
  /// - Throws: ``CommandFailure`` with the daemon's own words when it refuses.
  func call<Answer: Decodable>(
    _ method: String, _ path: String, as type: Answer.Type = Answer.self
  ) throws(CommandFailure) -> Answer {
    let response = try request(method, path)
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    let data = Data(response.body)
    guard response.status == 200 else {
      let text = (try? decoder.decode(AdminResult.self, from: data))?.message ?? "it answers HTTP \(response.status)"
      let status: ExitStatus = response.status == 404 ? .data : response.status == 409 ? .tryAgain : .unavailable
      throw CommandFailure(status, text)
    }
    do { return try decoder.decode(type, from: data) } catch {
      throw CommandFailure(
        .unavailable, "the daemon's answer is not understood: restart it if it is of another version (\(error))")
    }
  }
}
