// The small encodings, against the examples of their RFCs.

import Testing

@testable import OAuth

@Suite struct WebTextTests {
  @Test(arguments: [
    ("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("\u{3e}\u{3f}~", "Pj9-"),
  ])
  func base64URLHasNoPaddingAndTheAlphabetOfAddresses(text: String, encoded: String) {
    #expect(Base64URL.encode(Array(text.utf8)) == encoded)
  }

  /// RFC 7636 appendix B.
  @Test func challengeIsThatOfTheStandard() {
    #expect(
      PKCE.challenge(for: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
        == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM")
  }

  @Test func formComesBackAsItWas() {
    let form = WebForm([("a b", "1&2=3"), ("ü", "+/%"), ("empty", "")])
    #expect(form.encoded == "a%20b=1%262%3D3&%C3%BC=%2B%2F%25&empty=")
    #expect(WebForm(parsing: form.encoded) == form)
  }

  @Test func brokenEscapesAreLeftOut() {
    #expect(WebForm(parsing: "a=%4&b=%zz&c=%ff&d=x+y&e").encoded == "d=x%20y&e=")
  }
}
