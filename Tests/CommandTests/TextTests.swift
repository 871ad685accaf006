import Testing

@testable import CommandLineTools

@Suite struct TextTests {
  @Test func columnsAreAlignedAndControlCharactersCannotReachTheTerminal() {
    var table = TextTable([("ID", .left), ("SIZE", .right), ("REASON", .left)])
    table.append(["1a", "9.8 KiB", "421 4.7.0 \u{1b}[2Jtry\nagain"])
    table.append(["longer-id", "12 B", ""])
    #expect(
      table.lines() == [
        "ID            SIZE  REASON",
        "1a         9.8 KiB  421 4.7.0  [2Jtry again",
        "longer-id     12 B",
      ])
  }

  @Test(arguments: [0x202a, 0x202e, 0x2066, 0x2069, 0x200e, 0x200f, 0x061c]) func whatTurnsATextIsShown(
    _ value: UInt32
  ) throws {
    let text = "jane\(try #require(Unicode.Scalar(value)))gro.elpmaxe@"
    let digits = String(value, radix: 16, uppercase: true)
    let shown = "jane\\u{" + digits + "}gro.elpmaxe@"
    let padded = "jane\\u{0" + digits + "}gro.elpmaxe@"
    #expect([shown, padded].contains(TerminalText.clean(text)), "\(TerminalText.clean(text))")
    #expect(TerminalText.clean("ü\u{200d}") == "ü\u{200d}")
  }

  @Test(arguments: [(0, "0s"), (45, "45s"), (200, "3m20s"), (14_400, "4h"), (14_460, "4h1m"), (183_600, "2d3h")])
  func agesHaveTwoUnitsAtMost(seconds: Int, text: String) { #expect(Quantity.age(seconds) == text) }

  @Test(arguments: [(812, "812 B"), (10_035, "9.8 KiB"), (35_882_577, "34.2 MiB")])
  func sizesHaveBinaryUnits(octets: Int, text: String) { #expect(Quantity.size(octets) == text) }

  @Test func queryValuesAreEscaped() { #expect(AdminClient.escaped("a+b@x y/ü") == "a%2Bb%40x%20y%2F%C3%BC") }
}
