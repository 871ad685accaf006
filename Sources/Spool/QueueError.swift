// What can go wrong with the queue, told so that an operator knows what to do next.

/// An error of the queue or of the disk beneath it.
public enum QueueError: Error, Sendable, Equatable {
  /// No space is left; the message was not queued, later ones may be.
  case full
  /// A message with this identifier is there already; it stays as it is.
  case alreadyQueued(QueueID)
  /// The queue can no longer be trusted (a sync failed, or it was closed); only a restart helps.
  case failed(String)
  /// A directory or file of the queue may not be used by this user.
  case notWritable(path: String, detail: String)
  /// Another process, `pid` (0 when unknown), serves this queue.
  case locked(pid: Int32)
  /// Stored bytes are not what was written.
  case corrupt(file: String, offset: Int, detail: String)
  /// A system call failed with `errno`.
  case io(operation: String, path: String, errno: Int32)
}

extension QueueError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .full:
      "no space left for the queue: free space on its file system, or enlarge it"
    case .alreadyQueued(let id): "\(id) is queued already"
    case .failed(let reason):
      "the queue stopped and needs a restart: \(reason)"
    case .notWritable(let path, let detail):
      "cannot use \(path): \(detail); give the directory and all in it to the user of this service, mode 0700"
    case .locked(let pid):
      "the queue is in use by \(pid > 0 ? "process \(pid)" : "another process"): stop it first, or set another queue"
        + " directory"
    case .corrupt(let file, let offset, let detail): "\(file) is damaged at offset \(offset): \(detail)"
    case .io(let operation, let path, let errno):
      "\(operation) \(path): \(DiskError.message(errno)); check the disk and the system's log"
    }
  }
}

extension QueueError {
  /// What this means when the queue does not open for it, with what to do.
  public var whyNotOpened: String {
    guard case .corrupt = self else { return description }
    return "\(self); check the disk, then restore the queue directory from a backup, or \(Self.wayOfSalvage)"
  }

  static let wayOfSalvage =
    "save what can be read with `ssmtp-mailer queue export DIR --salvage`, move the queue directory aside, start the "
    + "daemon, and give it the copies with `ssmtp-mailer queue import DIR`"
}
