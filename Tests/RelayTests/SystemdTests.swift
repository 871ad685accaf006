// The service as systemd runs it: the installed unit, its user and its rights, on a throw-away copy of the machine.

import Glibc
import Testing

extension EndToEnd {
  @Suite struct UnderSystemd {
    @Test(.timeLimit(.minutes(4))) func serviceStartsReloadsRestartsAndStops() async throws {
      // A sanitizer needs memory and a personality that the unit forbids.
      if dlsym(nil, "__asan_init") != nil || dlsym(nil, "__tsan_init") != nil {
        print("SKIPPED: the unit does not let a sanitizer work")
        return
      }
      var template = Array("/tmp/ssmtp-mailer-systemd.XXXXXX".utf8CString)
      let folder = String(cString: try #require(mkdtemp(&template)))
      let scripts = "\(Bench.project)/Tests/RelayTests/systemd"
      let program = try Program(
        "\(scripts)/run-under-systemd", [folder, "\(scripts)/inside", Bench.binary], output: "\(folder)/out",
        errors: "\(folder)/err")
      let status = await program.exit(within: 200)
      let errors = Files.read("\(folder)/err")
      if status == 77 {
        print("SKIPPED: \(errors)")
      } else {
        #expect(status == 0, "\(Files.read("\(folder)/out").suffix(10_000))\n\(errors)")
        print(Files.read("\(folder)/output"))
      }
      let removal = try Program("rm", ["-rf", folder], output: "/dev/null", errors: "/dev/null")
      _ = await removal.exit()
    }
  }
}
