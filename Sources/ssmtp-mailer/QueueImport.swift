// `queue import`: messages out of a directory into the queue, each of them once.
//
// Once, also when the command is run again, or is killed at any moment: before a message is handed over, a file
// NAME.importing says which message it is and which id it will have; when it is durable, the pair moves to the directory
// `imported`. A run that finds NAME.importing knows that one before it was interrupted, and asks the queue for that id.
// If the message is there, it was handed over. If not, it may have been handed over and have left since: only the log
// knows, and nobody but the operator can decide.

import ArgumentParser
import CommandLineTools
import Daemon

struct QueueImport: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "import", abstract: "Queue the messages of a directory: pairs of NAME.eml and NAME.json.",
    discussion: """
      Takes what `queue export` wrote; arrival, attempts and hold stay as they were, the id is a new one. By hand, \
      NAME.json needs {"sender": "a@b.c", "account": "a [domain:]", "recipients": ["d@e.f"]}. What is queued moves to \
      the directory `imported` within. What is damaged or incomplete is named and left alone; the exit status is then \
      65. One run at a time has the directory; another one ends with 75.
      """)
  @OptionGroup var options: ConfigurationOptions
  @Argument(help: ArgumentHelp("Where the files are.", valueName: "dir"))
  var directory: String

  func run() async throws {
    let lock = try DirectoryLock(directory)
    defer { withExtendedLifetime(lock) {} }
    try await QueueChannel.use(options, changing: true) { channel in
      let names = try OperatorFiles.names(directory)
      try removeLoneMarkers(names)
      let known = Set(names)
      var last: ExitStatus?
      var count = 0
      for file in names where !file.hasPrefix(".") && (file.hasSuffix(".eml") || file.hasSuffix(".json")) {
        let name = String(file[..<(file.lastIndex(of: ".") ?? file.endIndex)])
        let other = file.hasSuffix(".eml") ? "\(name).json" : "\(name).eml"
        let isInterrupted = known.contains("\(name).importing")
        guard known.contains(other) || isInterrupted else {
          Terminal.complain(TerminalText.clean("\(directory)/\(file): there is no \(other) beside it"))
          last = .data
          continue
        }
        if file.hasSuffix(".eml"), known.contains(other) { continue }
        do throws(CommandFailure) {
          try await ImportOfOne(directory: directory, name: name, channel: channel).run()
          count += 1
        } catch {
          Terminal.complain(TerminalText.clean("\(directory)/\(name): \(error)"))
          last = error.status
          if [.unavailable, .tryAgain, .inputOutput].contains(error.status) { break }
        }
      }
      Terminal.say("\(Quantity.count(count, "message")) imported")
      if let last { throw CommandFailure(last, "") }
    }
  }

  /// Removes what a run has left that was killed when both files had been moved: of another pair of the same name it
  /// would say that it is queued.
  private func removeLoneMarkers(_ names: [String]) throws(CommandFailure) {
    let known = Set(names)
    let lone = names.filter { marker in
      guard marker.hasSuffix(".importing"), !marker.hasPrefix(".") else { return false }
      let name = marker.dropLast(".importing".count)
      return !known.contains("\(name).eml") && !known.contains("\(name).json")
    }
    if lone.isEmpty { return }
    for name in lone { OperatorFiles.remove("\(directory)/\(name)") }
    try OperatorFiles.sync(directory)
  }
}
