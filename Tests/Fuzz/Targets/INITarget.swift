// A whole configuration out of the fuzzer's hands: it loads, or it says on one line each what is wrong; and it never
// shows what a password file holds.

import Configuration

extension FuzzTarget {
  /// Files, separated by NUL: the main file, then a domain, a user, a mapping, and another domain.
  static let ini = FuzzTarget("ini", limit: 2500) { input in
    let texts = input.split(separator: 0, omittingEmptySubsequences: false)
    let paths = ["/c/m.conf", "/c/domains/a.conf", "/c/users/a.conf", "/c/mappings/a.conf", "/c/domains/b.conf"]
    var files = MemoryFiles()
    for (path, text) in zip(paths, texts) {
      files.add(path, "")
      // They need not be UTF-8.
      files.files[path]?.bytes = Array(text)
    }
    let secret = "plum-gravel-lantern-47"
    files.add("/c/domains/password", secret + "\n")
    files.add("/c/password", secret + "\n")
    files.commands["pass show gmail"] = secret
    let first = load(files)
    try expect(load(files).lines == first.lines, "the second reading says something else")
    for line in first.lines {
      try expect(isOneLine(line), "two lines: \(line.debugDescription)")
      try expect(!line.contains(secret), "the secret is shown: \(line)")
    }
    if let settings = first.settings {
      try expect(!settings.global.defaultHostname.isEmpty, "no name and no error")
      for value in settings.describe() {
        try expect(!value.value.contains(secret), "the secret is shown as \(value.key)")
      }
      for domain in settings.domains.values where domain.enabled && !domain.isLocal && domain.authMethod != .none {
        try expect(
          domain.useSSL || domain.useStartTLS || domain.host.hasPrefix("127.") || domain.host == "localhost"
            || domain.host.contains("::1"), "a password for \(domain.host) would travel in the clear")
      }
    } else {
      try expect(!first.lines.isEmpty, "refused without a word")
    }
  }

  private static func load(_ files: MemoryFiles) -> (settings: Settings?, lines: [String]) {
    do throws(ConfigurationError) {
      let (settings, warnings) = try Settings.load(path: "/c/m.conf", files: files)
      return (settings, warnings.map(\.description))
    } catch { return (nil, error.diagnostics.map(\.description)) }
  }
}
