// The replies of the server that never change, made once.

/// Fixed replies of the server state machine and of sessions.
public enum Replies {
  public static let ok = Reply(250, "2.0.0", "OK")
  public static let senderOK = Reply(250, "2.1.0", "Sender ok")
  public static let recipientOK = Reply(250, "2.1.5", "Recipient ok")
  public static let reset = Reply(250, "2.0.0", "Reset")
  public static let sendData = Reply(354, nil, "Send the message, end with <CRLF>.<CRLF>")
  public static let bareLineBreak = Reply(
    554, "5.6.0", "Message refused: it has a CR or LF that is not part of a CRLF (RFC 5321 2.3.8)")
  /// Some servers drop NUL and then see an end of data where there was none (RFC 2045 2.7, 2.8).
  public static let nulOctet = Reply(554, "5.6.0", "Message refused: it has a NUL octet")
  /// The refusal of a message that exceeds the limit in octets, whether announced or found out.
  public static func tooLarge(limit: Int) -> Reply {
    Reply(552, "5.3.4", "Message exceeds the limit of \(limit) octets")
  }
  /// For a queue that is short of space (RFC 5321 4.2.3, RFC 1870 6.1).
  public static let insufficientStorage = Reply(452, "4.3.1", "Insufficient system storage, try again later")
  static let startTLS = Reply(220, "2.0.0", "Ready to start TLS")
  static let help = Reply(
    214, "2.0.0", "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY EXPN HELP QUIT STARTTLS AUTH",
    "The commands are described in RFC 5321")
  static let cannotVerify = Reply(252, "2.5.2", "Cannot verify, but will take mail for known recipients")
  static let noExpansion = Reply(502, "5.5.1", "EXPN is not available")
  static let outOfOrder = Reply(503, "5.5.1", "Command out of order")
  static let helloFirst = Reply(503, "5.5.1", "Say EHLO first")
  static let mailFirst = Reply(503, "5.5.1", "MAIL comes first")
  static let rcptFirst = Reply(503, "5.5.1", "RCPT comes first")
  static let noRecipients = Reply(554, "5.5.1", "No valid recipients")
  static let transactionIsOpen = Reply(503, "5.5.1", "Not inside a transaction; end it or send RSET")
  static let mixedDataAndChunks = Reply(503, "5.5.1", "DATA cannot follow BDAT in one transaction")
  static let extensionsNeedEHLO = Reply(555, "5.5.4", "Extensions need EHLO instead of HELO")
  static let noDSN = Reply(555, "5.5.4", "DSN parameters are not supported here")
  static let noAuthParameter = Reply(555, "5.5.4", "Parameter AUTH is not supported here")
  static let alreadyTLS = Reply(503, "5.5.1", "TLS is active already")
  static let noStartTLS = Reply(502, "5.5.1", "STARTTLS is not available")
  static let mustStartTLS = Reply(530, "5.7.0", "Send STARTTLS first")
  static let noAuthentication = Reply(502, "5.5.1", "AUTH is not available")
  static let mustAuthenticate = Reply(530, "5.7.0", "Authentication required")
  static let alreadyAuthenticated = Reply(503, "5.5.1", "Authenticated already")
  static let authenticationNeedsTLS = Reply(538, "5.7.11", "Authentication needs TLS; send STARTTLS first")
  static let unknownMechanism = Reply(504, "5.5.4", "Mechanism is not offered")
  public static let tooManyRecipients = Reply(452, "4.5.3", "Too many recipients; send the rest in another transaction")
  public static let tooManyErrors = Reply(421, "4.7.0", "Too many errors, closing")
  public static let tooManyTransactions = Reply(421, "4.7.0", "Too many messages in one connection, come again")

  // Limits (docs/limits.md).
  public static let tooManyCommands = Reply(421, "4.7.0", "Too many commands without a message, closing")
  public static let tooFast = Reply(451, "4.7.1", "Too many messages from your address, try again later")
  public static let sessionIsOver = Reply(421, "4.7.0", "This session has lasted long enough, come again")
  public static let headerTooLargeText = "Message header exceeds"
  /// The refusal of a header beyond the limit in octets.
  public static func headerTooLarge(limit: Int) -> Reply {
    Reply(552, "5.3.4", "\(headerTooLargeText) the limit of \(limit) octets")
  }
}
