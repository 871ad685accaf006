// `queue export` and `queue import` of the real binary: each message once, whatever an earlier run has left.

import Glibc
import Sandbox
import Testing

extension EndToEnd.QueueCommands {
  /// Imports a pair that the run cannot move away, as if it had been killed when the message was queued.
  private func interrupt(_ desk: Desk, _ name: String) async throws {
    let (place, aside) = ("\(desk.pairs)/imported", "\(desk.folder)/aside")
    let isThere = rename(place, aside) == 0
    try Files.write("", to: place)
    let outcome = try await desk.relay("queue", "import", desk.pairs)
    #expect(outcome.status == 65 && outcome.errors.contains("it is queued as"), "\(outcome.errors)")
    #expect(desk.left.isSuperset(of: ["\(name).eml", "\(name).json", "\(name).importing"]))
    unlink(place)
    if isThere { rename(aside, place) }
  }

  @Test(.timeLimit(.minutes(1))) func anImportThatWasKilledDoublesNothing() async throws {
    try await Desk.run { desk in
      try desk.put("a")
      try await interrupt(desk, "a")
      #expect(try await desk.ids().count == 1)
      let again = try await desk.relay("queue", "import", desk.pairs)
      #expect(again.status == 0 && again.output.contains("by an import that was interrupted"), "\(again.errors)")
      #expect(desk.left == ["imported/a.eml", "imported/a.json"])
      // As if it had been killed while it moved the files: their first half says that the message was queued. Another
      // message of that name is there already.
      try desk.put("a", "another")
      try await interrupt(desk, "a")
      #expect(rename("\(desk.pairs)/a.json", "\(desk.pairs)/imported/a.2.json") == 0)
      let half = try await desk.relay("queue", "import", desk.pairs)
      #expect(half.status == 0, "\(half.errors)")
      #expect(desk.left == ["imported/a.eml", "imported/a.json", "imported/a.2.eml", "imported/a.2.json"])
      #expect(Files.read("\(desk.pairs)/imported/a.2.eml").contains("another"))
      #expect(try await desk.ids().count == 2)
      // And as if it had been handed over and had left since.
      try desk.put("b")
      try await interrupt(desk, "b")
      let id = try #require(try await desk.ids().last)
      #expect(try await desk.relay("queue", "delete", id).status == 0)
      let left = try await desk.relay("queue", "import", desk.pairs)
      #expect(left.status == 65 && left.errors.contains("\(id) is not in the queue"), "\(left.errors)")
      #expect(desk.left.isSuperset(of: ["b.eml", "b.json", "b.importing"]))
      #expect(try await desk.ids().count == 2)
    }
  }

  @Test(.timeLimit(.minutes(1))) func whatAnImportHasLeftSwallowsNoOtherMessage() async throws {
    try await Desk.run { desk in
      try desk.put("a")
      try await interrupt(desk, "a")
      let marker = Files.read("\(desk.pairs)/a.importing")
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
      // As if it had been killed before its last step: the marker is alone until the next run.
      try Files.write(marker, to: "\(desk.pairs)/a.importing")
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
      #expect(desk.left == ["imported/a.eml", "imported/a.json"])
      try desk.put("a", "another")
      let second = try await desk.relay("queue", "import", desk.pairs)
      #expect(second.output.contains("now imported/a.2.*"), "\(second.output) \(second.errors)")
      #expect(try await desk.ids().count == 2)
      // Another pair has come before the next run: in its content, and in its recipient alone.
      for (text, recipient) in [("third", "sales@example.com"), ("x", "other@example.com")] {
        try desk.put("a", text, to: recipient)
        try Files.write(marker, to: "\(desk.pairs)/a.importing")
        let third = try await desk.relay("queue", "import", desk.pairs)
        #expect(third.status == 65 && third.errors.contains("another message"), "\(third.errors)")
        #expect(desk.left.isSuperset(of: ["a.eml", "a.json", "a.importing"]))
      }
      for text in ["", "\n", "bbbbbbbbbbb\n", "../queue\n"] {
        try Files.write(text, to: "\(desk.pairs)/a.importing")
        let none = try await desk.relay("queue", "import", desk.pairs)
        #expect(none.status == 65 && none.errors.contains("is not understood"), "\(none.errors)")
      }
      #expect(try await desk.ids().count == 2)
      unlink("\(desk.pairs)/a.importing")
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
      #expect(try await desk.ids().count == 3)
      #expect(desk.left.contains("imported/a.3.eml"))
    }
  }

