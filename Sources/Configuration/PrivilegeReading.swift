// Who the daemon is once its ports are bound.

extension GlobalSettings {
  /// Whether there is such an account is known where the daemon starts, which need not be where this is checked.
  mutating func readUser(_ reader: inout SectionReader, _ findings: inout Findings) {
    user = reader.optionalString("user", &findings)
    guard let user else { return }
    // As useradd(8) takes them.
    let isName =
      user.utf8.count <= 32 && user.utf8.first != UInt8(ascii: "-")
      && user.utf8.allSatisfy { byte in
        (0x30...0x39).contains(byte) || (0x41...0x5a).contains(byte) || (0x61...0x7a).contains(byte)
          || "_-.$".utf8.contains(byte)
      }
    if !isName { findings.error(reader.place("user"), "user \(quoted(user)) is not the name of an account") }
  }
}
