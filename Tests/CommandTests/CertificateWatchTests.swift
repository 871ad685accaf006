// The certificate of the front door while its files change under it: certbot's links, half a pair, old age.

import Glibc
import Network
import Primitives
import Sandbox
import TestSupport
import Testing

@testable import Daemon

@Suite(.timeLimit(.minutes(1))) struct CertificateWatchTests {
  /// Runs pieces of work when a test says so: the files are looked at by hand.
  private struct NoQueue: WorkQueue {
    func async(_ work: @escaping @Sendable () -> Void) {}
    func async(after wait: Duration, _ work: @escaping @Sendable () -> Void) {}
  }

  private final class Place: Sendable {
    let folder: String
    let authority: CertificateAuthority
    let lines = LogLines()
    let time = ManualTime()
    let installed = Mutex<[String]>([])
    var files: CertificateFiles { CertificateFiles(certificate: folder + "/cert.pem", key: folder + "/key.pem") }

    init() throws {
      var template = Array("/tmp/ssmtp-mailer-watch.XXXXXX".utf8CString)
      folder = String(cString: mkdtemp(&template)!)
      authority = try CertificateAuthority(commonName: "Test Authority")
    }

    deinit {
      guard let directory = opendir(folder) else { return }
      while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        unlink("\(folder)/\(name)")
      }
      closedir(directory)
      rmdir(folder)
    }

    func issue(_ name: String, days: Int = 90, to stem: String = "") throws {
      let valid = Duration.seconds(min(-86_400, days * 86_400 - 86_400)) ... .seconds(days * 86_400 + 3600)
      try authority.issue(names: [name], valid: valid).write(
        certificateFile: "\(folder)/\(stem)cert.pem", keyFile: "\(folder)/\(stem)key.pem")
    }

    func watch() throws -> CertificateWatch {
      let watch = CertificateWatch(time: time, log: lines.logger, queue: NoQueue()) { [self] context in
        installed.withLock { $0 += context.ownCertificate?.names ?? ["none"] }
      }
      let fingerprint = files.fingerprint()
      watch.follow(files, fingerprint, try files.load())
      return watch
    }

    var names: [String] { installed.withLock { $0 } }
    func link(_ stem: String) {
      for name in ["cert.pem", "key.pem"] {
        unlink("\(folder)/\(name)")
        symlink("\(stem)\(name)", "\(folder)/\(name)")
      }
    }
  }

  @Test func filesThatAreWrittenOverAreTakenAndSaid() throws {
    let place = try Place()
    try place.issue("one.test")
    let watch = try place.watch()
    #expect(place.names == ["one.test"])
    watch.look()
    #expect(place.names == ["one.test"], "nothing has changed")
    try place.issue("two.test")
    watch.look()
    #expect(place.names == ["one.test", "two.test"] && watch.certificate?.names == ["two.test"])
    let said = place.lines.all.filter { $0.hasPrefix("notice: certificate:") }
    #expect(said.count == 2 && said.last?.contains("for two.test, issued by /CN=Test Authority, valid until") == true)
  }

  @Test func linksThatCertbotReplacesAreFollowed() throws {
    let place = try Place()
    try place.issue("old.test", to: "1")
    try place.issue("new.test", to: "2")
    place.link("1")
    let watch = try place.watch()
    place.link("2")
    watch.look()
    #expect(place.names == ["old.test", "new.test"])
  }

  @Test func halfAPairIsLeftAloneSaidOnceAndTriedAgain() throws {
    let place = try Place()
    try place.issue("old.test")
    let watch = try place.watch()
    try place.issue("new.test", to: "2")
    rename(place.folder + "/2cert.pem", place.folder + "/cert.pem")
    for _ in 0..<3 { watch.look() }
    #expect(place.names == ["old.test"])
    #expect(place.lines.all.count { $0.contains("the old one stays: TLS: cannot use the key") } == 1)
    rename(place.folder + "/2key.pem", place.folder + "/key.pem")
    watch.look()
    #expect(place.names == ["old.test", "new.test"])
  }

  @Test func filesThatAreGoneOrBrokenLeaveTheOldCertificate() throws {
    let place = try Place()
    try place.issue("old.test")
    let watch = try place.watch()
    unlink(place.files.key)
    watch.look()
    try place.issue("new.test")
    truncate(place.files.certificate, 100)
    watch.look()
    #expect(place.names == ["old.test"] && watch.certificate?.names == ["old.test"])
    #expect(place.lines.all.count { $0.contains("the old one stays") } == 2)
    try place.issue("new.test")
    watch.look()
    #expect(place.names == ["old.test", "new.test"])
  }

  @Test func ageIsWarnedOfOnceADayUntilItIsRenewed() throws {
    let place = try Place()
    try place.issue("old.test", days: 13)
    let watch = try place.watch()
    func warnings() -> Int { place.lines.all.count { $0.contains("ends in 13 days") } }
    for _ in 0..<3 { watch.look() }
    #expect(warnings() == 1)
    place.time.advance(by: .seconds(86_400))
    for _ in 0..<3 { watch.look() }
    #expect(warnings() == 2)
    try place.issue("new.test", days: 14)
    place.time.advance(by: .seconds(86_400))
    watch.look()
    place.time.advance(by: .seconds(86_400))
    watch.look()
    #expect(warnings() <= 3, "the new one has time")
    #expect(place.names == ["old.test", "new.test"])
  }

  @Test func expiredCertificateIsShownAllTheSame() throws {
    let place = try Place()
    try place.issue("late.test", days: -2)
    _ = try place.watch()
    #expect(place.names == ["late.test"])
    #expect(place.lines.all.contains { $0.hasPrefix("error:") && $0.contains("late.test has expired") })
  }

  @Test func reloadMayNameOtherFilesOrNone() throws {
    let place = try Place()
    try place.issue("one.test")
    let watch = try place.watch()
    watch.follow(nil, nil, nil)
    try place.issue("two.test")
    watch.look()
    #expect(place.names == ["one.test"] && watch.certificate == nil)
  }
}
