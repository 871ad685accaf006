// swift-tools-version: 6.2
import PackageDescription

/// `scripts/fuzz` builds everything with the instruments of libFuzzer, in a build folder of its own.
let isFuzzed = Context.environment["SSMTP_MAILER_FUZZ"] != nil
let instruments = ["-sanitize=fuzzer,address", "-parse-as-library"]

let strict: [SwiftSetting] =
  [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .enableUpcomingFeature("ExistentialAny"),
    .treatAllWarnings(as: .error),
  ] + (isFuzzed ? [.unsafeFlags(instruments)] : [])

/// A target of our own, with the settings that every one of them shares.
func room(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
  .target(name: name, dependencies: dependencies, swiftSettings: strict)
}

func tests(_ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []) -> Target {
  .testTarget(name: name, dependencies: dependencies, exclude: exclude, swiftSettings: strict)
}

let collections: Target.Dependency = .product(name: "Collections", package: "swift-collections")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let arguments: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")

let package = Package(
  name: "ssmtp-mailer",
  products: [.executable(name: "ssmtp-mailer", targets: ["ssmtp-mailer"])],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
  ],
  targets: [
    .systemLibrary(name: "COpenSSL", pkgConfig: "openssl", providers: [.apt(["libssl-dev"])]),
    .systemLibrary(name: "CSystemd", pkgConfig: "libsystemd", providers: [.apt(["libsystemd-dev"])]),
    .systemLibrary(name: "CCurl", pkgConfig: "libcurl", providers: [.apt(["libcurl4-openssl-dev"])]),
    .systemLibrary(name: "CLinux"),
    .systemLibrary(name: "CCrypt", providers: [.apt(["libcrypt-dev"])]),
    .target(name: "CChecksum"),

    room("Primitives"),
    room("Passwords", ["Primitives", "CCrypt"]),
    room("SMTP", ["Primitives", "CChecksum"]),
    room("Message", ["Primitives", "SMTP"]),
    room("OAuth", ["Primitives", "CCurl", "COpenSSL"]),
    room("Configuration", ["Primitives", "SMTP", "OAuth", "Passwords"]),
    room("Routing", ["Primitives", "SMTP", "Passwords", "Configuration", "COpenSSL"]),
    room("Network", ["Primitives", "COpenSSL", "CLinux", collections]),
    room("Spool", ["Primitives", "CChecksum", "CLinux", collections]),
    room("Filters", ["Primitives", "SMTP", "Message", "Network", logging]),
    room(
      "Server",
      [
        "Primitives", "Passwords", "SMTP", "Message", "Routing", "Network", "Spool", "Filters", collections, logging,
      ]),
    room("Delivery", ["Primitives", "SMTP", "Message", "OAuth", "Network", "Spool", collections, logging]),
    room("Telemetry", ["Primitives", "CSystemd", logging]),
    room("Sandbox", ["Primitives", "SMTP", "Network", "COpenSSL"]),
    room(
      "Daemon",
      [
        "Primitives", "SMTP", "Message", "OAuth", "Configuration", "Routing", "Network", "Spool", "Filters", "Server",
        "Delivery", "Telemetry", "CSystemd", "CLinux", logging,
      ]),
    room("CommandLineTools", ["Primitives", "Passwords", "SMTP", "OAuth", "Network", "Delivery", "CCurl"]),
    .executableTarget(
      name: "ssmtp-mailer",
      dependencies: [
        "Primitives", "SMTP", "Message", "OAuth", "Configuration", "Routing", "Network", "Delivery", "Spool", "Daemon",
        "Sandbox", "Telemetry", "CommandLineTools", "Passwords", "CChecksum", "CLinux", arguments,
      ],
      swiftSettings: strict),

    .target(
      name: "TestSupport", dependencies: ["Primitives", "OAuth", "Spool", "Sandbox", "Network", logging],
      path: "Tests/TestSupport", swiftSettings: strict),
    tests("PrimitivesTests", ["Primitives"]),
    tests("PasswordsTests", ["Passwords"]),
    tests("SMTPTests", ["SMTP", "CChecksum"]),
    tests("MessageTests", ["Message"]),
    tests("OAuthTests", ["OAuth", "Primitives", "COpenSSL", "TestSupport"]),
    tests("ConfigurationTests", ["Configuration", "OAuth", "Passwords"]),
    tests("RoutingTests", ["Routing", "Configuration", "Passwords"]),
    tests("NetworkTests", ["Network", "Sandbox", "TestSupport"]),
    tests("SandboxTests", ["Sandbox"]),
    tests("SpoolTests", ["Spool"]),
    tests("SimulationTests", ["Spool", "Delivery", "Network", "SMTP", "Primitives", logging]),
    tests("FilterTests", ["Filters", "TestSupport", logging]),
    tests(
      "ServerTests",
      ["Server", "Passwords", "Routing", "Configuration", "Network", "Sandbox", "Filters", "TestSupport"]),
    tests("DeliveryTests", ["Delivery", "OAuth", "Sandbox", "TestSupport"]),
    tests("TelemetryTests", ["Telemetry", "Primitives", logging]),
    tests("CommandTests", ["CommandLineTools", "OAuth", "Daemon", "Spool", "Sandbox", "Network", "TestSupport"]),
    // The binary itself is what these start, so it has to be built first.
    tests(
      "RelayTests", ["ssmtp-mailer", "Sandbox", "Network", "Primitives", "SMTP", "TestSupport"], exclude: ["systemd"]),

    // What the fuzzer tries, and the same properties for the inputs that were worth keeping.
    .target(
      name: "FuzzTargets",
      dependencies: [
        "Primitives", "SMTP", "Message", "OAuth", "Configuration", "Routing", "Network", "Spool", "Filters", "Server",
        "TestSupport", "CChecksum", logging,
      ],
      path: "Tests/Fuzz/Targets", swiftSettings: strict),
    tests("FuzzTests", ["FuzzTargets"]),
  ]
    + (isFuzzed
      ? [
        .executableTarget(
          name: "fuzz", dependencies: ["FuzzTargets", "CLinux"], path: "Tests/Fuzz/Engine", swiftSettings: strict,
          linkerSettings: [.unsafeFlags(instruments)])
      ] : [])
)
