// Where the password of an upstream comes from: the section itself, a file, a command, or a credential of systemd.

struct PasswordReader {
  /// The password of the guide's sample files.
  static let placeholder = "your_gmail_app_password_here"
  static let keys = ["password", "password_file", "password_command", "password_credential"]

  var files: any FileSource
  var environment: [String: String]

  /// Reads the one source that is set; all of them are looked at even when the domain needs none of them.
  func read(_ reader: inout SectionReader, isWanted: Bool, _ findings: inout Findings) -> Secret? {
    let plain = reader.secret("password")
    let file = reader.optionalPath("password_file")
    let command = reader.optionalString("password_command", &findings)
    let credential = reader.optionalString("password_credential", &findings)
    let set = Self.keys.filter { reader.isSet($0) }
    if set.count > 1 {
      findings.error(
        reader.place(set[1]), "\(set.joined(separator: " and ")) are both set in \(reader.section.title); keep one")
      return nil
    }
    if let plain {
      checkConfigurationFile(plain, reader, &findings)
      return plain
    }
    guard isWanted else { return nil }
    if let file {
      let place = reader.place("password_file")
      if let mode = files.mode(file), mode & 0o004 != 0 {
        findings.error(place, "password_file \(quoted(file)) can be read by everyone; run: chmod 640 \(file)")
        return nil
      }
      return Self.secret(place, "password_file \(quoted(file))", &findings) { () throws(FileError) in
        try files.read(file)
      }
    }
    if let command {
      let place = reader.place("password_command")
      return Self.secret(place, "password_command \(quoted(command))", &findings) { () throws(FileError) in
        try files.output(of: command)
      }
    }
    guard let credential else { return nil }
    let place = reader.place("password_credential")
    guard let folder = environment["CREDENTIALS_DIRECTORY"], !folder.isEmpty else {
      findings.error(
        place,
        "password_credential \(quoted(credential)) needs $CREDENTIALS_DIRECTORY, which systemd sets for "
          + "LoadCredential=")
      return nil
    }
    guard !credential.contains("/"), credential != "..", credential != "." else {
      findings.error(place, "password_credential \(quoted(credential)) is a name, not a path")
      return nil
    }
    return Self.secret(place, "password_credential \(quoted(credential))", &findings) { () throws(FileError) in
      try files.read(resolve(credential, in: folder))
    }
  }

  private func checkConfigurationFile(_ password: Secret, _ reader: SectionReader, _ findings: inout Findings) {
    let place = reader.place("password")
    // A placeholder is no secret, and the sample files are meant to be read.
    if password.reveal() == Self.placeholder {
      findings.warning(place, "password is the placeholder of the sample files; replace it with the account's own")
      return
    }
    guard case .file(let path, _) = place, let mode = files.mode(path), mode & 0o004 != 0 else { return }
    findings.error(place, "password stands in a file that everyone can read; run: chmod 640 \(path)")
  }

  /// The first line of what `body` gives; editors and `echo` put a line break behind it.
  static func secret(
    _ place: Origin, _ what: String, noun: String = "password", _ findings: inout Findings,
    _ body: () throws(FileError) -> [UInt8]
  ) -> Secret? {
    var bytes: [UInt8]
    do throws(FileError) {
      bytes = try body()
    } catch {
      findings.error(place, "\(what) cannot be read: \(error)")
      return nil
    }
    defer { bytes.wipe() }
    var end = bytes.firstIndex(of: UInt8(ascii: "\n")) ?? bytes.endIndex
    if end > 0, bytes[end - 1] == UInt8(ascii: "\r") { end -= 1 }
    // No slice is kept: two owners would make wiping a copy.
    let text = String(validating: bytes[..<end], as: UTF8.self)
    guard let text, !text.isEmpty, !text.utf8.contains(0) else {
      findings.error(place, "\(what) gives no \(noun)")
      return nil
    }
    return Secret(text)
  }
}
