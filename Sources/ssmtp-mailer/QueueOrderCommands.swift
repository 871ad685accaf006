// `queue retry`, `hold`, `release`, `delete`, `bounce`: what is done with messages.

import ArgumentParser
import CommandLineTools
import Daemon
import Glibc

/// The messages that an order or an export is about.
struct MessageSelection: ParsableArguments {
  @Argument(help: "The messages' ids; `-` reads them from standard input, one a line.")
  var ids: [String] = []
  @Flag(help: "All messages.")
  var all = false
  @OptionGroup var selection: FilterOptions

  var filter: QueueFilter { selection.filter }

  mutating func validate() throws {
    let ways = [!ids.isEmpty, all, !filter.isEmpty].count { $0 }
    if ways == 0 { throw ValidationError("name messages by their ids or by a filter, or say --all") }
    if ways > 1 { throw ValidationError("name messages by their ids, or by a filter, or say --all: one of the three") }
  }

  /// The ids that were named, those on standard input among them.
  func named() throws(CommandFailure) -> [String] {
    guard ids == ["-"] else { return ids }
    return try Terminal.readText("-").split(whereSeparator: \.isNewline).compactMap {
      $0.split(separator: " ").first.map(String.init)
    }
  }
}

/// Carries out an order in as many parts as it takes.
private struct OrderRun {
  let order: QueueOrder
  /// What was done, as the predicate behind `12 messages`.
  let done: String
  let selection: MessageSelection
  var reason: String?
  private static let idsAtOnce = 100

  func run(_ channel: QueueChannel) async throws {
    var last: ExitStatus?
    if selection.ids.isEmpty {
      var report = OrderReport()
      var total = 0
      repeat {
        var query = selection.filter.query
        if selection.all { query.append(("all", "true")) }
        if let next = report.next { query.append(("after", next)) }
        if let until = report.until { query.append(("until", until)) }
        report = try await call(channel, query)
        total += report.done
        last = Self.print(report) ?? last
      } while report.next != nil
      Terminal.say("\(Quantity.count(total, "message")) \(done)")
    } else {
      var rest = try selection.named()[...]
      while !rest.isEmpty {
        let part = rest.prefix(Self.idsAtOnce)
        rest = rest.dropFirst(part.count)
        last = Self.print(try await call(channel, [("ids", part.joined(separator: ","))])) ?? last
      }
    }
    if let last { throw CommandFailure(last, "") }
  }

  private func call(
    _ channel: QueueChannel, _ query: [(name: String, value: String)]
  ) async throws(CommandFailure) -> OrderReport {
    try await channel.call("POST", AdminPath.order(order), query + (reason.map { [("reason", $0)] } ?? []))
  }

  /// - Returns: the status of the last failure.
  private static func print(_ report: OrderReport) -> ExitStatus? {
    var last: ExitStatus?
    for line in report.lines {
      if line.status == 0 {
        Terminal.say(line.text)
      } else {
        Terminal.complain(TerminalText.clean(line.text))
        last = ExitStatus(rawValue: line.status) ?? .data
      }
    }
    return last
  }
}

/// Asks before something is done to the whole queue that cannot be undone.
private func confirm(_ what: String, isConfirmed: Bool) throws(CommandFailure) {
  if isConfirmed { return }
  guard isatty(STDIN_FILENO) == 1, isatty(STDOUT_FILENO) == 1 else {
    throw CommandFailure(.usage, "to \(what) all messages, say --yes as well")
  }
  Terminal.write(Array("\(what) all messages of the queue? [y/N] ".utf8))
  let answer = readLine() ?? ""
  guard answer.lowercased() == "y" || answer.lowercased() == "yes" else {
    throw CommandFailure(.usage, "nothing was done")
  }
}

struct QueueRetry: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "retry", abstract: "Try messages now instead of at their time.",
    discussion: "With --all, accounts on hold are tried as well. Held messages stay where they are.")
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var messages: MessageSelection

  func run() async throws {
    try await QueueChannel.use(options, changing: true) { channel in
      let done = channel.isStopped ? "to be tried when the daemon starts" : "to be tried now"
      try await OrderRun(order: .retry, done: done, selection: messages).run(channel)
    }
  }
}

struct QueueHold: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hold", abstract: "Keep messages back until they are released.")
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var messages: MessageSelection
  @Option(help: ArgumentHelp("Why; `queue show` tells it.", valueName: "text"))
  var reason: String?

  func run() async throws {
    try await QueueChannel.use(options, changing: true) { channel in
      try await OrderRun(order: .hold, done: "held", selection: messages, reason: reason).run(channel)
    }
  }
}

struct QueueRelease: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "release", abstract: "Let messages go on that were held.")
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var messages: MessageSelection
  @Option(help: ArgumentHelp("Why; `queue show` tells it.", valueName: "text"))
  var reason: String?

  func run() async throws {
    try await QueueChannel.use(options, changing: true) { channel in
      try await OrderRun(order: .release, done: "released", selection: messages, reason: reason).run(channel)
    }
  }
}

struct QueueDelete: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Remove messages for good.",
    discussion: """
      Nobody is told: neither the sender nor the recipients. `queue bounce` tells the sender. Mail that comes in while \
      the command works is left alone.
      """)
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var messages: MessageSelection
  @Flag(help: "With --all: do not ask.")
  var yes = false

  func run() async throws {
    if messages.all { try confirm("delete", isConfirmed: yes) }
    try await QueueChannel.use(options, changing: true) { channel in
      try await OrderRun(order: .delete, done: "deleted", selection: messages).run(channel)
    }
  }
}

struct QueueBounce: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bounce", abstract: "Give messages up now, and tell their senders.",
    discussion: "Needs the daemon. A message that has no sender to be told is left alone.")
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var messages: MessageSelection
  @Option(help: ArgumentHelp("Why; the sender is told.", valueName: "text"))
  var reason: String?
  @Flag(help: "With --all: do not ask.")
  var yes = false

  func run() async throws {
    if messages.all { try confirm("bounce", isConfirmed: yes) }
    try await QueueChannel.use(options, changing: true) { channel in
      if channel.isStopped {
        throw CommandFailure(.unavailable, "only the daemon can return mail, and it does not run: start it first")
      }
      try await OrderRun(order: .bounce, done: "returned to their senders", selection: messages, reason: reason)
        .run(channel)
    }
  }
}
