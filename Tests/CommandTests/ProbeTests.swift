// The probe against a stand-in for Gmail that works, and that fails in the ways upstreams do.

import CommandLineTools
import Delivery
import Glibc
import Network
import OAuth
import Primitives
import Sandbox
import TestSupport
import Testing

@Suite struct ProbeTests {
  private func probe(
    _ gmail: Gmail, security: TransportSecurity = .startTLS, password: String = Gmail.password,
    mechanism: Credential.Mechanism = .plain, port: UInt16? = nil, serverName: String = "localhost", trusts: Bool = true
  ) async throws -> ProbeReport {
    var target = ProbeTarget(
      domain: "dreamlikelabs.com", account: Gmail.user, host: "127.0.0.1", port: port ?? gmail.upstream.endpoint.port,
      security: security, login: .init(mechanism: mechanism, username: Gmail.user, secret: password),
      serverName: serverName, heloName: "mailer.dreamlikelabs.com")
    target.caFile = trusts ? gmail.caFile : nil
    target.timeout = .seconds(60)
    let report = await UpstreamProbe(target).run(on: Gmail.clientLoop)
    await gmail.stop()
    return report
  }

  private let wholeWay: [ProbeReport.Name] = [
    .dns, .tcp, .banner, .ehlo, .starttls, .chain, .name, .expiry, .ehlo, .features, .auth,
  ]

  @Test(arguments: [Credential.Mechanism.plain, .login])
  func everyStepPassesAgainstAHealthyUpstream(mechanism: Credential.Mechanism) async throws {
    let gmail = try await Gmail()
    let report = try await probe(gmail, mechanism: mechanism)
    #expect(report.ok)
    #expect(report.status == .success)
    #expect(report.steps.map(\.name) == wholeWay)
    #expect(gmail.upstream.statistics.messages == 0)
    #expect(!report.lines().joined().contains(Gmail.password))
  }

  @Test func tlsFromTheFirstByteIsProbedBeforeTheBanner() async throws {
    let gmail = try await Gmail(implicitTLS: true)
    let port = gmail.upstream.implicitTLSEndpoint.port
    let report = try await probe(gmail, security: .implicitTLS, port: port)
    #expect(report.ok)
    #expect(report.steps.map(\.name) == [.dns, .tcp, .tls, .chain, .name, .expiry, .banner, .ehlo, .features, .auth])
  }

  @Test func aWrongPasswordNamesTheAppPassword() async throws {
    let report = try await probe(Gmail(), password: "wrong")
    #expect(report.status == .configuration)
    #expect(report.steps.last?.name == .auth)
    #expect(report.steps.last?.detail.hasPrefix("535 5.7.8") == true)
    #expect(report.steps.last?.advice?.contains("app password") == true)
  }

  @Test(arguments: [true, false]) func accessTokenIsAskedForAndItsLackSaysWhatToDo(isGranted: Bool) async throws {
    let (gmail, server) = (try await Gmail(), try TokenServer())
    let file = RefreshTokenFile("\(server.folder)/refresh-token")
    try file.write(HiddenText("1//good"))
    server.honour(isGranted ? ["1//good"] : [])
    server.onIssue { gmail.upstream.accept(tokens: [Gmail.user: $0]) }
    let client = OAuthClient(id: TokenServer.clientID, secret: HiddenText(TokenServer.clientSecret))
    var grant = TokenGrant(
      .refreshToken(RefreshTokenGrant(client: client, file: file.path, seen: nil)), tokenURL: server.url)
    grant.caFile = server.caFile
    var target = ProbeTarget(
      domain: "dreamlikelabs.com", account: Gmail.user, host: "127.0.0.1", port: gmail.upstream.endpoint.port,
      security: .startTLS,
      login: .init(
        mechanism: .xoauth2, username: Gmail.user, secret: "", tokens: TokenCache(grant, time: SystemTime())),
      serverName: "localhost", heloName: "mailer.dreamlikelabs.com")
    target.caFile = gmail.caFile
    let report = await UpstreamProbe(target).run(on: Gmail.clientLoop)
    #expect(report.ok == isGranted)
    #expect(report.steps.last?.name == .auth)
    if !isGranted {
      #expect(report.status == .configuration)
      #expect(report.steps.last?.detail.contains("invalid_grant") == true)
      #expect(report.steps.last?.advice?.contains("oauth login") == true)
    }
    #expect(gmail.upstream.statistics.authentications == (isGranted ? 1 : 0))
    await gmail.stop()
    unlink(file.path)
    await server.stop()
  }

