// What the queue commands need and no more: a configuration, a queue that nobody serves, and files to import; and
// somebody on the admin socket who answers as a test wants.

import Dispatch
import Glibc
import Primitives
import Testing

/// A folder of its own for commands of the real binary.
final class Desk: Sendable {
  let folder: String
  private let serial = Mutex(0)

  var configuration: String { "\(folder)/relay.conf" }
  var queue: String { "\(folder)/queue" }
  var socket: String { "\(folder)/admin.sock" }
  /// Where pairs lie that are to be imported.
  var pairs: String { "\(folder)/pairs" }

  private init() throws {
    var template = Array("/tmp/ssmtp-mailer-desk.XXXXXX".utf8CString)
    folder = String(cString: try #require(mkdtemp(&template)))
    mkdir(queue, 0o700)
    mkdir(pairs, 0o700)
    try configure("queue_dir = \(queue)\nadmin_socket = \(socket)\n")
  }

  static func run(_ body: (Desk) async throws -> Void) async throws {
    let desk = try Desk()
    defer { _ = try? Program("rm", ["-rf", desk.folder], output: "/dev/null", errors: "/dev/null") }
    try await body(desk)
  }

  /// Writes a configuration with these lines.
  func configure(_ lines: String) throws {
    try Files.write("[global]\ndefault_hostname = desk.example\n\(lines)", to: configuration)
  }

  /// A pair of files to be imported.
  func put(_ name: String, _ text: String = "x", to recipient: String = "sales@example.com") throws {
    try Files.write(
      #"{"sender":"jane@example.org","account":"example.com","recipients":["\#(recipient)"]}"#,
      to: "\(pairs)/\(name).json")
    try Files.write("Subject: \(name)\r\n\r\n\(text)\r\n", to: "\(pairs)/\(name).eml")
  }

  /// The names in the folder of the pairs, with those below.
  var left: Set<String> { Set(Files.all(below: pairs).map { String($0.dropFirst(pairs.utf8.count + 1)) }) }

  /// A command of the relay, until it ends.
  func relay(_ arguments: String..., input: String? = nil, output: String? = nil) async throws -> Outcome {
    try await run(Bench.binary, arguments + ["--config", configuration], input: input, output: output)
  }

  func run(_ path: String, _ arguments: [String], input: String? = nil, output: String? = nil) async throws -> Outcome {
    let number = serial.withLock { number in
      number += 1
      return number
    }
    return try await Program.run(
      path, arguments, files: "\(folder)/command-\(number)", input: input, output: output)
  }

  /// The ids in the queue, oldest first.
  func ids() async throws -> [String] {
    try await relay("queue", "list", "--ids").output.split(separator: "\n").map(String.init)
  }
}

/// Answers on an admin socket, one request after the other.
final class FalseDaemon: Sendable {
  /// Status and body for a method and a path; nil hangs up.
  typealias Answer = @Sendable (_ request: String) -> (Int, String)?
  private let descriptor: CInt
  private let requests = Mutex<[String]>([])

  /// The first words of the requests so far.
  var asked: [String] { requests.withLock { $0 } }

  init(_ path: String, _ answer: @escaping Answer) throws {
    descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
    let bound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    try #require(bound == 0 && listen(descriptor, 10) == 0)
    DispatchQueue(label: "false daemon").async { [descriptor] in
      while true {
        let client = accept(descriptor, nil, nil)
        if client < 0 { return }
        self.serve(client, answer)
        close(client)
      }
    }
  }

  /// Ends it; its socket stays.
  func end() { shutdown(descriptor, CInt(SHUT_RDWR)) }

  private func serve(_ client: CInt, _ answer: Answer) {
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65536)
    let end = Array("\r\n\r\n".utf8)
    var place: Int?
    while place == nil {
      let count = recv(client, &piece, piece.count, 0)
      if count <= 0 { return }
      bytes += piece[..<count]
      place = bytes.indices.first { bytes[$0...].starts(with: end) }
    }
    let head = String(decoding: bytes[..<(place ?? 0)], as: UTF8.self)
    let length = head.split(separator: "\r\n").first { $0.lowercased().hasPrefix("content-length: ") }
    var rest = (length.flatMap { Int($0.dropFirst("content-length: ".count)) } ?? 0) - (bytes.count - (place ?? 0) - 4)
    while rest > 0 {
      let count = recv(client, &piece, piece.count, 0)
      if count <= 0 { return }
      rest -= count
    }
    let request = head.split(separator: " ").prefix(2).joined(separator: " ")
    requests.withLock { $0.append(request) }
    guard let (status, body) = answer(request) else { return }
    let text = Array(
      "HTTP/1.1 \(status) X\r\nContent-Length: \(body.utf8.count)\r\nConnection: close\r\n\r\n\(body)".utf8)
    _ = send(client, text, text.count, CInt(MSG_NOSIGNAL))
  }
}
