// The way to a queue: through the daemon, or into its directory when no daemon runs. Commands need not care which.

import CommandLineTools
import Configuration
import Daemon
import FoundationEssentials
import Glibc
import Spool

enum QueueChannel {
  case daemon(AdminClient)
  /// With its directory.
  case stopped(StoppedQueue, String)

  /// The daemon if one answers, else its queue.
  /// - Parameter changing: whether the command is to change the queue.
  static func open(_ options: ConfigurationOptions, changing: Bool) throws(CommandFailure) -> QueueChannel {
    let places = try options.places(changing: changing)
    let client = AdminClient(socket: places.adminSocket)
    // One that may not be asked says so itself.
    guard client.presence() == .nobody else { return .daemon(client) }
    try ServiceUser.become(ownerOf: places.queueDir)
    do throws(QueueError) { return .stopped(try StoppedQueue(directory: places.queueDir), places.queueDir) } catch {
      if case .locked(let pid) = error {
        throw CommandFailure(
          .tryAgain,
          "\(pid > 0 ? "process \(pid)" : "a process") has the queue \(places.queueDir), and nobody answers on "
            + "\(places.adminSocket): if the daemon is starting or stopping, try again; if it runs with another "
            + "admin_socket, name its configuration with --config")
      }
      throw CommandFailure(.data, error.whyNotOpened)
    }
  }

  /// The queue in `directory` as far as it can be read, and what is damaged in it. For when the daemon refuses it.
  /// - Parameter option: as in ``look(at:_:_:)``.
  static func salvage(
    _ directory: String, _ option: String?
  ) throws(CommandFailure) -> (channel: QueueChannel, damages: [SpoolVerifier.Damage]) {
    let queue = try look(at: directory, option) { (directory) throws(SpoolVerifier.Problem) in
      try SalvagedQueue(directory: directory)
    }
    return (.stopped(StoppedQueue(salvaged: queue), directory), queue.report.damages)
  }

  /// Reads a queue directory without opening the queue.
  /// - Parameter option: the one that has named the directory; nil for the configuration.
  static func look<Answer>(
    at directory: String, _ option: String?, _ read: (String) throws(SpoolVerifier.Problem) -> Answer
  ) throws(CommandFailure) -> Answer {
    guard access("\(directory)/spool", F_OK) == 0 || errno != ENOENT else {
      let remedy = option.map { "give another \($0)" } ?? "set queue_dir in the configuration"
      throw CommandFailure(
        .unavailable, "there is no queue in \(directory): \(remedy), or start the daemon once to make one")
    }
    do throws(SpoolVerifier.Problem) { return try read(directory) } catch {
      throw CommandFailure(error == .keepsChanging ? .tryAgain : .unavailable, "\(error)")
    }
  }

  var isStopped: Bool { if case .stopped = self { true } else { false } }

  /// Which queue this is, for people.
  var place: String {
    switch self {
    case .daemon(let client): "the queue of the daemon on \(client.socket)"
    case .stopped(_, let directory): "the queue in \(directory), where no daemon runs"
    }
  }

  /// Opens the queue, runs `body`, and makes durable what it did.
  static func use(
    _ options: ConfigurationOptions, changing: Bool = false, _ body: (QueueChannel) async throws -> Void
  ) async throws {
    try await use(try open(options, changing: changing), body)
  }

  static func use(_ channel: QueueChannel, _ body: (QueueChannel) async throws -> Void) async throws {
    do { try await body(channel) } catch {
      await channel.close()
      throw error
    }
    await channel.close()
  }

  private func close() async {
    if case .stopped(let queue, _) = self { await queue.close() }
  }

  // MARK: Asking

  /// `path` with `query` behind it.
  static func path(_ path: String, _ query: [(name: String, value: String)]) -> String {
    if query.isEmpty { return path }
    return path + "?" + query.map { "\($0.name)=\(AdminClient.escaped($0.value))" }.joined(separator: "&")
  }

  func request(
    _ method: String, _ path: String, _ query: [(name: String, value: String)] = []
  ) async throws(CommandFailure) -> AdminClient.Response {
    switch self {
    case .daemon(let client): return try client.request(method, Self.path(path, query))
    case .stopped(let queue, _):
      let answer = try await Self.answer(queue, method, path, query)
      return AdminClient.Response(status: answer.status, body: try await Self.bytes(answer))
    }
  }

  /// Asks, and gives the answer's octets.
  /// - Throws: ``CommandFailure`` with the queue's own words when it refuses.
  func bytes(
    _ method: String, _ path: String, _ query: [(name: String, value: String)] = []
  ) async throws(CommandFailure) -> [UInt8] {
    let response = try await request(method, path, query)
    if response.status != 200 { throw AdminClient.refusal(response) }
    return response.body
  }

  /// Asks, and decodes the answer.
  func call<Answer: Decodable>(
    _ method: String, _ path: String, _ query: [(name: String, value: String)] = [], as type: Answer.Type = Answer.self
  ) async throws(CommandFailure) -> Answer {
    try AdminClient.decoded(try await request(method, path, query), as: type)
  }

