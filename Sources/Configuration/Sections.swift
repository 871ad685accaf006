// The keys of each section, with their defaults.

import Primitives

extension Loader {
  /// Keys that are understood and checked, and whose feature this version does not have.
  private func withoutEffect(_ reader: SectionReader, _ key: String, unless neutral: [String]) {
    guard let entry = reader.entry(key), !neutral.contains(entry.value.lowercased()) else { return }
    warning(entry.place, "\(key) has no effect in this version")
  }

  func readGlobal(_ section: INISection, _ base: String) -> GlobalSettings {
    let reader = SectionReader(section, self)
    var global = GlobalSettings()
    if let name = reader.value("default_hostname", Values.hostname) {
      global.defaultHostname = name
    } else if reader.entry("default_hostname") == nil {
      error(section.place, "default_hostname is missing: the name of this relay, such as mailer.example.com")
    }
    global.defaultFrom = reader.value("default_from", Values.text)
    global.configDir = reader.path("config_dir", default: base) ?? base
    global.domainsDir = reader.path("domains_dir", default: "\(global.configDir)/domains") ?? ""
    global.usersDir = reader.path("users_dir", default: "\(global.configDir)/users") ?? ""
    global.mappingsDir = reader.path("mappings_dir", default: "\(global.configDir)/mappings") ?? ""
    global.sslDir = reader.path("ssl_dir", default: "\(global.configDir)/ssl") ?? ""
    switch reader.path("log_file", default: "journal") {
    case .some(let path) where path.hasSuffix("/journal") || path == "journal": global.logFile = .journal
    case .some(let path) where path.hasSuffix("/stderr") || path == "stderr": global.logFile = .stderr
    case .some(let path): global.logFile = .path(path)
    case nil: break
    }
    if let word = reader.entry("log_file")?.value, word != "journal", word != "stderr" {
      global.logFile = .path(absolute(word, from: reader.place(of: "log_file").file))
    }
    reader.set(&global.logLevel, "log_level", Values.choice(LogLevel.self), default: "INFO")
    reader.set(&global.maxConnections, "max_connections", Values.integer(1...1000), default: "10")
    let wait = Values.duration(atLeast: .seconds(1))
    reader.set(&global.connectionTimeout, "connection_timeout", wait, default: "30")
    reader.set(&global.readTimeout, "read_timeout", wait, default: "60")
    reader.set(&global.writeTimeout, "write_timeout", wait, default: "60")
    reader.set(&global.enableRateLimiting, "enable_rate_limiting", Values.boolean, default: "true")
    reader.set(&global.rateLimitPerMinute, "rate_limit_per_minute", Values.integer(1...1_000_000), default: "100")
    reader.set(&global.rateLimitBurst, "rate_limit_burst", Values.integer(1...1_000_000), default: "10")
    reader.set(&global.listen, "listen", Values.endpoints, default: "0.0.0.0:25, [::]:25")
    reader.set(&global.trustedNetworks, "trusted_networks", Values.networks, default: "127.0.0.0/8, ::1")
    global.defaultDomain = reader.value("default_domain", Values.text)
    reader.set(&global.maxMessageSize, "max_message_size", Values.size, default: "35882577")
    reader.set(&global.maxRecipients, "max_recipients", Values.integer(1...10_000), default: "100")
    reader.set(&global.maxClientConnections, "max_client_connections", Values.integer(1...100_000), default: "1000")
    reader.set(
      &global.maxClientConnectionsPerIP, "max_client_connections_per_ip", Values.integer(1...100_000), default: "50")
    reader.set(
      &global.clientRateLimitPerMinute, "client_rate_limit_per_minute", Values.integer(0...1_000_000), default: "0")
    withoutEffect(reader, "client_rate_limit_per_minute", unless: ["0"])
    reader.set(&global.clientTimeout, "client_timeout", wait, default: "5m")
    readCertificate(reader, &global)
    global.queueDir = reader.path("queue_dir", default: "/var/lib/ssmtp-mailer") ?? ""
    reader.set(&global.queueLifetime, "queue_lifetime", wait, default: "5d")
    reader.set(&global.retrySchedule, "retry_schedule", Values.durations, default: "1m, 5m, 15m, 30m, 1h, 2h, 4h")
    reader.set(&global.delayWarning, "delay_warning", Values.duration(), default: "4h")
    withoutEffect(reader, "delay_warning", unless: ["0"])
    global.adminSocket = reader.path("admin_socket", default: "/run/ssmtp-mailer/admin.sock") ?? ""
    for key in ["listen_submission", "listen_smtps", "metrics_listen"] {
      let kind = ValueKind(wanted: "off, or \(Values.endpoints.wanted)") { word in
        word.lowercased() == "off" ? [] : Values.endpoints.read(word)
      }
      _ = reader.value(key, kind, default: "off")
      withoutEffect(reader, key, unless: ["off"])
    }
    reader.finish()
    return global
  }

