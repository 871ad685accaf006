// A message outside the queue: its envelope, its state and its life as JSON, beside the content as it went over the
// wire. docs/export-format.md says the same for people.

import FoundationEssentials
import Glibc
import Primitives
import SMTP
import Spool
import Telemetry

/// What stands in `ID.json` beside `ID.eml`. Only sender, recipients and account have to be given by hand.
public struct MessageDocument: Codable, Sendable, Equatable {
  public struct Content: Codable, Sendable, Equatable {
    public var octets: Int
    /// Eight hexadecimal digits; nil where nobody has read the content.
    public var crc32c: String?

    public init(octets: Int, crc32c: UInt32? = nil) {
      self.octets = octets
      self.crc32c = crc32c.map { crc in
        let digits = String(crc, radix: 16)
        return String(repeating: "0", count: 8 - digits.count) + digits
      }
    }
  }

  public var format: Int?
  /// The identifier in the queue it comes from.
  public var id: String?
  /// RFC 3339, in UTC, with microseconds.
  public var arrival: String?
  public var sender: String
  /// The `[domain:]` of the recipients that name none.
  public var account: String?
  public var recipients: [Addressee]
  public var client: String?
  public var helo: String?
  public var eightBitMIME: Bool?
  public var smtpUTF8: Bool?
  public var envid: String?
  /// `FULL` or `HDRS`.
  public var ret: String?
  public var held: Bool?
  public var dead: String?
  public var delayReported: Bool?
  public var lanes: [QueueDetail.Lane]?
  public var life: [QueueDetail.Event]?
  public var content: Content?

  enum CodingKeys: String, CodingKey {
    case format, id, arrival, sender, account, recipients, client, helo, envid, ret, held, dead, lanes, life, content
    // In the words that become `eight_bit_mime`, `smtp_utf8` and `delay_reported`.
    case eightBitMIME = "eightBitMime"
    case smtpUTF8 = "smtpUtf8"
    case delayReported
  }

  /// A recipient, of which an address alone is enough.
  public struct Addressee: Codable, Sendable, Equatable {
    public var address: String
    public var original: String?
    public var account: String?
    public var state: String?
    public var reply: String?
    public var notify: String?
    public var orcpt: String?

    enum CodingKeys: String, CodingKey { case address, original, account, state, reply, notify, orcpt }

    init(_ recipient: QueueDetail.Recipient) {
      address = recipient.address
      original = recipient.original == recipient.address ? nil : recipient.original
      account = recipient.account
      state = recipient.state == "pending" ? nil : recipient.state
      reply = recipient.reply
      notify = recipient.notify
      orcpt = recipient.orcpt
    }

    public init(from decoder: any Swift.Decoder) throws {
      if let text = try? decoder.singleValueContainer().decode(String.self) {
        address = text
        return
      }
      let values = try decoder.container(keyedBy: CodingKeys.self)
      address = try values.decode(String.self, forKey: .address)
      original = try values.decodeIfPresent(String.self, forKey: .original)
      account = try values.decodeIfPresent(String.self, forKey: .account)
      state = try values.decodeIfPresent(String.self, forKey: .state)
      reply = try values.decodeIfPresent(String.self, forKey: .reply)
      notify = try values.decodeIfPresent(String.self, forKey: .notify)
      orcpt = try values.decodeIfPresent(String.self, forKey: .orcpt)
    }
  }

  // MARK: Out of the queue

  init(_ id: QueueID, _ envelope: Envelope, _ state: MessageState) {
    format = 1
    self.id = id.description
    arrival = ExactTime.format(envelope.arrival)
    sender = envelope.reversePath
    recipients = Self.recipients(envelope, state).map(Addressee.init)
    client = envelope.clientAddress
    helo = envelope.helo
    eightBitMIME = envelope.is8Bit ? true : nil
    smtpUTF8 = envelope.smtpUTF8 ? true : nil
    envid = envelope.envelopeID
    ret = envelope.returnFull.map { $0 ? "FULL" : "HDRS" }
    held = state.isHeld ? true : nil
    dead = state.deadReason
    delayReported = state.isDelayReported ? true : nil
    lanes = state.lanes.sorted { $0.key < $1.key }.map { name, lane in
      .init(
        account: name, attempts: lane.attempts, nextAttempt: ExactTime.format(lane.nextAttempt),
        lastReply: lane.lastReply, inDoubt: lane.inDoubt)
    }
    life = state.life.map {
      .init(
        time: ExactTime.format($0.time), event: "\($0.kind)", account: $0.account.isEmpty ? nil : $0.account,
        text: $0.text)
    }
  }

