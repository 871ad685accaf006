// Clients that come through a load balancer: whose connection it is stands in a header in front of everything else,
// in front of TLS too.

import Network
import Primitives
import SMTP

/// Who is at the other end of a connection that came through a load balancer.
struct ProxiedConnection {
  /// The address of the load balancer itself.
  var proxy: IPAddress
  /// Both ends as the load balancer saw them; nil when it speaks for itself.
  var ends: ProxyHeader.Ends?
}

extension ServerSettings {
  /// Whether a connection from there has to begin with a PROXY header.
  func isProxy(_ address: IPAddress) -> Bool { proxyNetworks.contains { $0.contains(address) } }
}

extension Session {
  /// Reads the PROXY header if the peer has to send one, so that ``client`` is who the connection is from.
  /// - Returns: false when the connection is of no use.
  func identifyClient(_ stream: ByteStream) async -> Bool {
    let proxy = stream.peer.address
    client = proxy
    guard settings.isProxy(proxy) else { return true }
    // Nobody counts these yet, because who they are is what is being found out.
    guard server.beginProxyWait() else {
      server.log.warning("\(proxy): turned away: too many connections of load balancers wait for their PROXY header")
      return false
    }
    defer { server.endProxyWait() }
    do throws(NetworkError) {
      let head = try await stream.takeHead(
        upTo: ProxyHeader.maximumLength, until: SystemTime().now + settings.proxyPatience,
        waitingFor: "the PROXY header"
      ) { bytes -> (length: Int, Result<ProxyHeader, ProxyHeader.Fault>)? in
        do throws(ProxyHeader.Fault) {
          return try ProxyHeader.parse(bytes).map { ($0.length, .success($0.header)) }
        } catch { return (0, .failure(error)) }
      }
      switch head {
      case .success(let header):
        proxied = ProxiedConnection(proxy: proxy, ends: header.ends)
        if let ends = header.ends { client = ends.source.address }
        return true
      case .failure(let fault): return refuseProxy(proxy, "\(fault)")
      case nil: return refuseProxy(proxy, "it ended before its PROXY header did")
      }
    } catch { return refuseProxy(proxy, "\(error)") }
  }

  private func refuseProxy(_ proxy: IPAddress, _ reason: String) -> Bool {
    server.log.warning(
      "\(proxy): connection closed: \(reason); proxy_protocol_networks has this address, so it must send one")
    return false
  }

  /// Whether a load balancer speaks for itself, as its health checks do: HAProxy names itself in version 1.
  var isHealthCheck: Bool { proxied != nil && (proxied?.ends == nil || settings.isProxy(client)) }

  /// Whether the address of the client may make it trusted. That of a load balancer may not, also not as the source in
  /// the header of another one: all the world comes from there.
  private var mayBeTrusted: Bool { !isHealthCheck }

  /// Whether the client may relay without a login.
  var isTrustedClient: Bool { mayBeTrusted && settings.router.isTrusted(client) }
}