  @Test(arguments: [Credential.Mechanism.plain, .login])
  func secretThatTheUpstreamRepeatsIsNotShown(mechanism: Credential.Mechanism) async throws {
    let report = try await probe(Gmail([.rejectAuth("535 5.7.8 wrong: \(Gmail.password)")]), mechanism: mechanism)
    #expect(report.status == .configuration)
    #expect(report.steps.last?.detail.hasPrefix("535 (") == true)
    #expect(!report.lines().joined().contains(Gmail.password))
  }

  @Test func tooManyLoginsAreWorthWaitingFor() async throws {
    let report = try await probe(Gmail([.rejectAuth("454 4.7.0 Too many login attempts")]))
    #expect(report.status == .tryAgain)
    #expect(report.steps.last?.name == .auth)
  }

  @Test func aCertificateOfAnotherNameEndsTheProbeBeforeAnySecret() async throws {
    let gmail = try await Gmail()
    let report = try await probe(gmail, serverName: "smtp.gmail.com")
    #expect(report.status == .configuration)
    #expect(report.steps.last?.name == .name)
    #expect(gmail.upstream.statistics.authentications + gmail.upstream.statistics.authenticationFailures == 0)
  }

  @Test func aCertificateThatEndsSoonIsAWarningAndOneThatHasEndedIsTheEnd() async throws {
    let soon = try await probe(Gmail(valid: .seconds(-3600) ... .seconds(86_400 * 5 + 60)))
    #expect(soon.ok)
    let expiry = try #require(soon.steps.first { $0.name == .expiry })
    #expect(expiry.warning && expiry.detail.hasPrefix("5 days left"), "\(expiry)")
    let gmail = try await Gmail(valid: .seconds(-7200) ... .seconds(-3600))
    let late = try await probe(gmail)
    #expect(late.status == .configuration)
    #expect(late.steps.last?.name == .expiry)
    #expect(gmail.upstream.statistics.authentications + gmail.upstream.statistics.authenticationFailures == 0)
  }

  @Test func addressesFromAFileAreAWarningUnlessTheyAreThisMachine() async throws {
    struct Hosts: AddressSource {
      func addresses(of name: String) async throws(NetworkError) -> AddressAnswer {
        var answer = AddressAnswer(addresses: ["192.0.2.1"].compactMap { IPAddress($0) }, timeToLive: .seconds(10))
        answer.isFromDNS = false
        return answer
      }
    }
    var target = ProbeTarget(
      domain: "d", account: "a", host: "smtp.gmail.com", port: 587, security: .startTLS, login: nil, heloName: "h")
    target.timeout = .milliseconds(50)
    let report = await UpstreamProbe(target, names: Hosts()).run(on: Gmail.clientLoop)
    #expect(report.steps.first?.warning == true)
    #expect(report.steps.first?.advice?.contains("/etc/hosts") == true)
    let healthy = try await probe(Gmail())
    #expect(healthy.steps.allSatisfy { !$0.warning })
  }

  @Test func anUnknownAuthorityEndsTheProbeBeforeAnySecret() async throws {
    let gmail = try await Gmail()
    let report = try await probe(gmail, trusts: false)
    #expect(report.steps.last?.name == .chain)
    #expect(gmail.upstream.statistics.authentications + gmail.upstream.statistics.authenticationFailures == 0)
  }

  @Test func aStrippedSTARTTLSEndsTheProbeBeforeAnySecret() async throws {
    let gmail = try await Gmail([.stripSTARTTLS])
    let report = try await probe(gmail)
    #expect(report.status == .configuration)
    #expect(report.steps.last?.name == .starttls)
    #expect(gmail.upstream.statistics.credentialsInClear == 0)
  }