  static func recipients(_ envelope: Envelope, _ state: MessageState) -> [QueueDetail.Recipient] {
    envelope.recipients.enumerated().map { index, recipient in
      let (word, reply): (String, String?) =
        switch state.recipients[index] {
        case .none: ("pending", nil)
        case .delivered: ("delivered", nil)
        case .failed(let reply): ("failed", reply)
        }
      return .init(
        address: recipient.address, original: recipient.original, account: recipient.account, state: word,
        reply: reply, notify: recipient.notify.map(notify), orcpt: recipient.originalRecipient)
    }
  }

  private static let conditions: [(bit: UInt8, word: String)] = [(1, "SUCCESS"), (2, "FAILURE"), (4, "DELAY")]

  private static func notify(_ bits: UInt8) -> String {
    let words = conditions.filter { bits & $0.bit != 0 }.map(\.word)
    return words.isEmpty ? "NEVER" : words.joined(separator: ",")
  }

  // MARK: Into the queue

  /// What is wrong with a document, in words.
  public struct Malformed: Error, Sendable, Hashable, CustomStringConvertible {
    public var description: String
    public init(description: String) { self.description = description }
  }

  /// Reads a document.
  public init(json: [UInt8]) throws(Malformed) {
    try Self.checkNames(Data(json))
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    do { self = try decoder.decode(MessageDocument.self, from: Data(json)) } catch {
      throw Malformed(description: "it is not the JSON of a message: \(Self.words(error))")
    }
  }

  private static func words(_ error: any Error) -> String {
    switch error {
    case DecodingError.keyNotFound(let key, let context): "there is no \(key.stringValue)\(place(context))"
    case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context):
      "a value is of the wrong kind\(place(context))"
    case DecodingError.dataCorrupted: "the text is broken"
    default: "\(error)"
    }
  }

  private static func place(_ context: DecodingError.Context) -> String {
    let path = context.codingPath.map { $0.intValue.map { "[\($0)]" } ?? $0.stringValue }.joined(separator: ".")
    return path.isEmpty ? "" : " in \(path)"
  }

  /// The JSON of the document for people, its keys sorted.
  public var json: [UInt8] { encoded([.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]) }

  /// The same on one line.
  public var jsonLine: [UInt8] { encoded([.sortedKeys, .withoutEscapingSlashes]) }

  private func encoded(_ formatting: JSONEncoder.OutputFormatting) -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = formatting
    // Nothing in it can fail to be encoded.
    return ((try? encoder.encode(self)).map(Array.init) ?? []) + [0x0a]
  }

  /// Envelope and state for a queue that gets the message now; the life goes on with an event that says so.
  public func message(now: Timestamp) throws(Malformed) -> (envelope: Envelope, state: MessageState) {
    func bad(_ text: String) -> Malformed { Malformed(description: text) }
    if let format, format != 1 { throw bad("format \(format) is of a later release") }
    if recipients.isEmpty { throw bad("there are no recipients") }
    if !sender.isEmpty { try Self.check(sender, "sender") }
    // As the front door has it (RFC 6531 3.4), for the addresses that were given there: what a mapping makes of one is
    // the configuration's affair.
    let given = [sender] + recipients.map { $0.original ?? $0.address }
    if !(smtpUTF8 ?? false), let address = given.first(where: { $0.utf8.contains { $0 >= 0x80 } }) {
      throw bad("\(address) is not ASCII: such an address needs \"smtp_utf8\": true, and an upstream with SMTPUTF8")
    }
    var state = MessageState()
    var list: [Recipient] = []
    for (index, recipient) in recipients.enumerated() {
      try Self.check(recipient.address, "recipient")
      guard let account = recipient.account ?? account, !account.isEmpty else {
        throw bad("no account is given for \(recipient.address): write \"account\": the name of a [domain:]")
      }
      list.append(
        Recipient(
          address: recipient.address, original: recipient.original ?? recipient.address, account: account.lowercased(),
          notify: try recipient.notify.map(Self.notifyBits), originalRecipient: try recipient.orcpt.map(Self.orcpt)))
      switch recipient.state {
      case nil, "pending": break
      case "delivered": state.recipients[index] = .delivered
      case "failed": state.recipients[index] = .failed(recipient.reply ?? "")
      case let other?: throw bad("\(other) is no state of a recipient")
      }
    }
    state.isHeld = held ?? false
    state.deadReason = dead
    state.isDelayReported = delayReported ?? false
    if state.recipients.count == list.count, dead == nil { throw bad("nobody is left to deliver it to") }
    for lane in lanes ?? [] {
      state.lanes[lane.account] = Lane(
        nextAttempt: try Self.time(lane.nextAttempt), attempts: lane.attempts, lastReply: lane.lastReply,
        inDoubt: lane.inDoubt)
    }
    for event in life ?? [] {
      let kind = LifeEvent.Kind.allCases.first { "\($0)" == event.event } ?? .other
      state.note(
        LifeEvent(time: try Self.time(event.time), kind: kind, account: event.account ?? "", text: event.text))
    }
    state.note(LifeEvent(time: now, kind: .imported, text: id.map { "it was \($0) before" } ?? "from a file"))
    let returnFull: Bool?
    switch ret?.uppercased() {
    case nil: returnFull = nil
    case "FULL": returnFull = true
    case "HDRS": returnFull = false
    case let other?: throw bad("ret is \(other): write FULL or HDRS")
    }
    if let envid, envid.isEmpty || envid.utf8.count > 100 || !Self.isPrintable(envid) {
      throw bad("envid is to have 1 to 100 printable characters")
    }
    let envelope = Envelope(
      reversePath: sender, recipients: list, arrival: try arrival.map(Self.time) ?? now,
      clientAddress: client ?? "", helo: helo ?? "", is8Bit: eightBitMIME ?? false, smtpUTF8: smtpUTF8 ?? false,
      envelopeID: envid, returnFull: returnFull)
    return (envelope, state)
  }

  private static func check(_ address: String, _ what: String) throws(Malformed) {
    // What is queued is written into commands to an upstream: nothing that is no address may get there.
    guard (try? Mailbox(parsing: address)) != nil else {
      throw Malformed(description: "the \(what) is not an address: \(address)")
    }
  }

  /// ORCPT with its address decoded, as the queue keeps it.
  private static func orcpt(_ text: String) throws(Malformed) -> String {
    guard let semicolon = text.firstIndex(of: ";"), text.utf8.count <= 500,
      RecipientParameters.OriginalRecipient.isAddressType(text[..<semicolon]),
      text.index(after: semicolon) < text.endIndex, isPrintable(text)
    else {
      throw Malformed(description: "orcpt is \(text.debugDescription): write it as rfc822;jane@example.org")
    }
    return text
  }

  private static func isPrintable(_ text: String) -> Bool {
    text.unicodeScalars.allSatisfy { scalar in
      scalar.value >= 0x20 && !(0x7f...0x9f).contains(scalar.value) && scalar.value != 0x2028 && scalar.value != 0x2029
    }
  }

  private static func time(_ text: String) throws(Malformed) -> Timestamp {
    guard let time = ExactTime.parse(text) else {
      throw Malformed(description: "\(text) is no time: write it as 2026-11-24T16:49:22Z")
    }
    return time
  }

  private static func notifyBits(_ text: String) throws(Malformed) -> UInt8 {
    if text.uppercased() == "NEVER" { return 0 }
    var bits: UInt8 = 0
    for word in text.uppercased().split(separator: ",") {
      guard let known = conditions.first(where: { $0.word == word }) else {
        throw Malformed(description: "notify is \(text): write NEVER, or some of SUCCESS,FAILURE,DELAY")
      }
      bits |= known.bit
    }
    return bits
  }
}

