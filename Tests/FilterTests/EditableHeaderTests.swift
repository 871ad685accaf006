// The header of a message under the hands of filters: numbering, deleting, folding, and what may not get in.

import Testing

@testable import Filters

@Suite struct EditableHeaderTests {
  private func header(_ text: String) -> EditableHeader { Array(text.utf8).withUnsafeBytes { EditableHeader($0) } }
  private func text(_ header: EditableHeader) -> String { String(decoding: header.octets, as: UTF8.self) }
  private static let sample = "From: a@b\r\nX: 1\r\nx: 2\r\n\tfolded\r\nSubject:none\r\n\r\n"

  @Test(arguments: [
    sample, "", "\r\n", "From: a@b\r\n", "no field\r\nFrom: a@b\r\n\r\n", "From: a@b\r\nno field\r\n\r\n",
    " starts folded\r\nX: y\r\n\r\n",
  ]) func whatIsNotTouchedKeepsItsOctets(octets: String) {
    #expect(text(header(octets)) == octets)
  }

  @Test func filtersSeeFieldsWithLineFeeds() {
    func seen(_ leadingSpace: Bool) -> [String] {
      header(Self.sample).fields(leadingSpace: leadingSpace).map {
        String(decoding: $0.name + [0x3a] + $0.value, as: UTF8.self)
      }
    }
    #expect(seen(false) == ["From:a@b", "X:1", "x:2\n\tfolded", "Subject:none"])
    #expect(seen(true) == ["From: a@b", "X: 1", "x: 2\n\tfolded", "Subject:none"])
  }

  private func edited(
    _ octets: String = sample, isDone: Bool = true, _ change: (inout EditableHeader) -> Bool
  ) -> String {
    var header = header(octets)
    let done = change(&header)
    #expect(done == isDone)
    return text(header)
  }

  private func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

  private func adding(_ name: String, _ value: String, to octets: String, leadingSpace: Bool = false) -> String {
    edited(octets) { $0.add(name: bytes(name), value: bytes(value), leadingSpace: leadingSpace) }
  }

  @Test func fieldsAreAddedAtTheEndAndInsertedByPlace() {
    #expect(adding("B", "2", to: "A: 1\r\n\r\n") == "A: 1\r\nB: 2\r\n\r\n")
    #expect(adding("B", "2", to: "A: 1\r\n\r\n", leadingSpace: true) == "A: 1\r\nB:2\r\n\r\n")
    #expect(adding("B", "2", to: "A: 1") == "A: 1\r\nB: 2\r\n")
    for (index, expected) in [
      (0, "N: x\r\nA: 1\r\nB: 2\r\n\r\n"), (1, "A: 1\r\nN: x\r\nB: 2\r\n\r\n"), (9, "A: 1\r\nB: 2\r\nN: x\r\n\r\n"),
    ] {
      let result = edited("A: 1\r\nB: 2\r\n\r\n") {
        $0.insert(at: index, name: bytes("N"), value: bytes("x"), leadingSpace: false)
      }
      #expect(result == expected)
    }
  }

  @Test func fieldsAreChangedByNameAndNumber() {
    func changed(_ index: Int, _ value: String) -> String {
      edited("A: 1\r\nX: 1\r\nx: 2\r\n\r\n") {
        $0.change(index: index, name: bytes("X"), value: bytes(value), leadingSpace: false)
      }
    }
    #expect(changed(1, "new") == "A: 1\r\nX: new\r\nx: 2\r\n\r\n")
    #expect(changed(2, "new") == "A: 1\r\nX: 1\r\nX: new\r\n\r\n")
    #expect(changed(3, "new") == "A: 1\r\nX: 1\r\nx: 2\r\nX: new\r\n\r\n")
    #expect(changed(2, "") == "A: 1\r\nX: 1\r\n\r\n")
    #expect(changed(3, "") == "A: 1\r\nX: 1\r\nx: 2\r\n\r\n")
  }

  /// OpenDKIM deletes in rising order and counts as it has seen the message, as sendmail does.
  @Test func deletedFieldsStillCountUntilTheFilterIsDone() {
    var header = header("X: 1\r\nX: 2\r\nX: 3\r\n\r\n")
    for index in [1, 3] { _ = header.change(index: index, name: bytes("X"), value: [], leadingSpace: false) }
    #expect(text(header) == "X: 2\r\n\r\n")
    header.settle()
    _ = header.change(index: 1, name: bytes("X"), value: [], leadingSpace: false)
    #expect(text(header) == "\r\n")
  }

  @Test(arguments: [
    ("a\nb", "N: a\r\n\tb\r\n"), ("a\r\n b", "N: a\r\n b\r\n"), ("a\n\nb", "N: a\r\n\tb\r\n"),
    ("a\n \t\n b", "N: a\r\n b\r\n"),
    ("a\rb", "N: a b\r\n"), ("a\u{0}b", "N: a b\r\n"), ("a\n", "N: a\r\n"), ("\r\n\r\nbody", "N: \r\n\tbody\r\n"),
    ("x\r\nBcc: all@world", "N: x\r\n\tBcc: all@world\r\n"), ("a\r\r\nb", "N: a \r\n\tb\r\n"),
  ]) func valueCannotBeginAnythingElse(value: String, field: String) {
    #expect(adding("N", value, to: "A: 1\r\n\r\n") == "A: 1\r\n" + field + "\r\n")
  }

  @Test(arguments: ["", "a b", "a:b", "a\r\nb", "a\u{0}", "ä", String(repeating: "x", count: 257)])
  func nameThatCannotBeOneIsRefused(name: String) {
    let unchanged = edited(isDone: false) { $0.add(name: bytes(name), value: bytes("x"), leadingSpace: false) }
    #expect(unchanged == Self.sample)
  }
}
