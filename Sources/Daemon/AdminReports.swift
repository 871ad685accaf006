// What the admin socket answers, as values that both ends share. JSON, keys in snake case, times in RFC 3339.

/// The paths of the admin API.
public enum AdminPath {
  public static let status = "/v1/status"
  /// GET: the metrics, as text for Prometheus.
  public static let metrics = "/metrics"
  /// GET lists: a line for each message, and a last one that is `end`, or `next ID` when there may be more behind
  /// that `after=ID`. Takes the names of ``QueueFilter`` as a query, `limit=N`, and `format=json|table|ids`.
  public static let queue = "/v1/queue"
  /// GET counts what a filter names.
  public static let count = "/v1/queue/count"
  /// GET shows one message.
  public static func message(_ id: String) -> String { "/v1/queue/\(id)" }
  /// GET: all that has to be known to queue the message elsewhere, but its content.
  public static func document(_ id: String) -> String { "/v1/queue/\(id)/document" }
  /// GET: the content, octet by octet.
  public static func content(_ id: String) -> String { "/v1/queue/\(id)/content" }
  /// POST carries out an order on `ids=A,B`, or on what a filter names, or with `all=true` on everything; `after=ID`
  /// with `until=ID` goes on, `reason=TEXT` is told.
  public static func order(_ order: QueueOrder) -> String { "/v1/queue/orders/\(order.rawValue)" }
  /// POST gives an unused identifier, for one import.
  public static let newID = "/v1/queue/new-id"
  /// POST queues a message under `id=ID`: a line with its document, then its content.
  public static let importing = "/v1/queue/import"
  /// GET: what was last said about the recipients of a message, also shortly after it has left the queue.
  public static func verdict(_ id: String) -> String { verdicts + id }
  static let verdicts = "/v1/verdicts/"
}

/// What an operator can have done with messages.
public enum QueueOrder: String, Sendable, CaseIterable {
  case retry, hold, release, delete, bounce
}

/// What the upstreams said about a message.
public struct VerdictReport: Codable, Sendable, Equatable {
  public struct Recipient: Codable, Sendable, Equatable {
    /// As the client named it.
    public var recipient: String
    public var address: String
    /// `sent`, `deferred`, `bounced`, `expired`.
    public var status: String
    public var reply: String
    public var upstream: String
  }
  public var id: String
  /// Whether the message is still in the queue.
  public var isQueued: Bool
  /// Those that were tried.
  public var recipients: [Recipient]
}

/// The state of the daemon.
public struct StatusReport: Codable, Sendable, Equatable {
  public struct Account: Codable, Sendable, Equatable {
    /// The name of the `[domain:]`.
    public var name: String
    public var account: String
    public var upstream: String
    /// `ok`, `idle`, `slowed`, `no new logins`, `on hold`, `daily limit`, `disabled`.
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
    /// Whether nothing is sent, but for a canary.
    public var isHeld: Bool
    /// Messages delivered for other accounts.
    public var carried: Int
    /// Who carries the mail while the account is on hold, and for whom it does so itself.
    public var carriedBy: String?
    public var carriesFor: [String]
    /// What the account has slowed itself down to, because the upstream found it too fast.
    public var slowedToPerMinute: Int?
    public var slowedToConnections: Int?
    /// Recipients in 24 hours; nil without a limit.
    public var dailyLimit: Int?
    public var dailyUsed: Int?
    public var dailyLeft: Int?
    /// When the oldest of them stop counting.
    public var dailyNextSlot: String?
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
  /// Free octets of the queue's file system; nil when that is not known.
  public var queueFreeBytes: Int?
  /// Whether new mail is refused for want of space.
  public var queueIsShortOfSpace: Bool
  /// How many octets have to be free before mail is taken again; only while it is refused.
  public var queueNeedsFreeBytes: Int?
  public var queueHeld: Int
  public var queueDead: Int
  public var sessions: Int
  public var sessionsTotal: Int
  public var sessionsRefused: Int
  public var accepted: Int
  public var refused: Int
  public var accounts: [Account]
  /// What each of ``listeners`` is for: `smtp`, `submission`, `smtps`.
  public var listenerRoles: [String]?
  public var logins: LoginReport?
  public var milters: [MilterReport] = []
  public var dnsLists: [DNSListReport] = []
  /// Recipients refused because the client is on one of them.
  public var refusedByLists = 0
  /// The certificate that clients are shown; nil without one.
  public var certificate: Certificate?
  /// How often clients have reached each limit, by the names of docs/limits.md.
  public var limits: [String: Int] = [:]
  public var tlsHandshakes = Handshakes()
  /// Notifications to senders since the start: `failure`, `delay`, `delivery`.
  public var notifications: [String: Int] = [:]
  /// Those that the limits on notifications held back.
  public var notificationsWithheld = 0
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

/// How much there is of what a filter names.
public struct QueueCount: Codable, Sendable, Equatable {
  public struct Group: Codable, Sendable, Equatable {
    /// A state, or the name of a `[domain:]`.
    public var name: String
    public var messages: Int
    public var octets: Int
  }
  public var messages = 0
  public var octets = 0
  public var states: [Group] = []
  /// A message counts for each account that it still waits for.
  public var accounts: [Group] = []
  /// The `after` of the next part; nil at the end.
  public var next: String?

