// A mail filter that does as a test tells it, right or wrong, and remembers what it was told.

import Filters
import Glibc
import Network
import Primitives

final class ScriptedMilter: Sendable {
  struct Packet: Sendable, Equatable {
    var code: Character
    var data: [UInt8]
    /// The texts in it.
    var words: [String] { data.split(separator: 0).map { String(decoding: $0, as: UTF8.self) } }
  }
  enum Answer: Sendable {
    case packets([[UInt8]])
    /// Says nothing, and goes on listening.
    case silence
    case close
    /// Whatever it is.
    case octets([UInt8])
  }

  let address: MilterSettings.Address
  private let loop: EventLoop
  private let acceptor: Acceptor
  private struct State {
    var packets: [Packet] = []
    var connections = 0
    var streams: [Served] = []
    var waiters: [(condition: @Sendable (String) -> Bool, wake: CheckedContinuation<Void, Never>)] = []
    /// All that came but negotiation and macros, as letters.
    var dialogue = ""
  }
  private let state = Mutex(State())

  /// All that came but negotiation and macros, as letters.
  var dialogue: String { state.withLock { $0.dialogue } }

  /// Returns once the dialogue is so, now or later.
  func isTold(_ condition: @escaping @Sendable (String) -> Bool) async {
    await withCheckedContinuation { wake in
      let isSo = state.withLock { state in
        if condition(state.dialogue) { return true }
        state.waiters.append((condition, wake))
        return false
      }
      if isSo { wake.resume() }
    }
  }

  private func take(_ packet: Packet) {
    let woken = state.withLock { state in
      state.packets.append(packet)
      guard packet.code != "O", packet.code != "D" else { return [] as [CheckedContinuation<Void, Never>] }
      state.dialogue.append(packet.code)
      let dialogue = state.dialogue
      let woken = state.waiters.filter { $0.condition(dialogue) }.map(\.wake)
      state.waiters.removeAll { $0.condition(dialogue) }
      return woken
    }
    for wake in woken { wake.resume() }
  }

  var packets: [Packet] { state.withLock { $0.packets } }
  var connections: Int { state.withLock { $0.connections } }
  func all(_ code: Character) -> [Packet] { packets.filter { $0.code == code } }

  /// The value of the last macro of that name.
  func macro(_ name: String, for command: Character) -> String? {
    for packet in all("D").reversed() where packet.data.first == command.asciiValue {
      let words = packet.data.dropFirst().split(separator: 0, omittingEmptySubsequences: false).map {
        String(decoding: $0, as: UTF8.self)
      }
      for i in stride(from: 0, to: words.count - 1, by: 2) where words[i] == name { return words[i + 1] }
    }
    return nil
  }

  /// - Parameters:
  ///   - flags: what it wants not to hear and will not answer.
  ///   - path: a socket in the file system instead of a port.
  ///   - answer: to each packet; nil is the answer of a filter that has nothing against it.
  init(
    version: UInt32 = 6, flags: MilterFlags = [], path: String? = nil,
    _ answer: @escaping @Sendable (Packet) -> Answer? = { _ in nil }
  ) throws {
    let loop = try EventLoop(name: "test.milter")
    self.loop = loop
    let listener =
      try path.map { try Listener(bindingTo: $0, mode: 0o600) } ?? Listener(bindingTo: Endpoint("127.0.0.1:0")!)
    address = path.map { .socket(path: $0) } ?? .tcp(listener.endpoint)
    let later = Box()
    acceptor = listener.accept(on: loop) { descriptor in
      Task(executorPreference: loop) {
        let served = Served(loop: loop) { packet in
          later.milter?.take(packet)
          if let special = answer(packet) { return special }
          return Self.usual(packet, version, flags)
        }
        later.milter?.state.withLock {
          $0.connections += 1
          $0.streams.append(served)
        }
        await served.run(descriptor)
      }
    }
    later.milter = self
  }

  private final class Box: Sendable {
    private struct Weak: Sendable { weak var milter: ScriptedMilter? }
    private let state = Mutex(Weak())
    var milter: ScriptedMilter? {
      get { state.withLock { $0.milter } }
      set { state.withLock { $0.milter = newValue } }
    }
  }

  func stop() async {
    await acceptor.stop()
    for served in state.withLock({ $0.streams }) { await served.close() }
  }

  private static func usual(_ packet: Packet, _ version: UInt32, _ flags: MilterFlags) -> Answer {
    let silent: [Character: MilterFlags] = [
      "C": .silentConnect, "H": .silentHelo, "M": .silentMail, "R": .silentRecipients, "T": .silentData,
      "L": .silentHeaders, "N": .silentEndOfHeaders, "B": .silentBody,
    ]
    switch packet.code {
    case "O": return .packets([negotiation(version, flags)])
    case "D", "A", "Q": return .silence
    default: return silent[packet.code].map { flags.contains($0) } == true ? .silence : .packets([Self.packet("c")])
    }
  }

  static func negotiation(_ version: UInt32, _ flags: MilterFlags) -> [UInt8] {
    packet("O", [version, 0xff, flags.rawValue].flatMap { number in number.octets })
  }

  static func packet(_ code: Character, _ data: [UInt8] = []) -> [UInt8] {
    UInt32(data.count + 1).octets + [code.asciiValue!] + data
  }

  static func packet(_ code: Character, index: UInt32? = nil, _ words: String...) -> [UInt8] {
    packet(code, (index?.octets ?? []) + words.flatMap { Array($0.utf8) + [0] })
  }

  /// One connection of a client.
  private actor Served {
    private let loop: EventLoop
    nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }
    private let answer: @Sendable (Packet) -> Answer
    private var stream: ByteStream?

    init(loop: EventLoop, answer: @escaping @Sendable (Packet) -> Answer) {
      self.loop = loop
      self.answer = answer
    }

    func close() { stream?.close() }

    func run(_ descriptor: CInt) async {
      guard let stream = try? ByteStream(adopting: descriptor, on: loop) else { return }
      self.stream = stream
      defer { stream.close() }
      while true {
        let packet = stream.consume { bytes -> (consumed: Int, Packet?) in
          guard bytes.count >= 5 else { return (0, nil) }
          let length = bytes[..<4].reduce(0) { $0 << 8 | Int($1) }
          guard bytes.count >= 4 + length else { return (0, nil) }
          let code = Character(Unicode.Scalar(bytes[4]))
          return (4 + length, Packet(code: code, data: Array(bytes[5..<(4 + length)])))
        }
        guard let packet else {
          guard (try? await stream.fill(until: .distantFuture, waitingFor: "a packet")) == true else { return }
          continue
        }
        switch answer(packet) {
        case .silence: continue
        case .close: return
        case .packets(let packets): stream.append { out in for packet in packets { out += packet } }
        case .octets(let octets): stream.append { $0 += octets }
        }
        guard (try? await stream.flush(until: soon, waitingFor: "room")) != nil else { return }
      }
    }
  }
}

extension UInt32 {
  var octets: [UInt8] { [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: self >> UInt32($0)) } }
}