  /// Both files, when both are named or both are there.
  private func readCertificate(_ reader: SectionReader, _ global: inout GlobalSettings) {
    let named = (reader.path("tls_certificate"), reader.path("tls_key"))
    switch named {
    case (let certificate?, let key?):
      for (path, name) in [(certificate, "tls_certificate"), (key, "tls_key")] where !isReadable(path) {
        error(reader.place(of: name), "\(name) = \(path): the file cannot be read")
      }
      (global.tlsCertificate, global.tlsKey) = (certificate, key)
    case (nil, nil):
      let (certificate, key) = ("\(global.sslDir)/cert.pem", "\(global.sslDir)/key.pem")
      if files.mode(of: certificate) != nil, files.mode(of: key) != nil {
        (global.tlsCertificate, global.tlsKey) = (certificate, key)
      }
    default:
      let (set, missing) = named.0 == nil ? ("tls_key", "tls_certificate") : ("tls_certificate", "tls_key")
      error(reader.place(of: set), "\(set) needs \(missing) beside it")
    }
  }

  func isReadable(_ path: String) -> Bool { (try? files.read(path)) != nil }

  func readDomain(_ section: INISection) -> DomainSettings {
    let reader = SectionReader(section, self)
    var domain = DomainSettings(name: section.label, place: section.place)
    if Values.hostname.read(section.label) == nil { error(section.place, "'\(section.label)' is not a domain name") }
    reader.set(&domain.enabled, "enabled", Values.boolean, default: "true")
    reader.set(&domain.authMethod, "auth_method", Values.choice(AuthMethod.self), default: "NONE")
    reader.set(&domain.useSSL, "use_ssl", Values.boolean, default: "false")
    reader.set(&domain.useStartTLS, "use_starttls", Values.boolean, default: "false")
    readServer(reader, &domain)
    domain.relayAccount = reader.value("relay_account", Values.text)
    domain.username = reader.value("username", Values.text)
    domain.password = password(reader)
    domain.tlsCAFile = reader.path("tls_ca_file")
    if let file = domain.tlsCAFile, !isReadable(file) {
      error(reader.place(of: "tls_ca_file"), "tls_ca_file = \(file): the file cannot be read")
    }
    domain.tlsServerName = reader.value("tls_server_name", Values.text)
    reader.set(&domain.tlsMinimum, "tls_minimum", Values.choice(TLSVersion.self), default: "1.2")
    domain.maxConnections = reader.value("max_connections", Values.integer(1...1000))
    reader.set(
      &domain.messagesPerConnection, "messages_per_connection", Values.integer(1...1_000_000), default: "100")
    domain.rateLimitPerMinute = reader.value("rate_limit_per_minute", Values.integer(1...1_000_000))
    domain.dailyLimit = reader.value("daily_limit", Values.integer(0...100_000_000))
    withoutEffect(reader, "daily_limit", unless: ["0"])
    reader.set(&domain.envelopeSender, "envelope_sender", Values.choice(EnvelopeSender.self), default: "keep")
    withoutEffect(reader, "envelope_sender", unless: ["keep"])
    reader.set(&domain.fromHeader, "from_header", Values.choice(FromHeader.self), default: "keep")
    withoutEffect(reader, "from_header", unless: ["keep"])
    reader.finish()
    checkTransport(domain, reader)
    return domain
  }

  private func readServer(_ reader: SectionReader, _ domain: inout DomainSettings) {
    let port = reader.value("smtp_port", Values.integer(1...65535))
    guard let server = reader.value("smtp_server", Values.text) else {
      if reader.entry("smtp_server") == nil {
        error(reader.section.place, "smtp_server is missing in \(reader.section.title)")
      }
      return
    }
    domain.port = UInt16(port ?? (domain.useSSL ? 465 : domain.useStartTLS ? 587 : 25))
    if IPAddress(server) != nil {
      domain.host = server
      return
    }
    var host = server
    if let endpoint = Endpoint(server) {
      host = endpoint.address.description
      domain.port = endpoint.port
    } else if let colon = server.lastIndex(of: ":") {
      host = String(server[..<colon])
      guard let given = UInt16(server[server.index(after: colon)...]), given > 0 else {
        return error(reader.place(of: "smtp_server"), "smtp_server = \(server): the port must be a number from 1 to 65535")
      }
      if let port, port != Int(given) {
        error(reader.place(of: "smtp_server"), "smtp_server = \(server) and smtp_port = \(port) disagree: name the port once")
      }
      domain.port = given
    }
    if IPAddress(host) == nil, Values.hostname.read(host) == nil {
      error(reader.place(of: "smtp_server"), "smtp_server = \(server): must be a host name or an address")
    }
    domain.host = host
  }

