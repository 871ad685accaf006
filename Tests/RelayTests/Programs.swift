// Other programs, the relay's own binary among them: started, watched and ended by their process id.

import Dispatch
import Glibc
import Primitives
import Testing

/// A program that was started and whose end is waited for.
final class Program: Sendable {
  let pid: pid_t
  private struct State {
    var status: Int32?
    var waiters: [CheckedContinuation<Int32, Never>] = []
  }
  private let state = Mutex(State())

  struct NotStarted: Error { var path: String, code: Int32 }

  /// Starts `path` with its output and errors appended to files, or with its output going to a descriptor of ours.
  init(
    _ path: String, _ arguments: [String], input: String = "/dev/null", output: String = "/dev/null",
    descriptor: CInt? = nil, errors: String
  ) throws {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, input, O_RDONLY, 0)
    if let descriptor {
      posix_spawn_file_actions_adddup2(&actions, descriptor, 1)
    } else {
      posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0o644)
    }
    posix_spawn_file_actions_addopen(&actions, 2, errors, O_WRONLY | O_CREAT | O_APPEND, 0o644)
    // The threads of a test runner block signals, and a child would inherit that.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    var all = sigset_t()
    sigemptyset(&none)
    sigfillset(&all)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setsigdefault(&attributes, &all)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
    var words: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    var child: pid_t = 0
    let code = posix_spawnp(&child, path, &actions, &attributes, &words, environ)
    guard code == 0 else { throw NotStarted(path: path, code: code) }
    pid = child
    DispatchQueue(label: "wait").async { self.reap() }
  }

  private func reap() {
    var raw: Int32 = 0
    while waitpid(pid, &raw, 0) < 0, errno == EINTR {}
    let status = raw & 0x7f == 0 ? (raw >> 8) & 0xff : 128 + (raw & 0x7f)
    let waiters = state.withLock { state in
      state.status = status
      return state.waiters
    }
    for waiter in waiters { waiter.resume(returning: status) }
  }

  /// Runs a program to its end; `files` is the beginning of the names of its files.
  /// - Parameters:
  ///   - output: where its output goes, and is left; nil to have it in the outcome.
  ///   - started: is given the program before its end.
  static func run(
    _ path: String, _ arguments: [String], files: String, input: String?, output: String? = nil,
    started: (Program) -> Void = { _ in }
  ) async throws -> Outcome {
    if let input { try Files.write(input, to: "\(files).in") }
    let program = try Program(
      path, arguments, input: input == nil ? "/dev/null" : "\(files).in", output: output ?? "\(files).out",
      errors: "\(files).err")
    started(program)
    let status = await program.exit()
    return Outcome(
      status: status, output: output == nil ? Files.read("\(files).out") : "", errors: Files.read("\(files).err"))
  }

  /// Nothing when it has ended: its number may be another's by now.
  func signal(_ number: Int32) {
    state.withLock { state in if state.status == nil { kill(pid, number) } }
  }

  var isRunning: Bool { state.withLock { $0.status == nil } }

  /// Waits for the end, at most `limit` seconds; then it is killed. As a shell has it: 128 + the number of a signal.
  func exit(within limit: Int = 60) async -> Int32 {
    let alarm = DispatchWorkItem { self.signal(SIGKILL) }
    DispatchQueue.global().asyncAfter(deadline: .now() + .seconds(limit), execute: alarm)
    defer { alarm.cancel() }
    return await withCheckedContinuation { continuation in
      let status: Int32? = state.withLock { state in
        if state.status == nil { state.waiters.append(continuation) }
        return state.status
      }
      if let status { continuation.resume(returning: status) }
    }
  }
}

/// What a program that has ended has left.
struct Outcome: Sendable {
  var status: Int32
  var output: String
  var errors: String
}

enum Files {
  static func read(_ path: String) -> String { String(decoding: bytes(path), as: UTF8.self) }

  static func bytes(_ path: String) -> [UInt8] {
    guard let file = fopen(path, "r") else { return [] }
    defer { fclose(file) }
    var result: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = fread(&piece, 1, piece.count, file)
      if count == 0 { return result }
      result += piece[..<count]
    }
  }

  static func write(_ text: String, to path: String) throws {
    let file = try #require(fopen(path, "w"), "cannot write \(path)")
    fputs(text, file)
    fclose(file)
  }

  /// All regular files below a folder.
  static func all(below folder: String) -> [String] {
    guard let directory = opendir(folder) else { return [] }
    defer { closedir(directory) }
    var result: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      if name == "." || name == ".." { continue }
      let path = "\(folder)/\(name)"
      var status = stat()
      guard lstat(path, &status) == 0 else { continue }
      switch status.st_mode & S_IFMT {
      case S_IFDIR: result += all(below: path)
      case S_IFREG: result.append(path)
      default: continue
      }
    }
    return result
  }
}

/// Looks again and again until something is so. Ends with an error after `limit` seconds, or when the test is cancelled.
func until(
  _ what: String, within limit: Int = 60, sourceLocation: SourceLocation = #_sourceLocation,
  _ condition: () async throws -> Bool
) async throws {
  let end = SystemTime().now + .seconds(limit)
  while try await !condition() {
    try Task.checkCancellation()
    try #require(SystemTime().now < end, "not within \(limit) s: \(what)", sourceLocation: sourceLocation)
    try await Task.sleep(for: .milliseconds(20))
  }
}
