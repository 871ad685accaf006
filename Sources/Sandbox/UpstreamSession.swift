// One connection to the upstream: commands in, replies out, in Gmail's words. Replies are collected while commands
// are at hand and sent together when there is nothing more to read, as PIPELINING (RFC 2920) allows.

import Glibc
import Network
import Primitives

actor UpstreamSession {
  let upstream: Upstream
  private let loop: EventLoop
  let number: Int
  private let isImplicitTLS: Bool
  private var stream: ByteStream?
  private var work: Task<Void, Never>?
  private var isStopped = false

  private var clientName: String?
  var user: String?
  private var transaction: Transaction?
  private var acceptedMessages = 0

  struct Transaction {
    var reversePath: String
    var parameters: [String]
    var recipients: [String] = []
    var recipientParameters: [[String]] = []
    /// The chunks so far; nil before the first BDAT.
    var chunks: [UInt8]?
    var isTooLarge = false
  }

  /// Why the dialogue is over.
  enum Ending: Error { case hangUp, quit }

  nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

  init(number: Int, isImplicitTLS: Bool, loop: EventLoop, upstream: Upstream) {
    self.number = number
    self.isImplicitTLS = isImplicitTLS
    self.loop = loop
    self.upstream = upstream
  }

  static func begin(_ descriptor: CInt, isImplicitTLS: Bool, with upstream: Upstream?) {
    let admitted = upstream.flatMap { upstream in
      upstream.admit { number, loop in
        UpstreamSession(number: number, isImplicitTLS: isImplicitTLS, loop: loop, upstream: upstream)
      }
    }
    guard let session = admitted else {
      close(descriptor)
      return
    }
    Task(executorPreference: session.loop) { await session.run(descriptor) }
  }

  private func run(_ descriptor: CInt) async {
    defer { upstream.dismiss(number) }
    if isStopped {
      close(descriptor)
      return
    }
    guard let stream = try? ByteStream(adopting: descriptor, on: loop) else { return }
    self.stream = stream
    upstream.log("#\(number) connection from \(stream.peer)")
    let work = Task(executorPreference: loop) { await self.converse() }
    self.work = work
    await work.value
    stream.close()
    self.stream = nil
    self.work = nil
    upstream.log("#\(number) closed")
  }

  func stop() {
    isStopped = true
    work?.cancel()
    stream?.close()
  }

  /// Ends a session whose client has connected to `endpoint`.
  func stop(ifAt endpoint: Endpoint) { if stream?.local == endpoint { stop() } }

  // MARK: The dialogue

  private func converse() async {
    do {
      if isImplicitTLS { try await shakeHands() }
      try await answer(.banner, nil) { "220 \(upstream.options.hostName) ESMTP \($0) - gsmtp" }
      while true { try await carryOut(readLine()) }
    } catch Ending.quit {
      try? await stream?.flush(until: deadline, waitingFor: "farewell")
    } catch NetworkError.timedOut("a command") {
      say("421 4.4.2 Timeout - closing connection. \(upstream.nextID()) - gsmtp")
      try? await stream?.flush(until: deadline, waitingFor: "farewell")
    } catch {
      if !(error is Ending) { upstream.log("#\(number) \(error)") }
    }
  }

  private func carryOut(_ line: String) async throws {
    let space = line.firstIndex(of: " ") ?? line.endIndex
    let verb = line[..<space].uppercased()
    let argument = line[space...].drop { $0 == " " }
    upstream.count { $0.commands += 1 }
    if verb != "AUTH" { upstream.log("#\(number) > \(line)") }  // an initial response is a secret
    switch verb {
    case "EHLO": try await greet(argument, isExtended: true)
    case "HELO": try await greet(argument, isExtended: false)
    case "STARTTLS": try await startTLS()
    case "AUTH": try await authenticate(argument)
    case "MAIL": try await mail(argument)
    case "RCPT": try await recipient(argument)
    case "DATA": try await data()
    case "BDAT": try await chunk(argument)
    case "RSET":
      try await answer(.rset, nil) { "250 2.1.5 Flushed \($0) - gsmtp" }
      transaction = nil
    case "NOOP": try await answer(.noop, nil) { "250 2.0.0 OK \($0) - gsmtp" }
    case "VRFY": say("252 2.1.5 Send some mail, I'll try my best \(upstream.nextID()) - gsmtp")
    case "QUIT":
      try await answer(.quit, nil) { "221 2.0.0 closing connection \($0) - gsmtp" }
      throw Ending.quit
    default:
      violate("unknown command \(verb)")
      say("502 5.5.1 Unrecognized command. \(upstream.nextID()) - gsmtp")
    }
  }

  private func greet(_ name: Substring, isExtended: Bool) async throws {
    if name.isEmpty {
      say("501 5.5.4 Empty HELO/EHLO argument not allowed, closing connection. \(upstream.nextID()) - gsmtp")
      throw Ending.quit
    }
    let isSecure = stream?.tls != nil
    let accepted = try await answer(.ehlo, nil) { _ in
      if !isExtended { return "250 \(upstream.options.hostName) at your service" }
      let script = upstream.withScript { $0 }
      var lines = [
        "\(upstream.options.hostName) at your service, [\(stream?.peer.address.description ?? "?")]",
        "SIZE \(upstream.options.maximumMessageSize)", "8BITMIME",
      ]
      if isSecure {
        lines.append("AUTH LOGIN PLAIN XOAUTH2 PLAIN-CLIENTTOKEN OAUTHBEARER XOAUTH")
      } else if !script.has(.stripSTARTTLS) {
        lines.append("STARTTLS")
      }
      lines.append("ENHANCEDSTATUSCODES")
      if !script.has(.noPipelining) { lines.append("PIPELINING") }
      if !script.has(.noChunking) { lines.append("CHUNKING") }
      if !script.has(.noSMTPUTF8) { lines.append("SMTPUTF8") }
      if script.has(.offersDSN) { lines.append("DSN") }
      return lines.enumerated().map { ($0 == lines.count - 1 ? "250 " : "250-") + $1 }.joined(separator: "\n")
    }
    guard accepted else { return }
    clientName = String(name)
    transaction = nil
  }

  private func startTLS() async throws {
    guard stream?.tls == nil else {
      say("503 5.5.1 TLS already in use \(upstream.nextID()) - gsmtp")
      return
    }
    if upstream.withScript({ $0.has(.stripSTARTTLS) }) {
      say("502 5.5.1 Unrecognized command. \(upstream.nextID()) - gsmtp")
      return
    }
    guard try await answer(.startTLS, nil, { _ in "220 2.0.0 Ready to start TLS" }) else { return }
    if let waiting = stream?.bufferedCount, waiting > 0 { violate("\(waiting) bytes behind STARTTLS") }
    try await flush()
    try await shakeHands()
    // Nothing said in clear counts (RFC 3207 4.2).
    clientName = nil
    user = nil
    transaction = nil
  }

  private func shakeHands() async throws {
    guard let stream else { throw Ending.hangUp }
    do {
      try await stream.startTLS(upstream.tls, until: SystemTime().now + .seconds(30))
    } catch {
      upstream.count { $0.failedHandshakes += 1 }
      throw error
    }
    upstream.count {
      $0.handshakes += 1
      if stream.tls?.isResumed == true { $0.resumedHandshakes += 1 }
    }
    upstream.log("#\(number) \(stream.tls?.version ?? "?")\(stream.tls?.isResumed == true ? ", resumed" : "")")
  }

  // MARK: Transactions

  /// Refuses what may not be said yet. Returns whether it has done so.
  private func refusesStranger(_ command: String) -> Bool {
    guard clientName != nil else {
      violate("\(command) before EHLO")
      say("503 5.5.1 EHLO/HELO first. \(upstream.nextID()) - gsmtp")
      return true
    }
    guard stream?.tls != nil else {
      violate("\(command) before STARTTLS")
      say("530 5.7.0 Must issue a STARTTLS command first. \(upstream.nextID()) - gsmtp")
      return true
    }
    guard user != nil else {
      violate("\(command) before AUTH")
      say(
        "530-5.7.0 Authentication Required. For more information, go to\n"
          + "530 5.7.0  https://support.google.com/mail/?p=WantAuthError \(upstream.nextID()) - gsmtp")
      return true
    }
    return false
  }

  private var offersDSN: Bool { upstream.withScript { $0.has(.offersDSN) } }

  private func mail(_ argument: Substring) async throws {
    if refusesStranger("MAIL") { return }
    if let limit = upstream.withScript({ $0.messagesPerConnection }), acceptedMessages >= limit {
      say("421 4.7.0 Try again later, closing connection. \(upstream.nextID()) - gsmtp")
      throw Ending.quit
    }
    guard transaction == nil else {
      violate("MAIL within a transaction")
      say("503 5.5.1 Nested MAIL. \(upstream.nextID()) - gsmtp")
      return
    }
    guard let parsed = PathArgument(argument, prefix: "FROM:") else {
      violate("cannot read MAIL \(argument)")
      say("555 5.5.2 Syntax error. \(upstream.nextID()) - gsmtp")
      return
    }
    for parameter in parsed.parameters {
      let parts = parameter.split(separator: "=", maxSplits: 1)
      switch (parts.first?.uppercased() ?? "", parts.count > 1 ? parts[1].uppercased() : nil) {
      case ("SIZE", let value?) where Int(value) != nil:
        if let size = Int(value), size > upstream.maximumMessageSize {
          say(tooLarge)
          return
        }
      case ("SMTPUTF8", nil) where !upstream.withScript({ $0.has(.noSMTPUTF8) }): continue
      case ("BODY", "7BIT"), ("BODY", "8BITMIME"), ("AUTH", _?): continue
      case ("RET", _?) where offersDSN, ("ENVID", _?) where offersDSN: continue
      default:
        violate("MAIL parameter \(parameter) was not offered")
        say("555 5.5.4 Unsupported MAIL parameter. \(upstream.nextID()) - gsmtp")
        return
      }
    }
    if try await answer(.mail, nil, { "250 2.1.0 OK \($0) - gsmtp" }) {
      transaction = Transaction(reversePath: parsed.path, parameters: parsed.parameters)
    }
  }

  private func recipient(_ argument: Substring) async throws {
    if refusesStranger("RCPT") { return }
    guard let transaction, transaction.chunks == nil else {
      // Not a violation: a pipelined RCPT behind a refused MAIL is as it should be.
      say("503 5.5.1 MAIL first. \(upstream.nextID()) - gsmtp")
      return
    }
    guard let parsed = PathArgument(argument, prefix: "TO:"), !parsed.path.isEmpty,
      parsed.parameters.isEmpty || offersDSN
    else {
      violate("cannot accept RCPT \(argument)")
      say("555 5.5.2 Syntax error. \(upstream.nextID()) - gsmtp")
      return
    }
    guard transaction.recipients.count < upstream.options.maximumRecipients else {
      say("452 4.5.3 Your message has too many recipients. \(upstream.nextID()) - gsmtp")
      return
    }
    if try await answer(.rcpt, parsed.path, { "250 2.1.5 OK \($0) - gsmtp" }) {
      self.transaction?.recipients.append(parsed.path)
      self.transaction?.recipientParameters.append(parsed.parameters)
    }
  }

  private func data() async throws {
    guard let open = transaction, !open.recipients.isEmpty, open.chunks == nil else {
      say("503 5.5.1 \(transaction == nil ? "MAIL" : "RCPT") first. \(upstream.nextID()) - gsmtp")
      return
    }
    guard try await answer(.data, nil, { "354 Go ahead \($0) - gsmtp" }) else { return }
    var decoder = DotDecoder(limit: upstream.maximumMessageSize)
    while let stream {
      let isComplete = stream.consume { decoder.decode($0) }
      if upstream.withScript({ !$0.isEmpty && $0.disconnectsInData(at: decoder.count) }) { try breakOff() }
      if isComplete { break }
      try await fill()
    }
    if decoder.sawBareLineFeed { violate("bare LF in the content") }
    let isTooLarge = decoder.isTooLarge
    try await finish(open, decoder.takeContent(), isTooLarge: isTooLarge, isChunked: false)
  }

  private func chunk(_ argument: Substring) async throws {
    let words = argument.split(separator: " ")
    guard let size = words.first.flatMap({ Int($0) }), size >= 0, words.count == 1 || words[1].uppercased() == "LAST"
    else {
      violate("cannot read BDAT \(argument)")
      say("501 5.5.4 Syntax error in BDAT. \(upstream.nextID()) - gsmtp")
      throw Ending.quit  // the octets that follow could be anything
    }
    let isLast = words.count > 1
    if upstream.withScript({ $0.has(.noChunking) }) { violate("BDAT was not offered") }
    var open = transaction
    if open?.recipients.isEmpty == true { open = nil }
    var octets = open?.chunks ?? []
    transaction?.chunks = nil  // so that the octets have one owner and grow in place
    var isTooLarge = open?.isTooLarge ?? false
    var left = size
    while left > 0, let stream {
      stream.consume { bytes in
        let count = min(left, bytes.count)
        left -= count
        isTooLarge = isTooLarge || octets.count + count > upstream.maximumMessageSize
        // The octets of a refused transaction are read and dropped (RFC 3030 2).
        if open != nil, !isTooLarge { octets.append(contentsOf: bytes[..<count]) }
        return (count, ())
      }
      let read = octets.count
      if upstream.withScript({ !$0.isEmpty && $0.disconnectsInData(at: read) }) { try breakOff() }
      if left > 0 { try await fill() }
    }
    guard let open else {
      say("503 5.5.1 \(transaction == nil ? "MAIL" : "RCPT") first. \(upstream.nextID()) - gsmtp")
      if isLast { transaction = nil }
      return
    }
    if isLast {
      try await finish(open, octets, isTooLarge: isTooLarge, isChunked: true)
    } else {
      transaction?.isTooLarge = isTooLarge
      transaction?.chunks = octets
      if !(try await answer(.chunk, nil, { _ in "250 2.0.0 OK \(size) octets" })) { transaction = nil }
    }
  }

  private var tooLarge: String {
    "552-5.3.4 Your message exceeded Google's message size limits. To view our message size\n"
      + "552 5.3.4 guidelines, go to https://support.google.com/mail/?p=MaxSizeError \(upstream.nextID()) - gsmtp"
  }

  private func finish(_ open: Transaction, _ content: [UInt8], isTooLarge: Bool, isChunked: Bool) async throws {
    transaction = nil
    if isTooLarge {
      say(tooLarge)
      return
    }
    let now = upstream.options.time.wallClock
    var id = ""
    let reply = try await consult(.content, nil)
    let isRefused = reply.map { !$0.hasPrefix("2") } ?? false
    if !isRefused {
      id = upstream.nextID()
      upstream.accept(
        ReceivedMessage(
          number: 0, reversePath: open.reversePath, parameters: open.parameters, recipients: open.recipients,
          recipientParameters: open.recipientParameters, content: content, tlsVersion: stream?.tls?.version,
          authenticatedUser: user, clientName: clientName ?? "",
          connection: number, isChunked: isChunked, receivedAt: now, id: id))
      acceptedMessages += 1
      upstream.log(
        "#\(number) message \(id) from <\(open.reversePath)> for \(open.recipients.joined(separator: ", "))"
          + " (\(content.count) bytes)")
      if upstream.withScript({ !$0.isEmpty && $0.disconnectsAfterDot() }) { try breakOff() }
    }
    say(reply ?? "250 2.0.0 OK  \(now.seconds) \(id) - gsmtp")
    if reply?.hasPrefix("421") == true { throw Ending.quit }
  }

  // MARK: Replies

  /// Does what the script wants at a step, and returns the reply it wants instead of the usual one.
  private func consult(_ step: Step, _ recipient: String?) async throws -> String? {
    let directive = upstream.withScript {
      $0.isEmpty ? nil : $0.directive(for: step, recipient: recipient)
    }
    guard let directive else { return nil }
    if let delay = directive.delay {
      try await flush()
      try await upstream.options.time.sleep(until: upstream.options.time.now + delay)
    }
    if directive.hangs {
      try await flush()
      upstream.count { $0.scriptedFaults += 1 }
      while let stream {
        stream.discardInput()
        guard try await stream.fill(until: .distantFuture, waitingFor: "nothing") else { break }
      }
      throw Ending.hangUp
    }
    if directive.disconnects { try breakOff() }
    return directive.reply.map(worded)
  }

  /// A reply of the script with an id in its place.
  func worded(_ reply: String) -> String {
    reply.contains("{id}") ? reply.replacing("{id}", with: upstream.nextID()) : reply
  }

  private func breakOff() throws -> Never {
    upstream.count { $0.scriptedFaults += 1 }
    throw Ending.hangUp
  }

  /// Answers a command, as usual or as the script wants. Returns whether it is carried out.
  @discardableResult
  func answer(_ step: Step, _ recipient: String?, _ usual: (String) -> String) async throws -> Bool {
    guard let scripted = try await consult(step, recipient) else {
      say(usual(upstream.nextID()))
      return true
    }
    say(scripted)
    if scripted.hasPrefix("421") { throw Ending.quit }
    return scripted.hasPrefix("2") || scripted.hasPrefix("3")
  }

  func say(_ reply: String) {
    upstream.log("#\(number) < \(reply)")
    stream?.append { output in
      for byte in reply.utf8 {
        if byte == 0x0a { output.append(0x0d) }
        output.append(byte)
      }
      output.append(0x0d)
      output.append(0x0a)
    }
  }

  func violate(_ what: String) {
    upstream.log("#\(number) ! \(what)")
    upstream.count { if $0.violations.count < 1000 { $0.violations.append(what) } }
  }

  var isSecure: Bool { stream?.tls != nil }

  // MARK: Reading

  private var deadline: MonotonicInstant { SystemTime().now + upstream.options.idleTimeout }

  private func flush() async throws { try await stream?.flush(until: deadline, waitingFor: "room for a reply") }

  /// Sends what is to be sent and waits for more; throws at the end.
  private func fill() async throws {
    guard let stream else { throw Ending.hangUp }
    if stream.pendingOutput > 0 { try await flush() }
    guard try await stream.fill(until: deadline, waitingFor: "a command") else { throw Ending.hangUp }
  }

  /// The next line without its end.
  func readLine() async throws -> String {
    while let stream {
      var hasBareLineFeed = false
      let line: String? = stream.consume { bytes in
        guard let base = bytes.baseAddress, let found = memchr(base, 0x0a, bytes.count) else { return (0, nil) }
        let end = UnsafeRawPointer(found) - base
        hasBareLineFeed = end == 0 || bytes[end - 1] != 0x0d
        let text = bytes[..<(hasBareLineFeed ? end : end - 1)]
        return (end + 1, String(decoding: text, as: UTF8.self))
      }
      if hasBareLineFeed { violate("bare LF behind a command") }
      if let line { return line }
      if stream.bufferedCount > 16_384 {
        violate("a command of more than 16384 bytes")
        say("500 5.5.2 Line too long. \(upstream.nextID()) - gsmtp")
        throw Ending.quit
      }
      try await fill()
    }
    throw Ending.hangUp
  }
}
