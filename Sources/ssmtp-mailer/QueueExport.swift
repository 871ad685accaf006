// `queue export`: copies of messages in a directory, from which `queue import` takes them.

import ArgumentParser
import CommandLineTools
import Daemon

struct QueueExport: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "export", abstract: "Copy messages into a directory: ID.eml and ID.json for each.",
    discussion: """
      The messages stay in the queue: hold them first if they must not leave meanwhile. Without ids and filters all are \
      copied. What is there already and the same is left alone, so a copy that was interrupted can be repeated.

      With --salvage, a queue that the daemon refuses to open is read as far as it can be, and not changed. What is \
      known to be damaged is copied with a hold, so that `queue import` does not let it go before you have looked at it. \
      A message may be copied although it was delivered: the record of that can be among what is lost. The exit status \
      is 65 when something is damaged.
      """)
  @OptionGroup var options: ConfigurationOptions
  @Argument(help: ArgumentHelp("Where the files go; made if it is missing.", valueName: "dir"))
  var directory: String
  @Argument(help: "The messages' ids; `-` reads them from standard input, one a line.")
  var ids: [String] = []
  @OptionGroup var selection: FilterOptions
  @Flag(help: "Read a damaged queue as far as it can be read; no daemon may run on it.")
  var salvage = false
  @Option(
    help: ArgumentHelp("With --salvage, another queue directory than that of the configuration.", valueName: "dir"))
  var queueDirectory: String?

  mutating func validate() throws {
    if queueDirectory != nil, !salvage { throw ValidationError("--queue-directory goes with --salvage") }
    if !ids.isEmpty, !selection.filter.isEmpty {
      throw ValidationError("name messages by their ids, or by a filter, not by both")
    }
    try NamedIDs.check(ids)
  }

  private enum Result { case written, same, gone }

  func run() async throws {
    let named = try NamedIDs.read(ids)
    if salvage { return try await salvageQueue(named) }
    try await QueueChannel.use(options) { channel in try await copyAll(named, channel) }
  }

  private func salvageQueue(_ named: [String]) async throws {
    let queue: String
    if let queueDirectory {
      queue = queueDirectory
    } else {
      let places = try options.places()
      guard AdminClient(socket: places.adminSocket).presence() == .nobody else {
        throw CommandFailure(
          .unavailable, "the daemon runs, so its queue is not what has to be salvaged: export without --salvage")
      }
      queue = places.queueDir
      try ServiceUser.become(ownerOf: queue)
    }
    let (channel, damages) = try QueueChannel.salvage(queue, queueDirectory == nil ? nil : "--queue-directory")
    for damage in damages {
      let concerns =
        damage.affected.isEmpty ? "" : " (concerns \(damage.affected.map(\.description).joined(separator: ", ")))"
      Terminal.complain("damaged: \(damage.file) at offset \(damage.offset): \(damage.detail)\(concerns)")
    }
    try await QueueChannel.use(channel) { channel in try await copyAll(named, channel) }
    if !damages.isEmpty { throw CommandFailure(.data, "") }
  }

  private func copyAll(_ named: [String], _ channel: QueueChannel) async throws {
    try OperatorFiles.makeDirectory(directory)
    let lock = try DirectoryLock(directory)
    defer { withExtendedLifetime(lock) {} }
    var counts: [Result: Int] = [:]
    var last: ExitStatus?
    func export(_ id: String, isNamed: Bool) async throws {
      do throws(CommandFailure) {
        let result = try await copy(id, channel)
        counts[result, default: 0] += 1
        if result == .gone, isNamed {
          Terminal.complain("there is no message \(TerminalText.clean(id)) in the queue")
          last = .data
        }
      } catch {
        // Neither a disk of ours that is full, nor a daemon that has gone, is another one for the next message.
        if error.status == .inputOutput { throw error }
        if error.status == .unavailable, try await !answers(channel) { throw error }
        Terminal.complain("\(TerminalText.clean(id)): \(error)")
        last = error.status
      }
    }
    for id in named { try await export(id, isNamed: true) }
    if ids.isEmpty {
      var pages = QueuePages(filter: selection.filter, format: "ids")
      while let lines = try await pages.next(channel) {
        for line in lines { try await export(String(Substring(line)), isNamed: false) }
      }
    }
    try OperatorFiles.sync(directory)
    let same = counts[.same].map { ", \($0) were there already" } ?? ""
    let gone = ids.isEmpty ? counts[.gone].map { ", \($0) left the queue meanwhile" } ?? "" : ""
    Terminal.say("\(Quantity.count(counts[.written] ?? 0, "message")) exported to \(directory)\(same)\(gone)")
    if let last { throw CommandFailure(last, "") }
  }

  private func answers(_ channel: QueueChannel) async throws -> Bool {
    do throws(CommandFailure) {
      return try await channel.request("GET", AdminPath.queue, [("limit", "1"), ("format", "ids")]).status == 200
    } catch { return false }
  }

  private func copy(_ id: String, _ channel: QueueChannel) async throws(CommandFailure) -> Result {
    let escaped = AdminClient.escaped(id)
    let response = try await channel.request("GET", AdminPath.document(escaped))
    if response.status == 404 { return .gone }
    if response.status != 200 { throw AdminClient.refusal(response) }
    var document: MessageDocument
    do throws(MessageDocument.Malformed) { document = try MessageDocument(json: response.body) } catch {
      throw CommandFailure(.unavailable, "the daemon's answer is not understood: \(error)")
    }
    // As the queue spells it: it becomes the name of a file.
    guard let name = document.id, let octets = document.content?.octets else {
      throw CommandFailure(.unavailable, "the daemon's answer is not understood")
    }
    if let known = Self.content(directory, name, document) {
      document.content = known
      if (try? OperatorFiles.read("\(directory)/\(name).json")) == document.json { return .same }
    } else {
      let file = try FileOutput(directory, "\(name).eml")
      do throws(CommandFailure) {
        guard try await channel.download(AdminPath.content(escaped), receive: { file.write($0) }) else {
          file.discard()
          return .gone
        }
      } catch {
        file.discard()
        throw error
      }
      if let failure = file.failure {
        file.discard()
        throw failure
      }
      guard file.count == octets else {
        file.discard()
        throw CommandFailure(.data, "its content has \(file.count) octets instead of \(octets)")
      }
      try file.commit()
      document.content = .init(octets: octets, crc32c: file.crc)
    }
    // The document comes last: where it is, the content is whole.
    let file = try FileOutput(directory, "\(name).json")
    _ = document.json.withUnsafeBytes { file.write($0) }
    try file.commit()
    return .written
  }

  /// The content in the directory, if it is that of this message and undamaged.
  private static func content(
    _ directory: String, _ name: String, _ document: MessageDocument
  ) -> MessageDocument.Content? {
    guard let bytes = try? OperatorFiles.read("\(directory)/\(name).json"),
      let old = try? MessageDocument(json: bytes), let content = old.content,
      old.sender == document.sender, old.arrival == document.arrival,
      old.recipients.map(\.address) == document.recipients.map(\.address),
      content.octets == document.content?.octets, let file = try? ContentInput("\(directory)/\(name).eml"),
      file.size == content.octets, let crc = try? file.checksum(),
      content == MessageDocument.Content(octets: content.octets, crc32c: crc)
    else { return nil }
    return content
  }
}
