// The composition root: makes the parts from the settings, connects them, starts them in order and stops them in the
// opposite one. It has no rules of its own.

import Configuration
import Delivery
import Glibc
import Logging
import Network
import Primitives
import Routing
import SMTP
import Server
import Spool
import Telemetry

/// The version that `--version` and the status show.
public let relayVersion = "1.0.0"

/// A running relay.
public final class Relay: Sendable {
  private let loops: [EventLoop]
  /// Apart from the mail and from each other: none of the three waits for what clients of another one do.
  private let adminLoop: EventLoop
  private let monitorLoop: EventLoop
  private let output: LogOutput
  private let log: Logger
  private let time: any Timekeeper
  private let spool: Spool
  private let delivery: Delivery
  private let server: SMTPServer
  private let listeners: [RoleListener]
  private let failure: Failure
  private let started: Timestamp
  private let census: QueueCensus
  private let certificate: CertificateWatch

  private struct State {
    var settings: Settings
    var isStopping = false
    var services: [HTTPService] = []
  }
  private let state: Mutex<State>

  /// The first thing that forces the daemon to end, and who waits for it.
  private final class Failure: Sendable {
    private let state = Mutex<(error: QueueError?, handler: (@Sendable (QueueError) -> Void)?)>((nil, nil))

    func report(_ error: QueueError) {
      let handler = state.withLock { state in
        if state.error == nil { state.error = error }
        return state.handler
      }
      handler?(error)
    }

    func onReport(_ handler: @escaping @Sendable (QueueError) -> Void) {
      let error = state.withLock { state in
        state.handler = handler
        return state.error
      }
      if let error { handler(error) }
    }

    var error: QueueError? { state.withLock { $0.error } }
  }

  /// Recovers the queue and makes all parts; nothing is accepted or sent yet.
  /// - Parameter listeners: what ``RoleListener/all(_:)`` gave.
  init(
    _ settings: Settings, listeners: [RoleListener], time: any Timekeeper = SystemTime()
  ) async throws(DaemonError) {
    self.time = time
    self.listeners = listeners
    started = time.wallClock
    do throws(LogError) { output = try LogOutput(settings.logDestination, level: settings.logLevel, time: time) } catch
    {
      throw DaemonError(error.description, exitStatus: 73)
    }
    log = output.logger("relay")
    let router = Router(settings)
    let fingerprint = CertificateFiles(settings.global)?.fingerprint()
    var serverSettings = try ServerSettings(settings, router: router)
    serverSettings.readFilters(settings, log: log, time: time)
    DescriptorLimit.raise(for: settings, &serverSettings, log)

    do throws(NetworkError) {
      var loops: [EventLoop] = []
      for i in 0..<max(1, sysconf(CInt(_SC_NPROCESSORS_ONLN))) { loops.append(try EventLoop(name: "loop-\(i)")) }
      self.loops = loops
      adminLoop = try EventLoop(name: "admin")
      monitorLoop = try EventLoop(name: "monitors")
    } catch { throw DaemonError("cannot start the event loops: \(error)", exitStatus: 71) }

    let failure = Failure()
    self.failure = failure
    spool = try await Self.openSpool(settings, time, failure, output)
    census = QueueCensus(store: spool, time: time)

    let routes = Mutex(router)
    let delivery = Delivery(
      store: spool, resolver: Resolver(source: SystemNames(), time: time), loops: loops.reversed(), time: time,
      settings: DeliverySettings(settings), log: log,
      ledgers: LedgerFiles(directory: settings.global.queueDir + "/ledger", disk: PosixDisk()),
      departure: { account, lane, envelope in
        routes.withLock { $0 }.outbound.departure(envelope, of: lane, by: account, now: time.wallClock)
      },
      routeBounce: { sender, lane in
        guard let mailbox = try? Mailbox(parsing: sender) else { return [] }
        return routes.withLock { $0 }.routeBounce(to: mailbox, from: lane, now: time.wallClock).map {
          ($0.address.description, $0.account)
        }
      })
    self.delivery = delivery
    server = SMTPServer(
      store: spool, loops: loops, time: time, settings: serverSettings, log: log,
      hand: { delivery.submit($0, $1, $2) })
    certificate = CertificateWatch(time: time, log: log) { [server] in server.show($0) }
    certificate.follow(CertificateFiles(settings.global), fingerprint, serverSettings.tls)
    state = Mutex(State(settings: settings))
    setRouter = { router in routes.withLock { $0 = router } }
  }

