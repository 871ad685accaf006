// The From field on the way out through an account that may only speak for itself: the account's address with the
// author's name, the author where replies go, and what stood there before. Nothing else of the message changes.

import SMTP

/// `from_header = via`: From becomes `"Jane Doe via Support" <account>`.
///
/// Pure: the same header gives the same octets. What comes out of a stranger's header is either parsed and written
/// anew, or stands behind the name of a field of ours with every line break normalised, so that nothing can be injected.
public struct FromRewriting: Sendable {
  /// Whom the mail is from on the way out.
  public var address: Mailbox
  /// What stands behind `via`.
  public var label: String
  /// The author of a message whose From cannot be used; nil for the null reverse-path.
  public var reversePath: Mailbox?
  /// Whether an author is of our own domains, so that nothing is rewritten.
  public var isOurs: @Sendable (Mailbox) -> Bool

  public init(
    address: Mailbox, label: String, reversePath: Mailbox?, isOurs: @escaping @Sendable (Mailbox) -> Bool
  ) {
    self.address = address
    self.label = label
    self.reversePath = reversePath
    self.isOurs = isOurs
  }

  /// The new beginning of a message, and where the old octets go on behind it.
  public struct Splice: Sendable, Equatable {
    public var beginning: [UInt8]
    public var resumesAt: Int
  }

  /// What becomes of a message that begins with `bytes`, whose header must be complete; nil when nothing does.
  public func splice(_ bytes: UnsafeRawBufferPointer) -> Splice? {
    let header = HeaderView(bytes)
    let from = header.all("From")
    let list = from.first.map { AddressList(parsing: bytes[$0.value]) }
    var authors = list?.members ?? []
    if from.count > 1 {
      // Readers differ about which one they show; all that are named must be ours.
      for field in from.dropFirst() { authors += AddressList(parsing: bytes[field.value]).members }
    }
    let isUsable = !authors.isEmpty
    if !isUsable { authors = reversePath.map { [AddressList.Member(mailbox: $0)] } ?? [] }
    if !authors.isEmpty, authors.allSatisfy({ isOurs($0.mailbox) }) { return nil }

    var out: [UInt8] = []
    var position = 0
    // Forms on the web leave one without a value. Readers pass over it and answer to From, which is the account now.
    let replyTo = header.all("Reply-To")
    let isBlank = replyTo.allSatisfy { bytes[$0.value].allSatisfy { $0 <= 0x20 } }
    let fields = fields(authors, list?.groups ?? [], addsReplyTo: isBlank)
    let blanks = isBlank && !authors.isEmpty ? replyTo : []
    func copy(to end: Int) {
      for blank in blanks where position <= blank.field.lowerBound && blank.field.upperBound <= end {
        out.append(contentsOf: bytes[position..<blank.field.lowerBound])
        position = blank.field.upperBound
      }
      out.append(contentsOf: bytes[position..<end])
      position = end
    }
    if from.isEmpty {
      copy(to: header.headerRange.upperBound)
      // A header that ends with the message need not end with a line end.
      if let last = out.last, last != 0x0a { out += [0x0d, 0x0a] }
      out += fields
    }
    for (index, field) in from.enumerated() {
      copy(to: field.field.lowerBound)
      if index == 0 { out += fields }
      out += Self.original(bytes[field.value])
      position = field.field.upperBound
    }
    if let last = blanks.last, last.field.upperBound > position { copy(to: last.field.upperBound) }
    return Splice(beginning: out, resumesAt: position)
  }

  /// The message as it goes out; nil when it goes as it is.
  public func rewritten(_ message: [UInt8]) -> [UInt8]? {
    guard let splice = message.withUnsafeBytes({ self.splice($0) }) else { return nil }
    return splice.beginning + message[splice.resumesAt...]
  }

  // MARK: - The fields

  private func fields(_ authors: [AddressList.Member], _ groups: [String], addsReplyTo: Bool) -> [UInt8] {
    var names = authors.prefix(3).map { author in
      author.name.map(Self.plain).flatMap { $0.isEmpty ? nil : $0 } ?? author.mailbox.description
    }
    if authors.count > 3 { names.append("\(authors.count - 3) more") }
    if authors.isEmpty { names = [groups.first.map(Self.plain).flatMap { $0.isEmpty ? nil : $0 } ?? "Unknown sender"] }
    let name = HeaderText.singleLine(names.joined(separator: ", "), limit: 250) + " via " + Self.plain(label)
    var text = "From: \(HeaderText.named(name, address, column: 6))\r\n"
    if addsReplyTo, !authors.isEmpty { text += "Reply-To: \(AddressList.render(authors, column: 10))\r\n" }
    return Array(text.utf8)
  }

  /// On one line and without blanks around it.
  private static func plain(_ text: String) -> String {
    HeaderText.singleLine(text, limit: 250).split(separator: " ").joined(separator: " ")
  }

  /// The field as it was, under another name.
  private static func original(_ value: Slice<UnsafeRawBufferPointer>) -> [UInt8] {
    var out = Array("X-Original-From:".utf8)
    let first = value.prefix { $0 != 0x0a }
    // The name is longer now, and a line has its limit (RFC 5322 2.1.1).
    if out.count + first.count > 990 { out += [0x0d, 0x0a, 0x20] }
    for (index, line) in value.split(separator: 0x0a, omittingEmptySubsequences: false).enumerated() {
      if index > 0 { out += [0x0d, 0x0a] }
      var line = line
      if line.last == 0x0d { line = line.dropLast() }
      out += line.map { $0 == 0x0d ? 0x20 : $0 }
    }
    return out + [0x0d, 0x0a]
  }
}
