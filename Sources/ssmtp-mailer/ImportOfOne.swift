// One pair of an import: checked, handed over, and moved away; or what an earlier run has left of it.

import CChecksum
import CommandLineTools
import Daemon
import Spool

struct ImportOfOne {
  let directory: String
  let name: String
  let channel: QueueChannel

  private var imported: String { directory + "/imported" }
  private var marker: String { "\(directory)/\(name).importing" }

  /// Names of files may hold anything.
  private func tell(_ text: String) { Terminal.say(TerminalText.clean(text)) }

  func run() async throws(CommandFailure) {
    if OperatorFiles.exists(marker) { return try await goOn() }
    let (document, file, content) = try check()
    let answer: [String: String] = try await channel.call("POST", AdminPath.newID)
    guard let id = answer["id"].flatMap({ QueueID($0) }) else {
      throw CommandFailure(.unavailable, "the daemon's answer is not understood")
    }
    let mark = try FileOutput(directory, "\(name).importing")
    _ = Array(ImportMarker(id, document, content).text.utf8).withUnsafeBytes { mark.write($0) }
    try mark.commit()
    try OperatorFiles.sync(directory)
    try await handOver(id, document, file)
    let place: String
    do throws(CommandFailure) { place = try finish() } catch {
      throw CommandFailure(
        error.status, "it is queued as \(id), but \(error): mend that and import again, which moves the files only")
    }
    tell("\(name) is queued as \(id)\(place == name ? "" : "; its files are now imported/\(place).*")")
  }

  private func handOver(_ id: QueueID, _ document: MessageDocument, _ file: ContentInput) async throws(CommandFailure) {
    let response: AdminClient.Response
    do throws(CommandFailure) {
      response = try await channel.upload(
        AdminPath.importing, [("id", id.description)], line: document.jsonLine, file: file)
    } catch {
      guard error.status == .data else { throw undecided(id, error) }
      OperatorFiles.remove(marker)
      throw error
    }
    switch response.status {
    case 200: return
    case 400, 422, 503, 507:
      // Answers of before the message is written. Behind a failed sync nobody knows whether it was.
      OperatorFiles.remove(marker)
      throw AdminClient.refusal(response)
    case 409:
      // The daemon has been restarted since it gave the id out, or something is queued under it.
      let known = try await channel.request("GET", AdminPath.message(id.description))
      if known.status == 404 { OperatorFiles.remove(marker) }
      throw AdminClient.refusal(response)
    default: throw undecided(id, AdminClient.refusal(response))
    }
  }

  private func undecided(_ id: QueueID, _ error: CommandFailure) -> CommandFailure {
    CommandFailure(
      error.status == .unavailable ? .unavailable : .tryAgain,
      "\(error). Whether the message is queued is not known: restart the daemon if it has not been restarted by "
        + "itself, leave the files and \(name).importing as they are, and import again: that looks for \(id) first")
  }

  /// Behind an import that was interrupted.
  private func goOn() async throws(CommandFailure) {
    let bytes = try OperatorFiles.read(marker)
    let mark: ImportMarker
    do throws(MessageDocument.Malformed) { mark = try ImportMarker(bytes) } catch {
      throw CommandFailure(
        .data,
        "\(name).importing is of an import that was interrupted, and is not understood: \(error). If the message is in "
          + "the queue, or its id in the log, move the files away; if not, remove \(name).importing and import again")
    }
    // Killed while the files were moved: only what is queued is.
    if !OperatorFiles.exists("\(directory)/\(name).json") {
      guard let half = halfMoved(mark) else {
        throw CommandFailure(.data, "there is no \(name).json beside \(name).eml and \(name).importing")
      }
      _ = try finish(as: half)
      return tell("\(name) was queued as \(mark.id) by an import that was interrupted")
    }
    guard try isMeant(by: mark, "\(directory)/\(name).json") else {
      throw CommandFailure(
        .data,
        "\(name).importing is of an import that was interrupted, and of another message or another state of this one: "
          + "from <\(mark.sender)>, \(mark.content.octets) octets, to be queued as \(mark.id). Look for this id in the "
          + "queue and in the log. If it is this message, and it is there, move the files away; else remove "
          + "\(name).importing and import again")
    }
    let response = try await channel.request("GET", AdminPath.message(mark.id.description))
    if response.status != 200, response.status != 404 { throw AdminClient.refusal(response) }
    guard response.status == 200 else {
      throw CommandFailure(
        .data,
        "an import was interrupted, and its message \(mark.id) is not in the queue: look for this id in "
          + "the log. If it is there, the message has left: move the files away. If not, remove \(name).importing and "
          + "import again")
    }
    _ = try finish()
    tell("\(name) is queued as \(mark.id), by an import that was interrupted")
  }

