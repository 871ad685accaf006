// What sendmail makes of standard input, and text out of HTML.

import Primitives
import SMTP
import Testing

@testable import Message

@Suite struct LocalMessageTests {
  private static let author = AddressList.Member(name: "Jane", mailbox: try! Mailbox(parsing: "jane@host.test"))

  private func completed(_ input: String) -> String {
    var message = LocalMessage(input.utf8)
    message.complete(
      author: Self.author, defaultDomain: "host.test", date: Timestamp(seconds: 0), messageID: "id@host.test")
    return String(decoding: message.content, as: UTF8.self)
  }

  private static let added = "Date: Thu, 1 Jan 1970 00:00:00 +0000\r\nMessage-ID: <id@host.test>\r\n"

  @Test(arguments: [
    (
      "Subject: x\n\nbody\n",
      "Subject: x\r\nFrom: Jane <jane@host.test>\r\n\(added)To: undisclosed-recipients:;\r\n\r\nbody\r\n"
    ),
    ("From jane Tue Nov 24\nTo: bob\n\nx", "To: bob@host.test\r\nFrom: Jane <jane@host.test>\r\n\(added)\r\nx\r\n"),
    ("To: a@b.test\r\nno header\r\n", "To: a@b.test\r\nFrom: Jane <jane@host.test>\r\n\(added)\r\nno header\r\n"),
    ("\nTo: body\n", "From: Jane <jane@host.test>\r\n\(added)To: undisclosed-recipients:;\r\n\r\nTo: body\r\n"),
    (
      "From: x@y.test\nDate: now\nmessage-id: <1>\nBCC: c@d.test,\n e@f.test\nTo: \"Q, R\" <a@b.test>,\n\tb@c.test\n\n",
      "From: x@y.test\r\nDate: now\r\nmessage-id: <1>\r\nTo: \"Q, R\" <a@b.test>,\r\n\tb@c.test\r\n\r\n"
    ),
  ])
  func messageIsCompletedAndOtherwiseLeftAlone(input: String, output: String) {
    #expect(completed(input) == output)
  }

  @Test func everyKindOfLineEndBecomesOne() {
    #expect(
      completed("To: a@b.test\n\none\ntwo\r\nthree\rfour\r\r\n\nfive").hasSuffix(
        "\r\n\r\none\r\ntwo\r\nthree\r\nfour\r\n\r\n\r\nfive\r\n"))
  }

  @Test func recipientsAreThoseOfTheHeader() {
    let message = LocalMessage("To: a, B <b@c.test>\nCc: G: d@e.test;\nBcc: f@g.test\nX-To: no@no.test\n\n".utf8)
    let found = message.recipients(defaultDomain: "host.test")
    #expect(found.mailboxes.map(\.description) == ["a@host.test", "b@c.test", "d@e.test", "f@g.test"])
    #expect(found.faults.isEmpty)
    let resent = LocalMessage("To: a@b.test\nResent-To: c@d.test\n\n".utf8).recipients(defaultDomain: "host.test")
    #expect(resent.mailboxes.map(\.description) == ["c@d.test"])
    #expect(LocalMessage("To: a b c\n\n".utf8).recipients(defaultDomain: "host.test").faults.count == 1)
  }

  @Test(arguments: [
    ("<p>Hello <b>J&ouml;rg</b>,</p><p>1 &lt; 2 &#8364;</p>", "Hello Jörg,\n\n1 < 2 €\n"),
    ("<style>p{}</style><script>x<y</script>a<br>b", "a\nb\n"), ("<ul><li>one<li>two</ul>", "- one\n- two\n"),
    ("<a href='https://a.test/?b=1'>go</a> on", "go <https://a.test/?b=1> on\n"),
    ("<!-- <p>no</p> -->yes &unknown; & co", "yes &unknown; & co\n"), ("<img src=x>", "This message is in HTML.\n"),
  ])
  func plainTextKeepsTheWordsOfHTML(html: String, text: String) {
    #expect(PlainText.of(html: html) == text)
  }
}
