// What the tests of the spool share.

import Primitives

@testable import Spool

let arrival = Timestamp(seconds: 1_795_000_000)

func envelope(_ accounts: [String] = ["example.com"], from: String = "a@example.org") -> Envelope {
  Envelope(
    reversePath: from,
    recipients: accounts.enumerated().map {
      Recipient(address: "r\($0.offset)@\($0.element)", original: "x\($0.offset)@local", account: $0.element)
    },
    arrival: arrival)
}

func body(_ count: Int, _ seed: Int = 0) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ seed) } }

func open(
  _ disk: any Disk, _ options: SpoolOptions = quiet, time: any Timekeeper = ManualTime(),
  onFailure: @escaping @Sendable (QueueError) -> Void = { _ in }
) throws -> Spool {
  try Spool.open(directory: "/q", disk: disk, time: time, options: options, onFailure: onFailure)
}

/// Nothing happens by the timer.
let quiet = SpoolOptions(syncInterval: .seconds(3600))
/// Small segments, for compaction.
let small = SpoolOptions(segmentSize: 8192, syncInterval: .seconds(3600))

extension Content {
  var inMemory: [UInt8]? { if case .bytes(let bytes) = self { bytes } else { nil } }
}

extension Spool {
  @discardableResult
  func queue(_ count: Int, accounts: [String] = ["example.com"], seed: Int = 0) async throws -> QueueID {
    let id = nextID()
    try await append(id, envelope(accounts), .bytes(body(count, seed)))
    return id
  }

  func ids() async -> [QueueID] { await entries(startingAfter: nil, limit: .max).map(\.id) }
}
