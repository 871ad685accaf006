// Mail filters at work in a session: each is told what the client does, in the order of the configuration, and the
// first that says no decides. They see the content once it is complete, one after the other, each as the one before
// has left it.

import Filters
import Message
import Network
import Primitives
import SMTP
import Spool

/// What filters have said about the message that is under way.
struct FilteredTransaction {
  /// The identifier under which the message will be queued, which filters are told from the beginning.
  var id: QueueID?
  /// What each accepted RCPT has come to: two may share an address, and a filter may remove one of them.
  var asked: [(original: String, recipients: [Recipient])] = []
  /// Why the message goes nowhere although the client is told that all is well.
  var discarded: String?
  /// Why the message is to be queued on hold.
  var quarantine: String?
}

extension Session {
  // MARK: The connection

  /// Begins to connect to the filters. Nobody waits for them before the first message.
  func openMilters() {
    guard !settings.milters.isEmpty else { return }
    milters = settings.milters.map { MilterClient($0) }
    milterOpenings = milters.indices.map { place in
      Task(executorPreference: loop) { await self.openMilter(place) }
    }
  }

  private func openMilter(_ place: Int) async {
    guard let connection = milterConnection else { return }
    await milters[place].open(connection, on: loop)
  }

  private var milterConnection: MilterConnection? {
    guard let stream else { return nil }
    let local = proxied?.ends?.destination ?? stream.local
    let port = proxied?.ends?.source.port ?? stream.peer.port
    return MilterConnection(
      hostname: settings.hostname, client: Endpoint(address: client, port: port), local: local,
      daemon: role.rawValue)
  }

  func closeMilters() { for milter in milters { milter.close() } }

  /// The message, if there was one, has ended without them.
  func abortMilters() {
    for milter in milters { milter.abort() }
    filtered = FilteredTransaction()
  }

  // MARK: The envelope

  /// Tells the filters of a sender. Returns the refusal of one of them.
  func askMilters(sender path: ReversePath, _ parameters: MailParameters) async -> Reply? {
    guard !milters.isEmpty, let connection = milterConnection else { return nil }
    abortMilters()
    for opening in milterOpenings { await opening.value }
    milterOpenings = []
    let id = server.store.nextID()
    filtered.id = id
    var words: [String] = []
    if let size = parameters.size { words.append("SIZE=\(size)") }
    if parameters.body == .eightBitMIME { words.append("BODY=8BITMIME") }
    if parameters.smtpUTF8 { words.append("SMTPUTF8") }
    let sender = MilterSender(
      queueID: id.description, path: path.text, parameters: words, identity: machine.identity)
    let tls = stream?.tls
    let hello = MilterHello(name: machine.heloName ?? "", tlsVersion: tls?.version, cipher: tls?.cipher)
    for milter in milters {
      let verdict = await milter.mail(sender, hello: hello, connection, on: loop)
      if let refusal = consider(verdict, of: milter) { return refusal }
      if filtered.discarded != nil { return nil }
    }
    return nil
  }

  /// Tells the filters of a recipient that has a route. Returns the refusal of one of them.
  func askMilters(recipient path: ForwardPath) async -> Reply? {
    guard !milters.isEmpty, filtered.discarded == nil else { return nil }
    for milter in milters {
      if let refusal = consider(await milter.recipient(path.text, parameters: []), of: milter) { return refusal }
      if filtered.discarded != nil { return nil }
    }
    return nil
  }

  /// What a verdict means to the message. Returns the reply when it is a refusal.
  private func consider(_ verdict: MilterVerdict, of client: MilterClient) -> Reply? {
    let name = client.milter.settings.name
    switch verdict {
    case .proceed, .accept: return nil
    case .refuse(let reply): return reply
    case .discard:
      filtered.discarded = "milter \(name) discards it"
      return nil
    case .unavailable:
      switch client.milter.settings.fallback {
      case .accept: return nil
      case .temporaryFailure: return MilterClient.unavailable
      case .reject: return MilterClient.refused
      case .quarantine:
        filtered.quarantine = filtered.quarantine ?? "milter \(name) does not answer"
        return nil
      }
    }
  }

  // MARK: The content