  @Test(
    .timeLimit(.minutes(1)),
    arguments: [
      (500, 75, true), (nil, 69, true), (400, 64, false), (409, 75, false), (422, 65, false), (507, 75, false),
    ])
  func onlyACertainRefusalIsTakenForOne(_ answer: Int?, _ status: Int32, _ isOpen: Bool) async throws {
    try await Desk.run { desk in
      let daemon = try FalseDaemon(desk.socket) { request in
        if request.hasSuffix("/new-id") { return (200, #"{"id":"316pmr2xzyx"}"#) }
        if request.hasPrefix("GET") { return (404, #"{"ok":false,"message":"there is none"}"#) }
        return answer.map { ($0, #"{"ok":false,"message":"the words of the queue"}"#) }
      }
      defer { daemon.end() }
      try desk.put("a")
      try desk.put("b")
      let outcome = try await desk.relay("queue", "import", desk.pairs)
      #expect(outcome.status == status, "\(outcome.errors)")
      #expect(answer == nil || outcome.errors.contains("the words of the queue"))
      #expect(desk.left.contains("a.importing") == isOpen)
      #expect(outcome.errors.contains("import again") == isOpen, "\(outcome.errors)")
      // What concerns the queue and not the message ends the run.
      let goesOn = answer == 400 || answer == 422
      #expect(daemon.asked.count { $0.contains("/import") } == (goesOn ? 2 : 1), "\(daemon.asked)")
      #expect(desk.left.isSuperset(of: ["a.eml", "a.json", "b.eml", "b.json"]))
    }
  }

  @Test(.timeLimit(.minutes(1))) func oneRunAtATimeHasADirectory() async throws {
    try await Desk.run { desk in
      try desk.put("a")
      let directory = open(desk.pairs, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
      try #require(flock(directory, LOCK_EX | LOCK_NB) == 0)
      for order in ["import", "export"] {
        let second = try await desk.relay("queue", order, desk.pairs)
        #expect(second.status == 75 && second.errors.contains("another import or export"), "\(second.errors)")
      }
      #expect(desk.left == ["a.eml", "a.json"])
      close(directory)
      #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
    }
  }

  @Test(.timeLimit(.minutes(1))) func whatTheFrontDoorRefusesIsNotImported() async throws {
    try await Desk.run { desk in
      try desk.put("nul")
      let file = try #require(fopen("\(desk.pairs)/nul.eml", "a"))
      fwrite("a\0b\r\n", 1, 5, file)
      fclose(file)
      try desk.put("utf", to: "jürgen@example.com")
      try desk.put("hold")
      try Files.write(
        #"{"sender":"a@b.c","account":"x","recipients":["d@e.f"],"hold":true}"#, to: "\(desk.pairs)/hold.json")
      let outcome = try await desk.relay("queue", "import", desk.pairs)
      #expect(outcome.status == 65)
      for words in ["line 4 of nul.eml has a NUL", "smtp_utf8", "did you mean held?"] {
        #expect(outcome.errors.contains(words), "\(outcome.errors)")
      }
      #expect(try await desk.ids() == [])
    }
  }

  @Test(.timeLimit(.minutes(2))) func anExportGoesOnBehindAContentThatCannotBeRead() async throws {
    try await Bench.run(rules: [Self.later]) { bench in
      let ids = try await fill(bench, (0..<3).map { Letter.text("m\($0)", bytes: 400_000) })
      try #require(unlink("\(bench.queue)/content/\(ids[0])") == 0)
      let copy = "\(bench.folder)/copy"
      let export = try await bench.relay("queue", "export", copy)
      #expect(export.status == 65)
      #expect(export.output.contains("2 messages exported"), "\(export.output)")
      #expect(export.errors.contains("\(ids[0]): ") && export.errors.contains("/content/"), "\(export.errors)")
      #expect(Files.all(below: copy).count == 4)
      let body = try await bench.relay("queue", "show", "--body", ids[0])
      #expect(body.status == 65 && body.output == "", "\(body.errors)")
    }
  }

  @Test(.timeLimit(.minutes(1))) func anExportEndsWhenNobodyAnswersAnyMore() async throws {
    try await Desk.run { desk in
      let daemon = try FalseDaemon(desk.socket) { request in
        request == "GET /v1/queue?format=ids&limit=1000" ? (200, "316pmr2xzyx\n316pmr2xzyz\nend\n") : nil
      }
      defer { daemon.end() }
      let export = try await desk.relay("queue", "export", "\(desk.folder)/copy")
      #expect(export.status == 69, "\(export.errors)")
      #expect(daemon.asked.count { $0.contains("document") } == 1, "\(daemon.asked)")
    }
  }
}
