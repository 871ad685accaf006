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
    #expect(missing == (GlobalSettings().adminSocket, GlobalSettings().queueDir))
  }
}
