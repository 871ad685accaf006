// One HTTPS request at a time, by libcurl, on a queue of its own: libcurl's calls block, and an event loop must not.

import CCurl
import Primitives

/// What a token endpoint answered.
public struct HTTPAnswer: Sendable, Hashable {
  public var status: Int
  public var body: [UInt8]

  public init(status: Int, body: [UInt8]) {
    self.status = status
    self.body = body
  }
}

/// Posts a form and brings the answer.
public protocol TokenTransport: Sendable {
  /// - Throws: ``TokenFailure`` of kind `unavailable` when there is no answer.
  func post(_ form: WebForm, to url: String, caFile: String?) async throws(TokenFailure) -> HTTPAnswer
}

/// Posts over HTTPS, with the certificate verified; follows no redirection.
public struct CurlTransport: TokenTransport {
  private let queue: any WorkQueue
  private let timeout: Duration
  /// Answers of token endpoints have a few kilobytes.
  static let bodyLimit = 65_536

  /// - Parameter timeout: for the whole request.
  public init(queue: any WorkQueue = DispatchWorkQueue("oauth"), timeout: Duration = .seconds(30)) {
    self.queue = queue
    self.timeout = timeout
  }

  public func post(_ form: WebForm, to url: String, caFile: String?) async throws(TokenFailure) -> HTTPAnswer {
    let timeout = timeout
    return try await queue.run { Self.perform(form.encoded, url, caFile, timeout) }.get()
  }

  /// Once for the process, before any thread uses libcurl.
  private static let isReady = curl_global_init(Int(CURL_GLOBAL_SSL)) == CURLE_OK

  private final class Body {
    var bytes: [UInt8] = []
    var isTooLong = false
  }

  private static func perform(
    _ form: String, _ url: String, _ caFile: String?, _ timeout: Duration
  ) -> Result<HTTPAnswer, TokenFailure> {
    guard isReady, let handle = curl_easy_init() else {
      return .failure(TokenFailure(.unavailable, "libcurl cannot be used"))
    }
    defer { curl_easy_cleanup(handle) }
    let body = Body()
    let code = withExtendedLifetime(body) {
      set(CURLOPT_URL, url, on: handle)
      // Secrets travel in the form: never in clear, and nowhere else than where the configuration says.
      set(CURLOPT_PROTOCOLS_STR, "https", on: handle)
      curl_set_long(handle, CURLOPT_FOLLOWLOCATION, 0)
      curl_set_long(handle, CURLOPT_SSLVERSION, Int(CURL_SSLVERSION_TLSv1_2))
      if let caFile { set(CURLOPT_CAINFO, caFile, on: handle) }
      curl_set_long(handle, CURLOPT_POSTFIELDSIZE, form.utf8.count)
      set(CURLOPT_COPYPOSTFIELDS, form, on: handle)
      set(CURLOPT_USERAGENT, "ssmtp-mailer", on: handle)
      curl_set_long(handle, CURLOPT_NOSIGNAL, 1)
      let milliseconds = Int(clamping: timeout.nanoseconds / 1_000_000)
      curl_set_long(handle, CURLOPT_TIMEOUT_MS, milliseconds)
      curl_set_long(handle, CURLOPT_CONNECTTIMEOUT_MS, min(milliseconds, 10_000))
      // The environment's proxy is for the world outside.
      if isThisMachine(url) { set(CURLOPT_PROXY, "", on: handle) }
      curl_set_write(handle, collect, Unmanaged.passUnretained(body).toOpaque())
      return curl_easy_perform(handle)
    }
    if body.isTooLong {
      return .failure(
        TokenFailure(.unavailable, "the token endpoint \(url) answered with more than \(bodyLimit) octets"))
    }
    guard code == CURLE_OK else {
      let reason = String(cString: curl_easy_strerror(code))
      let hint = code == CURLE_PEER_FAILED_VERIFICATION ? " (oauth_ca_file names authorities of your own)" : ""
      return .failure(TokenFailure(.unavailable, "the token endpoint \(url) did not answer: \(reason)\(hint)"))
    }
    var status = 0
    curl_get_long(handle, CURLINFO_RESPONSE_CODE, &status)
    return .success(HTTPAnswer(status: status, body: body.bytes))
  }

  private static func isThisMachine(_ url: String) -> Bool {
    ["https://localhost", "https://127.", "https://[::1]"].contains { url.lowercased().hasPrefix($0) }
  }

  private static let collect: curl_write_callback = { data, size, count, context in
    guard let data, let context else { return 0 }
    let body = Unmanaged<Body>.fromOpaque(context).takeUnretainedValue()
    let length = size * count
    guard body.bytes.count + length <= bodyLimit else {
      body.isTooLong = true
      return 0
    }
    body.bytes.append(contentsOf: UnsafeRawBufferPointer(start: data, count: length))
    return length
  }

  private static func set(_ option: CURLoption, _ value: String, on handle: UnsafeMutableRawPointer) {
    _ = value.withCString { curl_set_pointer(handle, option, $0) }
  }
}
