// Hashes as crypt(3) makes them: which are taken, what matches, and how many are checked at once.

import Primitives
import Testing

@testable import Passwords

@Suite struct PasswordTests {
  @Test func madeHashMatchesItsPasswordAlone() throws {
    let hash = try PasswordHash.make(of: "correct horse")
    #expect(hash.method == .yescrypt && hash.text.hasPrefix("$y$"))
    #expect(hash.matches("correct horse"))
    for wrong in ["correct hors", "correct horse ", "Correct horse", "", "correct horse\0", "correct\0horse"] {
      #expect(!hash.matches(wrong), "\(wrong)")
    }
    #expect(!hash.matches([UInt8](repeating: 0x61, count: 513)) && !hash.matches([UInt8](repeating: 0x61, count: 512)))
    #expect(try PasswordHash.make(of: "correct horse").text != hash.text, "the salt is new each time")
  }

  /// From `openssl passwd -6` and `-5`.
  @Test(arguments: [
    "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
    "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5",
  ])
  func hashesOfOtherProgramsAreUnderstood(_ text: String) throws {
    let hash = try PasswordHash(text)
    #expect(hash.matches("Hello world!"))
    #expect(!hash.matches("Hello world"))
  }

  @Test(arguments: [
    ("secret", "not a hash"), ("", "not a hash"), ("$1$salt$qJH7.N4xYta3aEG/dfqo/0", "$1$ is not accepted"),
    ("$2b$12$abcdefghijklmnopqrstuuQXqf2nOx9sbGmnvUFjHmRoYi1pUqKxK", "$2b$ is not accepted"),
    ("$6$saltstring$short", "cut off"), ("$6$x", "cut off"), ("$y$j9T$salt$", "cut off"), ("$y$", "cut off"),
    ("{SSHA}abc", "not a hash"), ("$6$salt with blank$x", "not a hash"),
  ])
  func whatIsNoStrongHashIsRefusedWithTheReason(_ text: String, _ reason: String) {
    do throws(PasswordHash.Fault) {
      _ = try PasswordHash(text)
      Issue.record("\(text) was taken")
    } catch { #expect(error.description.contains(reason), "\(error)") }
  }

  @Test func hashShowsNothingOfItself() throws {
    let hash = try #require(PasswordHash.unattainable)
    #expect("\(hash)" == "<redacted>" && "\([hash])" == "[<redacted>]" && !String(reflecting: hash).contains("j9T"))
    #expect(!hash.matches("anything"))
  }

  /// Keeps its work until it is told to go on.
  final class Held: WorkQueue {
    let work = Mutex<[@Sendable () -> Void]>([])
    func async(_ work: @escaping @Sendable () -> Void) { self.work.withLock { $0.append(work) } }
    func async(after wait: Duration, _ work: @escaping @Sendable () -> Void) { async(work) }
  }

  @Test func checksThatWaitAreBounded() async throws {
    let held = Held()
    let checker = PasswordChecker(queues: [held], limit: 2)
    let hash = try #require(PasswordHash.unattainable)
    async let first = checker.check([0x61], against: hash)
    async let second = checker.check([0x62], against: hash)
    while held.work.withLock({ $0.count }) < 2 { await Task.yield() }
    #expect(await checker.check([0x63], against: hash) == nil)
    for work in held.work.withLock({ $0 }) { work() }
    #expect(await first == false)
    #expect(await second == false)
    async let third = checker.check([0x64], against: hash)
    while held.work.withLock({ $0.count }) < 3 { await Task.yield() }
    held.work.withLock { $0[2] }()
    #expect(await third == false)
  }
}
