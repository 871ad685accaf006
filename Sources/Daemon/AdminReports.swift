// What the admin socket answers, as values that both ends share. JSON, keys in snake case, times in RFC 3339.

/// The paths of the admin API.
public enum AdminPath {
  public static let status = "/v1/status"
  /// GET lists (`?after=ID&limit=N&account=NAME&state=STATE`).
  public static let queue = "/v1/queue"
  /// POST tries everything now.
  public static let retryAll = "/v1/queue/retry"
  /// GET shows, DELETE removes.
  public static func message(_ id: String) -> String { "/v1/queue/\(id)" }
  /// POST tries this message now.
  public static func retry(_ id: String) -> String { "/v1/queue/\(id)/retry" }
}

/// The state of the daemon.
public struct StatusReport: Codable, Sendable, Equatable {
  public struct Account: Codable, Sendable, Equatable {
    /// The name of the `[domain:]`.
    public var name: String
    public var account: String
    public var upstream: String
    /// `ok`, `idle`, `on hold`, `no connection`, `disabled`.
    public var state: String
    public var reason: String?
    public var advice: String?
    public var heldSince: String?
    public var nextTry: String?
    public var queued: Int
    public var active: Int
    public var connections: Int
    public var maximumConnections: Int
    public var ratePerMinute: Int?
    /// Messages that could leave at once.
    public var tokens: Int?
    public var delivered: Int
    public var deferred: Int
    public var failed: Int
    public var inDoubt: Int
    public var connectionsOpened: Int
    public var logins: Int
    public var lastError: String?
  }

  public var version: String
  public var pid: Int
  public var startedAt: String
  public var uptimeSeconds: Int
  /// `ready`, `stopping`, `failed`.
  public var state: String
  public var hostname: String
  public var listeners: [String]
  public var queueMessages: Int
  public var queueBytes: Int
  public var queueDiskBytes: Int
  public var sessions: Int
  public var sessionsTotal: Int
  public var sessionsRefused: Int
  public var accepted: Int
  public var refused: Int
  public var accounts: [Account]
}

/// A message in a list.
public struct QueueItem: Codable, Sendable, Equatable {
  public var id: String
  /// `active`, `deferred`, `held`, `dead`, `queued`.
  public var state: String
  public var arrival: String
  public var ageSeconds: Int
  public var size: Int
  /// Without `<>`; empty for the null reverse-path.
  public var sender: String
  /// Those that still wait.
  public var recipients: [String]
  public var accounts: [String]
  public var attempts: Int
  public var nextAttempt: String?
  public var reason: String?
}

/// A page of the queue.
public struct QueuePage: Codable, Sendable, Equatable {
  public var messages: [QueueItem]
  /// The `after` of the next page; nil at the end.
  public var next: String?
}

/// One message with all that is known about it.
public struct QueueDetail: Codable, Sendable, Equatable {
  public struct Recipient: Codable, Sendable, Equatable {
    public var address: String
    public var original: String
    public var account: String
    /// `pending`, `delivered`, `failed`.
    public var state: String
    public var reply: String?
  }
  public struct Lane: Codable, Sendable, Equatable {
    public var account: String
    public var attempts: Int
    public var nextAttempt: String
    public var lastReply: String
  }

  public var item: QueueItem
  public var client: String
  public var helo: String
  public var recipients: [Recipient]
  public var lanes: [Lane]
  /// The header of the message, as text.
  public var header: String
}

/// What a change did, or why not.
public struct AdminResult: Codable, Sendable, Equatable {
  public var ok: Bool
  public var message: String

  public init(ok: Bool, message: String) {
    self.ok = ok
    self.message = message
  }
}
