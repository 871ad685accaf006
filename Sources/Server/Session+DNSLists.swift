// Clients that are on a list in the DNS: the question is asked while the session begins, and its answer is needed when
// somebody is to get mail.

import Filters
import Network
import Primitives
import SMTP

extension Session {
  /// Asks about the client, unless it is one of ours. The banner does not wait for that.
  func askLists() {
    guard let lists = settings.dnsLists, standing != .trusted else { return }
    let client = client
    // On no loop: the verdict of a list that is slow must not be late for the others.
    listed = Task { await lists.listing(of: client) }
  }

  /// The refusal of a recipient because of where its mail comes from. A postmaster is reachable for everybody, so that
  /// those who are listed by mistake can say so (RFC 5321 4.5.1, RFC 5782 2.3).
  func refusalByLists(of path: ForwardPath) async -> Reply? {
    guard let listed, standing == .untrusted, !isPostmaster(path) else { return nil }
    guard let listing = await listed.value else { return nil }
    let answers = listing.answers.map(\.description).joined(separator: ", ")
    let isRefused = settings.refusesListed
    if !isListingTold {
      isListingTold = true
      let fate = isRefused ? "" : ", let in all the same"
      server.log.notice("\(client): listed by \(listing.domain) (\(answers))\(fate): \(listing.text)")
    }
    guard isRefused else { return nil }
    server.count { $0.listed += 1 }
    let text = listing.text.isEmpty ? "" : "; \(listing.text)"
    return Reply(
      554, "5.7.1", "Service unavailable; client host [\(client)] blocked using \(listing.domain)\(text)")
  }

  private func isPostmaster(_ path: ForwardPath) -> Bool {
    switch path {
    case .postmaster: true
    case .mailbox(let mailbox): mailbox.localPart.lowercased() == "postmaster"
    }
  }
}
