// What is still known of a configuration that is broken.

import Testing

@testable import Configuration

@Suite struct PlacesTests {
  @Test func aBrokenConfigurationStillSaysWhereTheDaemonAndItsQueueAre() {
    var files = MemoryFiles()
    files.add(
      "/c/m.conf",
      "[globl]\nadmin_socket = /wrong\n[global]\nnonsense\nretry_shedule = 1m\nadmin_socket = run/a.sock\nqueue_dir = /q\n"
    )
    let places = Settings.places(path: "/c/m.conf", files: files)
    #expect(places.adminSocket == "/c/run/a.sock")
    #expect(places.queueDir == "/q")
    let set = Settings.places(path: "/c/m.conf", overrides: [("global.queue_dir", "/other")], files: files)
    #expect(set.queueDir == "/other")
    let missing = Settings.places(path: "/c/none.conf", files: files)
    #expect(missing.adminSocket == GlobalSettings().adminSocket && missing.queueDir == GlobalSettings().queueDir)
    #expect(missing.unreadable != nil && places.unreadable == nil)
    #expect(missing.missing == ["admin_socket", "queue_dir"] && places.missing == [])
  }

  @Test(arguments: [
    ("queu_dir = /q\n", "did you mean queue_dir?"), ("queue_dir /q\n", "has no \"=\""), ("[globl]\n", "[globl]"),
    ("[global:x]\n", "[global:x]"), ("[domain:x.example]\n", "[domain:x.example]"), ("log_level = LOUD\n", nil),
    ("listen = x\n", nil), ("", nil),
  ])
  func aMistakeThatMayHideAPlaceIsKnown(_ line: String, _ words: String?) {
    var files = MemoryFiles()
    files.add("/c/m.conf", "[global]\ndefault_hostname = a.example\nadmin_socket = /a\n\(line)")
    let places = Settings.places(path: "/c/m.conf", files: files)
    #expect(places.missing == ["queue_dir"])
    if let words {
      #expect(places.hiding.contains { $0.message.contains(words) }, "\(places.hiding)")
    } else {
      #expect(places.hiding == [])
    }
  }
}
