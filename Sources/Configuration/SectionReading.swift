// The keys of every section: their types, defaults and names.

import Primitives

extension GlobalSettings {
  /// - Parameter folder: the directory of the main file, where everything is looked for by default.
  init(_ reader: inout SectionReader, folder: String, files: any FileSource, _ findings: inout Findings) {
    let defaults = GlobalSettings()
    defaultHostname = reader.value(
      "default_hostname", default: "", wanted: "a host name", show: \.self, &findings
    ) { ValueReader.isHostname($0) ? $0 : nil }
    if !reader.isSet("default_hostname") {
      findings.error(reader.section.origin, "[global] needs default_hostname, the name of this relay")
    }
    defaultFrom = reader.value(
      "default_from", default: "postmaster@\(defaultHostname)", wanted: "an address", show: \.self, &findings
    ) { text in (try? AddressPattern(text)).flatMap { $0.isWildcard ? nil : text } }
    configDir = reader.path("config_dir", default: folder, &findings)
    domainsDir = reader.path("domains_dir", default: resolve("domains", in: configDir), &findings)
    usersDir = reader.path("users_dir", default: resolve("users", in: configDir), &findings)
    mappingsDir = reader.path("mappings_dir", default: resolve("mappings", in: configDir), &findings)
    sslDir = reader.path("ssl_dir", default: resolve("ssl", in: configDir), &findings)
    switch reader.path("log_file", default: "journal", &findings) {
    case _ where reader.text("log_file")?.lowercased() == "journal": logFile = .journal
    case _ where reader.text("log_file")?.lowercased() == "stderr": logFile = .stderr
    case let path: logFile = reader.isSet("log_file") ? .path(path) : .journal
    }
    reader.describe("log_file", logFile.description)
    logLevel = reader.choice("log_level", default: defaults.logLevel, &findings)
    maxConnections = reader.count("max_connections", default: defaults.maxConnections, in: 1...1000, &findings)
    connectionTimeout = reader.duration("connection_timeout", default: defaults.connectionTimeout, &findings)
    readTimeout = reader.duration("read_timeout", default: defaults.readTimeout, &findings)
    writeTimeout = reader.duration("write_timeout", default: defaults.writeTimeout, &findings)
    enableRateLimiting = reader.boolean("enable_rate_limiting", default: defaults.enableRateLimiting, &findings)
    rateLimitPerMinute = reader.count("rate_limit_per_minute", default: defaults.rateLimitPerMinute, &findings)
    rateLimitBurst = reader.count("rate_limit_burst", default: defaults.rateLimitBurst, &findings)
    listen = reader.endpoints("listen", default: defaults.listen, &findings)
    listenSubmission = reader.endpoints("listen_submission", default: [], &findings)
    listenSMTPS = reader.endpoints("listen_smtps", default: [], &findings)
    trustedNetworks = reader.list(
      "trusted_networks", default: defaults.trustedNetworks, wanted: "addresses and networks such as 192.0.2.0/24",
      show: \.description, &findings
    ) { IPNetwork($0) }
    defaultDomain = reader.optionalString("default_domain", &findings)?.lowercased()
    maxMessageSize = reader.value(
      "max_message_size", default: defaults.maxMessageSize, wanted: "a size from 64K to 1G, such as 25M",
      show: String.init, &findings
    ) { ValueReader.size($0).flatMap { (65_536...(1 << 30)).contains($0) ? $0 : nil } }
    maxRecipients = reader.count("max_recipients", default: defaults.maxRecipients, in: 1...10_000, &findings)
    maxClientConnections = reader.count("max_client_connections", default: defaults.maxClientConnections, &findings)
    maxClientConnectionsPerIP = reader.count(
      "max_client_connections_per_ip", default: defaults.maxClientConnectionsPerIP, &findings)
    clientRateLimitPerMinute = reader.count(
      "client_rate_limit_per_minute", default: 0, in: 0...1_000_000, &findings)
    clientTimeout = reader.duration("client_timeout", default: defaults.clientTimeout, &findings)
    tlsCertificate = reader.optionalPath("tls_certificate")
    tlsKey = reader.optionalPath("tls_key")
    queueDir = reader.path("queue_dir", default: defaults.queueDir, &findings)
    queueMinimumFree = reader.sizeOrAuto("queue_min_free", &findings)
    queueLifetime = reader.duration("queue_lifetime", default: defaults.queueLifetime, &findings)
    retrySchedule = reader.list(
      "retry_schedule", default: defaults.retrySchedule,
      wanted: "durations such as 1m, 15m, 4h, of \(ValueReader.longestDuration.configurationText) at most",
      show: \.configurationText, &findings
    ) { ValueReader.duration($0).flatMap { $0 > .zero ? $0 : nil } }
    if retrySchedule.isEmpty {
      findings.error(reader.place("retry_schedule"), "retry_schedule needs one duration at least")
      retrySchedule = defaults.retrySchedule
    }
    delayWarning = reader.duration("delay_warning", default: defaults.delayWarning, allowsZero: true, &findings)
    adminSocket = reader.path("admin_socket", default: defaults.adminSocket, &findings)
    metricsListen = reader.endpoints("metrics_listen", default: [], &findings)
    readSRS(&reader, files: files, &findings)
    readUser(&reader, &findings)
    findCertificate(&reader, files, &findings)
    readSubmission(&reader, &findings)
    filters = FilterSettings(&reader, &findings)
    readClientLimits(&reader, &findings)
    reader.finish(&findings)
  }

