// Memory that has held a secret is overwritten before anybody else gets it.

import Glibc

extension UnsafeMutableRawBufferPointer {
  /// Overwrites all of it, also where a compiler sees that nobody will read it.
  public func wipe() {
    guard let baseAddress, count > 0 else { return }
    explicit_bzero(baseAddress, count)
  }
}

extension [UInt8] {
  /// Overwrites octets that held a secret; without effect on copies of them.
  public mutating func wipe() { withUnsafeMutableBytes { $0.wipe() } }
}
