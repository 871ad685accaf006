// The command line of sendmail: the forms that are in use, and those that are refused.

import SMTP
import Testing

@testable import CommandLineTools

@Suite struct SendmailTests {
  private func parse(_ line: String, name: String = "sendmail") throws -> SendmailArguments {
    try SendmailArguments(name: name, line.split(separator: " ").map(String.init))
  }

  @Test(arguments: [
    "-t -i", "-ti", "-oi -t", "-i -t -oem -oMrcron -n -m", "-t -odi -i -B 8BITMIME", "-ti -d0.1 -h 3 -L tag -X /log",
    "-bm -ti -O DeliveryMode=b -G -U",
  ])
  func formsInUseReadTheHeaderAndIgnoreDots(line: String) throws {
    let call = try parse(line)
    #expect(call.readsRecipients && call.ignoresDots && call.mode == .message && call.recipients.isEmpty)
  }

  @Test func valuesStandInTheirWordOrBehindIt() throws {
    for line in [
      "-fa@b.test -FJane -- -c@d.test", "-f a@b.test -F Jane -- -c@d.test", "-r a@b.test -FJane -- -c@d.test",
    ] {
      let call = try parse(line)
      #expect(call.sender == "a@b.test" && call.fullName == "Jane" && call.recipients == ["-c@d.test"])
    }
    #expect(try parse("-f <> a@b.test").sender == "")
    #expect(try SendmailArguments(name: "sendmail", ["-f", "", "a@b.test"]).sender == "")
    #expect(try parse("a@b.test -t").recipients == ["a@b.test", "-t"], "options end at the first recipient")
  }

  @Test func reportsAreAskedFor() throws {
    let call = try parse("-N failure,delay -R hdrs -V id7 a@b.test")
    #expect(call.notify == [.failure, .delay] && call.ret == .headers && call.envelopeID == "id7")
    #expect(try parse("-N never a@b.test").notify == .never)
  }

  @Test(arguments: [
    ("sendmail", "-bs", SendmailArguments.Mode.smtp), ("sendmail", "-bp", .list), ("sendmail", "-bi", .nothing),
    ("sendmail", "-q", .nothing), ("sendmail", "-q15m", .nothing), ("mailq", "", .list), ("newaliases", "", .nothing),
  ])
  func modeFollowsFromNameAndOption(name: String, line: String, mode: SendmailArguments.Mode) throws {
    #expect(try parse(line, name: name).mode == mode)
  }

  @Test(arguments: [
    "", "-i", "-f", "-bd", "-bv a@b.test", "-bt", "-k a@b.test", "-N sometimes a@b.test", "-R x a@b.test",
  ])
  func whatCannotBeDoneIsRefused(line: String) {
    #expect { try parse(line) } throws: { ($0 as? CommandFailure)?.status == .usage }
  }

  @Test(arguments: [1, 2, 3, 100])
  func loneDotEndsTheMessageHoweverItComes(step: Int) {
    let input = Array("one\n..\n.x\n\r.\n.\r\nnot this\n".utf8)
    var reader = DotReader(ignoresDots: false)
    var isDone = false
    for start in stride(from: 0, to: input.count, by: step) where !isDone {
      isDone = reader.take(input[start..<min(start + step, input.count)])
    }
    #expect(isDone && String(decoding: reader.bytes, as: UTF8.self) == "one\n..\n.x\n\r.\n")
    var last = DotReader(ignoresDots: false)
    #expect(!last.take("one\n.".utf8) && String(decoding: last.finish(), as: UTF8.self) == "one\n")
    var all = DotReader(ignoresDots: true)
    #expect(!all.take("one\n.\ntwo\n".utf8) && String(decoding: all.finish(), as: UTF8.self) == "one\n.\ntwo\n")
  }

  @Test func unknownUserIsToldFromARefusal() {
    func status(_ replies: String...) -> CommandLineTools.ExitStatus {
      var report = Submission.Report()
      for text in replies {
        let words = text.split(separator: " ").map(String.init)
        let reply = Reply(Int(words[0]) ?? 0, words[1], "x")
        report.results.append(.init(recipient: "a@b.test", reply: reply, isAccepted: reply.isPositive))
      }
      return Submission.sendmailStatus(report)
    }
    #expect(status("250 2.0.0") == .success)
    #expect(status("250 2.0.0", "550 5.1.1") == .noUser)
    #expect(status("550 5.1.1", "550 5.7.1") == .refused)
    #expect(status("451 4.3.0") == .tryAgain)
  }
}
