// The sample files of etc/, and the real file system.

import Configuration
import Testing

#if canImport(Glibc)
  import Glibc
#endif

@Suite struct SampleFilesTests {
  /// The files of etc/ where they say they are installed.
  private func samples() throws -> MemoryFiles {
    let root = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
    let disk = POSIXFiles()
    var files = MemoryFiles()
    for folder in ["", "/domains", "/users", "/mappings"] {
      let source = "/\(root)/etc/ssmtp-mailer\(folder)"
      for name in try #require(disk.list(source)) where name.hasSuffix(".conf") {
        let text = String(decoding: try disk.read("\(source)/\(name)"), as: UTF8.self)
        files.add("/etc/ssmtp-mailer\(folder)/\(name)", text, mode: 0o644)
      }
    }
    return files
  }

  @Test func samplesOfTheGuideLoadAndOnlyTheirPasswordIsWarnedOf() throws {
    let (settings, warnings) = try Settings.load(
      path: "/etc/ssmtp-mailer/ssmtp-mailer.conf", overrides: [], files: samples(), environment: [:])
    #expect(
      warnings.map(\.message) == ["password is the placeholder of the sample files; replace it with the account's own"])
    #expect(settings.global.defaultHostname == "mailer.dreamlikelabs.com")
    #expect(settings.global.defaultDomain == "dreamlikelabs.com")
    #expect(settings.global.logFile == .path("/var/log/ssmtp-mailer.log"))
    #expect(settings.domains.count == 2)
    #expect(settings.domains["mailer.dreamlikelabs.com"]?.isLocal == true)
    let gmail = try #require(settings.domains["dreamlikelabs.com"])
    #expect(gmail.host == "smtp.gmail.com" && gmail.port == 587 && gmail.useStartTLS && gmail.authMethod == .login)
    #expect(settings.mappings.count == 5)
    #expect(settings.users.map(\.address.canonical) == ["mail-relay@dreamlikelabs.com"])
  }

  @Test func samplesLoadWhenTheListenerIsMovedToAHighPort() throws {
    let settings = try Settings.load(
      path: "/etc/ssmtp-mailer/ssmtp-mailer.conf", overrides: [("global.listen", "127.0.0.1:2525")],
      files: samples(), environment: [:]
    ).settings
    #expect(settings.domains["mailer.dreamlikelabs.com"]?.isLocal == true)
  }

  // MARK: The real file system

  @Test func commandGivesItsOutputAndItsFailure() throws {
    #expect(String(decoding: try POSIXFiles().output(of: "echo secret"), as: UTF8.self) == "secret\n")
    #expect(throws: FileError("exit status 3")) { try POSIXFiles().output(of: "exit 3") }
    #expect(throws: FileError("ended by signal 15")) { try POSIXFiles().output(of: "kill -15 $$") }
    #expect(throws: FileError("longer than 65536 octets")) {
      try POSIXFiles().output(of: "head -c 100000 /dev/zero; sleep 100")
    }
  }

  @Test func onlyRegularFilesAreRead() {
    #expect(throws: FileError("not a regular file")) { try POSIXFiles().read("/dev/zero") }
    #expect(throws: FileError("No such file or directory")) { try POSIXFiles().read("/nonexistent/x") }
    #expect(POSIXFiles().list("/nonexistent") == nil)
    #expect(POSIXFiles().mode("/nonexistent") == nil)
  }

  @Test func configurationOnDiskIsReadWithItsModes() throws {
    var template = Array("/tmp/configuration-XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    defer {
      for name in ["domains/d.conf", "m.conf"] { unlink("\(folder)/\(name)") }
      rmdir("\(folder)/domains")
      rmdir(folder)
    }
    mkdir("\(folder)/domains", 0o755)
    try write(minimal, to: "\(folder)/m.conf", mode: 0o644)
    try write(upstream, to: "\(folder)/domains/d.conf", mode: 0o600)
    let loaded = try Settings.load(path: "\(folder)/m.conf")
    #expect(loaded.settings.domains["example.com"]?.password?.reveal() == "hunter2")
    chmod("\(folder)/domains/d.conf", 0o644)
    #expect(throws: ConfigurationError.self) { try Settings.load(path: "\(folder)/m.conf") }
  }

  private func write(_ text: String, to path: String, mode: mode_t) throws {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL, mode)
    try #require(descriptor >= 0)
    defer { close(descriptor) }
    fchmod(descriptor, mode)
    #expect(Glibc.write(descriptor, text, text.utf8.count) == text.utf8.count)
  }
}
