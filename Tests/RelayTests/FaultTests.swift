// Disks that fail beneath the real binary: strace(1) makes system calls of the running daemon fail, or writes down the
// order in which it makes them.

import Glibc
import Primitives
import Testing

extension EndToEnd {
  @Suite struct DiskFaults {
    private static let recipient = "contact-sales@mailer.dreamlikelabs.com"

    /// A failed write or sync of the log: nobody can say what is on the disk now.
    @Test(.timeLimit(.minutes(2)), arguments: ["fdatasync", "pwritev"])
    func failedLogIsNeverAcknowledgedAndEndsTheDaemon(_ call: String) async throws {
      guard let tracer = try await Tracer.find() else { return }
      try await Bench.run(rules: [.answer(.banner, "421 4.3.2 away")]) { bench in
        let daemon = bench.daemon
        let client = try Client(port: bench.port)
        for id in ["1", "2", "3"] {
          #expect(try client.deliver(to: Self.recipient, Letter.text(id)).hasPrefix("250"))
        }
        try await tracer.attach(to: bench, ["-e", "trace=\(call)", "-e", "inject=\(call):error=EIO:when=1+"])
        let reply = try client.deliver(to: Self.recipient, Letter.text("lost"))
        #expect(reply.hasPrefix("452 4.3.0"), "\(reply)")
        #expect(await daemon.exit(within: 30) == 75, "systemd starts it again")
        #expect(bench.log.contains("the queue has failed"))
        #expect(bench.log.contains(DiskFaults.explained(call)))
        #expect(bench.errors == "")
        bench.upstream.follow([])
        try await bench.start()
        try await bench.emptied()
        // A message that was refused may arrive all the same: its sender will send it again.
        let arrived = Set(bench.upstream.messages.compactMap { $0.field("X-Test-ID") })
        #expect(arrived.isSuperset(of: ["1", "2", "3"]))
        #expect(arrived.isSubset(of: ["1", "2", "3", "lost"]))
      }
    }

    private static func explained(_ call: String) -> String {
      (call == "pwritev" ? "write " : "fdatasync ") + "/tmp/"
    }

    @Test(.timeLimit(.minutes(2))) func fullDiskRefusesAndServiceGoesOn() async throws {
      guard let tracer = try await Tracer.find() else { return }
      try await Bench.run { bench in
        let client = try Client(port: bench.port)
        #expect(try client.deliver(to: Self.recipient, Letter.text("before")).hasPrefix("250"))
        _ = try await bench.arrived(1)
        try await bench.emptied()
        // Each thread of the daemon finds the disk full once.
        let strace = try await tracer.attach(
          to: bench, ["-e", "trace=pwritev", "-e", "inject=pwritev:error=ENOSPC:when=1"])
        var acknowledged: Set<String> = ["before"]
        var refusals: [String] = []
        for number in 0..<60 {
          // Small and large: the log, and a file of its own.
          let text = Letter.text("\(number)", bytes: number % 3 == 2 ? 400_000 : 300)
          let reply = try client.deliver(to: Self.recipient, text)
          if reply.hasPrefix("250") { acknowledged.insert("\(number)") } else { refusals.append(reply) }
          if refusals.count > 0, acknowledged.count > 20 { break }
        }
        #expect(!refusals.isEmpty)
        #expect(refusals.allSatisfy { $0.hasPrefix("452 4.3.1") }, "\(refusals)")
        #expect(acknowledged.count > 20, "service has to go on")
        strace.signal(SIGINT)
        _ = await strace.exit()
        #expect(try client.deliver(to: Self.recipient, Letter.text("after")).hasPrefix("250"))
        acknowledged.insert("after")
        try await bench.emptied()
        #expect(bench.daemon.isRunning)
        #expect(Set(bench.upstream.messages.compactMap { $0.field("X-Test-ID") }) == acknowledged)
        #expect(await bench.stop() == 0)
      }
    }

    /// A content file that cannot be written or synced is that message's trouble alone: nothing else is in it. The sync of
    /// its name is that of other names as well, and the end.
    @Test(.timeLimit(.minutes(2)), arguments: ["fdatasync", "fsync", "pwritev"])
    func failedContentFileIsNeverAcknowledged(_ call: String) async throws {
      guard let tracer = try await Tracer.find() else { return }
      try await Bench.run(rules: [.answer(.banner, "421 4.3.2 away")]) { bench in
        let client = try Client(port: bench.port)
        #expect(try client.deliver(to: Self.recipient, Letter.text("1", bytes: 400_000)).hasPrefix("250"))
        let strace = try await tracer.attach(
          to: bench, ["-e", "trace=\(call)", "-e", "inject=\(call):error=EIO:when=1+"])
        let reply = try client.deliver(to: Self.recipient, Letter.text("2", bytes: 400_000))
        #expect(reply.hasPrefix("452 4.3.0"), "\(reply)")
        strace.signal(SIGINT)
        _ = await strace.exit()
        // Whether it goes on or ends in order to be started again (the log may have been written to as well): what was
        // acknowledged arrives.
        if call != "fsync", !bench.log.contains("the queue has failed") {
          let again = try Client(port: bench.port)
          #expect(try again.deliver(to: Self.recipient, Letter.text("3", bytes: 400_000)).hasPrefix("250"))
          #expect(await bench.stop() == 0)
        } else {
          #expect(await bench.daemon.exit() == 75)
        }
        bench.upstream.follow([])
        try await bench.start()
        try await bench.emptied()
        let arrived = bench.upstream.messages.compactMap { $0.field("X-Test-ID") }
        #expect(arrived.contains("1"))
        #expect(!arrived.contains("2"))
        try await until("the contents are gone") { Files.all(below: "\(bench.queue)/content") == [] }
      }
    }

