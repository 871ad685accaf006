// The certificate of the front door while the daemon runs: taken anew when its files change, and watched as it ages.

import Configuration
import Glibc
import Logging
import Network
import Primitives

/// The two files of a certificate.
struct CertificateFiles: Sendable, Hashable {
  var certificate: String
  var key: String

  init(certificate: String, key: String) {
    self.certificate = certificate
    self.key = key
  }

  /// nil when there is no certificate.
  init?(_ global: GlobalSettings) {
    guard let certificate = global.tlsCertificate, let key = global.tlsKey else { return nil }
    self.init(certificate: certificate, key: key)
  }

  /// Which files the paths lead to now, and in which state: certbot puts new files behind the same symbolic links, and
  /// others write over the old ones. nil while one of them is not there.
  struct Fingerprint: Sendable, Hashable {
    var words: [Int64]
  }

  func fingerprint() -> Fingerprint? {
    var words: [Int64] = []
    for path in [certificate, key] {
      var status = stat()
      guard stat(path, &status) == 0 else { return nil }
      words += [
        Int64(truncatingIfNeeded: status.st_dev), Int64(truncatingIfNeeded: status.st_ino), Int64(status.st_size),
        Int64(status.st_mtim.tv_sec), Int64(status.st_mtim.tv_nsec), Int64(status.st_ctim.tv_sec),
        Int64(status.st_ctim.tv_nsec),
      ]
    }
    return Fingerprint(words: words)
  }

  /// Reads both. What is handed out is never half of one certificate and half of another.
  func load() throws(NetworkError) -> TLSContext {
    try TLSContext.server(certificateFile: certificate, keyFile: key, tickets: .ofDaemon)
  }
}

/// Looks at the files every few seconds, on a queue of its own: a file system may be slow, and the event loops must
/// not be. Why not inotify(7)? It would have to watch each directory that a symbolic link leads through, and misses
/// what happens on the other machines of a network file system.
final class CertificateWatch: Sendable {
  private struct State {
    var files: CertificateFiles?
    var fingerprint: CertificateFiles.Fingerprint?
    var context: TLSContext?
    /// What the latest attempt failed with, so that it is said once.
    var complaint: String?
    var nextWarning: MonotonicInstant?
    var isStopped = false
  }
  private let state = Mutex(State())
  private let time: any Timekeeper
  private let log: Logger
  private let queue: any WorkQueue
  /// Gets each new context.
  private let install: @Sendable (TLSContext) -> Void

  static let interval = Duration.seconds(5)
  static let warningDays = 14
  private static let warningInterval = Duration.seconds(86_400)

  init(
    time: any Timekeeper, log: Logger, queue: any WorkQueue = DispatchWorkQueue("certificate"),
    install: @escaping @Sendable (TLSContext) -> Void
  ) {
    self.time = time
    self.log = log
    self.queue = queue
    self.install = install
  }

  /// The certificate that is shown to clients now.
  var certificate: CertificateSummary? { state.withLock { $0.context }?.ownCertificate }

  /// Takes over what the configuration says now, and the context that was made of it.
  /// - Parameter fingerprint: of the files, from before they were read: whatever has changed since is read once more.
  func follow(_ files: CertificateFiles?, _ fingerprint: CertificateFiles.Fingerprint?, _ context: TLSContext?) {
    let isNew = state.withLock { state in
      let old = state.context?.ownCertificate
      state.files = files
      state.fingerprint = fingerprint
      state.context = context
      state.complaint = nil
      // Under the lock, as in ``look()``: the last one to change the state is the last one to install.
      if let context { install(context) }
      guard let new = context?.ownCertificate else { return false }
      return old?.isSame(as: new) != true
    }
    if isNew { announce() }
    warnOfAge()
  }

  /// Looks now and then again until ``stop()``.
  func start() {
    queue.async(after: Self.interval) { [weak self] in
      guard let self, !self.state.withLock({ $0.isStopped }) else { return }
      look()
      start()
    }
  }

  func stop() { state.withLock { $0.isStopped = true } }

  /// Takes the files if they have changed. A pair that does not fit, as it is while somebody replaces one file after the
  /// other, leaves the old certificate in force and is tried again.
  func look() {
    warnOfAge()
    guard let files = state.withLock({ $0.files }) else { return }
    guard let fingerprint = files.fingerprint() else {
      return complain("cannot read \(files.certificate) and \(files.key): \(String(cString: strerror(errno)))")
    }
    if state.withLock({ $0.fingerprint }) == fingerprint { return }
    let context: TLSContext
    do throws(NetworkError) { context = try files.load() } catch { return complain("\(error)") }
    let isCurrent = state.withLock { state in
      // A reload may have named other files meanwhile.
      guard state.files == files else { return false }
      state.fingerprint = fingerprint
      state.context = context
      state.complaint = nil
      state.nextWarning = nil
      install(context)
      return true
    }
    guard isCurrent else { return }
    announce()
    warnOfAge()
  }

  private func complain(_ text: String) {
    let isNew = state.withLock { state in
      defer { state.complaint = text }
      return state.complaint != text
    }
    if isNew { log.warning("tls_certificate: the new certificate cannot be taken, the old one stays: \(text)") }
  }

  private func announce() {
    guard let certificate else { return }
    log.notice(
      "certificate: \(certificate.subject), for \(certificate.nameList), issued by \(certificate.issuer), valid until \(certificate.notAfter)"
    )
  }

  /// Once a day is enough, and it is said until somebody does something.
  private func warnOfAge() {
    let now = time.now
    guard let certificate, certificate.daysLeft < Self.warningDays else { return }
    let isDue = state.withLock { state in
      if let next = state.nextWarning, now < next { return false }
      state.nextWarning = now + Self.warningInterval
      return true
    }
    guard isDue else { return }
    if certificate.secondsLeft < 0 {
      log.error(
        "the certificate for \(certificate.nameList) has expired: valid until \(certificate.notAfter). It is still shown, and clients that look at it will refuse it: renew it"
      )
    } else {
      log.warning(
        "the certificate for \(certificate.nameList) ends in \(certificate.daysLeft) days, \(certificate.notAfter): renew it"
      )
    }
  }
}

extension CertificateSummary {
  func isSame(as other: CertificateSummary) -> Bool {
    subject == other.subject && issuer == other.issuer && names == other.names && notAfter == other.notAfter
  }

  var nameList: String { names.isEmpty ? subject : names.joined(separator: ", ") }
}
