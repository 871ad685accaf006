// A configuration of a few lines to change, and what loading it says.

import Configuration

let mainFile = "/c/m.conf"
let minimal = "[global]\ndefault_hostname = relay.example\n"
let upstream = """
  [domain:example.com]
  smtp_server = smtp.example.com
  auth_method = PLAIN
  relay_account = a@example.com
  username = a@example.com
  password = hunter2

  """

func configuration(
  _ main: String = minimal, domain: String? = nil, user: String? = nil, mapping: String? = nil
) -> MemoryFiles {
  var files = MemoryFiles([mainFile: main])
  if let domain { files.add("/c/domains/d.conf", domain) }
  if let user { files.add("/c/users/u.conf", user) }
  if let mapping { files.add("/c/mappings/m.conf", mapping) }
  return files
}

func load(
  _ files: MemoryFiles, _ overrides: [(key: String, value: String)] = [], environment: [String: String] = [:]
) throws -> (settings: Settings, warnings: [Diagnostic]) {
  try Settings.load(path: mainFile, overrides: overrides, files: files, environment: environment)
}

/// The lines of all errors; none when it loads.
func errors(
  _ files: MemoryFiles, _ overrides: [(key: String, value: String)] = [], environment: [String: String] = [:]
) -> [String] {
  do throws(ConfigurationError) {
    _ = try Settings.load(path: mainFile, overrides: overrides, files: files, environment: environment)
    return []
  } catch { return error.diagnostics.map(\.description) }
}
