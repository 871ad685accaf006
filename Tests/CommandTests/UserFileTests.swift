// A password is set in a user's file, and nothing else in it changes.

import Glibc
import SMTP
import Testing

@testable import CommandLineTools

@Suite struct UserFileTests {
  private func set(_ text: String, _ address: String = "a@b.example") throws -> String? {
    var file = UserFile(Array(text.utf8))
    guard file.setPassword("$y$new", of: try Mailbox(parsing: address)) else { return nil }
    return String(decoding: file.bytes, as: UTF8.self)
  }

  @Test(arguments: [
    ("[user:a@b.example]\npassword_hash = old\n", "[user:a@b.example]\npassword_hash = $y$new\n"),
    ("[user:a@b.example]\n password_hash=old\r\nx = y", "[user:a@b.example]\npassword_hash = $y$new\r\nx = y"),
    ("[user:a@b.example]\npassword_hash = old", "[user:a@b.example]\npassword_hash = $y$new"),
    ("[user:a@b.example]\n", "[user:a@b.example]\npassword_hash = $y$new\n"),
    ("[user:a@b.example]", "[user:a@b.example]\npassword_hash = $y$new\n"),
    (
      "# top\n[user:A@B.example]\r\nenabled = true\r\n# password_hash = x\r\n\r\n[user:c@d]\r\npassword_hash = c\r\n",
      "# top\n[user:A@B.example]\r\nenabled = true\r\npassword_hash = $y$new\r\n# password_hash = x\r\n\r\n[user:c@d]\r\npassword_hash = c\r\n"
    ),
    (
      "[user:c@d]\npassword_hash = c\n  [ user : a@b.example ]\nenabled = no\n",
      "[user:c@d]\npassword_hash = c\n  [ user : a@b.example ]\nenabled = no\npassword_hash = $y$new\n"
    ),
    ("\u{feff}[user:a@b.example]\nq = \n", "\u{feff}[user:a@b.example]\nq = \npassword_hash = $y$new\n"),
  ])
  func oneLineChangesAndTheRestStays(_ before: String, _ after: String) throws {
    #expect(try set(before) == after)
    #expect(try set(after) == after, "once more changes nothing")
  }

  @Test(arguments: [
    "", "# [user:a@b.example]\n", "[user:aa@b.example]\n", "[domain:a@b.example]\n", "[user:a@b.example\n",
  ])
  func sectionOfSomebodyElseIsLeftAlone(_ text: String) throws {
    #expect(try set(text) == nil)
    #expect(!UserFile(Array(text.utf8)).has(try Mailbox(parsing: "a@b.example")))
  }

  @Test func octetsThatAreNoTextStay() throws {
    var file = UserFile(Array("[user:a@b.example]\n# ".utf8) + [0xff, 0xfe, 0x0a])
    #expect(file.setPassword("h", of: try Mailbox(parsing: "a@b.example")))
    #expect(file.bytes == Array("[user:a@b.example]\npassword_hash = h\n# ".utf8) + [0xff, 0xfe, 0x0a])
  }

  @Test func fileIsReplacedWholeWithItsModeAndThroughLinks() throws {
    var template = Array("/tmp/ssmtp-mailer-user.XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    defer {
      for name in ["real", "link", "new"] { unlink("\(folder)/\(name)") }
      rmdir(folder)
    }
    func mode(_ name: String) -> UInt32 {
      var status = stat()
      return stat("\(folder)/\(name)", &status) == 0 ? status.st_mode & 0o7777 : 0
    }
    try ConfigurationFile.replace("\(folder)/new", with: [0x61])
    #expect(mode("new") == 0o640)
    try ConfigurationFile.replace("\(folder)/real", with: [0x61])
    chmod("\(folder)/real", 0o644)
    symlink("real", "\(folder)/link")
    try ConfigurationFile.replace("\(folder)/link", with: [0x62])
    #expect(mode("real") == 0o640, "nobody else reads a hash")
    var status = stat()
    #expect(lstat("\(folder)/link", &status) == 0 && status.st_mode & S_IFMT == S_IFLNK)
    chmod("\(folder)/real", 0o600)
    try ConfigurationFile.replace("\(folder)/real", with: [0x63])
    #expect(mode("real") == 0o600)
    #expect(throws: CommandFailure.self) { try ConfigurationFile.replace("\(folder)/none/x", with: []) }
  }
}