    @Test(.timeLimit(.minutes(2))) func acknowledgementFollowsTheSync() async throws {
      guard let tracer = try await Tracer.find() else { return }
      try await Bench.run(rules: [.answer(.banner, "421 4.3.2 away")]) { bench in
        let trace = "\(bench.folder)/trace"
        let strace = try await tracer.attach(
          to: bench, ["-s", "64", "-e", "trace=pwritev,fdatasync,fsync,sendto", "-o", trace])
        let client = try Client(port: bench.port)
        let count = 24
        for number in 0..<count {
          let text = Letter.text("\(number)", bytes: number % 4 == 3 ? 400_000 : 300)
          #expect(try client.deliver(to: Self.recipient, text).hasPrefix("250"))
        }
        strace.signal(SIGINT)
        _ = await strace.exit()
        let calls = SystemCall.read(Files.read(trace))
        var begin = 0
        var acknowledged = 0
        for call in calls where call.name == "sendto" && call.line.contains("Queued as") {
          // What one client sends is the only mail there is, so all that lies between two replies belongs to it.
          let between = calls.filter { $0.start > begin && $0.start < call.start }
          let syncs = between.filter { $0.name == "fdatasync" && $0.succeeded && $0.end < call.start }
          let writes = between.filter { $0.name == "pwritev" && $0.succeeded && $0.end < call.start }
          let last = syncs.last
          #expect(last.map { sync in writes.contains { $0.end < sync.start } } ?? false, "\(call.line)")
          if acknowledged % 4 == 3 {
            #expect(syncs.count >= 2, "the content and the log are synced: \(call.line)")
            let directory = between.first { $0.name == "fsync" && $0.succeeded }
            #expect(directory.map { $0.end < last?.start ?? 0 } ?? false, "the content's name is synced before the log")
          }
          acknowledged += 1
          begin = call.start
        }
        #expect(acknowledged == count)
        print("sync before 250: \(acknowledged) replies, \(calls.count) system calls in order")
      }
    }
  }
}

/// A system call in a trace: the numbers of the lines in which it begins and ends.
private struct SystemCall {
  var name: String
  var line: String
  var start: Int
  var end: Int
  var succeeded: Bool

  static func read(_ text: String) -> [SystemCall] {
    var calls: [SystemCall] = []
    var open: [String: Int] = [:]
    for (number, line) in text.split(separator: "\n").enumerated() {
      let words = line.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: true)
      guard words.count == 2 else { continue }
      let (thread, rest) = (String(words[0]), words[1].drop { $0 == " " })
      let result = rest.split(separator: "=").last.map { $0.drop { $0 == " " } } ?? ""
      let succeeded = result.first?.isNumber ?? false
      if rest.hasPrefix("<... ") {
        guard let place = open.removeValue(forKey: thread) else { continue }
        calls[place].end = number
        calls[place].succeeded = succeeded
        continue
      }
      let name = String(rest.prefix { $0 != "(" })
      if rest.contains("<unfinished ...>") {
        open[thread] = calls.count
        calls.append(SystemCall(name: name, line: String(rest), start: number, end: .max, succeeded: false))
      } else {
        calls.append(SystemCall(name: name, line: String(rest), start: number, end: number, succeeded: succeeded))
      }
    }
    return calls
  }
}

/// strace(1), where it is allowed.
private struct Tracer {
  /// Nil, and a line that says why, where nothing can be traced.
  static func find() async throws -> Tracer? {
    // LeakSanitizer is a tracer itself, and there can be only one.
    if dlsym(nil, "__asan_init") != nil || dlsym(nil, "__tsan_init") != nil {
      print("SKIPPED: a sanitizer does not go together with strace")
      return nil
    }
    do {
      let errors = "/tmp/ssmtp-mailer-strace.\(getpid())"
      defer { unlink(errors) }
      let sleep = try Program("sleep", ["20"], output: "/dev/null", errors: "/dev/null")
      defer { sleep.signal(SIGKILL) }
      let strace = try Program(
        "strace", ["-p", "\(sleep.pid)", "-e", "inject=fdatasync:error=EIO"], output: "/dev/null", errors: errors)
      while strace.isRunning {
        if Files.read(errors).contains("attached") {
          strace.signal(SIGINT)
          _ = await strace.exit()
          return Tracer()
        }
        try await Task.sleep(for: .milliseconds(10))
      }
      print("SKIPPED: strace may not trace here: \(Files.read(errors))")
    } catch { print("SKIPPED: there is no strace") }
    return nil
  }

  /// Traces the daemon with all its threads. `when=` counts for each thread.
  @discardableResult
  func attach(to bench: Bench, _ arguments: [String]) async throws -> Program {
    let errors = "\(bench.folder)/strace.err"
    let pid = bench.daemon.pid
    var options = ["-f", "-p", "\(pid)"] + arguments
    if !arguments.contains("-o") { options += ["-o", "\(bench.folder)/trace"] }
    let strace = try Program("strace", options, output: "/dev/null", errors: errors)
    bench.ends(strace)
    try await until("strace has attached") {
      try #require(strace.isRunning, "\(Files.read(errors))")
      return Files.read(errors).contains("Process \(pid) attached")
    }
    return strace
  }
}
