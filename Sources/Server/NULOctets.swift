// NUL in content: RFC 2045 2.7 and 2.8 have none, and what other servers make of it differs.

import Glibc

extension Slice<UnsafeRawBufferPointer> {
  /// Whether there is a NUL. It is looked for in all that comes in, so by the fastest means there are.
  var holdsNUL: Bool {
    let bytes = UnsafeRawBufferPointer(rebasing: self)
    return bytes.baseAddress.map { memchr($0, 0, bytes.count) != nil } ?? false
  }
}
