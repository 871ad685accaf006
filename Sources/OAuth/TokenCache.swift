// The access token of an account: kept while it is good, renewed before it ends, by one request at a time.

import Primitives

/// Hands out access tokens of one grant. Whoever asks never blocks a thread: requests run on a queue of their own.
public actor TokenCache {
  public nonisolated let grant: TokenGrant
  private let endpoint: TokenEndpoint
  private let files: any WorkQueue
  private let time: any Timekeeper
  private let random: @Sendable () -> Double
  private let warn: @Sendable (String) -> Void

  private var current: AccessToken?
  /// The request that is under way; everybody who comes meanwhile waits for it.
  private var flight: Task<Result<AccessToken, TokenFailure>, Never>?
  /// The last failure, which is the answer until its time is over: an endpoint that is down is not hammered.
  private var pause: Pause?
  private var failures = 0
  /// A refresh token that the endpoint has given in exchange and that could not be written down, with the one of the
  /// file that it stands for.
  private var unsaved: (old: HiddenText, new: HiddenText)?

  private struct Pause {
    var failure: TokenFailure
    var until: MonotonicInstant
    /// A new token in the file ends the pause.
    var refreshToken: HiddenText?
  }

  /// How long before its end a token is renewed, unless it lives shortly.
  private static let early = Duration.seconds(300)

  /// - Parameters:
  ///   - random: in 0...1.
  ///   - warn: gets what an operator should know and nobody else would say.
  public init(
    _ grant: TokenGrant, transport: any TokenTransport = CurlTransport(), time: any Timekeeper,
    files: any WorkQueue = DispatchWorkQueue("oauth-files"),
    random: @escaping @Sendable () -> Double = { Double.random(in: 0...1) },
    warn: @escaping @Sendable (String) -> Void = { _ in }
  ) {
    self.grant = grant
    endpoint = TokenEndpoint(grant, transport: transport)
    self.files = files
    self.time = time
    self.random = random
    self.warn = warn
  }

  /// A token that is good now, from memory or from the endpoint.
  public func token() async throws(TokenFailure) -> AccessToken {
    if let current, time.now < current.refreshAt { return current }
    let task = flight ?? Task { await self.renew() }
    flight = task
    switch await task.value {
    case .success(let token): return token
    case .failure(let failure):
      // The old one is good for minutes yet; the endpoint is asked again meanwhile.
      if let current, time.now < current.expiresAt { return current }
      throw failure
    }
  }

  /// Forgets a token that an upstream has refused.
  public func invalidate(_ token: AccessToken) {
    if current == token { current = nil }
  }

  private func renew() async -> Result<AccessToken, TokenFailure> {
    defer { flight = nil }
    do throws(TokenFailure) {
      let refreshToken = try await readRefreshToken()
      if let pause, time.now < pause.until, pause.refreshToken == refreshToken { return .failure(pause.failure) }
      let answer: TokenAnswer
      do throws(TokenFailure) {
        answer = try await endpoint.accessToken(refreshToken, now: time.wallClock)
      } catch {
        failures += 1
        // 1, 2, 4 … 60 seconds, give or take a fifth; the account has longer waits of its own.
        let wait = min(Double(1 << min(failures - 1, 6)), 60) * (0.8 + 0.4 * random())
        pause = Pause(failure: error, until: time.now + .seconds(wait), refreshToken: refreshToken)
        throw error
      }
      failures = 0
      pause = nil
      if let old = refreshToken, let new = answer.refreshToken, new != old { await save(new, insteadOf: old) }
      return .success(keep(answer))
    } catch { return .failure(error) }
  }

  private func keep(_ answer: TokenAnswer) -> AccessToken {
    let now = time.now
    // Not all accounts of a machine at the same moment, and a token of five minutes is not renewed all the time.
    let margin = min(Self.early + .seconds(60 * random()), answer.lifetime / 2)
    let token = AccessToken(
      secret: answer.accessToken, refreshAt: now + (answer.lifetime - margin), expiresAt: now + answer.lifetime)
    current = token
    return token
  }

  // MARK: The refresh token

  private func readRefreshToken() async throws(TokenFailure) -> HiddenText? {
    guard case .refreshToken(let refresh) = grant.kind else { return nil }
    let file = RefreshTokenFile(refresh.file)
    let token = try await files.run {
      Result { () throws(TokenFailure) in try file.read() }
    }.get()
    return unsaved.flatMap { $0.old == token ? $0.new : nil } ?? token
  }

  /// Google keeps refresh tokens as they are; others exchange them, and the old one dies.
  private func save(_ new: HiddenText, insteadOf old: HiddenText) async {
    guard case .refreshToken(let refresh) = grant.kind else { return }
    let file = RefreshTokenFile(refresh.file)
    let result = await files.run {
      Result { () throws(TokenFailure) in
        // Somebody may have logged in again meanwhile: that token is the better one.
        if let inFile = try? file.read(), inFile == old { try file.write(new) }
      }
    }
    guard case .failure(let failure) = result else {
      unsaved = nil
      return
    }
    unsaved = (unsaved?.old ?? old, new)
    warn(
      "the token endpoint has replaced the refresh token, and the new one cannot be kept: \(failure); "
        + "after a restart `ssmtp-mailer oauth login` will be needed")
  }
}