  /// Whether the content in the directory and a document are those of a marker.
  private func isMeant(by mark: ImportMarker, _ path: String) throws(CommandFailure) -> Bool {
    guard let document = try? MessageDocument(json: try OperatorFiles.read(path)) else { return false }
    let file = try ContentInput("\(directory)/\(name).eml")
    return mark == ImportMarker(mark.id, document, .init(octets: file.size, crc32c: try file.checksum()))
  }

  /// The name in `imported` under which the document of this pair is already, and its content is not.
  private func halfMoved(_ mark: ImportMarker) -> String? {
    places.first { place in
      OperatorFiles.exists("\(imported)/\(place).json") && !OperatorFiles.exists("\(imported)/\(place).eml")
        && (try? isMeant(by: mark, "\(imported)/\(place).json")) == true
    }
  }

  /// The names in `imported` from the first on that others have taken, and one that is free.
  private var places: [String] {
    var places: [String] = []
    for number in 1... {
      let place = number == 1 ? name : "\(name).\(number)"
      places.append(place)
      if !OperatorFiles.exists("\(imported)/\(place).json"), !OperatorFiles.exists("\(imported)/\(place).eml") { break }
    }
    return places
  }

  /// Moves the pair to `imported`, over nothing that is there.
  /// - Returns: the name that it has there.
  private func finish(as half: String? = nil) throws(CommandFailure) -> String {
    try OperatorFiles.makeDirectory(imported)
    let place = half ?? places.last ?? name
    for suffix in ["json", "eml"] where OperatorFiles.exists("\(directory)/\(name).\(suffix)") {
      try OperatorFiles.rename("\(directory)/\(name).\(suffix)", "\(imported)/\(place).\(suffix)")
    }
    try OperatorFiles.sync(imported)
    try OperatorFiles.sync(directory)
    // Last, so that there is no moment in which the files are there and nothing tells that they are queued.
    OperatorFiles.remove(marker)
    return place
  }

  /// Reads and checks the pair.
  private func check() throws(CommandFailure) -> (MessageDocument, ContentInput, MessageDocument.Content) {
    var document: MessageDocument
    do throws(MessageDocument.Malformed) {
      document = try MessageDocument(json: try? OperatorFiles.read("\(directory)/\(name).json"))
    } catch { throw CommandFailure(.data, "\(name).json: \(error)") }
    let file = try ContentInput("\(directory)/\(name).eml")
    if file.size == 0 { throw CommandFailure(.data, "\(name).eml is empty") }
    if let octets = document.content?.octets, octets != file.size {
      throw CommandFailure(.data, "\(name).eml has \(file.size) octets, and \(name).json says \(octets)")
    }
    let lines = try LineEnds(of: file)
    let content = MessageDocument.Content(octets: file.size, crc32c: lines.crc)
    if let wanted = document.content?.crc32c, let found = content.crc32c, found != wanted.lowercased() {
      throw CommandFailure(.data, "\(name).eml is damaged: its CRC-32C is \(found), and should be \(wanted)")
    }
    // What came in pieces (BDAT) may have a last line without an end, and the checksum says that this is all of it.
    if let line = lines.nul {
      throw CommandFailure(.data, "line \(line) of \(name).eml has a NUL, which no mail may have (RFC 2045 2.8)")
    }
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
    return (document, file, content)
  }
}

/// Whether a message that somebody has written by hand may go over the wire, and its checksum.
private struct LineEnds {
  /// The number of the first line with a CR or LF alone.
  private(set) var bare: Int?
  /// The number of the last line when it has no end.
  private(set) var unended: Int?
  /// The number of the first line with a NUL.
  private(set) var nul: Int?
  private(set) var is8Bit = false
  /// CRC-32C.
  private(set) var crc: UInt32 = 0

  init(of file: ContentInput) throws(CommandFailure) {
    var line = 1
    var previous: UInt8 = 0
    var bare: Int?
    var nul: Int?
    var is8Bit = false
    var crc: UInt32 = 0
    try file.eachPiece { piece in
      crc = ssmtp_crc32c(crc, piece.baseAddress, piece.count)
      for byte in piece {
        if byte >= 0x80 { is8Bit = true }
        if byte == 0, nul == nil { nul = line }
        if bare == nil, (byte == 0x0a) != (previous == 0x0d) { bare = line }
        if byte == 0x0a { line += 1 }
        previous = byte
      }
    }
    if bare == nil, previous == 0x0d { bare = line }
    self.bare = bare
    self.nul = nul
    unended = previous == 0x0a ? nil : line
    self.is8Bit = is8Bit
    self.crc = crc
  }
}

extension MessageDocument {
  /// - Parameter json: nil for a file that cannot be read.
  init(json: [UInt8]?) throws(Malformed) {
    guard let json else { throw Malformed(description: "it cannot be read") }
    try self.init(json: json)
  }
}
