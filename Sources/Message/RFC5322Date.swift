// Dates as header fields have them, computed from the calendar directly: no locale, no time zone database.

import Primitives

/// The date-time of RFC 5322 3.3: `Tue, 24 Nov 2026 02:13:04 +0000`.
public enum RFC5322Date {
  private static let days: [StaticString] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]
  private static let months: [StaticString] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
  ]

  public static func format(_ time: Timestamp, utcOffsetSeconds: Int = 0) -> String {
    var output: [UInt8] = []
    append(time, utcOffsetSeconds: utcOffsetSeconds, to: &output)
    return String(decoding: output, as: UTF8.self)
  }

  /// Appends the date; offsets are shown in whole minutes, and years before 0 do not occur.
  public static func append(_ time: Timestamp, utcOffsetSeconds: Int = 0, to output: inout [UInt8]) {
    let offset = utcOffsetSeconds / 60 * 60
    let local = Int(time.seconds) + offset
    let dayNumber = local >= 0 ? local / 86_400 : (local - 86_399) / 86_400
    let second = local - dayNumber * 86_400
    let (year, month, day) = civil(fromDays: dayNumber)
    append(days[((dayNumber % 7) + 7) % 7], to: &output)
    output.append(contentsOf: [0x2c, 0x20])
    append(number: day, width: 1, to: &output)
    output.append(0x20)
    append(months[month - 1], to: &output)
    output.append(0x20)
    append(number: max(year, 0), width: 4, to: &output)
    output.append(0x20)
    append(number: second / 3600, width: 2, to: &output)
    output.append(0x3a)
    append(number: second / 60 % 60, width: 2, to: &output)
    output.append(0x3a)
    append(number: second % 60, width: 2, to: &output)
    output.append(0x20)
    output.append(offset < 0 ? 0x2d : 0x2b)
    append(number: abs(offset) / 3600 * 100 + abs(offset) / 60 % 60, width: 4, to: &output)
  }

  private static func append(_ text: StaticString, to output: inout [UInt8]) {
    text.withUTF8Buffer { output.append(contentsOf: $0) }
  }

  private static func append(number: Int, width: Int, to output: inout [UInt8]) {
    if number >= 10 || width > 1 { append(number: number / 10, width: width - 1, to: &output) }
    output.append(UInt8(0x30 + number % 10))
  }

  /// The proleptic Gregorian date of a day counted from 1970-01-01. Years are taken to begin in March, so that the day
  /// that leap years add comes last and the lengths of the months before it follow one linear rule.
  static func civil(fromDays days: Int) -> (year: Int, month: Int, day: Int) {
    let shifted = days + 719_468
    let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
    let dayOfEra = shifted - era * 146_097
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let marchMonth = (5 * dayOfYear + 2) / 153
    let day = dayOfYear - (153 * marchMonth + 2) / 5 + 1
    let month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9
    return (yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, day)
  }
}
