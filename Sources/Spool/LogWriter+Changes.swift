// What changes about a message that is queued: its state is read, changed, and waits to be written with the next commit.
// What cannot be read is kept back, and stops nobody else.

import Primitives

extension LogWriter {
  /// Changes that the disk does not let us make: it does not give the message they are about.
  struct StuckChanges {
    var changes: [@Sendable (inout MessageState) -> Void]
    var error: QueueError
  }

  func update(_ id: QueueID, _ change: @escaping @Sendable (inout MessageState) -> Void) {
    if appendIDs.contains(id.rawValue) { commit() }
    guard !isDead, let place = core.locate(id) else { return }
    if stuck[id.rawValue] != nil {
      stuck[id.rawValue]?.changes.append(change)
      return
    }
    do throws(QueueError) { apply(change, to: try core.messageWithoutContent(place)) } catch {
      switch error {
      case .io:
        // It may give it later. Until then nobody is to get it in a state that is not the latest.
        core.onDamage("\(id) cannot be read now, and is kept back: \(error)")
        stuck[id.rawValue] = StuckChanges(changes: [change], error: error)
        stuckUntil = core.time.now + .seconds(1)
        keepBack(id.rawValue, error)
        scheduleTick(isFull: true)
      case .corrupt: changeDamaged(id, place, [change], error)
      default: fail(error)
      }
    }
  }

  /// Tries again what could not be read, once a second: a disk may take its time for each refusal.
  func changeStuck() {
    guard !stuck.isEmpty, core.time.now >= stuckUntil else { return }
    stuckUntil = core.time.now + .seconds(1)
    for (id, waiting) in stuck {
      guard let place = core.locate(QueueID(rawValue: id)) else {
        unstick(id)
        continue
      }
      do throws(QueueError) {
        let message = try core.messageWithoutContent(place)
        apply({ for change in waiting.changes { change(&$0) } }, to: message, isChanged: true)
        unstick(id)
      } catch {
        guard case .corrupt = error else { continue }
        stuck[id] = nil
        changeDamaged(QueueID(rawValue: id), place, waiting.changes, error)
      }
    }
  }

  /// What has changed is known to everybody from here on.
  private func unstick(_ id: UInt64) {
    stuck[id] = nil
    core.shared.withLock { $0.keptBack[id] = nil }
  }

  /// Of a message with a whole envelope the change is written down, with a hold; of another one nothing can be.
  private func changeDamaged(
    _ id: QueueID, _ place: Located, _ changes: [@Sendable (inout MessageState) -> Void], _ error: QueueError
  ) {
    if let rescued = core.rescued(place, because: "\(error)") {
      core.onDamage("\(id) is damaged in the queue, and on hold: \(error)")
      apply(
        {
          for change in changes { change(&$0) }
          $0.isHeld = true
        }, to: rescued, isChanged: true)
      return unstick(id.rawValue)
    }
    core.onDamage("\(id) is damaged in the queue, and kept back: \(error)")
    keepBack(id.rawValue, error)
  }

  /// Shows a message as held and gives it to nobody.
  private func keepBack(_ id: UInt64, _ error: QueueError) {
    core.shared.withLock { s in
      guard var entry = s.index[id] else { return }
      entry.flags |= IndexEntry.held
      s.index.set(entry)
      s.keptBack[id] = error
    }
  }

  private func apply(_ change: (inout MessageState) -> Void, to message: QueuedMessage, isChanged: Bool = false) {
    var state = message.state
    change(&state)
    if state == message.state, !isChanged { return }
    let isDone = message.envelope.recipients.indices.allSatisfy { state.recipients[$0] != nil }
    let result: Unwritten =
      isDone && state.deadReason == nil ? .removed : .state(state, Summary(message.envelope, state))
    core.shared.withLock { $0.unwritten[message.id.rawValue] = result }
  }
}
