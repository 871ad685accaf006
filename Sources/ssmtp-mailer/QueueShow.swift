// `queue show`: messages, each with its life and why it waits.

import ArgumentParser
import CommandLineTools
import Daemon
import Glibc

struct QueueShow: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show", abstract: "Show messages: envelope, life, why they wait, header.",
    discussion: "With --json, more than one id, or `-`, makes an array.")
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var output: JSONOption
  @Argument(help: "The messages' ids, as `queue list` shows them; `-` reads them from standard input, one a line.")
  var ids: [String]
  @Flag(help: "Print the message itself, header and body, octet by octet, and nothing else.")
  var body = false

  mutating func validate() throws {
    if body, output.json { throw ValidationError("--body and --json do not go together") }
    if body, ids.count != 1 || ids == ["-"] { throw ValidationError("--body prints one message: name one id") }
    try NamedIDs.check(ids)
  }

  func run() async throws {
    let named = try NamedIDs.read(ids)
    var details: [QueueDetail] = []
    var last: ExitStatus?
    try await QueueChannel.use(options) { channel in
      for id in named {
        do throws(CommandFailure) {
          if body { return try await printBody(id, channel) }
          details.append(try await channel.call("GET", AdminPath.message(AdminClient.escaped(id))))
        } catch {
          if error.status == .unavailable { throw error }
          Terminal.complain(TerminalText.clean(error.description))
          last = error.status
        }
      }
    }
    // Printed when nobody has the queue any more: a pager may take its time.
    if output.json, named.count > 1 || ids == ["-"] {
      try Terminal.printJSON(details)
    } else if output.json {
      if let detail = details.first { try Terminal.printJSON(detail) }
    } else {
      for (place, detail) in details.enumerated() {
        if place > 0 { Terminal.say("") }
        Self.show(detail)
      }
    }
    if let last { throw CommandFailure(last, "") }
  }

  private func printBody(_ id: String, _ channel: QueueChannel) async throws(CommandFailure) {
    guard try await channel.download(AdminPath.content(AdminClient.escaped(id)), receive: { Terminal.write($0) })
    else { throw CommandFailure(.data, "there is no message \(TerminalText.clean(id)) in the queue") }
  }

  private static func show(_ detail: QueueDetail) {
    let item = detail.item
    var facts = TextTable(columnCount: 2)
    facts.append(["id", item.id])
    facts.append(["state", item.state])
    facts.append(["arrival", "\(item.arrival) (\(Quantity.age(item.ageSeconds)) ago)"])
    facts.append(["size", "\(Quantity.size(item.size)) (\(item.size) octets)"])
    facts.append(["client", "\(detail.client) (\(detail.helo))"])
    facts.append(["sender", item.sender.isEmpty ? "<>" : item.sender])
    if !detail.parameters.isEmpty { facts.append(["parameters", detail.parameters.joined(separator: " ")]) }
    for (place, text) in detail.waiting.enumerated() { facts.append([place == 0 ? "waiting" : "", text]) }
    if detail.isDelayReported { facts.append(["sender", "was told of the delay"]) }
    Terminal.print(facts.lines())
    Terminal.say("")
    Terminal.print(recipients(detail))
    if !detail.lanes.isEmpty {
      Terminal.say("")
      var lanes = TextTable([
        ("ACCOUNT", .left), ("ATTEMPTS", .right), ("IN DOUBT", .right), ("NEXT TRY", .left), ("LAST REPLY", .left),
      ])
      for lane in detail.lanes {
        lanes.append([lane.account, "\(lane.attempts)", "\(lane.inDoubt)", lane.nextAttempt, lane.lastReply])
      }
      Terminal.print(lanes.lines())
    }
    if !detail.life.isEmpty {
      Terminal.say("")
      var life = TextTable([("TIME", .left), ("EVENT", .left), ("ACCOUNT", .left), ("", .left)])
      for event in detail.life { life.append([event.time, event.event, event.account ?? "", event.text]) }
      Terminal.print(life.lines())
    }
    Terminal.say("")
    for line in detail.header.split(whereSeparator: \.isNewline) { Terminal.say(TerminalText.clean(String(line))) }
  }

  private static func recipients(_ detail: QueueDetail) -> [String] {
    var table = TextTable([
      ("RECIPIENT", .left), ("STATE", .left), ("ACCOUNT", .left), ("DSN", .left), ("REPLY", .left),
    ])
    for recipient in detail.recipients {
      let isRewritten = recipient.original.lowercased() != recipient.address.lowercased()
      let wishes = [recipient.notify.map { "NOTIFY=\($0)" }, recipient.orcpt.map { "ORCPT=\($0)" }]
      table.append([
        isRewritten ? "\(recipient.original) → \(recipient.address)" : recipient.address, recipient.state,
        recipient.account, wishes.compactMap { $0 }.joined(separator: " "), recipient.reply ?? "",
      ])
    }
    return table.lines()
  }
}
