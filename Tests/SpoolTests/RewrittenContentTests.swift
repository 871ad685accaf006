// A large content that is made of another one under the same identifier, as mail filters have it made.

import Primitives
import Testing

@testable import Spool

@Suite struct RewrittenContentTests {
  @Test func contentIsMadeOfADiscardedOneOfTheSameName() async throws {
    let disk = MemoryDisk()
    let spool = try open(disk)
    let id = spool.nextID()
    let old = try await spool.makeContentWriter(for: id)
    let whole = body(300_000)
    try await old.write(Array(whole[..<200_000]))
    try await old.write(Array(whole[200_000...]))
    #expect(try await old.read(at: 199_990, count: 20) == Array(whole[199_990..<200_010]))
    await old.discard()
    let new = try await spool.makeContentWriter(for: id)
    try await new.write([1, 2, 3])
    var offset = 0
    while offset < 300_000 {
      let piece = try await old.read(at: offset, count: 65_536)
      try #require(!piece.isEmpty)
      try await new.write(piece)
      offset += piece.count
    }
    #expect(try await old.read(at: 300_000, count: 1).isEmpty)
    try await spool.append(id, envelope(), try await new.finish())
    await old.discard()
    await spool.close()

    let again = try open(disk)
    guard case .file(let file) = try #require(await again.read(id)).content else {
      Issue.record("it is not in a file")
      return
    }
    #expect(file.count == 300_003)
    #expect(try await file.read(at: 0, count: 400_000) == [1, 2, 3] + whole)
    await again.close()
  }
}
