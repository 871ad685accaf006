// Replies in both directions.

import Testing

@testable import SMTP

@Suite struct ReplyTests {
  @Test(arguments: [
    (Reply(250, "2.1.0", "OK"), "250 2.1.0 OK\r\n"),
    (Reply(354, nil, "go"), "354 go\r\n"),
    (Reply(550, "5.1.1", "a", "b"), "550-5.1.1 a\r\n550 5.1.1 b\r\n"),
    (Reply(250, nil), "250 \r\n"),
    (Reply(550, nil, "evil\r\n250 fine\0\u{7f}é"), "550 evil??250 fine????\r\n"),
  ])
  func repliesAreEncodedSafely(_ reply: Reply, _ wire: String) {
    #expect(String(decoding: reply.encoded, as: UTF8.self) == wire)
  }

  @Test func noLineExceeds512Octets() {
    let reply = Reply(550, "5.7.123", String(repeating: "x", count: 3000), String(repeating: "é", count: 3000))
    for line in reply.encoded.split(separator: 10) { #expect(line.count + 1 <= 512) }
  }

  @Test func descriptionIsOneLine() {
    #expect(Reply(550, "5.1.1", "no\r\nsuch", "user").description == "550 5.1.1 no  such user")
  }

  @Test(arguments: ["5.1.1", "2.0.0", "4.999.999"])
  func enhancedCodesParse(_ text: String) { #expect(EnhancedStatusCode(parsing: text)?.description == text) }

  @Test(arguments: ["", "5", "5.1", "5.1.", "3.1.1", "5..1", "5.1.1.1", "5.1234.1", "55.1.1", "x.1.1", "5.1.1 "])
  func whatIsNoEnhancedCodeIsNil(_ text: String) { #expect(EnhancedStatusCode(parsing: text) == nil) }
}

@Suite struct ReplyParserTests {
  static func parse(_ input: String, splits: [Int] = []) throws -> [Reply] {
    let bytes = Array(input.utf8)
    var parser = ReplyParser()
    var replies: [Reply] = []
    var start = 0
    for end in splits + [bytes.count] {
      let piece = Array(bytes[start..<end])
      var consumed = 0
      while true {
        let before = consumed
        let reply = try piece.withUnsafeBytes { raw throws(ReplyError) in try parser.next(raw, consumed: &consumed) }
        guard let reply else { break }
        #expect(consumed > before)
        replies.append(reply)
      }
      #expect(consumed == piece.count)
      start = end
    }
    return replies
  }

  static let dialogue =
    "220 mx.example ready\r\n250-mx.example\r\n250-SIZE 1000\r\n250 PIPELINING\r\n250 2.1.0 OK\n550-5.1.1 No\r\n550 5.1.1 user\r\n"
    + "250\r\n354 \r\n550 4.1.1 odd class\r\n"
  static let replies = [
    Reply(220, nil, "mx.example ready"), Reply(250, nil, "mx.example", "SIZE 1000", "PIPELINING"),
    Reply(250, "2.1.0", "OK"),
    Reply(550, "5.1.1", "No", "user"), Reply(250, nil, ""), Reply(354, nil, ""), Reply(550, nil, "4.1.1 odd class"),
  ]

  @Test func repliesAreParsedWhateverTheSplit() throws {
    #expect(try Self.parse(Self.dialogue) == Self.replies)
    let count = Self.dialogue.utf8.count
    for split in 0...count { #expect(try Self.parse(Self.dialogue, splits: [split]) == Self.replies) }
    #expect(try Self.parse(Self.dialogue, splits: Array(0...count)) == Self.replies)
  }

  @Test(arguments: ["hello\r\n", "25\r\n", "2500 x\r\n", "150 x\r\n", "600 x\r\n", "\r\n", "HTTP/1.1 400 Bad\r\n"])
  func whatIsNoReplyIsRefused(_ line: String) { #expect(throws: ReplyError.self) { try Self.parse(line) } }

  @Test func aServerCannotFillTheMemory() {
    #expect(throws: ReplyError.lineTooLong) { try Self.parse(String(repeating: "2", count: 5000)) }
    #expect(throws: ReplyError.lineTooLong) {
      try Self.parse(String(repeating: "2", count: 5000), splits: Array(stride(from: 0, to: 5000, by: 100)))
    }
    #expect(throws: ReplyError.tooManyLines) { try Self.parse(String(repeating: "250-x\r\n", count: 200)) }
    let long = "250-" + String(repeating: "x", count: 4000) + "\r\n"
    #expect(throws: ReplyError.tooLong) { try Self.parse(String(repeating: long, count: 20)) }
  }

  @Test func controlCharactersDoNotSurvive() throws {
    #expect(try Self.parse("550 a\u{1b}[2Jb\0c\r\n").first?.lines == ["a [2Jb c"])
  }

  @Test func capabilitiesAreRead() throws {
    let reply = try #require(
      try Self.parse(
        "250-smtp.gmail.com at your service\r\n250-SIZE 35882577\r\n250-8BITMIME\r\n250-AUTH LOGIN PLAIN xoauth2\r\n"
          + "250-AUTH=CRAM-MD5\r\n250-ENHANCEDSTATUSCODES\r\n250-pipelining\r\n250-CHUNKING\r\n250-STARTTLS\r\n250-DSN\r\n"
          + "250-X-UNKNOWN y\r\n250 SMTPUTF8\r\n"
      ).first)
    let offered = Capabilities(ehlo: reply)
    #expect(offered.size == 35_882_577)
    #expect(offered.authMechanisms == ["LOGIN", "PLAIN", "XOAUTH2", "CRAM-MD5"])
    #expect(offered.eightBitMIME && offered.pipelining && offered.chunking && offered.startTLS && offered.dsn)
    #expect(offered.smtpUTF8 && offered.enhancedStatusCodes)
    #expect(Capabilities(ehlo: Reply(250, nil, "SIZE 5")) == Capabilities())
    #expect(Capabilities(ehlo: Reply(250, nil, "x", "SIZE 0")).size == nil)
  }
}

@Suite struct SASLTests {
  @Test(arguments: [
    ("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="),
    ("foobar", "Zm9vYmFy"),
  ])
  func base64OfTheRFC(_ plain: String, _ encoded: String) {
    #expect(Base64.encode(Array(plain.utf8)) == encoded)
    #expect(Base64.decode(encoded) == Array(plain.utf8))
  }

  @Test func base64OfEveryOctetComesBack() {
    let all = (0...255).map { UInt8($0) }
    for count in 253...256 { #expect(Base64.decode(Base64.encode(all.prefix(count))) == Array(all.prefix(count))) }
  }

  @Test(arguments: ["Z", "Zg", "Zg=", "Zh==", "Zm9=", "====", "Zg==Zg==", "Z g=", "Zm9v\r\n", "Zm9*", "=Zg="])
  func whatIsNoBase64IsNil(_ text: String) { #expect(Base64.decode(text) == nil) }

  @Test func responsesAreAsTheirSpecificationsPrint() {
    #expect(SASL.plain(username: "tim", password: "tanstaaftanstaaf") == "AHRpbQB0YW5zdGFhZnRhbnN0YWFm")
    let xoauth2 = SASL.xoauth2(username: "someuser@example.com", token: "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg")
    #expect(xoauth2.hasPrefix("dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5"))
    #expect(SASL.decodePlain(SASL.plain(username: "ü", password: "p w")) == .init(username: "ü", password: "p w"))
    #expect(SASL.decodePlain(Base64.encode(Array("a\0b".utf8))) == nil)
    #expect(SASL.decodePlain(Base64.encode(Array("\0\0b".utf8))) == nil)
    let bearer = SASL.decodeBearer(SASL.oauthBearer(username: "a=b,c@x", host: "h", port: 587, token: "t0k"))
    #expect(bearer?.username == "a=b,c@x" && bearer?.token == "t0k")
    #expect(SASL.decodeBearer(xoauth2)?.username == "someuser@example.com")
    #expect(SASL.loginUsernameChallenge == "VXNlcm5hbWU6")
  }
}
