// The event loop as an executor.

import Network
import Primitives
import Testing

@Suite(.timeLimit(.minutes(1))) struct LoopTests {
  @Test func bodiesRunInTheOrderTheyWereHandedIn() async throws {
    let loop = try EventLoop(name: "test.order")
    let order = Mutex<[Int]>([])
    await withCheckedContinuation { done in
      for i in 0..<1000 { loop.execute { order.withLock { $0.append(i) } } }
      loop.execute { done.resume() }
    }
    #expect(order.withLock { $0 } == Array(0..<1000))
  }

  actor Counter {
    let loop: EventLoop
    nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }
    var value = 0
    init(_ loop: EventLoop) { self.loop = loop }
    func add() async {
      await Task.yield()
      value += 1
    }
    nonisolated func addFromTheLoop() { assumeIsolated { $0.value += 1 } }
  }

  @Test func anActorIsIsolatedWithinItsLoop() async throws {
    let loop = try EventLoop(name: "test.isolation")
    let counter = Counter(loop)
    #expect(!loop.isCurrent)
    await withCheckedContinuation { done in
      loop.execute {
        #expect(loop.isCurrent)
        counter.addFromTheLoop()
        done.resume()
      }
    }
    #expect(await counter.value == 1)
  }

  @Test func jobsFromManyThreadsAllRun() async throws {
    let loop = try EventLoop(name: "test.many")
    let counter = Counter(loop)
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<64 {
        group.addTask { for _ in 0..<200 { await counter.add() } }
      }
    }
    #expect(await counter.value == 12_800)
  }

  @Test func aBusyLoopStillServesItsSocketsAndDeadlines() async throws {
    let loop = try EventLoop(name: "test.busy")
    let isDone = Mutex(false)
    let spinner = Task(executorPreference: loop) { while !isDone.withLock({ $0 }) { await Task.yield() } }
    let listener = try Listener(bindingTo: Endpoint("127.0.0.1:0")!)
    let acceptor = listener.accept(on: loop) { descriptor in
      Task(executorPreference: loop) {
        try await Party(loop).adopt(descriptor) { stream in try await stream.send("hello") }
      }
    }
    let party = Party(loop)
    let text = try await party.connect(to: listener.endpoint) { try await $0.receiveText(5) }
    #expect(text == "hello")
    isDone.withLock { $0 = true }
    await spinner.value
    await acceptor.stop()
  }

  /// A loop that is dropped takes its descriptor with it.
  @Test func aDroppedLoopIsFreed() async throws {
    weak var dropped: EventLoop?
    do {
      let loop = try EventLoop(name: "test.dropped")
      dropped = loop
      await withCheckedContinuation { done in loop.execute { done.resume() } }
    }
    // The block above may still be unwinding on its queue.
    for _ in 0..<10_000 where dropped != nil { await Task.yield() }
    #expect(dropped == nil)
  }
}
