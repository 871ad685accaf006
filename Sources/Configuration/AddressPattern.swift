// Addresses with at most one `*`, as mappings and templates write them.

import SMTP

/// An address, or a pattern whose one `*` stands for one or more octets.
public struct AddressPattern: Sendable, Hashable, CustomStringConvertible {
  /// As it was written.
  public let description: String
  /// Lowercased; equal patterns match the same addresses.
  public let canonical: String
  /// What stands around the `*`; nil for an address without one.
  let around: (prefix: [UInt8], suffix: [UInt8])?
  /// The address itself, parsed once; nil for a pattern with `*`.
  private let mailbox: Mailbox?

  public static func == (a: Self, b: Self) -> Bool { a.canonical == b.canonical }
  public func hash(into hasher: inout Hasher) { hasher.combine(canonical) }

  /// Why a text is no pattern.
  public struct Fault: Error, Sendable, Hashable { public var reason: String }

  public init(_ text: String) throws(Fault) {
    let stars = text.utf8.count { $0 == UInt8(ascii: "*") }
    guard stars <= 1 else { throw Fault(reason: "a pattern holds one * at most") }
    guard stars == 1, let star = text.firstIndex(of: "*") else {
      do throws(AddressError) {
        let mailbox = try Mailbox(parsing: text)
        description = mailbox.description
        canonical = mailbox.canonical
        self.mailbox = mailbox
      } catch { throw Fault(reason: error.description) }
      around = nil
      return
    }
    // With a letter in the place of the star it must be an address, so that what it matches can be one.
    do throws(AddressError) {
      _ = try Mailbox(parsing: text.replacing("*", with: "x"))
    } catch { throw Fault(reason: error.description) }
    guard !text.hasPrefix("<") else { throw Fault(reason: "a pattern has no < and >") }
    mailbox = nil
    description = text
    canonical = text.lowercased()
    around = (
      Array(text[..<star].lowercased().utf8), Array(text[text.index(after: star)...].lowercased().utf8)
    )
  }

  public var isWildcard: Bool { around != nil }

  /// The domain, lowercased, when the `*` is not in it.
  public var domain: String? {
    guard let at = canonical.lastIndex(of: "@") else { return nil }
    let domain = canonical[canonical.index(after: at)...]
    return domain.contains("*") ? nil : String(domain)
  }

  /// How much of an address the pattern fixes; more wins.
  public var length: Int { canonical.utf8.count }

  /// What `*` stands for in `mailbox`, in its own letters; nil when a pattern with `*` does not match.
  public func capture(_ mailbox: Mailbox) -> String? {
    guard let (prefix, suffix) = around else { return nil }
    let canonical = mailbox.canonical.utf8
    let fixed = prefix.count + suffix.count
    guard canonical.count > fixed, canonical.starts(with: prefix),
      canonical.suffix(suffix.count).elementsEqual(suffix)
    else { return nil }
    // Lowercasing may change the length of letters outside ASCII; then the canonical form has to do.
    let text = mailbox.description.utf8.count == canonical.count ? mailbox.description : mailbox.canonical
    return String(Substring(text.utf8.dropFirst(prefix.count).dropLast(suffix.count)))
  }

  /// The address with `captured` in the place of `*`.
  public func substituting(_ captured: String?) throws(AddressError) -> Mailbox {
    if let mailbox { return mailbox }
    guard let captured else { throw .empty }
    return try Mailbox(parsing: description.replacing("*", with: captured))
  }
}
