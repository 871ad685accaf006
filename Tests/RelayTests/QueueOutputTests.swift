// What the queue commands of the real binary take and print: whole or not with exit status 0, and never about another
// queue than was meant.

import Glibc
import Testing

extension EndToEnd.QueueCommands {
  @Test(.timeLimit(.minutes(1))) func aConfigurationThatWasNamedIsTheOneOrNone() async throws {
    try await Desk.run { desk in
      let typo = "\(desk.folder)/relai.conf"
      for words in [
        ["list"], ["show", "x"], ["delete", "x"], ["bounce", "x"], ["hold", "x"], ["release", "x"], ["retry", "--all"],
        ["import", desk.pairs], ["export", desk.pairs], ["export", "--salvage", desk.pairs], ["verify"],
      ] {
        let outcome = try await desk.run(Bench.binary, ["queue"] + words + ["--config", typo])
        #expect(
          outcome.status == 78 && outcome.errors.contains("\(typo): the configuration cannot be read"), "\(words)")
      }
      let named = try await desk.run("env", ["SSMTP_MAILER_CONFIG=\(typo)", Bench.binary, "queue", "list"])
      #expect(named.status == 78)
      let set = try await desk.relay("queue", "list", "--set", "global.queu_dir=/x")
      #expect(set.status == 78 && set.errors.contains("did you mean queue_dir?"), "\(set.errors)")
    }
  }

  @Test(.timeLimit(.minutes(1))) func noOrderGoesToAQueueThatAMistakeHides() async throws {
    try await Desk.run { desk in
      try desk.put("a")
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
      try desk.configure("queue_dir = \(desk.queue)\nadmin_sockt = \(desk.socket)\n")
      let id = try #require(try await desk.ids().first)
      for words in [
        ["delete", id], ["hold", id], ["release", id], ["retry", id], ["bounce", id], ["import", desk.pairs],
      ] {
        let outcome = try await desk.run(Bench.binary, ["queue"] + words + ["--config", desk.configuration])
        #expect(outcome.status == 78 && outcome.errors.contains("did you mean admin_socket?"), "\(outcome.errors)")
      }
      #expect(try await desk.relay("queue", "hold", id, "--set", "global.admin_socket=\(desk.socket)").status == 0)
      // A mistake that hides nothing.
      try desk.configure("queue_dir = \(desk.queue)\nadmin_socket = \(desk.socket)\nadmin_sockt = x\n")
      #expect(try await desk.relay("queue", "release", id).status == 0)
    }
  }

  @Test(.timeLimit(.minutes(1))) func outputThatIsNotTakenIsNoSuccess() async throws {
    try await Desk.run { desk in
      try desk.put("a", String(repeating: "0123456789\r\n", count: 100_000))
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
      let id = try #require(try await desk.ids().first)
      for words in [
        ["list"], ["list", "--json"], ["list", "--count"], ["list", "--ids"], ["show", id], ["show", id, "--json"],
        ["show", id, "--body"], ["verify"], ["hold", id],
      ] {
        let outcome = try await desk.run(
          Bench.binary, ["queue"] + words + ["--config", desk.configuration], output: "/dev/full")
        #expect(outcome.status == 74, "\(words): \(outcome.errors)")
        #expect(outcome.errors.contains("No space left on device"), "\(words): \(outcome.errors)")
      }
    }
  }

  @Test(.timeLimit(.minutes(1))) func aPipeThatDoesNotBlockGetsAllOfIt() async throws {
    try await Desk.run { desk in
      try desk.put("a", String(repeating: "0123456789\r\n", count: 100_000))
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
      let id = try #require(try await desk.ids().first)
      var ends: [CInt] = [-1, -1]
      try #require(pipe(&ends) == 0)
      for end in ends { try #require(fcntl(end, F_SETFD, FD_CLOEXEC) == 0) }
      defer { close(ends[0]) }
      // F_GETPIPE_SZ, which Glibc's module does not have.
      let room = fcntl(ends[1], 1032)
      // The other end is shared with the program: it does not block there either.
      try #require(fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0)
      let program = try Program(
        Bench.binary, ["queue", "show", "--body", id, "--config", desk.configuration], descriptor: ends[1],
        errors: "\(desk.folder)/err")
      close(ends[1])
      var waiting: CInt = 0
      try await until("the pipe is full") {
        _ = ioctl(ends[0], UInt(FIONREAD), &waiting)
        return waiting >= room || !program.isRunning
      }
      var count = 0
      var piece = [UInt8](repeating: 0, count: 65536)
      while true {
        let read = read(ends[0], &piece, piece.count)
        if read <= 0 { break }
        count += read
      }
      #expect(await program.exit() == 0)
      #expect(count == Files.bytes("\(desk.pairs)/imported/a.eml").count)
    }
  }

  @Test(.timeLimit(.minutes(1))) func idsGoFromOneCommandToTheNext() async throws {
    try await Desk.run { desk in
      for name in ["a", "b", "c"] { try desk.put(name, to: "\(name)@example.com") }
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
      let ids = try await desk.ids()
      #expect(ids.count == 3)
      let one = try await desk.relay("queue", "list", "--ids", "--recipient", "b@*")
      #expect(one.output == "\(ids[1])\n")
      #expect(try await desk.relay("queue", "list", "--ids", "--sender", "nobody@*").output == "")
      #expect(try await desk.relay("queue", "list", "--ids", "--json").status == 64)
      let some = "\n \t\n\(ids[0])  first\r\n\n\t\(ids[2])\n"
      let held = try await desk.relay("queue", "hold", "-", input: some)
      #expect(held.status == 0 && held.output.contains("\(ids[2]) is held"), "\(held.errors)")
      // Both at once, and no daemon: the second has to wait until the first lets go of the queue.
      let (list, release) = ("queue list --ids --state held", "queue release -")
      let option = "--config \(desk.configuration)"
      let piped = try await desk.run(
        "sh", ["-c", "\(Bench.binary) \(list) \(option) | \(Bench.binary) \(release) \(option)"])
      #expect(piped.status == 0 && piped.output.occurrences(of: "is released") == 2, "\(piped.errors)")
      let copy = "\(desk.folder)/copy"
      #expect(try await desk.relay("queue", "export", copy, "-", input: some).output.contains("2 messages exported"))
      #expect(try await desk.relay("queue", "export", copy, "-", input: "\n").output.contains("0 messages exported"))
      let shown = try await desk.relay("queue", "show", ids[0], "nonsense", ids[1])
      #expect(shown.status == 65 && shown.errors.contains("nonsense"))
      #expect(shown.output.contains(ids[0]) && shown.output.contains(ids[1]) && !shown.output.contains(ids[2]))
      #expect(try await desk.relay("queue", "show", "-", "--json", input: ids[0]).output.hasPrefix("["))
      #expect(try await desk.relay("queue", "show", ids[0], "--json").output.hasPrefix("{"))
      for words in [
        ["show", ""], ["delete", ""], ["export", copy, " "], ["hold", ids[0], "-"], ["show", "--body", "-"],
      ] {
        let outcome = try await desk.run(Bench.binary, ["queue"] + words + ["--config", desk.configuration])
        #expect(outcome.status == 64, "\(words): \(outcome.errors)")
      }
      #expect(try await desk.ids() == ids)
    }
  }

  @Test(
    .timeLimit(.minutes(1)),
    arguments: [
      ["--all"], ["--recipient", "*"], ["--recipient", "*@*"], ["--sender", "**"], ["--older-than", "0s"],
      ["--older-than", "0", "--recipient", "*"],
    ])
  func whoeverNamesEverythingIsAskedWithTheNumberAndThePlace(_ words: [String]) async throws {
    try await Desk.run { desk in
      for name in ["a", "b"] { try desk.put(name) }
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
      for order in ["delete", "bounce"] {
        let refused = try await desk.run(Bench.binary, ["queue", order] + words + ["--config", desk.configuration])
        #expect(refused.status == 64 && refused.errors.contains("--yes"), "\(refused.errors)")
      }
      for (answer, status, left) in [("n", Int32(64), 2), ("y", 0, 0)] {
        // Glibc's module has neither posix_openpt() nor what goes with it: TIOCSPTLCK and TIOCGPTN.
        let terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)
        var number: CInt = 0
        try #require(ioctl(terminal, 0x4004_5431, &number) == 0 && ioctl(terminal, 0x8004_5430, &number) == 0)
        defer { close(terminal) }
        let name = "/dev/pts/\(number)"
        let program = try Program(
          Bench.binary, ["queue", "delete"] + words + ["--config", desk.configuration], input: name, output: name,
          errors: "\(desk.folder)/err")
        var text: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 4096)
        while !text.holds("[y/N] ") {
          let count = read(terminal, &piece, piece.count)
          try #require(count > 0, "\(String(decoding: text, as: UTF8.self))")
          text += piece[..<count]
        }
        #expect(text.holds("delete all of the 2 messages in the queue in \(desk.queue)"))
        _ = write(terminal, "\(answer)\n", 2)
        #expect(await program.exit() == status)
        #expect(try await desk.ids().count == left)
      }
    }
  }
}
