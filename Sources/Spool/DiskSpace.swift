// How much room there is for new mail. A full disk must be no surprise: while mail is still refused politely, what is
// queued already needs room for its changes of state, for notifications, and for the copies that give back space.

import Primitives

/// The space of a file system, in octets.
public struct DiskSpace: Sendable, Equatable {
  public var total: Int
  /// What this user may still write.
  public var free: Int

  public init(total: Int, free: Int) {
    self.total = total
    self.free = free
  }
}

/// What is known of the space, asked of the disk now and then and reckoned in between.
struct SpaceGauge {
  private let reserve: Int?
  private var space: DiskSpace?
  private var written = 0
  private var checked: MonotonicInstant?
  /// Set when less than the reserve is free, cleared again a quarter above it.
  private(set) var isShort = false

  private static let interval = Duration.milliseconds(250)
  private static let step = 1 << 20

  init(reserve: Int?) { self.reserve = reserve }

  var free: Int? { space.map { max($0.free - written, 0) } }

  mutating func wrote(_ octets: Int) { written += octets }

  func isStale(_ now: MonotonicInstant) -> Bool {
    guard let checked else { return true }
    return now - checked > Self.interval || written > Self.step
  }

  mutating func update(_ found: DiskSpace?, _ now: MonotonicInstant) {
    space = found
    written = 0
    checked = now
    guard let found else {
      isShort = false
      return
    }
    let reserve = reserve(of: found)
    isShort = found.free < (isShort ? reserve + reserve / 4 : reserve)
  }

  func admits(_ octets: Int) -> Bool {
    guard let space, let free else { return true }
    return !isShort && free - octets >= reserve(of: space)
  }

  private func reserve(of space: DiskSpace) -> Int { reserve ?? min(space.total / 10, 256 << 20) }
}

extension SpoolCore {
  /// Whether new mail of that size may come in.
  func admits(_ octets: Int) -> Bool {
    refreshSpace()
    return space.withLock { $0.admits(octets) }
  }

  var isShortOfSpace: Bool { space.withLock { $0.isShort } }

  func refreshSpace() {
    let now = time.now
    guard space.withLock({ $0.isStale(now) }) else { return }
    let found: DiskSpace?
    // Not knowing is no reason to refuse: a write that finds no space is refused all the same.
    do throws(DiskError) { found = try disk.space(directory) } catch { found = nil }
    space.withLock { $0.update(found, now) }
  }
}
