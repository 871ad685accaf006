// Filters outlive a reload that does not change them, with what they have counted.

import Filters

extension ServerSettings {
  mutating func keepFilters(of old: ServerSettings) {
    milters = milters.map { new in old.milters.first { $0.settings == new.settings } ?? new }
  }
}
