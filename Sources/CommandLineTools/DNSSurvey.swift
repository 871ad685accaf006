// Finds out what the DNS says about a configuration. The judgement is a pure function of the answers at hand; it names
// the questions that it still needs, they are asked all at once, and it runs again until it needs no more.

import Network
import Primitives

/// The answers so far, and the questions that were asked in vain.
public struct DNSEvidence: Sendable {
  public struct Question: Hashable, Sendable {
    public var name: String
    public var type: DNSType

    public init(_ name: String, _ type: DNSType) {
      self.name = DNSPlan.normal(name)
      self.type = type
    }
  }

  public private(set) var answers: [Question: DNSAnswer]
  public private(set) var wanted: Set<Question> = []

  public init(_ answers: [Question: DNSAnswer] = [:]) { self.answers = answers }

  /// The answer to a question; nil, and noted as wanted, when there is none yet.
  mutating func ask(_ name: String, _ type: DNSType) -> DNSAnswer? {
    let question = Question(name, type)
    if let answer = answers[question] { return answer }
    wanted.insert(question)
    return nil
  }

  /// A and AAAA together: the addresses, or why they are not known.
  mutating func addresses(of name: String) -> (addresses: [IPAddress], failure: DNSFailure?, alias: String?)? {
    let (a, aaaa) = (ask(name, .a), ask(name, .aaaa))
    guard let a, let aaaa else { return nil }
    let failures = [a, aaaa].compactMap { answer -> DNSFailure? in
      if case .failed(let failure) = answer.status { failure } else { nil }
    }
    let addresses = a.addresses + aaaa.addresses
    return (addresses, addresses.isEmpty ? failures.first : nil, a.alias ?? aaaa.alias)
  }

  mutating func take(_ more: [Question: DNSAnswer]) {
    answers.merge(more) { _, new in new }
    wanted = []
  }
}

/// Asks what a plan needs, and judges.
public struct DNSSurvey: Sendable {
  private let source: any DNSSource
  /// A chain of SPF records is as long as the rounds it needs; the judgement gives it up at thirty, and a few more come
  /// before it.
  private static let roundLimit = 48

  public init(_ source: any DNSSource) { self.source = source }

  public func run(_ plan: DNSPlan) async -> DNSReport {
    var evidence = DNSEvidence()
    for _ in 0..<Self.roundLimit {
      let findings = DNSJudge.findings(plan, &evidence)
      if evidence.wanted.isEmpty { return DNSReport(findings) }
      evidence.take(await answers(to: evidence.wanted))
    }
    return DNSReport(DNSJudge.findings(plan, &evidence))
  }

  private func answers(to questions: Set<DNSEvidence.Question>) async -> [DNSEvidence.Question: DNSAnswer] {
    await withTaskGroup(of: (DNSEvidence.Question, DNSAnswer).self) { [source] group in
      for question in questions { group.addTask { (question, await source.ask(question.name, question.type)) } }
      var result: [DNSEvidence.Question: DNSAnswer] = [:]
      for await (question, answer) in group { result[question] = answer }
      return result
    }
  }
}
