// The admin client against an HTTP server on a Unix socket.

import CommandLineTools
import FlyingFox
import FoundationEssentials
import Glibc
import Testing

@Suite struct AdminClientTests {
  @Test func requestsCarryMethodPathAndQuery() async throws {
    let path = "/tmp/ssmtp-admin-\(getpid())-\(UInt32.random(in: 0 ... .max)).sock"
    let handler = ClosureHTTPHandler { request in
      let query = request.query.map { "\($0.name)=\($0.value)" }.joined(separator: "&")
      return HTTPResponse(
        statusCode: request.path == "/gone" ? .notFound : .ok,
        body: Data("\(request.method.rawValue) \(request.path) \(query)".utf8))
    }
    let server = HTTPServer(address: .unix(path: path), logger: .disabled, handler: handler)
    let task = Task { try await server.run() }
    try await server.waitUntilListening()
    let client = AdminClient(socket: path)
    let listed = try client.request("GET", "/v1/queue?account=\(AdminClient.escaped("a b&c"))")
    #expect(listed.status == 200)
    #expect(String(decoding: listed.body, as: UTF8.self) == "GET /v1/queue account=a b&c")
    let posted = try client.request("POST", "/v1/queue/retry")
    #expect(String(decoding: posted.body, as: UTF8.self) == "POST /v1/queue/retry ")
    let deleted = try client.request("DELETE", "/gone")
    #expect(deleted.status == 404)
    #expect(String(decoding: deleted.body, as: UTF8.self) == "DELETE /gone ")
    task.cancel()
    unlink(path)
  }

  @Test func aMissingSocketSaysThatTheDaemonIsNotRunningAndNamesTheSocket() {
    let failure = #expect(throws: CommandFailure.self) {
      try AdminClient(socket: "/nonexistent/admin.sock").request("GET", "/v1/status")
    }
    #expect(failure?.status == .unavailable)
    #expect(failure?.description.contains("/nonexistent/admin.sock") == true)
  }
}