  @Test func aRefusingPortIsTemporary() async throws {
    let gmail = try await Gmail()
    // Binding the probe's port and closing it leaves a port that nobody listens on.
    let free = try Listener(bindingTo: #require(Endpoint("127.0.0.1:0")))
    let port = free.endpoint.port
    free.close()
    let report = try await probe(gmail, port: port)
    #expect(report.status == .tryAgain)
    #expect(report.steps.last?.name == .tcp)
    #expect(report.steps.last?.advice != nil)
  }

  private struct Table: AddressSource {
    let addresses: [String]
    func addresses(of name: String) async throws(NetworkError) -> AddressAnswer {
      AddressAnswer(addresses: addresses.compactMap { IPAddress($0) }, timeToLive: .seconds(300))
    }
  }

  @Test func everyAddressIsTriedAndADeadOneIsAWarning() async throws {
    let gmail = try await Gmail()
    var target = ProbeTarget(
      domain: "d", account: Gmail.user, host: "smtp.example", port: gmail.upstream.endpoint.port, security: .startTLS,
      login: .init(mechanism: .plain, username: Gmail.user, secret: Gmail.password), serverName: "localhost",
      heloName: "h.example")
    target.caFile = gmail.caFile
    target.timeout = .seconds(60)
    let report = await UpstreamProbe(target, names: Table(addresses: ["127.0.0.2", "127.0.0.1"])).run(
      on: Gmail.clientLoop)
    await gmail.stop()
    #expect(report.ok)
    let tries = report.steps.filter { $0.name == .tcp }
    #expect(tries.map(\.warning) == [true, false])
    #expect(tries.map(\.ok) == [true, true])
    #expect(report.lines().last?.contains("can send, 1 warning") == true, "\(report.lines())")
    #expect(ProbeReport.summary(of: [report]) == "all well: 1 upstream can send, with 1 warning")
  }

  @Test func missingExtensionsAndASmallerSizeArePointedOut() async throws {
    let gmail = try await Gmail([.noChunking, .noPipelining])
    var target = ProbeTarget(
      domain: "d", account: Gmail.user, host: "127.0.0.1", port: gmail.upstream.endpoint.port, security: .startTLS,
      login: nil, serverName: "localhost", heloName: "h.example")
    target.caFile = gmail.caFile
    target.maximumMessageSize = 40_000_000
    let report = await UpstreamProbe(target).run(on: Gmail.clientLoop)
    await gmail.stop()
    let features = try #require(report.steps.last)
    #expect(features.name == .features && features.ok && features.warning)
    #expect(features.detail.contains("no CHUNKING") && features.detail.contains("no PIPELINING"))
    #expect(features.advice?.contains("max_message_size = 35882577") == true)
  }

  @Test func theSummaryNamesWhereEachUpstreamEnds() async throws {
    let report = try await probe(Gmail(), password: "wrong")
    #expect(
      ProbeReport.summary(of: [report]) == "not well: 0 of 1 upstream can send; dreamlikelabs.com ends at auth")
    #expect(report.lines().last?.contains("✗ cannot send: it ends at auth") == true)
  }

  @Test func aNameThatDoesNotExistIsAMistakeAndSilenceIsNot() async throws {
    struct Nobody: AddressSource {
      let error: NetworkError
      func addresses(of name: String) async throws(NetworkError) -> AddressAnswer { throw error }
    }
    let target = ProbeTarget(
      domain: "d", account: "a", host: "smtp.example.invalid", port: 587, security: .startTLS, login: nil,
      heloName: "h")
    let loop = Gmail.clientLoop
    let unknown = await UpstreamProbe(
      target, names: Nobody(error: .resolution("the name smtp.example.invalid does not exist"))
    ).run(on: loop)
    #expect(unknown.status == .configuration)
    let silent = await UpstreamProbe(
      target, names: Nobody(error: .resolution("no name server answered for smtp.example.invalid"))
    ).run(on: loop)
    #expect(silent.status == .tryAgain)
  }
}
