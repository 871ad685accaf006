// Byte streams over real sockets, in clear and under TLS.

import Glibc
import Network
import Primitives
import Testing

@Suite(.timeLimit(.minutes(1))) struct StreamTests {
  @Test(arguments: [false, true]) func bytesArriveUnchangedInBothDirections(secure: Bool) async throws {
    let certificates = try Certificates()
    let (ours, theirs) = (try certificates.server(), try certificates.client())
    let content = noise(3_000_000, seed: 7)
    let outcome = try await exchange { stream in
      if secure { try await stream.startTLS(ours, until: soon) }
      var echoed = 0
      while echoed < content.count, try await stream.fill(until: soon, waitingFor: "bytes") {
        stream.consume { bytes in
          stream.append { $0.append(contentsOf: bytes) }
          echoed += bytes.count
          return (bytes.count, ())
        }
        try await stream.flush(until: soon, waitingFor: "room")
      }
      return echoed
    } client: { stream in
      if secure { try await stream.startTLS(theirs, serverName: "mx.example.test", until: soon) }
      var generator = SystemRandomNumberGenerator()
      var (sent, back): (Int, [UInt8]) = (0, [])
      while back.count < content.count {
        let size = min(Int.random(in: 1...100_000, using: &generator), content.count - sent)
        if size > 0 {
          stream.append { $0.append(contentsOf: content[sent..<(sent + size)]) }
          sent += size
          try await stream.flush(until: soon, waitingFor: "room")
        }
        back += try await stream.receive(atMost: min(sent - back.count, 70_000))
      }
      return back
    }
    #expect(try outcome.server.get() == content.count)
    #expect(try outcome.client.get() == content)
  }

  @Test(arguments: [false, true]) func writerWaitsForASlowReaderAndLosesNothing(secure: Bool) async throws {
    let certificates = try Certificates()
    let (ours, theirs) = (try certificates.server(), try certificates.client())
    let content = noise(32 << 20, seed: 11)
    let gate = Gate()
    let outcome = try await exchange { stream in
      if secure { try await stream.startTLS(ours, until: soon) }
      stream.append { $0.append(contentsOf: content) }
      let wasTakenAtOnce = try stream.tryFlush()
      let pending = stream.pendingOutput
      gate.open()
      try await stream.flush(until: soon, waitingFor: "room")
      return (wasTakenAtOnce, pending)
    } client: { stream in
      if secure { try await stream.startTLS(theirs, serverName: "mx.example.test", until: soon) }
      await gate.pass()
      return try await stream.receive()
    }
    let (wasTakenAtOnce, pending) = try outcome.server.get()
    #expect(!wasTakenAtOnce)
    #expect(pending > 0)
    #expect(try outcome.client.get() == content)
  }

  @Test func silenceEndsAtTheDeadlineAndTheStreamStaysUsable() async throws {
    let gate = Gate()
    let outcome = try await exchange { stream in
      await gate.pass()
      try await stream.send("late")
    } client: { stream in
      let before = SystemTime().now
      let error = await #expect(throws: NetworkError.self) {
        try await stream.fill(until: before + .milliseconds(20), waitingFor: "a greeting")
      }
      #expect(SystemTime().now >= before + .milliseconds(20))
      gate.open()
      return (error, try await stream.receiveText(4))
    }
    let (error, text) = try outcome.client.get()
    #expect(error == .timedOut("a greeting"))
    #expect(text == "late")
  }

  @Test func aFullPipeEndsAtTheDeadlineToo() async throws {
    let gate = Gate()
    let outcome = try await exchange { stream in
      stream.append { $0.append(contentsOf: [UInt8](repeating: 0, count: 64 << 20)) }
      defer { gate.open() }
      try await stream.flush(until: SystemTime().now + .milliseconds(20), waitingFor: "room")
    } client: { _ in
      await gate.pass()
    }
    #expect(outcome.server.error as? NetworkError == .timedOut("room"))
  }

  @Test func endOfStreamComesAfterTheLastBytes() async throws {
    let outcome = try await exchange { stream in
      try await stream.send("the last words")
    } client: { stream in
      let text = String(decoding: try await stream.receive(), as: UTF8.self)
      return (text, try await stream.fill(until: soon, waitingFor: "more"))
    }
    let (text, hasMore) = try outcome.client.get()
    #expect(text == "the last words")
    #expect(!hasMore)
  }

  /// The FIN may be there before anybody reads: no edge comes for it later.
  @Test(arguments: [false, true]) func bytesBeforeAnEarlyFINAreStillRead(secure: Bool) async throws {
    let certificates = try Certificates()
    let (ours, theirs) = (try certificates.server(), try certificates.client())
    let gate = Gate()
    let outcome = try await exchange { stream in
      if secure { try await stream.startTLS(ours, until: soon) }
      try await stream.send(String(repeating: "half a message ", count: 20_000))
      stream.close()
      gate.open()
    } client: { stream in
      if secure { try await stream.startTLS(theirs, serverName: "mx.example.test", until: soon) }
      await gate.pass()
      return try await stream.receive().count
    }
    #expect(try outcome.client.get() == 300_000)
  }

  /// Many close without TLS's farewell; SMTP has its own ends, so that is an end like any other.
  @Test func anEndWithoutCloseNotifyIsAnEnd() async throws {
    let certificates = try Certificates()
    let (ours, theirs) = (try certificates.server(), try certificates.client())
    let outcome = try await exchange { stream in
      try await stream.startTLS(ours, until: soon)
      try await stream.send("hi")
      // Cuts the connection below TLS. Two connections may have the same port at one end, but not at both.
      let isCut = (CInt(3)..<8192).contains { descriptor in
        func port(_ name: (CInt, UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> CInt) -> UInt16? {
          var (address, length) = (sockaddr_in(), socklen_t(MemoryLayout<sockaddr_in>.size))
          let got = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { name(descriptor, $0, &length) }
          }
          return got == 0 ? UInt16(bigEndian: address.sin_port) : nil
        }
        let isOurs =
          port({ getpeername($0, $1, $2) }) == stream.peer.port
          && port({ getsockname($0, $1, $2) }) == stream.local.port
        return isOurs && shutdown(descriptor, CInt(SHUT_WR)) == 0
      }
      #expect(isCut)
      _ = try await stream.fill(until: soon, waitingFor: "the other end")
    } client: { stream in
      try await stream.startTLS(theirs, serverName: "mx.example.test", until: soon)
      return String(decoding: try await stream.receive(), as: UTF8.self)
    }
    #expect(try outcome.client.get() == "hi")
  }

  actor Waiter {
    let loop: EventLoop
    nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }
    private var stream: ByteStream?
    init(_ loop: EventLoop) { self.loop = loop }

    func wait(at endpoint: Endpoint, _ isWaiting: Gate) async throws {
      let stream = try await ByteStream.connect(to: endpoint, on: loop, until: soon)
      self.stream = stream
      isWaiting.open()
      _ = try await stream.fill(until: .distantFuture, waitingFor: "nothing")
    }

    func close() { stream?.close() }
  }

  @Test func closeWakesWhoeverWaits() async throws {
    let listener = try Listener(bindingTo: Endpoint("127.0.0.1:0")!)
    defer { listener.close() }
    let waiter = Waiter(try EventLoop(name: "test.close"))
    let isWaiting = Gate()
    let waiting = Task { try await waiter.wait(at: listener.endpoint, isWaiting) }
    await isWaiting.pass()
    await waiter.close()
    #expect(await waiting.result.error as? NetworkError == .closed)
    await waiter.close()
  }

  @Test func refusedConnectionNamesTheEndpoint() async throws {
    let listener = try Listener(bindingTo: Endpoint("127.0.0.1:0")!)
    let endpoint = listener.endpoint
    listener.close()
    let party = Party(try EventLoop(name: "test.refused"))
    await #expect(throws: NetworkError.system("connect to \(endpoint)", ECONNREFUSED)) {
      try await party.connect(to: endpoint) { _ in }
    }
  }

  @Test func takenPortIsReported() throws {
    let listener = try Listener(bindingTo: Endpoint("127.0.0.1:0")!)
    defer { listener.close() }
    #expect(throws: NetworkError.system("listen on \(listener.endpoint)", EADDRINUSE)) {
      try Listener(bindingTo: listener.endpoint)
    }
  }

  @Test func fiveHundredConnectionsOnTwoLoopsAllGetTheirAnswer() async throws {
    var limit = rlimit()
    getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    limit.rlim_cur = min(limit.rlim_max, 8192)
    setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)

    let loops = [try EventLoop(name: "test.a"), try EventLoop(name: "test.b")]
    let listener = try Listener(bindingTo: Endpoint("127.0.0.1:0")!)
    // Each side reports to a party of the other side's loop: every exchange crosses between the loops.
    let tallies = (Party(loops[0]), Party(loops[1]))
    let acceptor = listener.accept(on: loops[0]) { descriptor in
      let loop = loops[Int(descriptor) % 2]
      Task(executorPreference: loop) {
        try await Party(loop).adopt(descriptor) { stream in
          for _ in 0..<4 {
            let line = try await stream.receiveText(4)
            await tallies.1.increment()
            try await stream.send(line)
          }
        }
      }
    }
    try await withThrowingTaskGroup(of: Void.self) { group in
      for i in 0..<500 {
        let loop = loops[i % 2]
        group.addTask(executorPreference: loop) {
          try await Party(loop).connect(to: listener.endpoint) { stream in
            for turn in 0..<4 {
              let line = "\(1000 + (i * 7 + turn) % 9000)"
              try await stream.send(line)
              let back = try await stream.receiveText(4)
              #expect(back == line)
              await tallies.0.increment()
            }
          }
        }
      }
      try await group.waitForAll()
    }
    await acceptor.stop()
    #expect(await tallies.0.count == 2000)
    #expect(await tallies.1.count == 2000)
  }
}