  public init() {}

  /// Takes up the count of another part.
  public mutating func add(_ other: QueueCount) {
    messages += other.messages
    octets += other.octets
    for group in other.states { Self.add(group, to: &states) }
    for group in other.accounts { Self.add(group, to: &accounts) }
    next = other.next
  }

  mutating func add(_ state: String, _ accounts: [String], octets: Int) {
    messages += 1
    self.octets += octets
    Self.add(Group(name: state, messages: 1, octets: octets), to: &states)
    for account in accounts { Self.add(Group(name: account, messages: 1, octets: octets), to: &self.accounts) }
  }

  private static func add(_ group: Group, to groups: inout [Group]) {
    if let place = groups.firstIndex(where: { $0.name == group.name }) {
      groups[place].messages += group.messages
      groups[place].octets += group.octets
    } else {
      groups.append(group)
    }
  }
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
    /// NOTIFY of RFC 3461, as the client gave it.
    public var notify: String?
    /// ORCPT of RFC 3461.
    public var orcpt: String?
  }
  public struct Event: Codable, Sendable, Equatable {
    public var time: String
    /// The name of ``LifeEvent/Kind``.
    public var event: String
    public var account: String?
    public var text: String
  }
  public struct Lane: Codable, Sendable, Equatable {
    public var account: String
    public var attempts: Int
    public var nextAttempt: String
    public var lastReply: String
    /// Attempts that may have arrived: their connection broke before the reply to the end of the message.
    public var inDoubt: Int
  }

  public var item: QueueItem
  public var client: String
  public var helo: String
  /// ENVID and RET of RFC 3461, BODY=8BITMIME and SMTPUTF8, as the client gave them.
  public var parameters: [String]
  public var recipients: [Recipient]
  public var lanes: [Lane]
  /// What happened to the message, oldest first.
  public var life: [Event]
  /// Why it waits, in words; one for each thing it waits for.
  public var waiting: [String]
  public var isDelayReported: Bool
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

/// What an order did.
public struct OrderReport: Codable, Sendable, Equatable {
  public struct Line: Codable, Sendable, Equatable {
    public var id: String
    /// The exit status of sysexits(3) that says how it went.
    public var status: Int32
    public var text: String
  }
  /// Messages with which it was done.
  public var done = 0
  /// A line for each message that was named, and for each with which it could not be done.
  public var lines: [Line] = []
  /// The `after` of the next part; nil at the end.
  public var next: String?
  /// The `until` of the next part: where the queue ended when the order came.
  public var until: String?

  public init() {}
}
