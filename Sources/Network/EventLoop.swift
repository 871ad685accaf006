// An event loop on Dispatch: one serial queue that owns one epoll descriptor with all its sockets in it, and one
// dispatch source that watches that descriptor. Connections are actors whose executor is the loop, so their code is
// straight-line `async` and everything they touch is confined to one queue.
//
// Why not a dispatch source for each socket? Each event would then cost two epoll_ctl calls, an ioctl and a futex
// beside the read and the write: twice the processor time a request (docs/architecture.md has the figures).

import CLinux
import Dispatch
import Glibc
import Primitives

/// A serial executor that is also told when its sockets can be read or written.
///
/// `@unchecked Sendable` holds because everything that is not behind ``remote`` is touched on `queue` only: the
/// dispatch source, the sweep timer and every job run there, and ``Watcher`` is handed out on the loop alone.
public final class EventLoop: SerialExecutor, TaskExecutor, @unchecked Sendable {
  public let name: String
  private let queue: DispatchQueue
  private let epoll: CInt
  private var source: (any DispatchSourceRead)?
  private let events: UnsafeMutablePointer<epoll_event>
  private static let eventCapacity = 256

  /// Where bytes land before a stream takes them: shared, because a loop reads one socket at a time.
  let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 65536, alignment: 16)

  // MARK: Jobs

  /// Jobs that were enqueued on the loop itself, run before it returns to Dispatch.
  private var local: [UnownedJob] = []
  private var localHead = 0
  /// Jobs from other threads. Only the first of a burst pays for waking the queue.
  private let remote = Mutex<[UnownedJob]>([])

  private static let currentKey: pthread_key_t = {
    var key = pthread_key_t()
    pthread_key_create(&key, nil)
    return key
  }()

  /// - Throws: ``NetworkError`` when the kernel refuses an epoll descriptor.
  public init(name: String) throws(NetworkError) {
    self.name = name
    queue = DispatchQueue(label: name)
    epoll = epoll_create1(CInt(EPOLL_CLOEXEC))
    events = .allocate(capacity: Self.eventCapacity)
    guard epoll >= 0 else { throw NetworkError.system("epoll_create1", errno) }
    let source = DispatchSource.makeReadSource(fileDescriptor: epoll, queue: queue)
    // Weak, and strong while it runs: the last owner of the loop may be a job of this very round.
    source.setEventHandler { [weak self] in
      if let self { enter { collect() } }
    }
    source.setCancelHandler { [epoll] in Glibc.close(epoll) }
    self.source = source
    source.activate()
  }

  deinit {
    if let source { source.cancel() } else if epoll >= 0 { Glibc.close(epoll) }
    events.deallocate()
    scratch.deallocate()
  }

  public func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    if isCurrent {
      local.append(job)
      return
    }
    let first = remote.withLock { jobs in
      jobs.append(job)
      return jobs.count == 1
    }
    if first { queue.async { [self] in enter { takeRemote() } } }
  }

  public func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
  public func asUnownedTaskExecutor() -> UnownedTaskExecutor { UnownedTaskExecutor(ordinary: self) }
  public func checkIsolated() { dispatchPrecondition(condition: .onQueue(queue)) }
  public func isIsolatingCurrentContext() -> Bool? { isCurrent }

  /// Whether the calling thread is running this loop now.
  public var isCurrent: Bool {
    pthread_getspecific(Self.currentKey) == UnsafeMutableRawPointer(Unmanaged.passUnretained(self).toOpaque())
  }

  private func enter(_ body: () -> Void) {
    pthread_setspecific(Self.currentKey, Unmanaged.passUnretained(self).toOpaque())
    body()
    drain()
    pthread_setspecific(Self.currentKey, nil)
  }

  private func takeRemote() {
    let jobs = remote.withLock { jobs in
      let taken = jobs
      jobs = []
      return taken
    }
    local.append(contentsOf: jobs)
  }

  /// Runs what is enqueued, and what that enqueues, up to a bound: a loop that never runs dry must still let
  /// Dispatch deliver its timers and its sockets.
  private func drain() {
    var budget = 4096
    while localHead < local.count, budget > 0 {
      let job = local[localHead]
      localHead += 1
      budget -= 1
      job.runSynchronously(isolatedTo: asUnownedSerialExecutor(), taskExecutor: asUnownedTaskExecutor())
    }
    if localHead == local.count {
      local.removeAll(keepingCapacity: true)
      localHead = 0
    } else {
      local.removeFirst(localHead)
      localHead = 0
      queue.async { [self] in enter {} }
    }
  }

  // MARK: Sockets

  private var watchers: [Watcher?] = []
  private var freeSlots: [Int] = []
  private var generation: UInt32 = 0

  /// Collects events until there are none; bounded for the same reason as ``drain()``. What is left makes the
  /// dispatch source fire again.
  private func collect() {
    for _ in 0..<16 {
      let count = epoll_wait(epoll, events, CInt(Self.eventCapacity), 0)
      if count <= 0 { return }
      for i in 0..<Int(count) {
        let tag = events[i].data.u64
        let slot = Int(tag & 0xffff_ffff)
        // A descriptor may be closed, and its slot taken again, by a job of the same round.
        if let watcher = watchers[slot], watcher.generation == UInt32(tag >> 32) { watcher.fire(events[i].events) }
      }
      drain()
    }
  }

  /// Watches a non-blocking descriptor for reading and writing, edge-triggered. On the loop only.
  func watch(_ descriptor: CInt) throws(NetworkError) -> Watcher {
    checkIsolated()
    generation &+= 1
    let slot = freeSlots.popLast() ?? watchers.count
    if slot == watchers.count { watchers.append(nil) }
    let watcher = Watcher(loop: self, descriptor: descriptor, slot: slot, generation: generation)
    var event = epoll_event()
    event.events = EPOLLIN.rawValue | EPOLLOUT.rawValue | EPOLLRDHUP.rawValue | EPOLLET.rawValue
    event.data.u64 = UInt64(generation) << 32 | UInt64(slot)
    guard epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) == 0 else {
      freeSlots.append(slot)
      throw NetworkError.system("epoll_ctl", errno)
    }
    watchers[slot] = watcher
    return watcher
  }

  /// Forgets the watcher; its descriptor is closed by the caller, which also takes it out of epoll.
  func unwatch(_ watcher: Watcher) {
    watchers[watcher.slot] = nil
    freeSlots.append(watcher.slot)
  }

  // MARK: Deadlines

  private var sweepIsPending = false
  /// How late a deadline may be noticed.
  private static let sweepInterval = DispatchTimeInterval.milliseconds(250)

  /// One timer sweeps the deadlines of all sockets: arming a timer for each wait would cost more than the wait.
  func armSweep() {
    if sweepIsPending { return }
    sweepIsPending = true
    queue.asyncAfter(deadline: .now() + Self.sweepInterval) { [self] in
      enter {
        sweepIsPending = false
        let now = SystemTime().now
        var waiting = false
        for watcher in watchers where watcher?.expire(now) == true { waiting = true }
        if waiting { armSweep() }
      }
    }
  }

  /// Lets everything else that is due on the loop go first, sockets and timers included.
  nonisolated(nonsending) func pause() async {
    // Not Task.yield(): a job that comes again at once would keep the loop to itself until ``drain()`` has had enough.
    await withUnsafeContinuation { (wake: UnsafeContinuation<Void, Never>) in
      queue.async { [self] in enter { wake.resume() } }
    }
  }

  /// Runs `body` on the loop, as soon as it gets there.
  public func execute(_ body: @escaping @Sendable () -> Void) {
    queue.async { [self] in enter(body) }
  }
}

