// Passwords and tokens at rest: they never print, and their memory is wiped once nobody holds them any more.
//
// What this cannot do: a text that `reveal()` has given is a String, which Swift copies and frees without wiping. Those
// live as long as a login takes; what lives as long as the daemon is here.

import Primitives

/// A password or token. It prints as `<redacted>`; only ``reveal()`` gives it away.
public struct Secret: Sendable, Equatable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
  private let storage: Storage

  public init(_ text: String) { storage = Storage(text) }

  /// The secret itself, for AUTH and nothing else.
  public func reveal() -> String { String(decoding: storage.octets, as: UTF8.self) }

  public static func == (a: Self, b: Self) -> Bool { a.storage.octets.elementsEqual(b.storage.octets) }
  public var description: String { "<redacted>" }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: [:]) }

  private final class Storage: Sendable {
    // Written once, before anybody else can see it.
    nonisolated(unsafe) let octets: UnsafeMutableRawBufferPointer

    init(_ text: String) {
      octets = .allocate(byteCount: text.utf8.count, alignment: 1)
      octets.copyBytes(from: text.utf8)
    }

    deinit {
      octets.wipe()
      octets.deallocate()
    }
  }
}
