// The cache of names, with a clock that the test moves.

import Glibc
import Primitives
import Testing

@testable import Network

@Suite(.timeLimit(.minutes(1))) struct ResolverTests {
  final class Table: AddressSource {
    let answer = Mutex<Result<AddressAnswer, NetworkError>>(.failure(.resolution("no answer yet")))
    let questions = Mutex(0)
    let gate: Gate?

    init(gate: Gate? = nil) { self.gate = gate }

    func give(_ addresses: [String], seconds: Int64) {
      answer.withLock {
        $0 = .success(
          AddressAnswer(addresses: addresses.compactMap { IPAddress($0) }, timeToLive: .seconds(seconds)))
      }
    }
    func fail() { answer.withLock { $0 = .failure(.resolution("no name server answered")) } }

    func addresses(of name: String) async throws(NetworkError) -> AddressAnswer {
      questions.withLock { $0 += 1 }
      await gate?.pass()
      return try answer.withLock { $0 }.get()
    }
  }

  private func texts(_ resolver: Resolver, _ name: String = "smtp.example.test") async throws -> [String] {
    try await resolver.addresses(of: name).map(\.description)
  }

  @Test func answerIsKeptForItsTimeToLiveAndNoLonger() async throws {
    let (table, time) = (Table(), ManualTime())
    let resolver = Resolver(source: table, time: time)
    table.give(["192.0.2.1"], seconds: 60)
    #expect(try await texts(resolver) == ["192.0.2.1"])
    table.give(["192.0.2.2"], seconds: 60)
    time.advance(by: .seconds(59))
    #expect(try await texts(resolver, "SMTP.Example.Test") == ["192.0.2.1"])
    #expect(table.questions.withLock { $0 } == 1)
    time.advance(by: .seconds(1))
    #expect(try await texts(resolver) == ["192.0.2.2"])
    #expect(table.questions.withLock { $0 } == 2)
  }

  @Test func manyWhoAskAtOnceCauseOneQuestion() async throws {
    let gate = Gate()
    let (table, time) = (Table(gate: gate), ManualTime())
    let resolver = Resolver(source: table, time: time)
    table.give(["192.0.2.1"], seconds: 60)
    try await withThrowingTaskGroup(of: [IPAddress].self) { group in
      for _ in 0..<50 { group.addTask { try await resolver.addresses(of: "smtp.example.test") } }
      // Any of them may come before or after the gate opens: one question in either case.
      gate.open()
      for try await addresses in group { #expect(addresses.map(\.description) == ["192.0.2.1"]) }
    }
    #expect(table.questions.withLock { $0 } == 1)
  }

  @Test func lastGoodAnswerServesWhileNobodyAnswersButNotForEver() async throws {
    let (table, time) = (Table(), ManualTime())
    let resolver = Resolver(source: table, time: time)
    await #expect(throws: NetworkError.self) { try await texts(resolver) }
    table.give(["192.0.2.1"], seconds: 60)
    #expect(try await texts(resolver) == ["192.0.2.1"])
    table.fail()
    time.advance(by: .seconds(3600))
    #expect(try await texts(resolver) == ["192.0.2.1"])
    time.advance(by: .seconds(86_400))
    await #expect(throws: NetworkError.resolution("no name server answered")) { try await texts(resolver) }
  }

  @Test func familiesTakeTurns() async throws {
    let (table, time) = (Table(), ManualTime())
    let resolver = Resolver(source: table, time: time)
    table.give(["192.0.2.1", "192.0.2.2", "2001:db8::1"], seconds: 60)
    #expect(try await texts(resolver) == ["2001:db8::1", "192.0.2.1", "192.0.2.2"])
  }

  @Test(arguments: ["192.0.2.9", "2001:db8::9"]) func literalNeedsNoQuestion(text: String) async throws {
    let table = Table()
    #expect(try await texts(Resolver(source: table, time: ManualTime()), text) == [text])
    #expect(table.questions.withLock { $0 } == 0)
  }

  @Test func hostsFileIsReadWithCommentsAndAliases() async throws {
    let directory = TemporaryDirectory()
    let path = directory.path + "/hosts"
    let file = try #require(fopen(path, "w"))
    fputs("# 192.0.2.1 mail\n192.0.2.2\tmx.test Mail # 192.0.2.3 other\n2001:db8::2 mail\nnonsense mail\n", file)
    fclose(file)
    let names = SystemNames(hostsFile: path)
    #expect(names.fromHosts("mail").map(\.description) == ["192.0.2.2", "2001:db8::2"])
    #expect(names.fromHosts("mx.test").map(\.description) == ["192.0.2.2"])
    #expect(names.fromHosts("other").isEmpty)
    #expect(names.fromHosts("smtp.localhost").map(\.description) == ["127.0.0.1", "::1"])
    let answer = try await names.addresses(of: "mail")
    #expect(!answer.isFromDNS)
  }
}