  private let setRouter: @Sendable (Router) -> Void

  /// Opens the queue. Whoever else has it, such as a command that looks into the queue of a stopped daemon, gets a
  /// while to let go of it: nobody should have to start a daemon twice for that.
  private static func openSpool(
    _ settings: Settings, _ time: any Timekeeper, _ failure: Failure, _ output: LogOutput
  ) async throws(DaemonError) -> Spool {
    let deadline = time.now + lockPatience
    var isTold = false
    while true {
      do throws(QueueError) {
        let log = output.logger("queue")
        let spool = try Spool.open(
          directory: settings.global.queueDir, disk: PosixDisk(), time: time,
          options: SpoolOptions(reserve: settings.global.queueMinimumFree),
          onDamage: { log.critical("\($0)") }, onFailure: { failure.report($0) })
        if spool.cutOff > 0 {
          log.notice(
            "\(spool.cutOff) octets at the end of the queue were cut off: a crash had interrupted their writing, and nobody was told that they are safe"
          )
        }
        return spool
      } catch {
        guard case .locked(let pid) = error, time.now < deadline else {
          throw DaemonError(error.whyNotOpened, exitStatus: 73)
        }
        if !isTold {
          let holder = pid > 0 ? "process \(pid)" : "another process"
          output.logger("relay").warning(
            "\(holder) has the queue \(settings.global.queueDir): waiting up to \(lockPatience.components.seconds) s")
          output.flush()
          isTold = true
        }
      }
      do { try await time.sleep(until: time.now + .milliseconds(200)) } catch {
        throw DaemonError("stopped while it waited for the queue", exitStatus: 73)
      }
    }
  }

  private static let lockPatience = Duration.seconds(30)

  // MARK: Life

  /// Hands the recovered queue to its accounts and opens the door.
  public func start() async {
    let settings = state.withLock { $0.settings }
    await delivery.configure(UpstreamSettings.all(settings, log), DeliverySettings(settings))
    var after: QueueID?
    var recovered = 0
    while true {
      let page = await spool.entries(startingAfter: after, limit: 10_000)
      await delivery.recover(page)
      recovered += page.count
      guard page.count == 10_000, let last = page.last else { break }
      after = last.id
    }
    startAdmin(settings.global.adminSocket)
    startMetrics(settings.global.metricsListen)
    certificate.start()
    for listener in listeners { server.listen(on: listener.listener, role: listener.role) }
    let endpoints = listeners.map(\.description).joined(separator: ", ")
    log.notice("ssmtp-mailer \(relayVersion) is ready on \(endpoints), \(recovered) messages in the queue")
  }

  /// Calls back when the queue fails.
  public func onQueueFailure(_ body: @escaping @Sendable () -> Void) {
    failure.onReport { [log] error in
      log.critical("the queue has failed, no more mail is accepted: \(error)")
      body()
    }
  }

  /// Breaks off what leaves at this moment: whatever the upstream says now, a queue that has failed cannot keep it, and
  /// the next process sends it again. What the upstream has not got whole does not arrive twice.
  public func breakOffDelivery() async { await delivery.stop(within: .zero) }

  private func startAdmin(_ path: String) {
    let admin = AdminServer(
      store: spool, delivery: delivery, time: time, log: log,
      maximumSize: { self.state.withLock { $0.settings.global.maxMessageSize } }, status: { await self.report() })
    let service = HTTPService(loop: adminLoop) { try await admin.answer($0, $1) }
    do throws(NetworkError) { service.listen(on: try Listener(bindingTo: path, mode: 0o660)) } catch {
      log.error("admin_socket: the admin socket cannot be served: \(error)")
    }
    state.withLock { $0.services.append(service) }
  }

