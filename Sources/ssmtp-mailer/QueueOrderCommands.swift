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
    try NamedIDs.check(ids)
    if ways == 0 { throw ValidationError("name messages by their ids or by a filter, or say --all") }
    if ways > 1 { throw ValidationError("name messages by their ids, or by a filter, or say --all: one of the three") }
  }
}

/// Ids on the command line, or on standard input.
enum NamedIDs {
  static func check(_ ids: [String]) throws {
    if ids.contains(where: { $0.allSatisfy(\.isWhitespace) }) { throw ValidationError("an id is empty") }
    if ids.count > 1, ids.contains("-") { throw ValidationError("write either ids or `-` for those on standard input") }
  }

  /// With `-`, the first word of each line of standard input that has one. To be read before the queue is opened: without
  /// a daemon, whoever writes them may have it until then.
  static func read(_ ids: [String]) throws(CommandFailure) -> [String] {
    guard ids == ["-"] else { return ids }
    return try Terminal.readText("-").split(whereSeparator: \.isNewline).compactMap {
      $0.split(whereSeparator: \.isWhitespace).first.map(String.init)
    }
  }
}

/// Carries out an order in as many parts as it takes.
private struct OrderRun {
  let order: QueueOrder
  /// What was done, as the predicate behind `12 messages`.
  let done: String
  let selection: MessageSelection
  /// Those that were named, also on standard input.
  let ids: [String]
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
      var rest = ids[...]
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

/// What is asked before something is done to the whole queue that cannot be undone.
private struct Question {
  let order: QueueOrder
  let selection: MessageSelection
  /// Whether it has been answered with --yes.
  let isAnswered: Bool

  private var isAsked: Bool { !isAnswered && (selection.all || selection.filter.namesEverything) }

  /// Before the queue is opened: where nobody can answer, nobody is asked.
  func check() throws(CommandFailure) {
    guard isAsked, isatty(STDIN_FILENO) == 0 || isatty(STDOUT_FILENO) == 0 else { return }
    throw CommandFailure(.usage, "to \(order.rawValue) all messages, say --yes as well")
  }

  func ask(_ channel: QueueChannel) async throws(CommandFailure) {
    guard isAsked else { return }
    let count = try await channel.count(selection.filter).messages
    let text = "\(order.rawValue) all of the \(Quantity.count(count, "message")) in \(channel.place)? [y/N] "
    Terminal.write(Array(TerminalText.clean(text).utf8))
    let answer = readLine() ?? ""
    guard answer.lowercased() == "y" || answer.lowercased() == "yes" else {
      throw CommandFailure(.usage, "nothing was done")
    }
  }
}

extension QueueFilter {
  /// Whether there are conditions, and each of them is one that all mail meets, as with a variable of a script that is
  /// empty: `--recipient "$name*"`.
  fileprivate var namesEverything: Bool {
    func isAny(_ pattern: String?) -> Bool {
      pattern.map { $0.contains("*") && $0.allSatisfy { $0 == "*" || $0 == "@" } } ?? true
    }
    return !isEmpty && state == nil && account == nil && isAny(recipient) && isAny(sender)
      && (olderThan ?? .zero) <= .zero && youngerThan == nil
  }
}

struct QueueRetry: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "retry", abstract: "Try messages now instead of at their time.",
    discussion: "With --all, accounts on hold are tried as well. Held messages stay where they are.")
  @OptionGroup var options: ConfigurationOptions
  @OptionGroup var messages: MessageSelection

  func run() async throws {
    let ids = try NamedIDs.read(messages.ids)
    try await QueueChannel.use(options, changing: true) { channel in
      let done = channel.isStopped ? "to be tried when the daemon starts" : "to be tried now"
      try await OrderRun(order: .retry, done: done, selection: messages, ids: ids).run(channel)
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
    let ids = try NamedIDs.read(messages.ids)
    try await QueueChannel.use(options, changing: true) { channel in
      try await OrderRun(order: .hold, done: "held", selection: messages, ids: ids, reason: reason).run(channel)
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
    let ids = try NamedIDs.read(messages.ids)
    try await QueueChannel.use(options, changing: true) { channel in
      try await OrderRun(order: .release, done: "released", selection: messages, ids: ids, reason: reason).run(channel)
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
  @Flag(help: "With --all, or a filter that all messages meet: do not ask.")
  var yes = false

  func run() async throws {
    let question = Question(order: .delete, selection: messages, isAnswered: yes)
    try question.check()
    let ids = try NamedIDs.read(messages.ids)
    try await QueueChannel.use(options, changing: true) { channel in
      try await question.ask(channel)
      try await OrderRun(order: .delete, done: "deleted", selection: messages, ids: ids).run(channel)
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
  @Flag(help: "With --all, or a filter that all messages meet: do not ask.")
  var yes = false

  func run() async throws {
    let question = Question(order: .bounce, selection: messages, isAnswered: yes)
    try question.check()
    let ids = try NamedIDs.read(messages.ids)
    try await QueueChannel.use(options, changing: true) { channel in
      if channel.isStopped {
        throw CommandFailure(.unavailable, "only the daemon can return mail, and it does not run: start it first")
      }
      try await question.ask(channel)
      try await OrderRun(
        order: .bounce, done: "returned to their senders", selection: messages, ids: ids, reason: reason
      )
      .run(channel)
    }
  }
}
