// The HTTP that the daemon speaks, as clients try it that mean well and others.

import Delivery
import Glibc
import Network
import Primitives
import Spool
import Testing

@testable import Daemon

@Suite(.timeLimit(.minutes(1))) struct HTTPServiceTests {
  /// A service on a port of its own.
  private final class Door {
    let service: HTTPService
    let port: UInt16

    init(limits: HTTPLimits = HTTPLimits(), _ handler: @escaping HTTPService.Handler) throws {
      service = HTTPService(loop: try EventLoop(name: "test.http"), limits: limits, handler: handler)
      let listener = try Listener(bindingTo: try #require(Endpoint("127.0.0.1:0")))
      port = listener.endpoint.port
      service.listen(on: listener)
    }

    func connect() throws -> CInt {
      let socket = Glibc.socket(AF_INET, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_port = port.bigEndian
      address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
      var limit = timeval(tv_sec: 30, tv_usec: 0)
      setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
      let connected = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
      }
      try #require(connected == 0)
      return socket
    }

    /// Sends pieces, and reads until the other side closes.
    func ask(_ pieces: String..., on given: CInt? = nil) throws -> String {
      let socket = try given ?? connect()
      defer { close(socket) }
      for piece in pieces {
        let bytes = Array(piece.utf8)
        var sent = 0
        while sent < bytes.count {
          let count = bytes[sent...].withUnsafeBytes { send(socket, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
          if count <= 0 { break }
          sent += count
        }
      }
      var answer: [UInt8] = []
      var piece = [UInt8](repeating: 0, count: 65536)
      while true {
        let count = recv(socket, &piece, piece.count, 0)
        if count <= 0 { return String(decoding: answer, as: UTF8.self) }
        answer += piece[..<count]
      }
    }
  }

  private static let echo: HTTPService.Handler = { request, body in
    var bytes: [UInt8] = []
    for try await piece in body { bytes += piece }
    let query = request.query.map { "\($0.name)=\($0.value)" }.joined(separator: ";")
    return AdminResponse(200, "text/plain", .bytes(Array("\(request.method) \(request.path) \(query) ".utf8) + bytes))
  }

  private static func report() -> StatusReport {
    StatusReport(
      version: "1", pid: 1, startedAt: "", uptimeSeconds: 1, state: "ready", hostname: "relay.example", listeners: [],
      queueMessages: 0, queueBytes: 0, queueDiskBytes: 0, queueFreeBytes: nil, queueIsShortOfSpace: false,
      queueNeedsFreeBytes: nil, queueHeld: 0, queueDead: 0, sessions: 0, sessionsTotal: 0, sessionsRefused: 0,
      accepted: 0, refused: 0, accounts: [])
  }

  @Test(arguments: [
    ("GET /metrics HTTP/1.1", "200 OK"), ("GET /healthz HTTP/1.0", "200 OK"), ("GET /readyz?x=y HTTP/1.1", "200 OK"),
    ("GET / HTTP/1.1", "404 Not Found"), ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
    ("HEAD /healthz HTTP/1.1", "405 Method Not Allowed"), ("GET /metrics", "400 Bad Request"),
    ("GET metrics HTTP/1.1", "400 Bad Request"), ("GET /%zz HTTP/1.1", "400 Bad Request"),
    ("GET /healthz SMTP/1.1", "400 Bad Request"), ("EHLO client.example", "400 Bad Request"),
  ])
  func monitorsGetAnAnswerForEachRequest(_ line: String, _ status: String) async throws {
    let pages = MonitorPages { Self.report() }
    let door = try Door { request, _ in try await pages.answer(request) }
    for end in ["\r\n", "\n"] {
      let answer = try door.ask("\(end)\(line)\(end)Host: relay\(end)\(end)")
      #expect(answer.hasPrefix("HTTP/1.1 \(status)\r\n"), "\(answer)")
      #expect(answer.contains("Connection: close\r\n"))
    }
    await door.service.stop()
  }

  @Test func notificationsAreCountedForMonitors() {
    var report = Self.report()
    var counts = NotificationCounts()
    counts.sent = [.failure: 3, .delivery: 1]
    counts.withheld = 2
    report.add(counts)
    for line in [
      "notifications_total{kind=\"failure\"} 3", "notifications_total{kind=\"delay\"} 0",
      "notifications_total{kind=\"delivery\"} 1", "notifications_withheld_total 2",
    ] { #expect(report.metrics.contains("\nssmtp_mailer_\(line)\n"), "\(report.metrics)") }
  }

  @Test func aHeadOfAnySizeIsRefusedAtOnceAndHoldsNobodyUp() async throws {
    let door = try Door(Self.echo)
    for _ in 0..<4 {
      let answer = try door.ask("GET / HTTP/1.1\r\nX: ", String(repeating: "a", count: 400_000), "\r\n\r\n")
      #expect(answer.hasPrefix("HTTP/1.1 431 "), "\(answer)")
    }
    let many = (0..<20_000).map { "X-\($0): y\r\n" }.joined()
    #expect(try door.ask("GET / HTTP/1.1\r\n\(many)\r\n").hasPrefix("HTTP/1.1 431 "))
    #expect(try door.ask("GET /a HTTP/1.1\r\n\r\n").hasSuffix("GET /a  "))
    await door.service.stop()
  }

  @Test func clientsThatSayNothingAreTurnedAwayInTimeAndAreFew() async throws {
    let door = try Door(limits: HTTPLimits(headTime: .milliseconds(300), connections: 2), Self.echo)
    let silent = [try door.connect(), try door.connect()]
    defer { for socket in silent { close(socket) } }
    // Accepted in their order: the third is one too many, until the first two have had their time.
    #expect(try door.ask("GET / HTTP/1.1\r\n\r\n").hasPrefix("HTTP/1.1 503 "))
    for socket in silent {
      var byte: UInt8 = 0
      #expect(recv(socket, &byte, 1, 0) == 0, "it is closed")
    }
    var answer = ""
    while !answer.hasPrefix("HTTP/1.1 200") { answer = try door.ask("GET / HTTP/1.1\r\n\r\n") }
    await door.service.stop()
  }

  /// A content that can be read up to some octet.
  private struct Hurt: StoredContent {
    let count = 1 << 20
    let readable: Int
    func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
      if offset >= readable { throw .io(operation: "open", path: "/q/content/x", errno: ENOENT) }
      return [UInt8](repeating: 0x61, count: count)
    }
  }

  @Test(arguments: [0, 1 << 18]) func whatCannotBeReadIsNotPromised(_ readable: Int) async throws {
    let door = try Door { _, _ in AdminResponse(200, "message/rfc822", .file(Hurt(readable: readable))) }
    let answer = try door.ask("GET /x HTTP/1.1\r\n\r\n")
    if readable == 0 {
      #expect(answer.hasPrefix("HTTP/1.1 500 "), "\(answer)")
      #expect(answer.contains("/q/content/x"))
    } else {
      #expect(answer.hasPrefix("HTTP/1.1 200 "))
      #expect(answer.utf8.count < 1 << 20)
    }
    await door.service.stop()
  }

  @Test func bodiesComeWholeHoweverTheyAreCut() async throws {
    let door = try Door(Self.echo)
    let body = String(repeating: "0123456789", count: 30_000)
    let head = "POST /v1/x?a=b%20c&d=%26 HTTP/1.1\r\nContent-Length: \(body.utf8.count)\r\n"
    #expect(try door.ask(head + "\r\n", body).hasSuffix("POST /v1/x a=b c;d=& \(body)"))
    let waited = try door.ask(head + "Expect: 100-continue\r\n\r\n" + body.prefix(7), String(body.dropFirst(7)))
    #expect(waited.hasPrefix("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"))
    for bad in ["Content-Length: -1", "Content-Length: 1\r\nContent-Length: 1", "Content-Length: x", "no field"] {
      #expect(try door.ask("POST / HTTP/1.1\r\n\(bad)\r\n\r\n").hasPrefix("HTTP/1.1 400 "), "\(bad)")
    }
    #expect(try door.ask("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").hasPrefix("HTTP/1.1 411 "))
    await door.service.stop()
  }
}
