// The keys that say who mail is from on its way out: From, envelope sender, and the secrets of SRS.

import Primitives
import SMTP

extension DomainSettings {
  /// The relay account as an address; nil when it is another kind of name.
  public var accountAddress: Mailbox? { relayAccount.flatMap { try? Mailbox(parsing: $0) } }

  mutating func readSender(_ reader: inout SectionReader, _ findings: inout Findings) {
    envelopeSender = reader.choice("envelope_sender", default: .keep, &findings)
    fromHeader = reader.choice("from_header", default: .keep, &findings)
    sendAs = reader.list(
      "send_as", default: [], wanted: "addresses, or patterns such as *@example.com", show: \.description, &findings
    ) { try? AddressPattern($0) }
    if !sendAs.isEmpty, fromHeader != .via {
      findings.warning(reader.place("send_as"), "send_as has no effect without from_header = via")
    }
  }

  /// Both need an address to speak for.
  func checkSender(_ reader: SectionReader, _ global: GlobalSettings, _ findings: inout Findings) {
    guard enabled, !isLocal else { return }
    let needy = [("from_header", fromHeader == .via), ("envelope_sender", envelopeSender == .relayAccount)]
    for (key, isUsed) in needy where isUsed && accountAddress == nil {
      findings.error(
        reader.place(key),
        "\(key) = \(reader.text(key) ?? "") needs an address as relay_account, which is \(quoted(relayAccount ?? ""))")
    }
    if envelopeSender == .srs, global.srsSecrets.isEmpty {
      findings.error(
        reader.place("envelope_sender"),
        "envelope_sender = srs needs srs_secret or srs_secret_file in [global]; make one with: openssl rand -hex 20")
    }
  }
}

extension GlobalSettings {
  /// The domain of SRS addresses.
  public var effectiveSRSDomain: String { srsDomain ?? defaultHostname }

  private static let shortestSecret = 16

  mutating func readSRS(_ reader: inout SectionReader, files: any FileSource, _ findings: inout Findings) {
    srsDomain = reader.value(
      "srs_domain", default: String?.none, wanted: "a domain name", show: { $0 ?? "" }, &findings,
      parse: { ValueReader.isHostname($0) ? .some($0) : nil })
    if srsDomain == nil { reader.describe("srs_domain", defaultHostname, origin: .default) }
    let plain = reader.secret("srs_secret")
    let file = reader.optionalPath("srs_secret_file")
    if plain != nil, file != nil {
      findings.error(
        reader.place("srs_secret_file"), "srs_secret and srs_secret_file are both set in [global]; keep one")
      return
    }
    let (key, lines) = ("srs_secret", plain.map { [$0.reveal()] })
    if let lines {
      if case .file(let path, _) = reader.place(key), let mode = files.mode(path), mode & 0o004 != 0 {
        findings.error(reader.place(key), "srs_secret stands in a file that everyone can read; use srs_secret_file")
      }
      accept(lines, key, reader, &findings)
    } else if let file {
      readSecrets(file, reader, files, &findings)
    }
  }

  private mutating func readSecrets(
    _ file: String, _ reader: SectionReader, _ files: any FileSource, _ findings: inout Findings
  ) {
    let place = reader.place("srs_secret_file")
    if let mode = files.mode(file), mode & 0o004 != 0 {
      return findings.error(place, "srs_secret_file \(quoted(file)) can be read by everyone; run: chmod 640 \(file)")
    }
    var bytes: [UInt8]
    do throws(FileError) { bytes = try files.read(file) } catch {
      return findings.error(place, "srs_secret_file \(quoted(file)) cannot be read: \(error)")
    }
    defer { bytes.wipe() }
    let lines = String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isNewline).map {
      String($0.trimmingPrefix { $0 == " " || $0 == "\t" })
    }.filter { !$0.isEmpty && !$0.hasPrefix("#") }
    if lines.isEmpty { return findings.error(place, "srs_secret_file \(quoted(file)) holds no secret") }
    accept(lines, "srs_secret_file", reader, &findings)
  }

  private mutating func accept(
    _ lines: [String], _ key: String, _ reader: SectionReader, _ findings: inout Findings
  ) {
    for line in lines where line.utf8.count < Self.shortestSecret {
      return findings.error(
        reader.place(key),
        "\(key) has a secret shorter than \(Self.shortestSecret) characters; make one with: openssl rand -hex 20")
    }
    srsSecrets = lines.map { Secret($0) }
  }
}
