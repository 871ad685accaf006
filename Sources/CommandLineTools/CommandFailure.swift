// Why a command ends without having done its work, and the exit status that says so to a script.

/// The exit statuses of sysexits(3) that commands use.
public enum ExitStatus: Int32, Sendable, Hashable {
  case success = 0
  case usage = 64
  case data = 65
  case noUser = 67
  case unavailable = 69
  /// A file or an output took not all that was written.
  case inputOutput = 74
  case tryAgain = 75
  case refused = 77
  case configuration = 78
}

/// One clear line for standard error, and the status to end with.
public struct CommandFailure: Error, Hashable, Sendable, CustomStringConvertible {
  public var status: ExitStatus
  /// Says what is wrong and what to do; without the program's name. Empty when everything has been said already.
  public var description: String

  public init(_ status: ExitStatus, _ description: String) {
    self.status = status
    self.description = description
  }
}
