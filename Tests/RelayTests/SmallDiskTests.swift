// File systems that are full, read-only or somebody else's, beneath the real binary.

import Glibc
import Primitives
import Testing

extension EndToEnd {
  @Suite struct SmallDisk {
    private static let recipient = "contact-sales@mailer.dreamlikelabs.com"

    @Test(.timeLimit(.minutes(4))) func fullQueueRefusesInTimeLosesNothingAndRecoversByItself() async throws {
      guard let mount = try await Mount.small() else { return }
      do {
        try await Bench.run(rules: [.answer(.banner, "421 4.3.2 away")], queue: "\(mount.path)/queue") {
          bench in
          let total = mount.space.total
          let reserve = total / 10
          var acknowledged: Set<String> = []
          var refused: [String] = []
          var leastFree = total
          var client = try Client(port: bench.port)
          var dice = Dice(6)

          // An announced size that does not fit is refused before anybody sends it.
          #expect(try client.say("MAIL FROM:<jane@example.org> SIZE=5900000").hasPrefix("452 4.3.1"))
          #expect(try client.say("MAIL FROM:<jane@example.org> SIZE=1000000").hasPrefix("250"))
          _ = try client.say("RSET")

          while refused.count < 40 {
            let id = "\(acknowledged.count + refused.count)"
            let lines = dice.below(10) == 0 ? 4000 : 1 + dice.below(400)
            let message = Body.message(id, start: dice.below(1000), lines: lines)
            let reply = try client.deliver(to: Self.recipient, message, chunked: dice.below(2) == 0)
            leastFree = min(leastFree, mount.space.free)
            if reply.hasPrefix("250") {
              acknowledged.insert(id)
            } else {
              refused.append(reply)
              client = try Client(port: bench.port)
            }
            try #require(acknowledged.count < 10_000, "a disk of \(total) octets does not get full")
          }
          #expect(refused.allSatisfy { $0.hasPrefix("452 4.3.1") }, "\(Set(refused))")
          #expect(leastFree >= reserve / 2, "\(leastFree) octets were left, \(reserve) is the reserve")
          #expect(try client.say("MAIL FROM:<jane@example.org> SIZE=3000000").hasPrefix("452 4.3.1"))

          bench.upstream.follow([])
          _ = try await bench.relay("queue", "retry", "--all")
          try await bench.emptied()
          // Nobody has restarted anything.
          try await until("new mail is taken again") {
            let reply = try Client(port: bench.port).deliver(to: Self.recipient, Letter.text("again"))
            if reply.hasPrefix("250") { acknowledged.insert("again") }
            return reply.hasPrefix("250")
          }
          try await bench.emptied()
          let messages = bench.upstream.messages
          let arrived = messages.compactMap { $0.field("X-Test-ID") }
          #expect(Set(arrived) == acknowledged)
          #expect(arrived.count == acknowledged.count, "duplicates")
          #expect(messages.filter { $0.field("X-Test-ID") != "again" }.allSatisfy(Body.isWhole))
          print(
            "disk of \(total) octets: \(acknowledged.count) acknowledged and delivered,",
            "least free \(leastFree), reserve \(reserve), free again \(mount.space.free)")
          #expect(await bench.stop() == 0)
        }
      } catch {
        await mount.remove()
        throw error
      }
      await mount.remove()
    }

    /// Something else takes all the space: changes of state find none, and wait in memory for it.
    @Test(.timeLimit(.minutes(4)), arguments: [false, true])
    func diskThatSomethingElseHasFilledLosesNothing(killed: Bool) async throws {
      guard let mount = try await Mount.small() else { return }
      do {
        try await Bench.run(
          rules: [.answer(.banner, "421 4.3.2 away")],
          settings: ["retry_schedule = 1s"], queue: "\(mount.path)/queue"
        ) { bench in
          let client = try Client(port: bench.port)
          var acknowledged: Set<String> = []
          for id in 0..<60 {
            let message = Body.message("\(id)", start: id, lines: id % 10 == 9 ? 4000 : 20)
            #expect(try client.deliver(to: Self.recipient, message, chunked: true).hasPrefix("250"))
            acknowledged.insert("\(id)")
          }
          try mount.fill()
          #expect(mount.space.free == 0)
          // The last page of a file may have room for a few more.
          var extra = 0
          var reply = ""
          repeat {
            reply = try client.deliver(
              to: Self.recipient, Body.message("extra-\(extra)", start: extra, lines: 5), chunked: true)
            if reply.hasPrefix("250") { acknowledged.insert("extra-\(extra)") }
            extra += 1
          } while reply.hasPrefix("250") && extra < 100
          #expect(reply.hasPrefix("452 4.3.1"), "\(reply)")

          // First everything is put off, which has to be written down, and then delivered, which has to be as well.
          bench.upstream.follow([.answer(.mail, "451 4.3.0 later", times: 60)])
          _ = try await bench.relay("queue", "retry", "--all")
          _ = try await bench.arrived(40)
          #expect(bench.daemon.isRunning)
          if killed {
            bench.daemon.signal(SIGKILL)
            _ = await bench.daemon.exit()
            try await bench.start()
            _ = try await bench.relay("queue", "retry", "--all")
          }
          #expect(try await bench.relay("status").status == 0)

          mount.free()
          try await until("new mail is taken again") {
            let reply = try Client(port: bench.port).deliver(to: Self.recipient, Letter.text("again"))
            if reply.hasPrefix("250") { acknowledged.insert("again") }
            return reply.hasPrefix("250")
          }
          try await bench.emptied()
          let arrived = bench.upstream.messages.compactMap { $0.field("X-Test-ID") }
          #expect(Set(arrived) == acknowledged)
          #expect(killed || arrived.count == acknowledged.count, "duplicates without a crash")
          #expect(await bench.stop() == 0)
          try await bench.start()
          #expect(try await bench.relay("queue", "list").output.contains("no messages"))
        }
      } catch {
        await mount.remove()
        throw error
      }
      await mount.remove()
    }

