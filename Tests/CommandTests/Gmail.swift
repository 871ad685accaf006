// The sandbox as these tests use it: on a free port, with a certificate of its own.

import Glibc
import Network
import Primitives
import Sandbox

/// A stand-in for Gmail with an authority that a client can be told to trust.
struct Gmail {
  let upstream: Upstream
  let caFile: String
  private let directory: String

  /// Loops live as long as the process: executors are not kept alive by the jobs that are still on their way to them.
  static let loops = (0..<2).compactMap { try? EventLoop(name: "test-\($0)") }
  static var clientLoop: EventLoop { loops[1] }

  static let user = "mail-relay@dreamlikelabs.com"
  static let password = "your_gmail_app_password_here"

  init(
    _ script: [Rule] = [], names: [String] = ["localhost", "127.0.0.1"], implicitTLS: Bool = false,
    valid: ClosedRange<Duration> = .seconds(-3600) ... .seconds(86_400 * 30)
  ) async throws {
    var template = Array("/tmp/ssmtp-command-tests.XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw SandboxError.system("mkdtemp", errno) }
    directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    caFile = directory + "/ca.pem"
    let authority = try CertificateAuthority(commonName: "Sandbox")
    try authority.writeCertificate(to: caFile)
    try authority.issue(names: names, valid: valid).write(
      certificateFile: directory + "/cert.pem", keyFile: directory + "/key.pem")
    var options = UpstreamOptions(certificateFile: directory + "/cert.pem", keyFile: directory + "/key.pem")
    options.passwords = [Self.user: Self.password]
    options.script = script
    options.loops = [Self.loops[0]]
    if implicitTLS { options.implicitTLSEndpoint = Endpoint("127.0.0.1:0") }
    upstream = try await Upstream.start(options)
  }

  func stop() async {
    await upstream.stop()
    for name in ["ca.pem", "cert.pem", "key.pem"] { unlink("\(directory)/\(name)") }
    rmdir(directory)
  }
}
