// The admin client against an HTTP server on a Unix socket.

import CommandLineTools
import Glibc
import Network
import Testing

@testable import Daemon

@Suite struct AdminClientTests {
  @Test func requestsCarryMethodPathAndQuery() async throws {
    let path = "/tmp/ssmtp-admin-\(getpid())-\(UInt32.random(in: 0 ... .max)).sock"
    let service = HTTPService(loop: try EventLoop(name: "test.admin")) { request, _ in
      let query = request.query.map { "\($0.name)=\($0.value)" }.joined(separator: "&")
      return AdminResponse(
        request.path == "/gone" ? 404 : 200, "text/plain",
        .bytes(Array("\(request.method) \(request.path) \(query)".utf8)))
    }
    service.listen(on: try Listener(bindingTo: path, mode: 0o600))
    let client = AdminClient(socket: path)
    let listed = try client.request("GET", "/v1/queue?account=\(AdminClient.escaped("a b&c"))")
    #expect(listed.status == 200)
    #expect(String(decoding: listed.body, as: UTF8.self) == "GET /v1/queue account=a b&c")
    let posted = try client.request("POST", "/v1/queue/retry")
    #expect(String(decoding: posted.body, as: UTF8.self) == "POST /v1/queue/retry ")
    let deleted = try client.request("DELETE", "/gone")
    #expect(deleted.status == 404)
    #expect(String(decoding: deleted.body, as: UTF8.self) == "DELETE /gone ")
    await service.stop()
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
