// Contents too large for the log: a file each, written while the data arrives.

import CChecksum
import Glibc
import Primitives

/// Content in a file of its own. The file is opened at the first read, and then kept open: once open it can be read to
/// its end even when the message is removed meanwhile.
final class ContentFile: StoredContent {
  let id: QueueID
  let path: String
  let count: Int
  let crc: UInt32
  private let core: SpoolCore
  private let file = Mutex<(any DiskFile)?>(nil)
  /// The checksums of what was read so far, of each reader who began at the beginning and left nothing out.
  private let sums = Mutex<[(end: Int, crc: UInt32)]>([])
  private static let readerLimit = 8
  private let wasAppended = Mutex(false)

  init(id: QueueID, path: String, count: Int, crc: UInt32, core: SpoolCore) {
    self.id = id
    self.path = path
    self.count = count
    self.crc = crc
    self.core = core
  }

  /// Says that the file now belongs to a message; from then on `discard()` of its writer leaves it alone.
  func adopt() -> Bool {
    wasAppended.withLock { was in
      defer { was = true }
      return !was
    }
  }

  func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
    guard offset < self.count, count > 0 else { return [] }
    let wanted = min(count, self.count - offset)
    let result = await core.io.run(id) { () -> Result<[UInt8], QueueError> in
      do throws(DiskError) {
        let file = try self.opened()
        let bytes = try file.bytes(wanted, at: offset)
        if bytes.count < wanted {
          return .failure(.corrupt(file: self.path, offset: offset + bytes.count, detail: "the file is too short"))
        }
        guard self.isSound(bytes, at: offset) else {
          return .failure(.corrupt(file: self.path, offset: 0, detail: "the checksum of the content is wrong"))
        }
        return .success(bytes)
      } catch {
        if error.code == ENOENT {
          return .failure(.corrupt(file: self.path, offset: 0, detail: "the content of a message is missing"))
        }
        return .failure(error.asQueueError)
      }
    }
    return try result.get()
  }

  /// Whether a content that has been read to its end is the one that was written. Only whoever reads it from the
  /// beginning, piece by piece, is told: those who send it do.
  private func isSound(_ bytes: [UInt8], at offset: Int) -> Bool {
    sums.withLock { sums in
      var known: (end: Int, crc: UInt32) = (0, 0)
      if offset > 0 {
        guard let place = sums.firstIndex(where: { $0.end == offset }) else { return true }
        known = sums.remove(at: place)
      }
      let crc = bytes.withUnsafeBytes { LogFormat.checksum($0, after: known.crc) }
      let end = offset + bytes.count
      if end >= count { return crc == self.crc }
      sums.append((end, crc))
      // Of readers who have given up.
      if sums.count > Self.readerLimit { sums.removeFirst() }
      return true
    }
  }

  private func opened() throws(DiskError) -> any DiskFile {
    let result: Result<any DiskFile, DiskError> = file.withLock { known in
      if let known { return .success(known) }
      do throws(DiskError) {
        let file = try core.disk.open(path, .reading)
        known = file
        return .success(file)
      } catch { return .failure(error) }
    }
    return try result.get()
  }
}

/// A few serial queues for everything about content files and for reads of the log, so that slow disks hold up neither
/// event loops nor the writer, and the number of threads stays bounded.
struct ContentQueues: Sendable {
  private let queues: [any WorkQueue]

  init(_ make: SpoolQueues) { queues = (0..<4).map { make("spool.io.\($0)") } }

  func queue(_ id: QueueID) -> any WorkQueue {
    queues[Int(truncatingIfNeeded: id.rawValue &* 0x9E37_79B9_7F4A_7C15 >> 60) % queues.count]
  }

  /// Returns once everything given before has been done.
  func settle() async { for queue in queues { await queue.run {} } }

  /// Runs `work` on the queue of this message, behind what was given for it before.
  func run<T: Sendable>(_ id: QueueID, _ work: @escaping @Sendable () -> T) async -> T {
    await queue(id).run(work)
  }
}

/// Writes `content/<id>`.
final class ContentFileWriter: ContentWriter {
  private struct State {
    var offset = 0
    var crc: UInt32 = 0
    var content: ContentFile?
    var isDiscarded = false
  }
  private let id: QueueID
  private let path: String
  private let core: SpoolCore
  private let file: any DiskFile
  /// Only the queue of this message takes the lock; what waits is at most another write of the same message.
  private let state = Mutex(State())

  init(id: QueueID, core: SpoolCore) throws(DiskError) {
    self.id = id
    path = core.contentPath(id.rawValue)
    self.core = core
    file = try core.disk.open(path, .createNew)
  }

  func write(_ bytes: [UInt8]) async throws(QueueError) {
    try await core.io.run(id) { () -> Result<Void, QueueError> in
      self.state.withLock { s in
        do throws(DiskError) {
          try self.file.writeAll(bytes, at: s.offset)
        } catch { return .failure(error.asQueueError) }
        s.offset += bytes.count
        self.core.space.withLock { $0.wrote(bytes.count) }
        s.crc = bytes.withUnsafeBytes { LogFormat.checksum($0, after: s.crc) }
        return .success(())
      }
    }.get()
  }

  func read(at offset: Int, count: Int) async throws(QueueError) -> [UInt8] {
    try await core.io.run(id) { () -> Result<[UInt8], QueueError> in
      do throws(DiskError) {
        let left = self.state.withLock { $0.offset } - offset
        return .success(left > 0 && count > 0 ? try self.file.bytes(min(count, left), at: offset) : [])
      } catch { return .failure(error.asQueueError) }
    }.get()
  }

  func finish() async throws(QueueError) -> Content {
    let content = try await core.io.run(id) { () -> Result<ContentFile, QueueError> in
      self.state.withLock { s in
        do throws(DiskError) {
          if self.core.options.safeguards.contains(.syncOfContents) { try self.file.sync() }
        } catch { return .failure(error.asQueueError) }
        do throws(DiskError) {
          if self.core.options.safeguards.contains(.syncOfContents) {
            try self.core.disk.syncDirectory(self.core.contentDirectory)
          }
        } catch {
          // Names of other contents may be among what this sync has lost, and the next one would not say so.
          if !error.isOfDescriptors {
            self.core.fail(error.asFailure)
          }
          return .failure(error.asQueueError)
        }
        let content = ContentFile(id: self.id, path: self.path, count: s.offset, crc: s.crc, core: self.core)
        s.content = content
        return .success(content)
      }
    }.get()
    return .file(content)
  }

  func discard() async {
    await core.io.run(id) {
      self.state.withLock { s in
        guard !s.isDiscarded, s.content?.adopt() ?? true else { return }
        s.isDiscarded = true
        do throws(DiskError) { try self.core.disk.unlink(self.path) } catch {
          // Recovery removes it: no message names it.
        }
      }
    }
  }
}