/// RFC 3339 in UTC with microseconds, so that a time survives being written and read.
enum ExactTime {
  static func format(_ time: Timestamp) -> String {
    let rest = String(time.microseconds - time.seconds * 1_000_000)
    return ISOTime.format(time).prefix(19) + "." + String(repeating: "0", count: 6 - rest.count) + rest + "Z"
  }

  static func parse(_ text: String) -> Timestamp? {
    let bytes = Array(text.utf8)
    guard bytes.count >= 20, bytes.last == UInt8(ascii: "Z"), bytes[4] == 0x2d, bytes[7] == 0x2d,
      bytes[10] == UInt8(ascii: "T"), bytes[13] == 0x3a, bytes[16] == 0x3a
    else { return nil }
    func number(_ range: Range<Int>) -> Int32? {
      bytes[range].allSatisfy { $0 >= 0x30 && $0 <= 0x39 } ? Int32(String(decoding: bytes[range], as: UTF8.self)) : nil
    }
    guard let year = number(0..<4), let month = number(5..<7), let day = number(8..<10), let hour = number(11..<13),
      let minute = number(14..<16), let second = number(17..<19), (1...12).contains(month), (1...31).contains(day),
      hour < 24, minute < 60, second < 61
    else { return nil }
    var parts = tm()
    (parts.tm_year, parts.tm_mon, parts.tm_mday) = (year - 1900, month - 1, day)
    (parts.tm_hour, parts.tm_min, parts.tm_sec) = (hour, minute, second)
    var micro: Int64 = 0
    if bytes.count > 20 {
      let fraction = bytes.count - 21
      guard bytes[19] == 0x2e, (1...6).contains(fraction), let digits = number(20..<20 + fraction) else { return nil }
      micro = Int64(digits)
      for _ in fraction..<6 { micro *= 10 }
    }
    return Timestamp(microseconds: Int64(timegm(&parts)) * 1_000_000 + micro)
  }
}
