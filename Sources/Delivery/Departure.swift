// How a message leaves: under which reverse-path and From. What is queued stays as it came, so that our own notices go
// to the original sender with the original header, and an attempt that is made again starts from the same octets.

import Message
import SMTP
import Spool

/// What one account changes about a message on the way out.
public struct Departure: Sendable {
  /// Without `<>`; empty for the null reverse-path.
  public var reversePath: String
  /// nil leaves the From field alone.
  public var from: FromRewriting?

  public init(reversePath: String, from: FromRewriting? = nil) {
    self.reversePath = reversePath
    self.from = from
  }

  /// A header that is longer than this is left as it is.
  static let headerLimit = 1 << 20
  private static let firstLook = 64 << 10

  func content(_ bytes: [UInt8]) -> [UInt8] {
    guard let from, bytes.count <= Self.headerLimit || Self.hasWholeHeader(bytes.prefix(Self.headerLimit)) else {
      return bytes
    }
    return from.rewritten(bytes) ?? bytes
  }

  /// Of a content that is in a file, only the header is read.
  func content(_ content: Content) async throws(QueueError) -> Content {
    guard let from else { return content }
    switch content {
    case .bytes(let bytes): return .bytes(self.content(bytes))
    case .file(let file):
      var count = min(Self.firstLook, file.count)
      while true {
        let beginning = try await file.read(at: 0, count: count)
        if Self.hasWholeHeader(beginning[...]) || beginning.count == file.count {
          guard let splice = beginning.withUnsafeBytes({ from.splice($0) }) else { return content }
          // The checksum of a content is told to who reads it from its beginning on, and the rest goes on from here.
          _ = try await file.read(at: 0, count: splice.resumesAt)
          return .file(SplicedContent(beginning: splice.beginning, rest: file, offset: splice.resumesAt))
        }
        if beginning.count < count || count >= min(Self.headerLimit, file.count) { return content }
        count = min(count * 4, Self.headerLimit, file.count)
      }
    }
  }

  private static func hasWholeHeader(_ bytes: ArraySlice<UInt8>) -> Bool {
    bytes.withUnsafeBytes { HeaderView($0).bodyStart < $0.count }
  }
}

/// A content whose beginning is another than that of its file.
private struct SplicedContent: StoredContent {
  let beginning: [UInt8]
  let rest: any StoredContent
  /// Where in `rest` it goes on behind the beginning.
  let offset: Int

  var count: Int { beginning.count + rest.count - offset }

  func read(at position: Int, count wanted: Int) async throws(QueueError) -> [UInt8] {
    guard position < beginning.count else {
      return try await rest.read(at: position - beginning.count + offset, count: wanted)
    }
    let piece = Array(beginning[position..<min(position + wanted, beginning.count)])
    let missing = min(wanted - piece.count, rest.count - offset)
    return missing > 0 ? piece + (try await rest.read(at: offset, count: missing)) : piece
  }
}

extension DeliveryServices {
  /// A job as it leaves through an account. Of a content that is in a file the header may have to be read.
  func leaving(_ job: Job, by account: String) async throws(QueueError) -> Job {
    guard case .file = job.content, let departure = departure(account, job.lane, job.envelope) else {
      return leavingNow(job, by: account)
    }
    var job = job
    job.reversePath = departure.reversePath
    job.outgoing = try await departure.content(job.content)
    return job
  }

  /// The same for a message that is in memory.
  func leavingNow(_ job: Job, by account: String) -> Job {
    guard case .bytes(let bytes) = job.content, let departure = departure(account, job.lane, job.envelope) else {
      return job
    }
    var job = job
    job.reversePath = departure.reversePath
    job.outgoing = .bytes(departure.content(bytes))
    return job
  }
}
