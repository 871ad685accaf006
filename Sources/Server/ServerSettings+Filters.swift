// Filters outlive a reload that does not change them, with what they have counted.

import Filters

extension ServerSettings {
  mutating func keepFilters(of old: ServerSettings) {
    milters = milters.map { new in old.milters.first { $0.settings == new.settings } ?? new }
    // With what it remembers, unless there is something else to remember.
    if let new = dnsLists, let known = old.dnsLists, new.lists == known.lists, new.timeout == known.timeout,
      new.server == known.server
    {
      dnsLists = known
    }
  }
}
