// What the running daemon may do, as the kernel sees it: every thread of the real binary.

import Glibc
import Primitives
import Testing

extension EndToEnd {
  @Suite struct PrivilegesOfTheDaemon {
    /// The lines of /proc/PID/task/*/status, a dictionary for each thread.
    private func threads(of pid: pid_t) -> [[String: String]] {
      guard let directory = opendir("/proc/\(pid)/task") else { return [] }
      defer { closedir(directory) }
      var threads: [[String: String]] = []
      while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        guard name.first?.isNumber == true else { continue }
        var values: [String: String] = [:]
        for line in Files.read("/proc/\(pid)/task/\(name)/status").split(separator: "\n") {
          let parts = line.split(separator: ":", maxSplits: 1)
          guard parts.count == 2 else { continue }
          values[String(parts[0])] = parts[1].split { $0 == "\t" || $0 == " " }.joined(separator: " ")
        }
        // A thread may end while it is looked at.
        if !values.isEmpty { threads.append(values) }
      }
      return threads
    }

    private func expectNoRights(_ pid: pid_t, user: String, group: String) {
      let threads = threads(of: pid)
      #expect(threads.count > 1, "the daemon has more threads than this")
      for thread in threads {
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
          #expect(thread[set] == "0000000000000000", "\(set) of \(thread["Name"] ?? "?")")
        }
        #expect(thread["NoNewPrivs"] == "1")
        #expect(thread["Uid"] == "\(user) \(user) \(user) \(user)")
        #expect(thread["Gid"] == "\(group) \(group) \(group) \(group)")
        #expect(thread["Groups"] ?? "" == group || group == "0", "\(thread["Groups"] ?? "")")
      }
      let limits = Files.read("/proc/\(pid)/limits").split(separator: "\n").first { $0.hasPrefix("Max core file size") }
      #expect(limits?.split(separator: " ").suffix(3) == ["0", "0", "bytes"], "\(limits ?? "")")
    }

    /// A port that only root can bind, and that is free.
    private func privilegedPort() -> UInt16? {
      for port in UInt16(600)..<1024 {
        let socket = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(socket) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        let bound = withUnsafePointer(to: &address) {
          $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            bind(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
          }
        }
        if bound == 0 { return port }
      }
      return nil
    }

    @Test(.timeLimit(.minutes(2))) func rootIsGivenUpForGoodOnceThePortsAreBound() async throws {
      guard geteuid() == 0, let port = privilegedPort() else {
        print("SKIPPED: only root has something to give up")
        return
      }
      try await Bench.run(settings: ["user = nobody"], starts: false) { bench in
        chmod(bench.folder, 0o755)
        // What the account has to read, also at a reload; and a log that is its own.
        _ = try await bench.command("chgrp", ["-R", "65534", "\(bench.folder)/etc"])
        _ = try await bench.command("chmod", ["-R", "g+rX", "\(bench.folder)/etc"])
        mkdir("\(bench.folder)/run", 0o755)
        chown("\(bench.folder)/run", 65534, 65534)
        try await bench.start([
          "--set", "global.listen=0.0.0.0:\(port)", "--set", "global.admin_socket=\(bench.folder)/run/admin.sock",
        ])
        expectNoRights(bench.daemon.pid, user: "65534", group: "65534")
        for path in [bench.queue, "\(bench.folder)/relay.log", "\(bench.folder)/run/admin.sock"] {
          var status = stat()
          #expect(lstat(path, &status) == 0 && status.st_uid == 65534, "\(path) belongs to \(status.st_uid)")
        }
        let client = try Client(port: port)
        let reply = try client.deliver(to: "contact-sales@mailer.dreamlikelabs.com", Letter.text("1"))
        #expect(reply.hasPrefix("250"), "\(reply)")
        #expect(try await bench.arrived(1).count == 1)
        // A reload reads everything anew, with what rights are left.
        bench.daemon.signal(SIGHUP)
        try await bench.waitForLog("configuration reloaded")
        expectNoRights(bench.daemon.pid, user: "65534", group: "65534")
        #expect(await bench.stop() == 0)
      }
    }

    @Test(.timeLimit(.minutes(2))) func capabilitiesAndCoresAreGivenUpWhoeverStartsTheDaemon() async throws {
      try await Bench.run { bench in
        expectNoRights(bench.daemon.pid, user: "\(geteuid())", group: "\(getegid())")
      }
    }

    @Test(
      .timeLimit(.minutes(2)),
      arguments: [
        ("global.user=", "0.0.0.0:0", "root does not serve mail: set `user` in [global]"),
        ("global.user=root", "0.0.0.0:0", "as root the daemon serves loopback addresses only"),
        ("global.user=no-such-account", "127.0.0.1:0", "there is no such account"),
      ])
    func rootThatWouldStayIsRefusedWithAdvice(_ user: String, _ listen: String, _ advice: String) async throws {
      guard geteuid() == 0, user != "global.user=" || getpwnam("ssmtp-mailer") == nil else {
        print("SKIPPED: only root, on a machine without the account that is taken by default")
        return
      }
      try await Bench.run(starts: false) { bench in
        let daemon = try bench.launch(
          ["--set", user, "--set", "global.listen=\(listen.replacing(":0", with: ":\(bench.port)"))"])
        #expect(await daemon.exit(within: 20) == 78)
        #expect(bench.errors.contains(advice), "\(bench.errors)")
        #expect(Files.all(below: bench.queue).isEmpty, "something was begun")
        // For the look at what was written.
        try Files.write("", to: "\(bench.folder)/daemon.out")
      }
    }

    @Test(.timeLimit(.minutes(2))) func whatOnlyRootCanReadIsFoundOutAtTheStart() async throws {
      guard geteuid() == 0 else { return }
      try await Bench.run(settings: ["user = nobody"], starts: false) { bench in
        chmod(bench.folder, 0o755)
        _ = try await bench.command("chmod", ["-R", "a+rX", "\(bench.folder)/etc"])
        chmod("\(bench.folder)/etc/domains/dreamlikelabs.com.conf", 0o600)
        let daemon = try bench.launch()
        #expect(await daemon.exit(within: 20) == 78)
        #expect(
          bench.errors.contains("dreamlikelabs.com.conf: the file cannot be read: Permission denied (as user nobody"))
      }
    }
  }
}