  private func startMetrics(_ endpoints: [Endpoint]) {
    let pages = MonitorPages { await self.report() }
    let service = HTTPService(loop: monitorLoop) { request, _ in try await pages.answer(request) }
    for endpoint in endpoints {
      do throws(NetworkError) { service.listen(on: try Listener(bindingTo: endpoint)) } catch {
        log.error("metrics_listen: \(endpoint) cannot be served: \(error)")
      }
    }
    state.withLock { $0.services.append(service) }
  }

  /// Takes over changed settings. Listeners and the queue's directory stay as they are until a restart.
  public func reload(_ settings: Settings) async throws(DaemonError) {
    let old = state.withLock { $0.settings }
    let router = Router(settings)
    let fingerprint = CertificateFiles(settings.global)?.fingerprint()
    var serverSettings = try ServerSettings(settings, router: router)
    serverSettings.readFilters(settings, log: log, time: time)
    if serverSettings.tls == nil, let listener = listeners.first(where: \.role.requiresAuthentication) {
      throw DaemonError("\(listener) needs a certificate: set tls_certificate and tls_key", exitStatus: 78)
    }
    DescriptorLimit.raise(for: settings, &serverSettings, log)
    do throws(LogError) { try output.reopen(settings.logDestination) } catch { throw DaemonError(error.description) }
    output.level = settings.logLevel
    state.withLock { $0.settings = settings }
    setRouter(router)
    server.configure(serverSettings)
    certificate.follow(CertificateFiles(settings.global), fingerprint, serverSettings.tls)
    await delivery.configure(UpstreamSettings.all(settings, log), DeliverySettings(settings))
    for (key, changed) in [
      ("listen", old.global.listen != settings.global.listen),
      ("listen_submission", old.global.listenSubmission != settings.global.listenSubmission),
      ("listen_smtps", old.global.listenSMTPS != settings.global.listenSMTPS),
      ("queue_dir", old.global.queueDir != settings.global.queueDir),
      ("admin_socket", old.global.adminSocket != settings.global.adminSocket),
      ("metrics_listen", old.global.metricsListen != settings.global.metricsListen),
    ] where changed { log.warning("\(key) has changed: that takes effect with the next restart") }
    log.notice("configuration reloaded")
  }

  /// Logs that a reload was refused: the old configuration stays in force.
  public func reloadFailed(_ lines: [String]) {
    for line in lines { log.error("configuration: \(line)") }
    log.error("the configuration was not reloaded, the old one stays in force")
  }

  public func warn(_ lines: [String]) { for line in lines { log.warning("configuration: \(line)") } }

  /// Writes what was logged so far.
  public func flushLog() { output.flush() }

  /// Stops accepting, lets transactions in progress end for at most `grace`, and closes the queue.
  public func stop(within grace: Duration = .seconds(30)) async {
    state.withLock { $0.isStopping = true }
    log.notice("stopping")
    certificate.stop()
    async let clients: Void = server.stop(within: grace)
    async let upstreams: Void = delivery.stop(within: grace)
    _ = await (clients, upstreams)
    for service in state.withLock({ $0.services }) { await service.stop() }
    unlink(state.withLock { $0.settings.global.adminSocket })
    await spool.close()
    log.notice("stopped, \(spool.statistics.messages) messages stay in the queue")
    output.flush()
  }

  // MARK: State

  /// Returns once every event loop has run something: what the watchdog wants to know.
  public func proveProgress() async {
    for loop in loops {
      await withCheckedContinuation { continuation in loop.execute { continuation.resume() } }
    }
    _ = await delivery.snapshots()
  }

  /// One line for STATUS=.
  public func statusLine() async -> String {
    let accounts = await delivery.snapshots()
    let queued = spool.statistics.messages
    let troubles = accounts.compactMap(\.trouble)
    return (["\(queued) queued"] + (troubles.isEmpty ? ["all accounts ok"] : troubles)).joined(separator: "; ")
  }

