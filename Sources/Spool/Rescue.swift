// What can be made of a message that is not what was written. One message must not stop all the others: it is kept back
// with what is left of it, and a person decides.

import Primitives

extension SpoolCore {
  /// The message as far as it can be read, on hold; nil when not even its envelope is whole.
  ///
  /// Its content is as it is on the disk, octets that cannot be read are zeros. Content in a file is not looked at.
  func rescued(_ place: Located, because damage: String) -> QueuedMessage? {
    guard let front = try? front(place) else { return nil }
    // An older state, when the latest cannot be read: it may have been delivered to somebody since, but nobody gets it
    // without a decision.
    var state = (try? self.state(place)) ?? front.state
    state.keepBack(damagedBy: damage, at: time.wallClock)
    let content: Content
    if place.entry.hasFile {
      content = .file(contentFile(place, front))
    } else {
      content = .bytes((try? PatientFile(place.file).bytes(Int(place.entry.size), at: place.contentOffset)) ?? [])
    }
    return QueuedMessage(
      id: QueueID(rawValue: place.entry.id), envelope: front.envelope, state: state, content: content)
  }

  /// What there is to show of a message that cannot be read: it can be listed, and deleted.
  func shown(_ place: Located, _ error: QueueError) -> QueuedMessage {
    if var message = rescued(place, because: "\(error)") {
      message.content = .bytes([])
      return message
    }
    var state = MessageState()
    state.keepBack(damagedBy: "\(error)", at: time.wallClock)
    let arrival = Timestamp(microseconds: place.entry.arrival)
    return QueuedMessage(
      id: QueueID(rawValue: place.entry.id),
      envelope: Envelope(reversePath: "(damaged)", recipients: [], arrival: arrival),
      state: state, content: .bytes([]))
  }
}

extension QueueError {
  /// Whether it is about the octets of a single message, and not about the queue.
  var isOfOneMessage: Bool {
    switch self {
    case .corrupt, .io: true
    default: false
    }
  }
}
