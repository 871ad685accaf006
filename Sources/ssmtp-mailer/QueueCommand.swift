// `queue`: what waits, why, and what the operator wants done about it.

import ArgumentParser
import CommandLineTools
import Daemon
import Primitives

struct QueueCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "queue", abstract: "Look at the queue, change it, copy it out and in, and check it.",
    discussion: """
      The daemon is asked if it runs. If nobody answers on the admin socket, the commands work on the queue's directory \
      themselves; as root they do that as the user whom the directory belongs to.
      """,
    subcommands: [
      QueueList.self, QueueShow.self, QueueRetry.self, QueueHold.self, QueueRelease.self, QueueDelete.self,
      QueueBounce.self, QueueExport.self, QueueImport.self, QueueVerify.self,
    ], defaultSubcommand: QueueList.self)
}

/// Which messages a command is about.
struct FilterOptions: ParsableArguments {
  @Option(help: ArgumentHelp("Only messages that wait for this [domain:].", valueName: "domain"))
  var account: String?
  @Option(help: "Only messages in this state: queued, active, deferred, held or dead.")
  var state: String?
  @Option(
    help: ArgumentHelp(
      "Only messages with this recipient, before or after rewriting: an address, or a pattern with `*`.",
      valueName: "pattern"))
  var recipient: String?
  @Option(
    help: ArgumentHelp(
      "Only messages from this sender: an address, a pattern with `*`, or `<>` for the null sender.",
      valueName: "pattern"))
  var sender: String?
  @Option(help: ArgumentHelp("Only messages older than this: 90s, 15m, 2h, 3d.", valueName: "time"))
  var olderThan: String?
  @Option(help: ArgumentHelp("Only messages younger than this.", valueName: "time"))
  var youngerThan: String?

  private(set) var filter = QueueFilter()

  enum CodingKeys: String, CodingKey { case account, state, recipient, sender, olderThan, youngerThan }

  mutating func validate() throws {
    var query: [String: String] = [:]
    query["account"] = account
    query["state"] = state
    query["recipient"] = recipient
    query["sender"] = sender
    query["older_than"] = olderThan
    query["younger_than"] = youngerThan
    do throws(QueueFilter.Malformed) { filter = try QueueFilter(query: query) } catch {
      throw ValidationError(error.description)
    }
  }
}

