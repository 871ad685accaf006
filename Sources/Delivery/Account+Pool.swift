// The pool of an account: when a connection is opened, held back, retired.

import Network
import Primitives
import SMTP

extension Account {
  func open(_ now: MonotonicInstant) {
    guard !isOpening, connections.count < connectionLimit else { return }
    if let loginHold, now < loginHold.until { return wake(at: loginHold.until) }
    let context: TLSContext?
    do { context = try tlsContext() } catch {
      return holdLogins(.certificate, "\(error)")
    }
    isOpening = true
    nextNumber += 1
    counters.connections += 1
    let connection = seat.connect(nextNumber, settings, self)
    connections[nextNumber] = Member(connection: connection)
    let resolver = services.resolver
    Task(executorPreference: seat.loop) { await connection.run(resolver: resolver, context: context) }
  }

  func tlsContext() throws(NetworkError) -> TLSContext? {
    if settings.security == .none { return nil }
    if let context { return context }
    let made = try TLSContext.client(caFile: settings.caFile, minimum: settings.minimumTLS)
    context = made
    return made
  }

  func opened(_ number: Int, peer: String, tls: TLSSummary?, depth: Int) {
    isOpening = false
    counters.logins += settings.credential == nil ? 0 : 1
    if tls?.isResumed == true { counters.resumed += 1 }
    // The back-off goes on until a message is judged: an upstream may let us in only to throw us out.
    if loginHold != nil { services.log.notice("account \(name): connected again") }
    loginHold = nil
    connections[number]?.peer = peer
    connections[number]?.depth = depth
    connections[number]?.isReady = true
    let security = tls.map { "\($0.version) \($0.cipher)\($0.isResumed ? " resumed" : "")" } ?? "in clear"
    let login = settings.credential.map { ", logged in as \($0.username) (\($0.mechanism.rawValue))" } ?? ""
    services.log.info("account \(name): connection \(number) to \(peer) is ready: \(security)\(login)")
    if connections[number]?.isRetiring == true {
      connections[number]?.connection.leave()
      return
    }
    idle.append(number)
    pump()
    stopIfDone()
  }

  func openingFailed(_ number: Int, _ failure: OpenFailure) {
    isOpening = false
    let isOutdated = connections.removeValue(forKey: number)?.isRetiring ?? true
    // What the settings of before were refused for says nothing about those of now.
    if !isOutdated {
      holdLogins(failure.fault, failure.description)
      if let reply = failure.reply, ReplyMeaning.isAboutRate(reply) { slowDown(reply, peer: settings.host) }
    }
    pump()
    stopIfDone()
  }

  /// No new connections for a while. With none alive this is what keeps the mail waiting; nobody's mail ages by it.
  func holdLogins(_ fault: AccountFault, _ reason: String) {
    let wait: Duration
    switch fault {
    case .unreachable, .certificate, .insecure, .tokenUnavailable: wait = loginBackOff.fail(random: services.random())
    // Each refused login counts against the account: Gmail locks those who insist.
    default: wait = refusalBackOff.fail(random: services.random())
    }
    loginHold = Hold(fault: fault, reason: reason, until: time.now + wait, since: loginHold?.since ?? time.wallClock)
    lastError = reason
    services.log.error(
      "account \(name): no connection (\(fault.rawValue)): \(reason); \(mailWaits), next try in \(wait.rounded); \(fault.advice)"
    )
    if !due.isEmpty { wake(at: time.now + wait) }
  }

  var mailWaits: String { "\(max(0, due.count - surplus) + active.count) messages wait" }

  /// The account cannot send: everything waits, and one canary goes when the time has come.
  func holdAll(_ fault: AccountFault, _ reason: String, hint: String? = nil) {
    var wait = holdBackOff.fail(random: services.random())
    if fault == .dailyLimit { wait = waitForWindow(wait) }
    let held = Hold(
      fault: fault, reason: reason, until: time.now + wait, since: hold?.since ?? time.wallClock, hint: hint)
    hold = held
    lastError = reason
    services.log.error(
      "account \(name): on hold (\(fault.rawValue)): \(reason); \(mailWaits), a canary goes in \(wait.rounded); \(held.advice)"
    )
    wake(at: time.now + wait)
  }

  func endHold() {
    holdBackOff.succeed()
    guard let old = hold else { return }
    hold = nil
    services.log.notice("account \(name): sends again, after a hold for \(old.fault.rawValue)")
  }

  func retire(_ number: Int) {
    connections[number]?.isRetiring = true
    guard let member = connections[number], member.isReady, member.inFlight == 0 else { return }
    member.connection.leave()
  }

  /// - Parameter isFault: the upstream left in the middle of something, or said why.
  func closed(_ number: Int, _ reason: String, peer: String, isFault: Bool) {
    guard let member = connections.removeValue(forKey: number) else { return }
    idle.removeAll { $0 == number }
    services.log.debug(
      "account \(name): connection \(number) to \(peer) closed after \(member.delivered) messages: \(reason)")
    if isFault, member.delivered == 0, !isStopping {
      // An upstream that lets us in and throws us out is not there for us.
      holdLogins(.unreachable, "\(peer): \(reason)")
      loginHold?.isAfterLogin = true
    }
    pump()
    stopIfDone()
  }
}
