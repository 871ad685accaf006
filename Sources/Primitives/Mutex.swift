// A lock around a value.

#if canImport(Glibc)
  import Glibc
#endif

/// Protects a value with a POSIX mutex.
///
/// Why not the standard library's `Mutex`? It speaks to the kernel directly, which the thread sanitizer cannot see:
/// everything such a lock protects is then reported as a race, and a real one drowns among them. The interface is
/// the same, so that this file can go once the sanitizer has learnt.
///
/// `@unchecked Sendable` holds because the value is reached through ``withLock(_:)`` alone.
public struct Mutex<Value: ~Copyable>: ~Copyable, @unchecked Sendable {
  @usableFromInline let value: UnsafeMutablePointer<Value>
  @usableFromInline let lock: UnsafeMutablePointer<pthread_mutex_t>

  public init(_ initial: consuming sending Value) {
    value = .allocate(capacity: 1)
    value.initialize(to: initial)
    lock = .allocate(capacity: 1)
    pthread_mutex_init(lock, nil)
  }

  deinit {
    pthread_mutex_destroy(lock)
    lock.deallocate()
    value.deinitialize(count: 1)
    value.deallocate()
  }

  /// Runs `body` with the value to itself. Not recursive.
  @inlinable
  public borrowing func withLock<Result: ~Copyable, Failure: Error>(
    _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    pthread_mutex_lock(lock)
    defer { pthread_mutex_unlock(lock) }
    return try body(&value.pointee)
  }
}