/// How a wait for a socket ended.
enum Wait { case ready, timedOut, closed }

/// The readiness of one descriptor. Belongs to its loop and is touched on it only.
final class Watcher {
  unowned let loop: EventLoop
  let descriptor: CInt
  let slot: Int
  let generation: UInt32

  /// Set by an edge, cleared by whoever found the descriptor drained.
  var isReadable = false
  var isWritable = false
  /// The peer has closed its side: no further edge will come, so a read must not wait for one.
  private(set) var isHungUp = false
  private(set) var isClosed = false

  private var reader: (wake: UnsafeContinuation<Wait, Never>, deadline: MonotonicInstant)?
  private var writer: (wake: UnsafeContinuation<Wait, Never>, deadline: MonotonicInstant)?

  init(loop: EventLoop, descriptor: CInt, slot: Int, generation: UInt32) {
    self.loop = loop
    self.descriptor = descriptor
    self.slot = slot
    self.generation = generation
  }

  func fire(_ events: UInt32) {
    let broken = EPOLLERR.rawValue | EPOLLHUP.rawValue
    if events & (EPOLLRDHUP.rawValue | broken) != 0 { isHungUp = true }
    if events & (EPOLLIN.rawValue | EPOLLRDHUP.rawValue | broken) != 0 {
      isReadable = true
      if let reader {
        self.reader = nil
        reader.wake.resume(returning: .ready)
      }
    }
    if events & (EPOLLOUT.rawValue | broken) != 0 {
      isWritable = true
      if let writer {
        self.writer = nil
        writer.wake.resume(returning: .ready)
      }
    }
  }

  nonisolated(nonsending) func readable(until deadline: MonotonicInstant) async -> Wait {
    if isClosed { return .closed }
    if isReadable { return .ready }
    precondition(reader == nil, "one reader at a time")
    return await withUnsafeContinuation { wake in
      reader = (wake, deadline)
      if deadline != .distantFuture { loop.armSweep() }
    }
  }

  /// Moves the deadline of the reader that waits now, if one does.
  func extendReader(to deadline: MonotonicInstant) {
    guard let reader else { return }
    self.reader = (reader.wake, deadline)
    if deadline != .distantFuture { loop.armSweep() }
  }

  /// Ends the wait of the reader, if one waits, as if its deadline had passed.
  func expireReader() {
    guard let reader else { return }
    self.reader = nil
    reader.wake.resume(returning: .timedOut)
  }

  nonisolated(nonsending) func writable(until deadline: MonotonicInstant) async -> Wait {
    if isClosed { return .closed }
    if isWritable { return .ready }
    precondition(writer == nil, "one writer at a time")
    return await withUnsafeContinuation { wake in
      writer = (wake, deadline)
      if deadline != .distantFuture { loop.armSweep() }
    }
  }

  /// Ends the waits whose deadline has passed. Returns whether any with a deadline is left.
  func expire(_ now: MonotonicInstant) -> Bool {
    var waiting = false
    if let reader, reader.deadline != .distantFuture {
      if reader.deadline <= now {
        self.reader = nil
        reader.wake.resume(returning: .timedOut)
      } else {
        waiting = true
      }
    }
    if let writer, writer.deadline != .distantFuture {
      if writer.deadline <= now {
        self.writer = nil
        writer.wake.resume(returning: .timedOut)
      } else {
        waiting = true
      }
    }
    return waiting
  }

  /// Ends all waits and closes the descriptor.
  func close() {
    if isClosed { return }
    isClosed = true
    loop.unwatch(self)
    Glibc.close(descriptor)
    reader?.wake.resume(returning: .closed)
    writer?.wake.resume(returning: .closed)
    reader = nil
    writer = nil
  }
}
