// The second half of a reading: whether the content files that messages name are what was written.

import Glibc
import Primitives

extension VerifyingScan {
  private static func contentAdvice(_ id: QueueID) -> String {
    "restore this file from a backup, or delete the message with `ssmtp-mailer queue delete \(id)` and have it sent again"
  }

  mutating func checkContents() throws(DiskError) {
    let names: Set<String>
    do throws(DiskError) { names = Set(try disk.list(directory + "/content")) } catch {
      guard error.code == ENOENT || error.code == ENOTDIR else { throw error }
      damage(
        directory + "/content", 0, "the directory of the contents is missing",
        live.filter { $0.value.file != nil }.keys.sorted().map { QueueID(rawValue: $0) },
        "restore it from a backup; if no message is named here, an empty directory will do")
      for (id, message) in live where message.file != nil { places?[id]?.isContentGone = true }
      return
    }
    var named = 0
    for (raw, message) in live.sorted(by: { $0.key < $1.key }) {
      guard let wanted = message.file else { continue }
      let id = QueueID(rawValue: raw)
      if names.contains(id.description) { named += 1 }
      let path = contentPath(id)
      let advice = Self.contentAdvice(id)
      let file: PatientFile
      let found: (count: Int, crc: UInt32)
      do throws(DiskError) {
        file = PatientFile(try disk.open(path, .reading))
        found = try checksum(file)
      } catch {
        switch error.code {
        case ENOENT: missing.insert(id)
        case EISDIR: damage(path, 0, Self.directoryInPlace, [id], advice)
        default: throw error
        }
        places?[raw]?.isContentGone = true
        continue
      }
      report.contentFiles += 1
      report.contentOctets += found.count
      if found.count == wanted.count, found.crc == wanted.crc { continue }
      places?[raw]?.damage = "its content is not what was accepted"
      if let (offset, octets, code) = file.unreadable {
        damage(path, offset, Self.unreadable(octets, code), [id], advice)
      } else if found.count != wanted.count {
        damage(path, min(found.count, wanted.count), "its size should be \(wanted.count)", [id], advice)
      } else {
        damage(path, 0, "the content is not what was written: its checksum is wrong", [id], advice)
      }
    }
    report.unnamedContentFiles = names.count - named
  }

  private func checksum(_ file: PatientFile) throws(DiskError) -> (count: Int, crc: UInt32) {
    var offset = 0
    var crc: UInt32 = 0
    while true {
      let bytes = try file.bytes(1 << 20, at: offset)
      if bytes.isEmpty { return (offset, crc) }
      crc = bytes.withUnsafeBytes { LogFormat.checksum($0, after: crc) }
      offset += bytes.count
    }
  }

  mutating func reportMissing() {
    for id in missing.sorted() {
      damage(contentPath(id), 0, "the content of a message is missing", [id], Self.contentAdvice(id))
    }
  }
}
