// `queue`: what waits, why, and what the operator wants done about it.

import ArgumentParser
import CommandLineTools
import Configuration
import Daemon

struct QueueCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "queue", abstract: "Look at the queue of the running daemon, and change it.",
    subcommands: [List.self, Show.self, Retry.self, Delete.self], defaultSubcommand: List.self)
}

extension ConfigurationOptions {
  func adminClient() throws(CommandFailure) -> AdminClient {
    AdminClient(socket: try load().global.adminSocket)
  }
}

extension QueueCommand {
  struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "List the messages that wait.")
    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var output: JSONOption
    @Option(help: ArgumentHelp("Only messages for this [domain:].", valueName: "domain"))
    var account: String?
    @Option(help: "Only messages in this state: queued, active, deferred, held or dead.")
    var state: String?
    @Option(help: "Stop after so many messages.")
    var limit: Int?

    private static let states = ["queued", "active", "deferred", "held", "dead"]
    private static let pageSize = 500

    mutating func validate() throws {
      if let state, !Self.states.contains(state) {
        throw ValidationError("--state \(state): write one of \(Self.states.joined(separator: ", "))")
      }
      if let limit, limit < 1 { throw ValidationError("--limit \(limit): write a number from 1 on") }
    }

    func run() async throws {
      let client = try options.adminClient()
      var items: [QueueItem] = []
      var after: String?
      var isCut = false
      repeat {
        var path = "\(AdminPath.queue)?limit=\(Self.pageSize)"
        if let account { path += "&account=\(AdminClient.escaped(account))" }
        if let state { path += "&state=\(state)" }
        if let after { path += "&after=\(AdminClient.escaped(after))" }
        let page: QueuePage = try client.call("GET", path)
        items += page.messages
        after = page.next
        if let limit, items.count >= limit {
          isCut = items.count > limit || after != nil
          items = Array(items.prefix(limit))
          break
        }
      } while after != nil
      if output.json { return try Terminal.printJSON(items) }
      if !items.isEmpty { Terminal.print(Self.table(items)) }
      let size = Quantity.size(items.reduce(0) { $0 + $1.size })
      let scope = account == nil && state == nil ? "in the queue" : "of this kind in the queue"
      print(
        items.isEmpty
          ? "no messages \(scope)"
          : "\(Quantity.count(items.count, "message")), \(size)\(isCut ? " (there are more)" : " \(scope)")")
    }

    private static func table(_ items: [QueueItem]) -> [String] {
      var table = TextTable([
        ("ID", .left), ("STATE", .left), ("AGE", .right), ("SIZE", .right), ("SENDER", .left), ("RECIPIENTS", .left),
        ("REASON", .left),
      ])
      for item in items {
        var recipients = TerminalText.cut(item.recipients.first ?? "", to: 40)
        if item.recipients.count > 1 { recipients += " +\(item.recipients.count - 1)" }
        table.append([
          item.id, item.state, Quantity.age(item.ageSeconds), Quantity.size(item.size),
          item.sender.isEmpty ? "<>" : TerminalText.cut(item.sender, to: 40), recipients, item.reason ?? "",
        ])
      }
      return table.lines()
    }
  }

  struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show one message: envelope, attempts, replies, header.")
    @OptionGroup var options: ConfigurationOptions
    @OptionGroup var output: JSONOption
    @Argument(help: "The message's id, as `queue list` shows it.")
    var id: String

    func run() async throws {
      let detail: QueueDetail = try options.adminClient().call(
        "GET", AdminPath.message(AdminClient.escaped(id)))
      if output.json { return try Terminal.printJSON(detail) }
      let item = detail.item
      var facts = TextTable(columnCount: 2)
      facts.append(["id", item.id])
      facts.append(["state", item.state])
      facts.append(["arrival", "\(item.arrival) (\(Quantity.age(item.ageSeconds)) ago)"])
      facts.append(["size", Quantity.size(item.size)])
      facts.append(["client", "\(detail.client) (\(detail.helo))"])
      facts.append(["sender", item.sender.isEmpty ? "<>" : item.sender])
      if let reason = item.reason { facts.append(["reason", reason]) }
      Terminal.print(facts.lines())
      print("")
      var recipients = TextTable([("RECIPIENT", .left), ("STATE", .left), ("ACCOUNT", .left), ("REPLY", .left)])
      for recipient in detail.recipients {
        let isRewritten = recipient.original.lowercased() != recipient.address.lowercased()
        recipients.append([
          isRewritten ? "\(recipient.original) → \(recipient.address)" : recipient.address, recipient.state,
          recipient.account, recipient.reply ?? "",
        ])
      }
      Terminal.print(recipients.lines())
      if !detail.lanes.isEmpty {
        print("")
        var lanes = TextTable([("ACCOUNT", .left), ("ATTEMPTS", .right), ("NEXT TRY", .left), ("LAST REPLY", .left)])
        for lane in detail.lanes {
          lanes.append([lane.account, "\(lane.attempts)", lane.nextAttempt, lane.lastReply])
        }
        Terminal.print(lanes.lines())
      }
      print("")
      for line in detail.header.split(whereSeparator: \.isNewline) { print(TerminalText.clean(String(line))) }
    }
  }

  struct Retry: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Try messages now instead of at their time.")
    @OptionGroup var options: ConfigurationOptions
    @Argument(help: "The messages' ids.")
    var ids: [String] = []
    @Flag(help: "Try all messages.")
    var all = false

    mutating func validate() throws {
      if all == !ids.isEmpty { throw ValidationError("name messages by their ids, or say --all") }
    }

    func run() async throws {
      let client = try options.adminClient()
      if all {
        let result: AdminResult = try client.call("POST", AdminPath.retryAll)
        return print(result.message)
      }
      try changeEach(ids) { (id) throws(CommandFailure) in
        try client.call("POST", AdminPath.retry(AdminClient.escaped(id)))
      }
    }
  }

  struct Delete: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Remove messages for good.", discussion: "Nobody is told: neither the sender nor the recipients.")
    @OptionGroup var options: ConfigurationOptions
    @Argument(help: "The messages' ids.")
    var ids: [String]

    func run() async throws {
      let client = try options.adminClient()
      try changeEach(ids) { (id) throws(CommandFailure) in
        try client.call("DELETE", AdminPath.message(AdminClient.escaped(id)))
      }
    }
  }
}

/// Does the same to each message and goes on behind a failure, which decides the exit status.
private func changeEach(
  _ ids: [String], _ change: (String) throws(CommandFailure) -> AdminResult
) throws(CommandFailure) {
  var last: CommandFailure?
  for id in ids {
    do throws(CommandFailure) { print(try change(id).message) } catch {
      if error.status == .unavailable { throw error }
      Terminal.complain(error.description)
      last = CommandFailure(error.status, "")
    }
  }
  if let last { throw last }
}
