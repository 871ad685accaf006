// Whom the daemon becomes, for everybody who may start it.

import Primitives
import Testing

@testable import Configuration
@testable import Daemon

@Suite struct PrivilegePlanTests {
  private static let accounts: [String: Privileges.Account] = [
    "root": .init(name: "root", user: 0, group: 0), "ssmtp-mailer": .init(name: "ssmtp-mailer", user: 990, group: 991),
    "mail": .init(name: "mail", user: 8, group: 8),
  ]

  /// What is decided, in a word, or the exit status of the refusal.
  private func plan(_ user: String?, _ listen: String, runningAs id: UInt32, hasDefault: Bool) -> String {
    var global = GlobalSettings()
    global.user = user
    global.listen = [Endpoint(listen)!]
    do throws(DaemonError) {
      switch try Privileges.plan(
        global, runningAs: id, account: { $0 == "ssmtp-mailer" && !hasDefault ? nil : Self.accounts[$0] })
      {
      case .stay: return "stay"
      case .become(let account): return account.name
      }
    } catch { return "\(error.exitStatus)" }
  }

  @Test(arguments: [
    // Root gives itself up, to whom it is told or to the account of the packages.
    ("mail" as String?, "0.0.0.0:25", 0 as UInt32, true, "mail"), (nil, "0.0.0.0:25", 0, true, "ssmtp-mailer"),
    (nil, "0.0.0.0:25", 0, false, "78"), ("nobody-knows", "127.0.0.1:25", 0, true, "78"),
    // Nobody outside can reach a root that serves loopback, and it has to be asked for.
    ("root", "0.0.0.0:25", 0, true, "78"), ("root", "127.0.0.1:2525", 0, true, "stay"),
    ("root", "[::1]:2525", 0, true, "stay"), (nil, "127.0.0.1:2525", 0, false, "78"),
    // Others are who they are.
    (nil, "0.0.0.0:25", 990, true, "stay"), ("ssmtp-mailer", "0.0.0.0:25", 990, true, "stay"),
    ("mail", "0.0.0.0:25", 990, true, "78"), ("root", "127.0.0.1:25", 990, true, "78"),
  ])
  func planFollowsUserAndWhoStarts(_ user: String?, _ listen: String, _ id: UInt32, _ hasDefault: Bool, _ plan: String)
  {
    #expect(self.plan(user, listen, runningAs: id, hasDefault: hasDefault) == plan)
  }
}
