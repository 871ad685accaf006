// A small SMTP client with blocking calls: it does one thing after the other, so that a test can stop in between.

import Glibc
import Primitives
import Testing

final class Client {
  struct Broken: Error {}
  private let socket: CInt
  private var input: [UInt8] = []

  /// Connects, and says EHLO.
  init(port: UInt16, hello: String? = "client.example") throws {
    socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var limit = timeval(tv_sec: 60, tv_usec: 0)
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    let connected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    guard connected == 0 else { throw Broken() }
    guard let hello else { return }
    guard try reply().hasPrefix("220"), try say("EHLO \(hello)").hasPrefix("250") else { throw Broken() }
  }

  deinit { close(socket) }

  /// The next reply, its lines joined with `\n`.
  func reply() throws -> String {
    var lines: [String] = []
    while true {
      if let end = input.firstIndex(of: 0x0a) {
        let line = String(decoding: input[..<end].dropLast(), as: UTF8.self)
        input.removeSubrange(...end)
        lines.append(line)
        if line.dropFirst(3).first != "-" { return lines.joined(separator: "\n") }
        continue
      }
      var piece = [UInt8](repeating: 0, count: 4096)
      let count = recv(socket, &piece, piece.count, 0)
      guard count > 0 else { throw Broken() }
      input += piece[..<count]
    }
  }

  func send(_ text: String) throws { try send(bytes: Array(text.utf8)[...]) }

  func send(bytes: ArraySlice<UInt8>) throws {
    var bytes = bytes
    while !bytes.isEmpty {
      let count = bytes.withUnsafeBytes { Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
      guard count > 0 else { throw Broken() }
      bytes = bytes.dropFirst(count)
    }
  }

  func say(_ line: String) throws -> String {
    try send(line + "\r\n")
    return try reply()
  }

  /// One message, up to the reply to its end. `beforeDot` is told when the relay may already have it.
  func deliver(
    from sender: String = "jane@example.org", to recipient: String, _ content: String, beforeDot: () -> Void = {}
  ) throws -> String {
    for command in ["MAIL FROM:<\(sender)>", "RCPT TO:<\(recipient)>"] {
      let reply = try say(command)
      guard reply.hasPrefix("250") else { return reply }
    }
    let reply = try say("DATA")
    guard reply.hasPrefix("354") else { return reply }
    beforeDot()
    try send(content + ".\r\n")
    return try self.reply()
  }

  /// One message of octets, none of whose lines begins with a dot; `chunked` sends it with BDAT.
  func deliver(
    from sender: String = "jane@example.org", to recipient: String, _ content: [UInt8], chunked: Bool,
    beforeEnd: () -> Void = {}
  ) throws -> String {
    for command in ["MAIL FROM:<\(sender)>", "RCPT TO:<\(recipient)>"] {
      let reply = try say(command)
      guard reply.hasPrefix("250") else { return reply }
    }
    if chunked {
      try send("BDAT \(content.count) LAST\r\n")
    } else {
      let reply = try say("DATA")
      guard reply.hasPrefix("354") else { return reply }
    }
    beforeEnd()
    try send(bytes: content[...])
    if !chunked { try send(".\r\n") }
    return try self.reply()
  }
}

enum Letter {
  static func text(_ id: String, bytes: Int = 200) -> String {
    let line = String(repeating: "0123456789", count: 7) + "\r\n"
    return
      "From: jane@example.org\r\nTo: contact-sales@mailer.dreamlikelabs.com\r\nSubject: Test\r\nX-Test-ID: \(id)\r\n\r\n"
      + String(repeating: line, count: bytes / line.utf8.count + 1)
  }
}
