// Answers of name servers, who may be anybody.

import Network

extension FuzzTarget {
  static let dns = FuzzTarget("dns", limit: 1024) { input in
    // glibc never hands over less than a header.
    guard input.count >= 12, let records = DNSClient.records(of: input, CInt(input.count)) else { return }
    for record in records {
      try expect(!record.name.hasSuffix("."), "a name with its dot")
      switch record.value {
      case .alias(let name), .pointer(let name), .exchanger(_, let name):
        // dn_expand(3) escapes whatever is not printable.
        try expect(name.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f }, "a name that is not printable: \(name)")
        try expect(name.utf8.count <= 1025, "a name of \(name.utf8.count) octets")
      case .address, .text: break
      }
    }
  }
}