  /// How much there is of what a filter names.
  func count(_ filter: QueueFilter) async throws(CommandFailure) -> QueueCount {
    var total = QueueCount()
    repeat {
      var query = filter.query
      if let next = total.next { query.append(("after", next)) }
      total.add(try await call("GET", AdminPath.count, query))
    } while total.next != nil
    return total
  }

  /// Gets the content of a message piece by piece, until `receive` wants no more.
  /// - Returns: false when there is no such message.
  func download(
    _ path: String, receive: @escaping (UnsafeRawBufferPointer) -> Bool
  ) async throws(CommandFailure) -> Bool {
    switch self {
    case .daemon(let client):
      let response = try client.download(path, receive: receive)
      if response.status == 404 { return false }
      if response.status != 200 { throw AdminClient.refusal(response) }
      return true
    case .stopped(let queue, _):
      let answer = try await Self.answer(queue, "GET", path, [])
      if answer.status == 404 { return false }
      if answer.status != 200 {
        throw AdminClient.refusal(.init(status: answer.status, body: try await Self.bytes(answer)))
      }
      try await Self.pieces(answer.body) { bytes in bytes.withUnsafeBytes { receive($0) } }
      return true
    }
  }

  /// Queues a message: the line of its document, and its content out of a file.
  /// - Throws: ``CommandFailure`` with status 65 when the file cannot be read, so that it is certain that nothing is
  ///   queued; with 69 when there is no answer, and nothing is certain.
  func upload(
    _ path: String, _ query: [(name: String, value: String)], line: [UInt8], file: ContentInput
  ) async throws(CommandFailure) -> AdminClient.Response {
    switch self {
    case .daemon(let client):
      var rest = line[...]
      var isUnreadable = false
      do throws(CommandFailure) {
        return try client.upload(Self.path(path, query), size: line.count + file.size) { buffer in
          if !rest.isEmpty {
            let count = min(rest.count, buffer.count)
            buffer.copyBytes(from: rest.prefix(count))
            rest = rest.dropFirst(count)
            return count
          }
          let count = file.read(into: buffer)
          isUnreadable = count == nil
          return count
        }
      } catch { throw isUnreadable ? file.unreadable : error }
    case .stopped(let queue, _):
      let request = AdminRequest(
        method: "POST", path: path, query: Dictionary(query.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 }),
        body: ContentPieces(line: line, file: file))
      let answer: AdminResponse
      do { answer = try await queue.answer(request) } catch {
        throw error as? CommandFailure ?? CommandFailure(.unavailable, "the queue: \(error)")
      }
      return .init(status: answer.status, body: try await Self.bytes(answer))
    }
  }

  // MARK: A queue without a daemon

  private static func answer(
    _ queue: StoppedQueue, _ method: String, _ path: String, _ query: [(name: String, value: String)]
  ) async throws(CommandFailure) -> AdminResponse {
    let request = AdminRequest(
      method: method, path: path, query: Dictionary(query.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 }))
    do { return try await queue.answer(request) } catch { throw failure(error) }
  }

  private static func failure(_ error: any Error) -> CommandFailure {
    error as? CommandFailure ?? CommandFailure(.data, "the queue: \(error)")
  }

  private static func bytes(_ answer: AdminResponse) async throws(CommandFailure) -> [UInt8] {
    var bytes: [UInt8] = []
    try await pieces(answer.body) { piece in
      bytes += piece
      return true
    }
    return bytes
  }

  private static func pieces(_ content: Content, _ body: ([UInt8]) -> Bool) async throws(CommandFailure) {
    switch content {
    case .bytes(let bytes): _ = body(bytes)
    case .file(let file):
      var offset = 0
      while offset < file.count {
        let piece: [UInt8]
        do throws(QueueError) { piece = try await file.read(at: offset, count: 1 << 20) } catch { throw failure(error) }
        if piece.isEmpty {
          throw CommandFailure(.data, "the content ends behind \(offset) of \(file.count) octets: see `queue verify`")
        }
        if !body(piece) { return }
        offset += piece.count
      }
    }
  }
}

/// The body of an import into a queue that this process has itself.
private struct ContentPieces: AsyncSequence, Sendable {
  typealias Failure = any Error
  let line: [UInt8]
  let file: ContentInput

  struct Iterator: AsyncIteratorProtocol {
    var line: [UInt8]?
    let file: ContentInput

    mutating func next() async throws -> [UInt8]? {
      if let first = line {
        line = nil
        return first
      }
      var piece = [UInt8](repeating: 0, count: 1 << 20)
      let count = piece.withUnsafeMutableBytes { file.read(into: $0) }
      guard let count else { throw file.unreadable }
      return count == 0 ? nil : Array(piece[..<count])
    }
  }

  func makeAsyncIterator() -> Iterator { Iterator(line: line, file: file) }
}
