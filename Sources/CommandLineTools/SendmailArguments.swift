// The command line of sendmail, as forty years of programs use it. What has a meaning here is taken, what only tuned
// another program is accepted in silence, and what cannot be done is refused in words.

import SMTP

/// What a call of `sendmail`, `mailq` or `newaliases` asks for.
public struct SendmailArguments: Sendable, Equatable {
  public enum Mode: Sendable, Equatable {
    /// `-bm`: a message on standard input.
    case message
    /// `-bs`: SMTP on standard input and output.
    case smtp
    /// `-bp`, mailq: the queue.
    case list
    /// `-bi`, `-q`, newaliases: nothing that would be needed here.
    case nothing
  }

  public var mode = Mode.message
  /// `-t`: recipients are in the header.
  public var readsRecipients = false
  /// `-i`: a lone dot does not end the message.
  public var ignoresDots = false
  public var isVerbose = false
  /// `-f`, `-r`; empty for the null reverse-path, nil when it was not given.
  public var sender: String?
  /// `-F`.
  public var fullName: String?
  /// `-C`.
  public var configuration: String?
  /// `-N`.
  public var notify: RecipientParameters.Notify?
  /// `-R`.
  public var ret: MailParameters.Return?
  /// `-V`.
  public var envelopeID: String?
  public var recipients: [String] = []

  private static let withValue = Array("ABbCDeFfhLMNOopRrVX")
  private static let withoutValue = Array("cGIiEmnsTtUvx")
  /// A value may follow in the same word only.
  private static let withOwnValue = Array("dqQ")

  /// - Parameters:
  ///   - name: what the program was called as, without its folder.
  ///   - arguments: those behind the name.
  public init(name: String, _ arguments: [String]) throws(CommandFailure) {
    if name == "mailq" { mode = .list }
    if name == "newaliases" { mode = .nothing }
    var rest = arguments[...]
    while let word = rest.first {
      guard word.hasPrefix("-"), word.count > 1 else { break }
      rest = rest.dropFirst()
      if word == "--" { break }
      var letters = word.dropFirst()
      while let letter = letters.popFirst() {
        if Self.withOwnValue.contains(letter) {
          take(letter)
          break
        } else if Self.withValue.contains(letter) {
          guard let value = letters.isEmpty ? rest.popFirst() : String(letters) else {
            throw CommandFailure(.usage, "\(name): option -\(letter) needs a value")
          }
          try take(letter, value, name)
          break
        } else if Self.withoutValue.contains(letter) {
          take(letter)
        } else {
          throw CommandFailure(
            .usage, "\(name): unknown option -\(letter) in \(word): see `man ssmtp-mailer`, SENDMAIL")
        }
      }
    }
    recipients = Array(rest)
    if mode == .message, recipients.isEmpty, !readsRecipients {
      throw CommandFailure(.usage, "\(name): name recipients, or use -t to read them from the header of the message")
    }
  }

  private mutating func take(_ letter: Character) {
    switch letter {
    case "i": ignoresDots = true
    case "t": readsRecipients = true
    case "v": isVerbose = true
    // A queue run and a rebuilt alias file: the daemon needs neither.
    case "q", "I": mode = .nothing
    default: break
    }
  }

  private mutating func take(_ letter: Character, _ value: String, _ name: String) throws(CommandFailure) {
    switch letter {
    case "b": mode = try Self.mode(value, name)
    case "f", "r": sender = value == "<>" ? "" : value
    case "F": fullName = value
    case "C": configuration = value
    case "o": if value.hasPrefix("i") { ignoresDots = true }
    case "O": if value.lowercased().hasPrefix("ignoredots") { ignoresDots = !value.lowercased().hasSuffix("=false") }
    case "V": envelopeID = value
    case "N":
      let words = value.lowercased().split(separator: ",").map(String.init)
      let known: [String: RecipientParameters.Notify] = ["success": .success, "failure": .failure, "delay": .delay]
      if words == ["never"] {
        notify = .never
      } else if !words.isEmpty, words.allSatisfy({ known[$0] != nil }) {
        notify = RecipientParameters.Notify(words.compactMap { known[$0] })
      } else {
        throw CommandFailure(.usage, "\(name): -N takes never, or a list of success, failure and delay")
      }
    case "R":
      switch value.lowercased() {
      case "full": ret = .full
      case "hdrs": ret = .headers
      default: throw CommandFailure(.usage, "\(name): -R takes full or hdrs")
      }
    default: break
    }
  }

  private static func mode(_ value: String, _ name: String) throws(CommandFailure) -> Mode {
    switch value {
    case "m": return .message
    case "s": return .smtp
    case "p": return .list
    case "i": return .nothing
    case "d", "D", "l":
      throw CommandFailure(
        .usage, "\(name): -b\(value) would start a daemon; that is done with `systemctl start ssmtp-mailer`")
    case "v":
      throw CommandFailure(.usage, "\(name): -bv is not supported; `ssmtp-mailer explain ADDRESS` says where mail goes")
    default: throw CommandFailure(.usage, "\(name): -b\(value) is not supported: -bm, -bs, -bp and -bi are")
    }
  }
}

/// Finds the end of a message on standard input: a line with nothing but a dot, unless that is to be ignored.
public struct DotReader: Sendable {
  private let ignoresDots: Bool
  public private(set) var bytes: [UInt8] = []
  private var lineStart = 0

  public init(ignoresDots: Bool) { self.ignoresDots = ignoresDots }

  /// Takes what came. Returns true when the message is complete.
  public mutating func take(_ piece: some Collection<UInt8>) -> Bool {
    var scan = bytes.count
    bytes += piece
    if ignoresDots { return false }
    while let feed = bytes[scan...].firstIndex(of: 0x0a) {
      let line = bytes[lineStart..<feed]
      if line.first == UInt8(ascii: "."), line.count == 1 || line.count == 2 && line.last == 0x0d {
        bytes.removeSubrange(lineStart...)
        return true
      }
      lineStart = feed + 1
      scan = lineStart
    }
    return false
  }

  /// The message once the input has ended.
  public mutating func finish() -> [UInt8] {
    if !ignoresDots, bytes[lineStart...].elementsEqual(".".utf8) { bytes.removeLast() }
    return bytes
  }
}