    @Test(.timeLimit(.minutes(2))) func readOnlyQueueDirectoryIsNamedAtTheStart() async throws {
      guard let mount = try await Mount.small() else { return }
      do {
        try await Bench.run(queue: "\(mount.path)/queue") { bench in
          let client = try Client(port: bench.port)
          #expect(try client.deliver(to: Self.recipient, Letter.text("1")).hasPrefix("250"))
          try await bench.emptied()
          #expect(await bench.stop() == 0)
          let remounted = try await bench.command("mount", ["-o", "remount,ro", mount.path])
          try #require(remounted.status == 0, "\(remounted.errors)")
          let daemon = try bench.launch(errors: "readonly.err")
          #expect(await daemon.exit(within: 20) == 73)
          let errors = Files.read("\(bench.folder)/readonly.err")
          #expect(errors.split(whereSeparator: \.isNewline).count == 1, "\(errors)")
          #expect(errors.contains("cannot use \(mount.path)/queue"), "\(errors)")
          #expect(errors.lowercased().contains("read-only"), "\(errors)")
        }
      } catch {
        await mount.remove()
        throw error
      }
      await mount.remove()
    }

    @Test(.timeLimit(.minutes(2))) func queueDirectoryOfAnotherUserIsNamedAtTheStart() async throws {
      guard geteuid() == 0 else {
        print("SKIPPED: only root can be somebody else")
        return
      }
      try await Bench.run(starts: false) { bench in
        // All that the daemon reads may be read, and what it writes lies elsewhere; only the queue is root's.
        _ = try await bench.command("chmod", ["-R", "a+rX", bench.folder])
        _ = try await bench.command("chgrp", ["65534", "\(bench.folder)/etc/domains/dreamlikelabs.com.conf"])
        chmod("\(bench.folder)/etc/domains/dreamlikelabs.com.conf", 0o640)
        mkdir(bench.queue, 0o755)
        mkdir("\(bench.folder)/nobody", 0o777)
        chmod("\(bench.folder)/nobody", 0o777)
        let errors = "\(bench.folder)/foreign.err"
        let daemon = try Program(
          "setpriv",
          [
            "--reuid=65534", "--regid=65534", "--clear-groups", Bench.binary, "serve", "--config", bench.configuration,
            "--set", "global.log_file=\(bench.folder)/nobody/log", "--set",
            "global.admin_socket=\(bench.folder)/nobody/sock", "--set", "global.user=nobody",
          ], output: "\(bench.folder)/daemon.out", errors: errors)
        bench.ends(daemon)
        #expect(await daemon.exit(within: 20) == 73)
        let said = Files.read(errors)
        #expect(said.split(whereSeparator: \.isNewline).count == 1, "\(said)")
        #expect(said.contains("cannot use \(bench.queue): it belongs to user 0, this process runs as user 65534"))
        #expect(said.contains("give the directory and all in it to the user of this service"), "\(said)")
      }
    }

    @Test(.timeLimit(.minutes(2))) func anExportEndsAtOnceOnAFullDisk() async throws {
      guard let mount = try await Mount.small() else { return }
      do {
        try await Desk.run { desk in
          for name in ["a", "b", "c", "d"] { try desk.put(name, String(repeating: "0123456789\r\n", count: 300_000)) }
          #expect(try await desk.relay("queue", "import", desk.pairs).status == 0)
          let export = try await desk.relay("queue", "export", "\(mount.path)/copy")
          #expect(export.status == 74)
          #expect(export.errors.occurrences(of: "No space left on device") == 1, "\(export.errors)")
          #expect(!Files.all(below: mount.path).contains { $0.hasSuffix(".partial") })
        }
      } catch {
        await mount.remove()
        throw error
      }
      await mount.remove()
    }
  }
}

/// A file system of 6 MiB in memory.
private final class Mount: Sendable {
  let path: String

  private init(_ path: String) { self.path = path }

  /// Nil, and a line that says why, where nothing can be mounted.
  static func small() async throws -> Mount? {
    var template = Array("/tmp/ssmtp-mailer-disk.XXXXXX".utf8CString)
    let path = String(cString: try #require(mkdtemp(&template)))
    let errors = "\(path).err"
    defer { unlink(errors) }
    let mount = try Program(
      "mount", ["-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", path], output: "/dev/null", errors: errors)
    if await mount.exit() == 0 { return Mount(path) }
    print("SKIPPED: nothing can be mounted here: \(Files.read(errors))")
    rmdir(path)
    return nil
  }

  var space: (total: Int, free: Int) {
    var status = statvfs()
    statvfs(path, &status)
    return (Int(status.f_blocks) * Int(status.f_frsize), Int(status.f_bavail) * Int(status.f_frsize))
  }

  /// Takes all the space that is left.
  func fill() throws {
    let file = try #require(fopen("\(path)/ballast", "w"))
    let piece = [UInt8](repeating: 0x2e, count: 4096)
    while write(fileno(file), piece, piece.count) > 0 {}
    fclose(file)
  }

  func free() { unlink("\(path)/ballast") }

  func remove() async {
    let unmount = try? Program("umount", ["-l", path], output: "/dev/null", errors: "/dev/null")
    _ = await unmount?.exit()
    rmdir(path)
  }
}