  /// Shows the content to the filters and does to it what they say. What is refused, the receiver knows afterwards.
  func askMilters(content receiver: ContentReceiver) async {
    guard !milters.isEmpty, filtered.discarded == nil else { return }
    guard var content = await receiver.contentToFilter() else { return }
    var gathered: [GatheredContent] = []
    var isChanged = false
    for client in milters {
      let edit = MessageEdit(
        content.header, leadingSpace: client.wantsLeadingSpace, store: server.store,
        bodyLimit: settings.maximumMessageSize)
      let verdict = await show(content.header, content.body, to: client, edit)
      if let body = edit.body { gathered.append(body) }
      if isAborted {
        // The filter has not failed, we have hung up: the client comes again with what was not acknowledged.
        receiver.refuse(Self.shuttingDown(settings.hostname))
        break
      }
      if let trouble = edit.trouble {
        receiver.refuse(ContentReceiver.reply(for: trouble), because: trouble)
        break
      }
      if let reply = consider(verdict, of: client) {
        server.log.notice("\(receiver.id): refused by milter \(client.milter.settings.name): \(reply)")
        receiver.refuse(reply)
        break
      }
      if filtered.discarded != nil { break }
      guard verdict == .proceed || verdict == .accept else { continue }
      takeOver(edit, of: client)
      guard edit.hasChanged else { continue }
      isChanged = true
      content.header = edit.header
      content.header.settle()
      if edit.body != nil { content.header.terminate() }
      do throws(QueueError) { if let body = edit.body { content.body = try await body.finish() } } catch {
        receiver.refuse(ContentReceiver.reply(for: error), because: error)
        break
      }
    }
    if isChanged, !receiver.isRefused, filtered.discarded == nil {
      await receiver.replace(header: content.header, body: content.body)
    }
    for content in gathered { await content.discard() }
  }

  /// Sends a content to a filter and collects what it wants changed.
  private func show(
    _ header: EditableHeader, _ body: BodyPlace, to client: MilterClient, _ edit: MessageEdit
  ) async -> MilterVerdict {
    var verdict = await client.data()
    for field in header.fields(leadingSpace: client.wantsLeadingSpace) where verdict == .proceed {
      verdict = await client.header(name: field.name, value: field.value)
    }
    if verdict == .proceed { verdict = await client.endOfHeaders() }
    var offset = 0
    while verdict == .proceed, client.wantsBody, offset < body.count {
      let read: ArraySlice<UInt8>
      do throws(QueueError) { read = try await body.read(at: offset, count: MilterCodec.chunkSize) } catch {
        server.log.error("the content cannot be shown to milter \(client.milter.settings.name): \(error)")
        return .refuse(ContentReceiver.reply(for: error))
      }
      if read.isEmpty { break }
      offset += read.count
      verdict = await client.body(read)
    }
    guard verdict == .proceed else { return verdict }
    return await client.endOfBody(edit)
  }

  /// Does to the envelope what a filter wants.
  private func takeOver(_ edit: MessageEdit, of client: MilterClient) {
    let name = client.milter.settings.name
    var hasChanged = edit.hasChanged
    if let reason = edit.quarantine {
      filtered.quarantine = filtered.quarantine ?? "milter \(name): \(reason)"
      client.milter.count { $0.quarantined += 1 }
    }
    if let text = edit.sender {
      do throws(AddressError) {
        sender = try ReversePath(parsing: text)
        hasChanged = true
      } catch { server.log.error("milter \(name): the sender that it wants is no address: \(error)") }
    }
    for change in edit.recipients {
      hasChanged = true
      if change.isAdded { add(recipient: change.path, by: name) } else { remove(recipient: change.path) }
    }
    if hasChanged { client.milter.count { $0.changed += 1 } }
    if recipients.isEmpty { filtered.discarded = "milter \(name) has removed all its recipients" }
  }

  /// A filter of the operator's own may send mail wherever a trusted client may.
  private func add(recipient text: String, by name: String) {
    do throws(AddressError) {
      let path = try ForwardPath(parsing: text)
      switch settings.router.route(recipient: path, sender: sender, client: .trusted, now: server.time.wallClock) {
      case .accept(let routes):
        accept(
          path.text,
          routes.map { Recipient(address: $0.address.description, original: path.text, account: $0.account) })
      case .reject(let reply):
        server.log.error("milter \(name): the recipient <\(path.text)> that it adds has no route: \(reply)")
      }
    } catch { server.log.error("milter \(name): a recipient that it adds is no address: \(error)") }
  }

  private func remove(recipient text: String) {
    let wanted = text.lowercased()
    filtered.asked.removeAll { $0.original.lowercased() == wanted }
    recipients = []
    for recipient in filtered.asked.flatMap(\.recipients) { addRecipient(recipient) }
  }

  /// What has happened to a message before it was queued.
  var initialState: MessageState {
    guard let reason = filtered.quarantine else { return MessageState() }
    let event = LifeEvent(
      time: server.time.wallClock, kind: .held, text: HeaderText.singleLine("by \(reason)", limit: 300))
    return MessageState(isHeld: true, life: [event])
  }
}