struct QueueList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List the messages that wait, or count them.",
    discussion: """
      Lines appear while the queue is read, and none of it is kept: a million messages are no problem. Messages that \
      come or go meanwhile do no harm to the others.
      """)
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var selection: FilterOptions
  @OptionGroup var output: JSONOption
  @Option(help: "Stop after so many messages.")
  var limit: Int?
  @Flag(help: "Only numbers: messages and octets, by state and by account.")
  var count = false
  @Flag(help: "Only ids, one a line, such as `queue retry -` takes them.")
  var ids = false

  private static let pageSize = 1000

  mutating func validate() throws {
    if let limit, limit < 1 { throw ValidationError("--limit \(limit): write a number from 1 on") }
    if limit != nil, count { throw ValidationError("--limit and --count do not go together") }
    if ids, count || output.json { throw ValidationError("--ids goes neither with --count nor with --json") }
  }

  func run() async throws {
    if count {
      var total = QueueCount()
      try await QueueChannel.use(options) { total = try await $0.count(selection.filter) }
      total.states.sort { $0.name < $1.name }
      total.accounts.sort { $0.name < $1.name }
      return try showCount(total)
    }
    try await QueueChannel.use(options) { channel in
      if output.json { return try await listJSON(channel) }
      if ids {
        _ = try await eachPage(channel, "ids") { lines in
          Terminal.print(lines.map { String(Substring($0)) })
        }
        return
      }
      try await listTable(channel)
    }
  }

  private func showCount(_ total: QueueCount) throws {
    if output.json { return try Terminal.printJSON(total) }
    var table = TextTable([("", .left), ("MESSAGES", .right), ("SIZE", .right)])
    for group in total.states { table.append([group.name, "\(group.messages)", Quantity.size(group.octets)]) }
    for group in total.accounts {
      table.append(["for \(group.name)", "\(group.messages)", Quantity.size(group.octets)])
    }
    table.append(["in all", "\(total.messages)", Quantity.size(total.octets)])
    Terminal.print(table.lines())
  }

  /// Gives each line of the list to `body`, page by page. Returns true when there are more than `limit`.
  private func eachPage(
    _ channel: QueueChannel, _ format: String, _ body: ([Substring.UTF8View]) throws -> Void
  ) async throws -> Bool {
    var pages = QueuePages(filter: selection.filter, format: format, limit: limit, pageSize: Self.pageSize)
    while !Terminal.isClosed, let lines = try await pages.next(channel) { try body(lines) }
    return pages.isCut
  }

  private func listJSON(_ channel: QueueChannel) async throws {
    var isFirst = true
    _ = try await eachPage(channel, "json") { lines in
      var text: [UInt8] = []
      for line in lines {
        text += isFirst ? "[\n".utf8 : ",\n".utf8
        isFirst = false
        text += line
      }
      Terminal.write(text)
    }
    Terminal.write(Array((isFirst ? "[]\n" : "\n]\n").utf8))
  }

  private func listTable(_ channel: QueueChannel) async throws {
    var table = RunningTable([
      ("ID", .left), ("STATE", .left), ("AGE", .right), ("SIZE", .right), ("SENDER", .left), ("RECIPIENTS", .left),
      ("REASON", .left),
    ])
    var messages = 0
    var octets = 0
    let isCut = try await eachPage(channel, "table") { lines in
      let rows = lines.map { line in
        let cells = line.split(separator: UInt8(ascii: "\t"), omittingEmptySubsequences: false).map {
          String(Substring($0))
        }
        guard cells.count >= 8 else { return [String(Substring(line))] }
        octets += Int(cells[3]) ?? 0
        var recipients = TerminalText.cut(cells[5], to: 40)
        if let number = Int(cells[6]), number > 1 { recipients += " +\(number - 1)" }
        return [
          cells[0], cells[1], Quantity.age(Int(cells[2]) ?? 0), Quantity.size(Int(cells[3]) ?? 0),
          cells[4].isEmpty ? "<>" : TerminalText.cut(cells[4], to: 40), recipients, cells[7],
        ]
      }
      messages += rows.count
      Terminal.write(Array(table.lines(rows).map { $0 + "\n" }.joined().utf8))
    }
    let scope = selection.filter.isEmpty ? "in the queue" : "of this kind in the queue"
    Terminal.say(
      messages == 0
        ? "no messages \(scope)"
        : "\(Quantity.count(messages, "message")), \(Quantity.size(octets))\(isCut ? " (there are more)" : " \(scope)")"
    )
  }
}

/// The lines of a list, one page after the other.
struct QueuePages {
  let filter: QueueFilter
  let format: String
  var limit: Int?
  let pageSize: Int
  private(set) var isCut = false
  private var after: String?
  private var isDone = false

  init(filter: QueueFilter, format: String, limit: Int? = nil, pageSize: Int = 1000) {
    self.filter = filter
    self.format = format
    self.limit = limit
    self.pageSize = pageSize
  }

  /// The lines of the next page, which may be none; nil behind the last one.
  mutating func next(_ channel: QueueChannel) async throws -> [Substring.UTF8View]? {
    if isDone { return nil }
    var query = filter.query
    query += [("format", format), ("limit", "\(min(limit ?? pageSize, pageSize))")]
    if let after { query.append(("after", after)) }
    let text = String(decoding: try await channel.bytes("GET", AdminPath.queue, query), as: UTF8.self)
    var lines = text.utf8.split(separator: 0x0a).map { Substring($0).utf8 }
    guard let last = lines.popLast() else {
      throw CommandFailure(.unavailable, "the list was cut off: try again")
    }
    let words = Substring(last).split(separator: " ")
    switch words.first {
    case "end": after = nil
    case "next" where words.count == 2: after = String(words[1])
    default: throw CommandFailure(.unavailable, "the list was cut off: try again")
    }
    isDone = after == nil
    if let left = limit {
      limit = left - lines.count
      if left <= lines.count {
        isCut = after != nil
        isDone = true
      }
    }
    return lines
  }
}
