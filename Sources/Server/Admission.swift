// Who is let in: how many clients there are, in all and from each address, and when the door opens again after it was
// too much.

import Primitives

/// Counts connections. Belongs to the server's lock.
struct Admission {
  private(set) var total = 0
  private(set) var isOverloaded = false
  private var perClient: [IPAddress: Int] = [:]

  enum Verdict: Hashable { case admitted, tooMany, tooManyFromThere }

  /// Below this many connections clients are let in again. Were it the limit itself, each client that leaves under
  /// overload would let one in, and all the others would be refused forever.
  static func mark(below maximum: Int) -> Int { maximum - maximum / 20 }

  /// Counts a client in, unless there are too many.
  mutating func enter(_ address: IPAddress, maximum: Int, perAddress: Int) -> Verdict {
    if isOverloaded, total < Self.mark(below: maximum) { isOverloaded = false }
    if total >= maximum { isOverloaded = true }
    if isOverloaded { return .tooMany }
    let client = address.clientBlock
    guard perClient[client, default: 0] < perAddress else { return .tooManyFromThere }
    perClient[client, default: 0] += 1
    total += 1
    return .admitted
  }

  mutating func leave(_ address: IPAddress) {
    let client = address.clientBlock
    let left = perClient[client, default: 1] - 1
    perClient[client] = left > 0 ? left : nil
    total -= 1
  }
}
