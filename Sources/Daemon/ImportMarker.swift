// `NAME.importing`: which message an import has begun to hand over, and the id that it has in the queue if it got there.
// docs/export-format.md says the same for people.

import Spool

/// What `queue import` writes down before it hands a message over, so that a later run takes no other one for it.
public struct ImportMarker: Sendable, Equatable {
  public var id: QueueID
  public var content: MessageDocument.Content
  public var sender: String
  public var arrival: String?
  public var recipients: [String]

  public init(_ id: QueueID, _ document: MessageDocument, _ content: MessageDocument.Content) {
    self.id = id
    self.content = content
    sender = document.sender
    arrival = document.arrival
    recipients = document.recipients.map(\.address)
  }

  /// Reads the lines of a marker.
  public init(_ bytes: [UInt8]) throws(MessageDocument.Malformed) {
    var values: [String: [String]] = [:]
    for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
      let parts = line.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: false)
      values[String(parts[0]), default: []].append(parts.count == 2 ? String(parts[1]) : "")
    }
    guard let id = values["id"]?.first.flatMap({ QueueID($0) }) else {
      throw .init(description: "it names no id of a message, so an import did not write it like this")
    }
    guard let octets = values["octets"]?.first.flatMap({ Int($0) }), let crc = values["crc32c"]?.first,
      let sender = values["sender"]?.first, let recipients = values["recipient"]
    else {
      throw .init(description: "it names the id \(id), but not the message that was to have it")
    }
    self.id = id
    content = .init(octets: octets)
    content.crc32c = crc
    self.sender = sender
    arrival = values["arrival"]?.first
    self.recipients = recipients
  }

  /// The lines of a marker. Addresses and times that have been checked have no line breaks.
  public var text: String {
    var lines = ["id \(id)", "octets \(content.octets)", "crc32c \(content.crc32c ?? "")", "sender \(sender)"]
    if let arrival { lines.append("arrival \(arrival)") }
    lines += recipients.map { "recipient \($0)" }
    return lines.joined(separator: "\n") + "\n"
  }
}
