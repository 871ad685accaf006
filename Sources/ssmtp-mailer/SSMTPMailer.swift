import ArgumentParser

@main
struct SSMTPMailer: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ssmtp-mailer", abstract: "A durable SMTP relay in front of Gmail.")
}
