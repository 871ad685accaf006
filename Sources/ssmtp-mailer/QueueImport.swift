// `queue import`: messages out of a directory into the queue, each of them once.
//
// Once, also when the command is run again, or is killed at any moment: before a message is handed over, a file
// NAME.importing says which id it will have; when it is durable, the pair moves to the directory `imported`. A run that
// finds NAME.importing knows that one before it was interrupted, and asks the queue for that id. If the message is
// there, it was handed over. If not, it may have been handed over and have left since: only the log knows, and nobody
// but the operator can decide.

import ArgumentParser
import CommandLineTools
import Daemon

struct QueueImport: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "import", abstract: "Queue the messages of a directory: pairs of NAME.eml and NAME.json.",
    discussion: """
      Takes what `queue export` wrote; arrival, attempts and hold stay as they were, the id is a new one. By hand, \
      NAME.json needs {"sender": "a@b.c", "account": "a [domain:]", "recipients": ["d@e.f"]}. What is queued moves to \
      the directory `imported` within. What is damaged or incomplete is named and left alone; the exit status is then 65.
      """)
  @OptionGroup var options: ConfigurationOptions
  @Argument(help: ArgumentHelp("Where the files are.", valueName: "dir"))
  var directory: String

  func run() async throws {
    try await QueueChannel.use(options, changing: true) { channel in
      let names = try OperatorFiles.names(directory)
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
          if error.status == .unavailable || error.status == .tryAgain { break }
        }
      }
      Terminal.say("\(Quantity.count(count, "message")) imported")
      if let last { throw CommandFailure(last, "") }
    }
  }
}

private struct ImportOfOne {
  let directory: String
  let name: String
  let channel: QueueChannel

  private var imported: String { directory + "/imported" }
  private var marker: String { "\(directory)/\(name).importing" }

  /// Names of files may hold anything.
  private func tell(_ text: String) { Terminal.say(TerminalText.clean(text)) }

  func run() async throws(CommandFailure) {
    if OperatorFiles.exists(marker) { return try await goOn() }
    let (document, file) = try check()
    let answer: [String: String] = try await channel.call("POST", AdminPath.newID)
    guard let id = answer["id"] else { throw CommandFailure(.unavailable, "the daemon's answer is not understood") }
    let mark = try FileOutput(directory, "\(name).importing")
    _ = Array("\(id)\n".utf8).withUnsafeBytes { mark.write($0) }
    try mark.commit()
    try OperatorFiles.sync(directory)
    do throws(CommandFailure) {
      let result = try await channel.upload(
        AdminPath.importing, [("id", id)], line: document.jsonLine, file: file)
      guard result.ok else { throw CommandFailure(.data, result.message) }
    } catch {
      // Who refuses has not queued it. Who did not answer may have.
      if error.status != .unavailable { OperatorFiles.remove(marker) }
      throw error
    }
    try finish()
    tell("\(name) is queued as \(id)")
  }

  /// Behind an import that was interrupted.
  private func goOn() async throws(CommandFailure) {
    let id = String(decoding: try OperatorFiles.read(marker), as: UTF8.self).filter { !$0.isWhitespace }
    // Killed while the files were moved: only what is queued is.
    if !OperatorFiles.exists("\(directory)/\(name).json"), OperatorFiles.exists("\(imported)/\(name).json") {
      try finish()
      return tell("\(name) was queued as \(id) by an import that was interrupted")
    }
    let response = try await channel.request("GET", AdminPath.message(AdminClient.escaped(id)))
    guard response.status == 200 else {
      throw CommandFailure(
        .data,
        "an import was interrupted, and its message \(TerminalText.clean(id)) is not in the queue: look for this id in "
          + "the log. If it is there, the message has left: move the files away. If not, remove \(name).importing and "
          + "import again")
    }
    try finish()
    tell("\(name) is queued as \(id), by an import that was interrupted")
  }

  private func finish() throws(CommandFailure) {
    try OperatorFiles.makeDirectory(imported)
    for suffix in ["json", "eml"] where OperatorFiles.exists("\(directory)/\(name).\(suffix)") {
      try OperatorFiles.rename("\(directory)/\(name).\(suffix)", "\(imported)/\(name).\(suffix)")
    }
    try OperatorFiles.sync(imported)
    try OperatorFiles.sync(directory)
    // Last, so that there is no moment in which the files are there and nothing tells that they are queued.
    OperatorFiles.remove(marker)
  }

  /// Reads and checks the pair.
  private func check() throws(CommandFailure) -> (MessageDocument, ContentInput) {
    var document: MessageDocument
    do throws(MessageDocument.Malformed) {
      document = try MessageDocument(json: try? OperatorFiles.read("\(directory)/\(name).json"))
    } catch { throw CommandFailure(.data, "\(name).json: \(error)") }
    let file = try ContentInput("\(directory)/\(name).eml")
    if file.size == 0 { throw CommandFailure(.data, "\(name).eml is empty") }
    if let content = document.content {
      if content.octets != file.size {
        throw CommandFailure(.data, "\(name).eml has \(file.size) octets, and \(name).json says \(content.octets)")
      }
      if let wanted = content.crc32c,
        let found = MessageDocument.Content(octets: file.size, crc32c: try file.checksum()).crc32c,
        found != wanted.lowercased()
      {
        throw CommandFailure(.data, "\(name).eml is damaged: its CRC-32C is \(found), and should be \(wanted)")
      }
    }
    let lines = try LineEnds(of: file)
    // What came in pieces (BDAT) may have a last line without an end, and the checksum says that this is all of it.
    let isByHand = document.content?.crc32c == nil
    if let line = isByHand ? lines.bare ?? lines.unended : lines.bare {
      throw CommandFailure(
        .data,
        "line \(line) of \(name).eml does not end in CRLF as mail has to: convert it with "
          + "`sed -i 's/\\r*$/\\r/' \(name).eml`")
    }
    if isByHand, lines.is8Bit { document.eightBitMIME = true }
    if document.id == nil { document.id = name }
    document.content = .init(octets: file.size, crc32c: nil)
    do throws(MessageDocument.Malformed) { _ = try document.message(now: .init(microseconds: 0)) } catch {
      throw CommandFailure(.data, "\(name).json: \(error)")
    }
    return (document, file)
  }
}

/// Whether a message that somebody has written by hand may go over the wire.
private struct LineEnds {
  /// The number of the first line with a CR or LF alone.
  private(set) var bare: Int?
  /// The number of the last line when it has no end.
  private(set) var unended: Int?
  private(set) var is8Bit = false

  init(of file: ContentInput) throws(CommandFailure) {
    var line = 1
    var previous: UInt8 = 0
    var bare: Int?
    var is8Bit = false
    try file.eachPiece { piece in
      for byte in piece {
        if byte >= 0x80 { is8Bit = true }
        if bare == nil, (byte == 0x0a) != (previous == 0x0d) { bare = line }
        if byte == 0x0a { line += 1 }
        previous = byte
      }
    }
    if bare == nil, previous == 0x0d { bare = line }
    self.bare = bare
    unended = previous == 0x0a ? nil : line
    self.is8Bit = is8Bit
  }
}

extension MessageDocument {
  /// - Parameter json: nil for a file that cannot be read.
  init(json: [UInt8]?) throws(Malformed) {
    guard let json else { throw Malformed(description: "it cannot be read") }
    try self.init(json: json)
  }
}