  public func report() async -> StatusReport {
    let (settings, isStopping) = state.withLock { ($0.settings, $0.isStopping) }
    let queue = spool.statistics
    let counters = server.counters
    let now = time.wallClock
    let (held, dead) = await census.count()
    var report = StatusReport(
      version: relayVersion, pid: Int(getpid()), startedAt: ISOTime.format(started),
      uptimeSeconds: Int((now - started).components.seconds),
      state: failure.error != nil ? "failed" : isStopping ? "stopping" : "ready",
      hostname: settings.global.defaultHostname, listeners: listeners.map(\.listener.endpoint.description),
      queueMessages: queue.messages, queueBytes: queue.liveBytes, queueDiskBytes: queue.diskBytes,
      queueFreeBytes: queue.freeBytes, queueIsShortOfSpace: queue.isShortOfSpace,
      queueNeedsFreeBytes: queue.isShortOfSpace ? spaceToResume(settings) : nil, queueHeld: held, queueDead: dead,
      sessions: counters.openSessions, sessionsTotal: counters.connections,
      sessionsRefused: counters.refusedConnections, accepted: counters.accepted, refused: counters.refused,
      accounts: await delivery.snapshots().map(StatusReport.Account.init))
    report.listenerRoles = listeners.map(\.role.rawValue)
    report.logins = LoginReport(server.guardian, now: now)
    await report.addFilters(server.settings, counters)
    report.addDoor(counters, certificate.certificate)
    report.add(delivery.notificationCounts)
    return report
  }
}

extension Relay {
  /// How much has to be free before mail is taken again, as docs/configuration.md has it for `queue_min_free`.
  private func spaceToResume(_ settings: Settings) -> Int? {
    let total: Int?
    do throws(DiskError) { total = try PosixDisk().space(settings.global.queueDir)?.total } catch { total = nil }
    guard let reserve = settings.global.queueMinimumFree ?? total.map({ min($0 / 10, 256 << 20) }) else { return nil }
    return reserve + reserve / 4
  }
}

extension StatusReport.Account {
  init(_ snapshot: AccountSnapshot) {
    let counters = snapshot.counters
    let hold = snapshot.hold ?? snapshot.loginHold
    self.init(
      name: snapshot.name, account: snapshot.account, upstream: snapshot.upstream, state: snapshot.word,
      reason: hold?.reason, advice: hold?.advice, heldSince: hold.map { ISOTime.format($0.since) },
      nextTry: hold.map { ISOTime.format($0.nextTry) },
      queued: snapshot.queued, active: snapshot.active, connections: snapshot.connections,
      maximumConnections: snapshot.maximumConnections, ratePerMinute: snapshot.ratePerMinute, tokens: snapshot.tokens,
      delivered: counters.delivered, deferred: counters.deferred, failed: counters.failed, inDoubt: counters.inDoubt,
      connectionsOpened: counters.connections, logins: counters.logins, lastError: snapshot.lastError,
      isHeld: snapshot.isEnabled && snapshot.hold != nil, carried: counters.carried, carriedBy: snapshot.carriedBy,
      carriesFor: snapshot.carriesFor)
    slowedToPerMinute = snapshot.slowed?.ratePerMinute
    slowedToConnections = snapshot.slowed?.connections
    guard let ledger = snapshot.ledger else { return }
    dailyLimit = ledger.limit
    dailyUsed = ledger.used
    dailyLeft = ledger.left
    dailyNextSlot = ledger.nextSlot.map(ISOTime.format)
  }
}

extension AccountSnapshot {
  /// The state in a word or two.
  var word: String {
    if !isEnabled { return "disabled" }
    if let hold { return hold.fault == .dailyLimit ? "daily limit" : "on hold" }
    if loginHold != nil { return "no new logins" }
    if slowed != nil { return "slowed" }
    return connections == 0 ? "idle" : "ok"
  }

  /// What is wrong and what to do, in a line; nil when nothing is.
  var trouble: String? {
    guard isEnabled else { return nil }
    if let hold {
      let carrier = carriedBy.map { ", carried by \($0)" } ?? ""
      return
        "\(name) on hold: \(hold.fault.rawValue), next try \(ISOTime.format(hold.nextTry))\(carrier), \(hold.advice)"
    }
    if let loginHold { return "\(name) opens no connection: \(loginHold.fault.rawValue), \(loginHold.advice)" }
    return slowed.map { "\(name) slowed to \($0.ratePerMinute) a minute over \($0.connections) connections" }
  }
}
