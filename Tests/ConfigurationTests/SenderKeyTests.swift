// The keys that say who mail is from on its way out.

import Configuration
import Testing

@Suite struct SenderKeyTests {
  private static let secret = "0123456789abcdef"

  private func domain(_ keys: String) -> String { upstream + keys + "\n" }

  @Test func keysOfTheSenderAreReadWithoutWarning() throws {
    var files = configuration(
      minimal + "srs_secret_file = srs.secret\nsrs_domain = Bounce.example.com\n",
      domain: domain("envelope_sender = srs\nfrom_header = via\nsend_as = sales@example.com, contact-*@example.com"))
    files.add("/c/srs.secret", "# newest first\n\(Self.secret)1\n\n\(Self.secret)2\r\n")
    let (settings, warnings) = try load(files)
    #expect(warnings.isEmpty)
    #expect(settings.global.srsSecrets.map { $0.reveal() } == [Self.secret + "1", Self.secret + "2"])
    #expect(settings.global.effectiveSRSDomain == "Bounce.example.com")
    #expect(settings.domains["example.com"]?.sendAs.count == 2)
    #expect(!settings.describe().contains { $0.value.contains(Self.secret) })
  }

  @Test func hostnameIsTheDomainOfSRS() throws {
    let files = configuration(minimal + "srs_secret = \(Self.secret)\n", domain: domain("envelope_sender = srs"))
    #expect(try load(files).settings.global.effectiveSRSDomain == "relay.example")
  }

  @Test(arguments: [
    ("", "envelope_sender = srs", "/c/domains/d.conf:7: envelope_sender = srs needs srs_secret or srs_secret_file"),
    ("srs_secret = short", "", "/c/m.conf:3: srs_secret has a secret shorter than 16 characters"),
    ("srs_secret_file = none", "", "/c/m.conf:3: srs_secret_file \"/c/none\" cannot be read"),
    ("srs_secret = \(secret)\nsrs_secret_file = x", "", "/c/m.conf:4: srs_secret and srs_secret_file are both set"),
    ("srs_domain = not a domain", "", "/c/m.conf:3: \"not a domain\" is not a value of srs_domain"),
    ("", "from_header = via\nsend_as = nobody", "/c/domains/d.conf:8: \"nobody\" is not a value of send_as"),
  ])
  func mistakesAreNamed(global: String, keys: String, message: String) {
    let found = errors(configuration(minimal + global + "\n", domain: domain(keys)))
    #expect(found.count == 1 && found[0].hasPrefix(message), "\(found)")
  }

  @Test(arguments: ["from_header = via", "envelope_sender = relay_account"])
  func accountThatIsNoAddressCannotSpeakForItself(key: String) {
    let section = "[domain:example.com]\nsmtp_server = smtp.example.com\n\(key)\n"
    let found = errors(configuration(domain: section))
    #expect(found.count == 1 && found[0].contains("\(key) needs an address as relay_account"), "\(found)")
  }

  @Test func secretsThatEveryoneCanReadAreRefused() {
    var files = configuration(minimal + "srs_secret_file = s\n")
    files.add("/c/s", Self.secret, mode: 0o644)
    #expect(errors(files).first?.contains("run: chmod 640 /c/s") == true)
    let open = MemoryFiles([mainFile: minimal + "srs_secret = \(Self.secret)\n"], mode: 0o644)
    #expect(errors(open).first?.contains("use srs_secret_file") == true)
  }
}
