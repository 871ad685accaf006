// `queue verify`: is every octet of the queue what was written?

import ArgumentParser
import CommandLineTools
import Glibc
import Spool

struct QueueVerify: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify", abstract: "Check every record and every content of the queue. Changes nothing.",
    discussion: """
      May be run while the daemon works, and on a copy. Exit status 0 when all is well, 65 when something is damaged: \
      each damage is shown with file, offset, the messages it concerns, and what to do.
      """)
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var output: JSONOption
  @Option(help: ArgumentHelp("Another queue directory than that of the configuration.", valueName: "dir"))
  var directory: String?

  private struct Answer: Encodable {
    struct Damage: Encodable {
      var file: String
      var offset: Int
      var detail: String
      var affected: [String]
      var advice: String
    }
    var directory: String
    var ok: Bool
    var segments: Int
    var octets: Int
    var formatVersions: [String: Int]
    var messageRecords: Int
    var stateRecords: Int
    var removalRecords: Int
    var messages: Int
    var held: Int
    var dead: Int
    var contentFiles: Int
    var contentOctets: Int
    var unnamedContentFiles: Int
    var unfinishedOctets: Int
    var damages: [Damage]
  }

  func run() async throws {
    let place = try directory ?? options.places().queueDir
    let report = try QueueChannel.look(at: place, directory == nil ? nil : "--directory") {
      (place) throws(SpoolVerifier.Problem) in try SpoolVerifier(directory: place).run()
    }
    if output.json { try Terminal.printJSON(Self.answer(place, report)) } else { Self.show(place, report) }
    if !report.damages.isEmpty { throw CommandFailure(.data, "") }
  }

  private static func answer(_ place: String, _ report: SpoolVerifier.Report) -> Answer {
    Answer(
      directory: place, ok: report.damages.isEmpty, segments: report.segments, octets: report.octets,
      formatVersions: Dictionary(
        report.formatVersions.map { ("\($0.key)", $0.value) }, uniquingKeysWith: { first, _ in first }),
      messageRecords: report.messageRecords, stateRecords: report.stateRecords, removalRecords: report.removalRecords,
      messages: report.messages, held: report.held, dead: report.dead, contentFiles: report.contentFiles,
      contentOctets: report.contentOctets, unnamedContentFiles: report.unnamedContentFiles,
      unfinishedOctets: report.unfinishedOctets,
      damages: report.damages.map {
        .init(
          file: $0.file, offset: $0.offset, detail: $0.detail, affected: $0.affected.map(\.description),
          advice: $0.advice)
      })
  }

  private static func show(_ place: String, _ report: SpoolVerifier.Report) {
    var facts = TextTable(columnCount: 2)
    facts.append(["queue", place])
    let versions = report.formatVersions.sorted { $0.key < $1.key }.map { "\($0.value) of format \($0.key)" }
    let kinds = versions.isEmpty ? "" : " (\(versions.joined(separator: ", ")))"
    facts.append(["segments", "\(report.segments), \(Quantity.size(report.octets))\(kinds)"])
    facts.append([
      "records",
      "\(report.messageRecords) of messages, \(report.stateRecords) of states, \(report.removalRecords) of removals",
    ])
    facts.append(["messages", "\(report.messages), \(report.held) of them held, \(report.dead) dead"])
    let unnamed =
      report.unnamedContentFiles == 0
      ? "" : ", and \(report.unnamedContentFiles) that no message names (being received, or left over from a crash)"
    facts.append(["contents", "\(report.contentFiles) files, \(Quantity.size(report.contentOctets))\(unnamed)"])
    if report.unfinishedOctets > 0 {
      facts.append([
        "end", "\(report.unfinishedOctets) octets are being written, or were when the daemon ended; nothing is lost",
      ])
    }
    Terminal.print(facts.lines())
    for damage in report.damages {
      Terminal.say("")
      Terminal.say("damaged: \(damage.file) at offset \(damage.offset): \(damage.detail)")
      if !damage.affected.isEmpty {
        Terminal.say("  concerns \(damage.affected.map(\.description).joined(separator: ", "))")
      }
      Terminal.say("  → \(damage.advice)")
    }
    Terminal.say("")
    Terminal.say(
      report.damages.isEmpty ? "nothing is damaged" : "\(Quantity.count(report.damages.count, "damage")) found")
  }
}
