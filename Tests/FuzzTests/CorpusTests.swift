// Every input that was worth keeping, through the property it was found with: without a fuzzer, in a moment.

import FuzzTargets
import Glibc
import Testing

@Suite struct CorpusTests {
  @Test(arguments: FuzzTarget.all.map(\.name)) func everyInputOfTheCorpusHoldsItsProperties(_ name: String) throws {
    let target = try #require(FuzzTarget.named(name))
    let folder = #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(2).joined(separator: "/")
    let inputs = Self.inputs(in: "\(folder)/Fuzz/Corpus/\(name)")
    #expect(!inputs.isEmpty, "\(name) has no corpus")
    for (file, bytes) in inputs {
      #expect(throws: Never.self, "Tests/Fuzz/Corpus/\(name)/\(file)") { try target.run(bytes) }
    }
  }

  private static func inputs(in folder: String) -> [(name: String, bytes: [UInt8])] {
    guard let directory = opendir(folder) else { return [] }
    defer { closedir(directory) }
    var inputs: [(String, [UInt8])] = []
    while let entry = readdir(directory) {
      let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      guard !name.hasPrefix("."), let file = fopen("\(folder)/\(name)", "r") else { continue }
      defer { fclose(file) }
      var bytes = [UInt8](repeating: 0, count: 1 << 20)
      let count = fread(&bytes, 1, bytes.count, file)
      inputs.append((name, Array(bytes[..<count])))
    }
    return inputs
  }
}
