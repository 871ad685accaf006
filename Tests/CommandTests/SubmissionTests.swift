// Submissions to a server that takes, refuses and puts off.

import Network
import Primitives
import SMTP
import Sandbox
import Testing

@testable import CommandLineTools

@Suite struct SubmissionTests {
  private static let content = Array("Subject: one\r\n\r\n.dot\r\n".utf8)

  private func submit(
    toOpenRelay recipients: [String], recipientLimit: Int = .max
  ) async throws -> (Submission.Report, OpenRelay) {
    let relay = try OpenRelay(on: Gmail.loops[0], recipientLimit: recipientLimit)
    await relay.start()
    let submission = Submission(
      reversePath: "noreply@mailer.dreamlikelabs.com", recipients: recipients, content: Self.content,
      heloName: "localhost")
    let report = try await submission.submit(to: relay.endpoint, on: Gmail.clientLoop)
    await relay.stop()
    return (report, relay)
  }

  @Test func anAcceptedMessageArrivesWholeAndItsIDIsReported() async throws {
    let (report, relay) = try await submit(toOpenRelay: ["a@example.com", "b@example.com"])
    #expect(report.status == .success)
    #expect(report.queueIDs == ["id1"])
    #expect(await relay.contents == [String(decoding: Self.content, as: UTF8.self)])
    #expect(await relay.commands.filter { $0.hasPrefix("RCPT") }.count == 2)
  }

  @Test(arguments: [("no@example.com", CommandLineTools.ExitStatus.refused), ("later@example.com", .tryAgain)])
  func oneRefusedRecipientDoesNotHideThatTheOthersWereQueued(refused: String, status: CommandLineTools.ExitStatus)
    async throws
  {
    let (report, _) = try await submit(toOpenRelay: ["a@example.com", refused])
    #expect(report.status == status)
    #expect(report.queueIDs == ["id1"])
    #expect(report.results.filter { !$0.isAccepted }.map(\.recipient) == [refused])
  }

  @Test func moreThanAHundredRecipientsTakeSeveralTransactions() async throws {
    let (report, relay) = try await submit(toOpenRelay: (1...250).map { "r\($0)@example.com" })
    #expect(report.status == .success)
    #expect(report.queueIDs == ["id1", "id2", "id3"])
    #expect(await relay.commands.filter { $0.hasPrefix("RCPT") }.count == 250)
  }

  @Test func recipientsThatAreTooManyForTheServerFollowInFurtherTransactions() async throws {
    let recipients = (1...7).map { "r\($0)@example.com" }
    let (report, relay) = try await submit(toOpenRelay: recipients + ["no@example.com"], recipientLimit: 3)
    #expect(report.results.filter(\.isAccepted).map(\.recipient) == recipients)
    #expect(report.results.filter { !$0.isAccepted }.map(\.recipient) == ["no@example.com"])
    #expect(report.queueIDs == ["id1", "id2", "id3"])
    #expect(await relay.contents.count == 3)
    // A server that takes nobody at all is asked once.
    let (none, _) = try await submit(toOpenRelay: recipients, recipientLimit: 0)
    #expect(none.status == .tryAgain && none.results.count == 7)
  }

  /// The sandbox wants a login, as Gmail does, so it refuses whatever comes from here.
  private func submit(_ script: [Rule], to recipients: [String]) async throws -> (Submission.Report, Gmail) {
    let gmail = try await Gmail(script)
    let submission = Submission(
      reversePath: "noreply@mailer.dreamlikelabs.com", recipients: recipients, content: Self.content,
      heloName: "localhost")
    let report = try await submission.submit(to: gmail.upstream.endpoint, on: Gmail.clientLoop)
    await gmail.stop()
    return (report, gmail)
  }

  @Test func aRefusalIsReportedForEachRecipient() async throws {
    let (report, _) = try await submit([], to: ["a@example.com", "b@example.com"])
    #expect(report.status == .refused)
    #expect(report.queueIDs.isEmpty)
    #expect(report.results.map(\.recipient) == ["a@example.com", "b@example.com"])
    #expect(report.results.allSatisfy { $0.reply.code == 530 })
  }

  @Test(arguments: [("554 5.7.1 Not you", CommandLineTools.ExitStatus.refused), ("421 4.3.2 Not now", .tryAgain)])
  func aGreetingThatRefusesIsShownAsItIs(greeting: String, status: CommandLineTools.ExitStatus) async throws {
    let failure = await #expect(throws: CommandFailure.self) {
      _ = try await submit([.answer(.banner, greeting)], to: ["a@example.com"])
    }
    #expect(failure?.status == status)
    #expect(failure?.description.contains(greeting) == true)
  }

  @Test func nobodyListeningIsUnavailable() async throws {
    let free = try Listener(bindingTo: #require(Endpoint("127.0.0.1:0")))
    let endpoint = free.endpoint
    free.close()
    let submission = Submission(
      reversePath: "", recipients: ["a@example.com"], content: Self.content, heloName: "localhost")
    let failure = await #expect(throws: CommandFailure.self) {
      _ = try await submission.submit(to: endpoint, on: Gmail.clientLoop)
    }
    #expect(failure?.status == .unavailable)
  }

  @Test(arguments: [
    ("Queued as 1a2b3c", "1a2b3c"), ("Ok: queued as 4fX", "4fX"),
    ("OK 1795000000 x-1.2 - gsmtp", "OK 1795000000 x-1.2 - gsmtp"),
  ])
  func theQueueIDIsReadFromTheReply(text: String, id: String) {
    #expect(Submission.queueID(in: Reply(250, "2.0.0", text)) == id)
  }
}
