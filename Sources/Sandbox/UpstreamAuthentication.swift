// AUTH (RFC 4954) as Gmail does it: LOGIN, PLAIN, XOAUTH2 and OAUTHBEARER, and only under TLS.

extension UpstreamSession {
  func authenticate(_ argument: Substring) async throws {
    let words = argument.split(separator: " ", maxSplits: 1)
    let mechanism = words.first?.uppercased() ?? ""
    upstream.log("#\(number) > AUTH \(mechanism)")
    guard isSecure else {
      upstream.count { $0.credentialsInClear += 1 }
      say("530 5.7.0 Must issue a STARTTLS command first. \(upstream.nextID()) - gsmtp")
      return
    }
    guard user == nil else {
      say("503 5.5.1 Already authenticated. \(upstream.nextID()) - gsmtp")
      return
    }
    var initial = words.count > 1 ? words[1] : nil
    if initial == "=" { initial = "" }  // an empty initial response (RFC 4954 4)

    let offered: (user: String, isGood: Bool)?
    switch mechanism {
    case "PLAIN":
      offered = try await response(to: "", initial).flatMap { response in
        // authzid NUL authcid NUL passwd (RFC 4616 2)
        let parts = response.split(separator: "\0", omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 3 else { return nil }
        return (parts[1], upstream.options.passwords[parts[1]] == parts[2])
      }
    case "LOGIN":
      guard let name = try await response(to: "VXNlcm5hbWU6", initial),
        let password = try await response(to: "UGFzc3dvcmQ6", nil)
      else {
        offered = nil
        break
      }
      offered = (name, upstream.options.passwords[name] == password)
    case "XOAUTH2", "OAUTHBEARER":
      offered = try await response(to: "", initial).flatMap { bearer(in: $0) }
    default:
      say("504 5.7.4 Unrecognized Authentication Type \(upstream.nextID()) - gsmtp")
      return
    }
    guard let offered else {
      upstream.count { $0.authenticationFailures += 1 }
      say("501 5.5.2 Cannot Decode response \(upstream.nextID()) - gsmtp")
      return
    }
    try await judge(offered.user, isGood: offered.isGood, isToken: mechanism.hasSuffix("2") || mechanism.hasSuffix("R"))
  }

  private func judge(_ name: String, isGood: Bool, isToken: Bool) async throws {
    let rejection = upstream.withScript { $0.isEmpty ? nil : $0.authRejection() }.map(worded)
    guard isGood, rejection == nil else {
      upstream.count { $0.authenticationFailures += 1 }
      if isToken, rejection == nil {
        // The reason comes as a challenge; the client answers with an empty line to get the reply.
        let reason = #"{"status":"400","schemes":"Bearer","scope":"https://mail.google.com/"}"#
        say("334 \(Base64.encode(reason))")
        let line = try await readLine()
        if !line.isEmpty { violate("an answer to the reason of a failed XOAUTH2") }
      }
      say(
        rejection ?? "535-5.7.8 Username and Password not accepted. For more information, go to\n"
          + "535 5.7.8  https://support.google.com/mail/?p=BadCredentials \(upstream.nextID()) - gsmtp")
      if rejection?.hasPrefix("421") == true { throw Ending.quit }
      return
    }
    guard try await answer(.auth, nil, { _ in "235 2.7.0 Accepted" }) else {
      upstream.count { $0.authenticationFailures += 1 }
      return
    }
    user = name
    upstream.count { $0.authentications += 1 }
  }

  /// The decoded response to a challenge, or to the command itself. nil when it cannot be decoded or was cancelled.
  private func response(to challenge: String, _ initial: Substring?) async throws -> String? {
    if let initial { return Base64.decode(initial) }
    say("334 \(challenge)")
    return Base64.decode(Substring(try await readLine()))
  }

  /// `user=…^Aauth=Bearer …^A^A`, or RFC 7628 3.1 with `n,a=…,` in front.
  private func bearer(in response: String) -> (user: String, isGood: Bool)? {
    var name: String?
    var token: String?
    for part in response.split(separator: "\u{1}") {
      if part.hasPrefix("user=") { name = String(part.dropFirst(5)) }
      if part.hasPrefix("n,a=") { name = String(part.dropFirst(4).prefix { $0 != "," }) }
      if part.hasPrefix("auth=Bearer ") { token = String(part.dropFirst(12)) }
    }
    guard let name, let token, response.hasSuffix("\u{1}\u{1}") else { return nil }
    return (name, upstream.options.accessTokens[name] == token)
  }
}