  private func checkTransport(_ domain: DomainSettings, _ reader: SectionReader) {
    let isLoopback = domain.host.lowercased() == "localhost" || IPAddress(domain.host)?.isLoopback == true
    if domain.useSSL, domain.useStartTLS {
      error(
        reader.place(of: "use_starttls"),
        "use_ssl and use_starttls exclude each other: use_ssl is TLS from the first byte (port 465), use_starttls upgrades (587)")
    }
    let usesTLS = domain.useSSL || domain.useStartTLS
    if domain.authMethod != .none, !usesTLS, !isLoopback {
      error(
        reader.place(of: "auth_method"),
        "auth_method = \(domain.authMethod.rawValue) would send the password in clear: set use_starttls = true (port 587) or use_ssl = true (465)")
    }
    if usesTLS, IPAddress(domain.host) != nil, domain.tlsServerName == nil {
      error(
        reader.place(of: "smtp_server"),
        "smtp_server = \(domain.host): an address has no certificate: name the server, or set tls_server_name")
    }
    if domain.enabled, domain.authMethod != .none {
      if domain.username == nil { error(reader.section.place, "username is missing in \(reader.section.title)") }
      let sources = ["password", "password_file", "password_command", "password_credential"]
      if domain.password == nil, !sources.contains(where: { reader.entry($0) != nil }) {
        error(
          reader.section.place,
          "a password is missing in \(reader.section.title): set password_file, password_credential, password_command or password")
      }
    }
  }

  // MARK: Passwords

  private func password(_ reader: SectionReader) -> Secret? {
    let inline: String? = reader.value("password", Values.text, hidden: true)
    let file = reader.path("password_file")
    let command: String? = reader.value("password_command", Values.text)
    let credential: String? = reader.value("password_credential", Values.text)
    let set = ["password", "password_file", "password_command", "password_credential"].filter { reader.entry($0) != nil }
    if set.count > 1 {
      error(reader.place(of: set[1]), "\(set.joined(separator: " and ")) exclude each other: keep one")
      return nil
    }
    if let inline { return inlinePassword(inline, reader.place(of: "password")) }
    if let file { return passwordFile(file, reader.place(of: "password_file"), "password_file") }
    if let command {
      do { return secret(try files.output(of: command)) } catch {
        self.error(reader.place(of: "password_command"), "password_command = \(command): \(error)")
      }
    }
    if let credential {
      let place = reader.place(of: "password_credential")
      guard let folder = environment["CREDENTIALS_DIRECTORY"], !folder.isEmpty else {
        error(
          place,
          "password_credential = \(credential): $CREDENTIALS_DIRECTORY is not set: add LoadCredential=\(credential):PATH to the systemd unit")
        return nil
      }
      return passwordFile("\(folder)/\(credential)", place, "password_credential")
    }
    return nil
  }

  private func inlinePassword(_ text: String, _ place: Place) -> Secret? {
    if text == Self.placeholder {
      warning(place, "password is still the placeholder of the sample: put the account's app password here")
    } else if let mode = files.mode(of: place.file), mode & 0o004 != 0 {
      error(place, "the file holds a password and everybody can read it: chmod 640 \(place.file)")
    }
    return Secret(text)
  }

  private func passwordFile(_ path: String, _ place: Place, _ key: String) -> Secret? {
    if let mode = files.mode(of: path), mode & 0o004 != 0 {
      error(place, "\(key) = \(path): everybody can read it: chmod 640 \(path)")
      return nil
    }
    do { return secret(String(decoding: try files.read(path), as: UTF8.self)) } catch {
      self.error(place, "\(key) = \(path): cannot be read: \(error)")
      return nil
    }
  }

  private func secret(_ text: String) -> Secret {
    Secret(String(text.reversed().drop { $0.isNewline }.reversed()))
  }

  // MARK: Users and mappings

  func readUser(_ section: INISection) -> UserSettings {
    let reader = SectionReader(section, self)
    var user = UserSettings(address: section.label, place: section.place)
    reader.set(&user.enabled, "enabled", Values.boolean, default: "true")
    user.domain = reader.value("domain", Values.text)
    reader.set(&user.canSendFrom, "can_send_from", Values.boolean, default: "true")
    reader.set(&user.canSendTo, "can_send_to", Values.boolean, default: "true")
    reader.set(&user.isTemplate, "template_address", Values.boolean, default: "false")
    user.allowedDomains = (reader.value("allowed_domains", Values.texts, default: "") ?? []).map { $0.lowercased() }
    user.passwordHash = reader.value("password_hash", Values.text, hidden: true).map { Secret($0) }
    withoutEffect(reader, "password_hash", unless: [])
    reader.finish()
    return user
  }

  func readMapping(_ section: INISection) -> MappingSettings {
    let reader = SectionReader(section, self)
    var mapping = MappingSettings(name: section.label, place: section.place)
    reader.set(&mapping.enabled, "enabled", Values.boolean, default: "true")
    for (key, kind) in [("from_pattern", Values.text), ("domain", Values.text)] {
      let value = reader.value(key, kind)
      if key == "domain" { mapping.domain = value ?? "" } else { mapping.fromPattern = value ?? "" }
      if reader.entry(key) == nil { error(section.place, "\(key) is missing in \(section.title)") }
    }
    mapping.toPatterns = reader.value("to_pattern", Values.texts) ?? []
    if mapping.toPatterns.isEmpty { error(reader.place(of: "to_pattern"), "to_pattern is missing in \(section.title)") }
    mapping.smtpAccount = reader.value("smtp_account", Values.text)
    reader.finish()
    return mapping
  }
}
