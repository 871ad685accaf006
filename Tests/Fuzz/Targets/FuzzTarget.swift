// A target of the fuzzer: takes any octets, and says which property they break.

/// A property that does not hold for an input.
public struct Violation: Error, Sendable, CustomStringConvertible {
  public var description: String
}

/// Throws a ``Violation`` unless `condition` holds.
func expect(_ condition: Bool, _ what: @autoclosure () -> String) throws(Violation) {
  if !condition { throw Violation(description: what()) }
}

public struct FuzzTarget: Sendable {
  public let name: String
  /// Inputs are cut to so many octets.
  public let limit: Int
  private let check: @Sendable ([UInt8]) throws -> Void

  init(_ name: String, limit: Int = 4096, _ check: @escaping @Sendable ([UInt8]) throws -> Void) {
    self.name = name
    self.limit = limit
    self.check = check
  }

  public func run(_ input: [UInt8]) throws { try check(input.count > limit ? Array(input.prefix(limit)) : input) }

  public static func named(_ name: String) -> FuzzTarget? { all.first { $0.name == name } }

  public static let all: [FuzzTarget] = [
    address, command, data, dns, header, ini, milter, proxy, reply, session, spool, text,
  ]
}

/// Takes an input apart: the first octets steer, the rest is what is read.
struct Octets {
  private(set) var rest: ArraySlice<UInt8>

  init(_ input: [UInt8]) { rest = input[...] }

  var isEmpty: Bool { rest.isEmpty }

  /// The next octet; 0 behind the end.
  mutating func byte() -> Int { Int(rest.popFirst() ?? 0) }

  mutating func take(_ count: Int) -> [UInt8] {
    let taken = Array(rest.prefix(count))
    rest = rest.dropFirst(count)
    return taken
  }

  /// All that is left.
  mutating func all() -> [UInt8] { take(rest.count) }
}

/// What `description` promises of whatever comes from outside: nothing in it ends a line or hides.
func isOneLine(_ text: String) -> Bool {
  text.unicodeScalars.allSatisfy {
    $0.value >= 0x20 && !(0x7f...0x9f).contains($0.value) && $0.value != 0x2028 && $0.value != 0x2029
  }
}