  /// The certificate beside the configuration is taken when it is there with its key.
  private mutating func findCertificate(
    _ reader: inout SectionReader, _ files: any FileSource, _ findings: inout Findings
  ) {
    if tlsCertificate == nil, tlsKey == nil {
      let (certificate, key) = (resolve("cert.pem", in: sslDir), resolve("key.pem", in: sslDir))
      guard files.isReadable(certificate), files.isReadable(key) else { return }
      (tlsCertificate, tlsKey) = (certificate, key)
      reader.describe("tls_certificate", certificate, origin: .default)
      reader.describe("tls_key", key, origin: .default)
      return
    }
    for (key, path, other) in [("tls_certificate", tlsCertificate, "tls_key"), ("tls_key", tlsKey, "tls_certificate")] {
      if let path {
        if !files.isReadable(path) { findings.error(reader.place(key), "\(key) \(quoted(path)) cannot be read") }
      } else {
        findings.error(reader.place(other), "\(other) needs \(key) as well")
      }
    }
  }
}

extension DomainSettings {
  init(_ reader: inout SectionReader, _ findings: inout Findings) {
    self.init(name: reader.section.label ?? "")
    enabled = reader.boolean("enabled", default: true, &findings)
    let server = reader.value(
      "smtp_server", default: (host: "", port: UInt16?.none), wanted: "a host, or host:port", show: \.host, &findings,
      parse: ValueReader.host)
    host = server.host
    if !reader.isSet("smtp_server") {
      findings.error(reader.section.origin, "\(reader.section.title) needs smtp_server")
    }
    let port = reader.optionalCount("smtp_port", in: 1...65535, &findings).map { UInt16($0) }
    authMethod = reader.choice("auth_method", default: .none, &findings)
    let account = reader.optionalString("relay_account", &findings)
    username = reader.optionalString("username", &findings)
    let effective = account ?? username ?? name
    relayAccount = effective
    if account == nil { reader.describe("relay_account", effective, origin: .default) }
    readSecurity(&reader, port: port ?? server.port, &findings)
    if let port, let other = server.port, port != other {
      findings.error(
        reader.place("smtp_port"),
        "smtp_port \(port) contradicts the port of smtp_server \"\(reader.text("smtp_server") ?? "")\"")
    }
    self.port = port ?? server.port ?? (useSSL ? 465 : useStartTLS ? 587 : 25)
    reader.describe(
      "smtp_port", String(self.port),
      origin: port != nil ? nil : server.port != nil ? reader.origin("smtp_server") : .default)
    tlsCAFile = reader.optionalPath("tls_ca_file")
    tlsServerName = reader.optionalString("tls_server_name", &findings)
    tlsMinimum = reader.choice("tls_minimum", default: .tls12, &findings)
    maxConnections = reader.optionalCount("max_connections", in: 1...1000, &findings)
    messagesPerConnection = reader.count("messages_per_connection", default: 100, &findings)
    rateLimitPerMinute = reader.optionalCount("rate_limit_per_minute", &findings)
    let limit = reader.count(
      "daily_limit", default: Self.dailyLimits[host.lowercased()] ?? 0, in: 0...100_000_000, &findings)
    dailyLimit = limit == 0 ? nil : limit
    fallbackAccounts = reader.list(
      "fallback_account", default: [], wanted: "names of [domain:] sections", show: \.self, &findings
    ) { ValueReader.isHostname($0) ? $0.lowercased() : nil }
    readSender(&reader, &findings)
  }

  /// What these hosts are known to allow an account in 24 hours.
  private static let dailyLimits = ["smtp.gmail.com": 2000, "smtp-relay.gmail.com": 10_000]

  /// TLS is what happens when nothing is said and a password is to be sent, or the port is the one of implicit TLS.
  private mutating func readSecurity(_ reader: inout SectionReader, port: UInt16?, _ findings: inout Findings) {
    let saysStartTLS = reader.text("use_starttls").flatMap(ValueReader.boolean)
    useSSL = reader.boolean("use_ssl", default: port == 465 && saysStartTLS != true, &findings)
    useStartTLS = reader.boolean(
      "use_starttls", default: !useSSL && (authMethod != .none || port == 587), &findings)
    if useSSL, useStartTLS {
      findings.error(reader.place("use_ssl"), "use_ssl and use_starttls are both true; TLS starts once")
    }
  }
}

extension UserSettings {
  init?(_ reader: inout SectionReader, files: any FileSource, _ findings: inout Findings) {
    let label = reader.section.label ?? ""
    let isTemplate = reader.boolean("template_address", default: false, &findings)
    do throws(AddressPattern.Fault) {
      self.init(address: try AddressPattern(label.replacing("{type}", with: "*")))
    } catch {
      findings.error(reader.section.origin, "\(quoted(label)) is not an address: \(error.reason)")
      return nil
    }
    templateAddress = isTemplate
    if isTemplate, !address.isWildcard {
      findings.error(
        reader.place("template_address"), "template_address needs one * or {type} in \(reader.section.title)")
    } else if !isTemplate, address.isWildcard {
      findings.error(reader.section.origin, "\(reader.section.title) is a pattern; it needs template_address = true")
    }
    enabled = reader.boolean("enabled", default: true, &findings)
    domain = reader.optionalString("domain", &findings)?.lowercased()
    canSendFrom = reader.boolean("can_send_from", default: true, &findings)
    canSendTo = reader.boolean("can_send_to", default: true, &findings)
    allowedDomains = reader.list(
      "allowed_domains", default: [], wanted: "domain names", show: \.self, &findings
    ) { ValueReader.isHostname($0) ? $0.lowercased() : nil }
    readLogin(&reader, files: files, &findings)
    reader.finish(&findings)
  }
}
