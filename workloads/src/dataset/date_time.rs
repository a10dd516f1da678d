//! Dates with times of day, as traces write them.

use super::likeness::shown;
use super::quantity::SECOND;

/// Nanoseconds from 1970-01-01 00:00:00 to `YYYY-MM-DD HH:MM:SS`, with up to nine digits of a second's fraction, `T` in the
/// place of the space, and an offset from UTC (`Z`, `+00:00`, `+0000`, `+00`) or none, which is taken as UTC.
pub(super) fn nanoseconds_since_1970(text: &str) -> Result<i64, String> {
    parse(text).ok_or_else(|| {
        format!("is {}; expected a time as `2023-11-16 18:15:46.6805900` (years 1970 to 2199)", shown(text))
    })
}

fn parse(text: &str) -> Option<i64> {
    let mut rest = Digits(text.as_bytes());
    let year = rest.number(4)?;
    rest.one_of(b"-")?;
    let month = rest.number(2)?;
    rest.one_of(b"-")?;
    let day = rest.number(2)?;
    rest.one_of(b" T")?;
    let hour = rest.number(2)?;
    rest.one_of(b":")?;
    let minute = rest.number(2)?;
    rest.one_of(b":")?;
    let second = rest.number(2)?;
    let mut nanos = 0;
    if rest.one_of(b".").is_some() {
        let digits = rest.0.iter().take_while(|b| b.is_ascii_digit()).count();
        let places = u32::try_from(digits).ok().filter(|&n| n <= 9)?;
        nanos = rest.number(digits)? * 10_i64.pow(9 - places);
    }
    let offset = rest.offset()?;
    let valid = (1970..2200).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    valid.then_some(seconds * SECOND + nanos)
}

/// Days of a month of the Gregorian calendar.
fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar not before it.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let before = year - 1;
    let leap_days = |y: i64| y / 4 - y / 100 + y / 400;
    let years = (year - 1970) * 365 + leap_days(before) - leap_days(1969);
    let months: i64 = (1..month).map(|m| days_in(year, m)).sum();
    years + months + day - 1
}

/// What is left to be read.
struct Digits<'a>(&'a [u8]);

impl Digits<'_> {
    /// A number of exactly so many digits; one of none is 0.
    fn number(&mut self, digits: usize) -> Option<i64> {
        let (number, rest) = self.0.split_at_checked(digits)?;
        let value =
            number.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))?;
        self.0 = rest;
        Some(value)
    }

    fn one_of(&mut self, bytes: &[u8]) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        bytes.contains(&first).then(|| {
            self.0 = rest;
            first
        })
    }

    /// Seconds that the rest says the clock is ahead of UTC.
    fn offset(&mut self) -> Option<i64> {
        let sign = match self.one_of(b"Zz+-") {
            None => return self.0.is_empty().then_some(0),
            Some(b'+') => 1,
            Some(b'-') => -1,
            Some(_) => return self.0.is_empty().then_some(0),
        };
        let hours = self.number(2)?;
        let minutes = if self.0.is_empty() {
            0
        } else {
            self.one_of(b":");
            self.number(2)?
        };
        (self.0.is_empty() && hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_exact_to_their_last_digit() {
        // python: datetime(2023, 11, 16, 18, 15, 46, tzinfo=utc).timestamp() = 1700158546
        let second = 1_700_158_546 * SECOND;
        for (text, nanos) in [
            ("2023-11-16 18:15:46.6805900", 680_590_000),
            ("2023-11-16 18:15:46.6805901", 680_590_100),
            ("2023-11-16T18:15:46.6805900Z", 680_590_000),
            ("2023-11-16 18:15:46.680590+00:00", 680_590_000),
            ("2023-11-16 20:15:46+02:00", 0),
            ("2023-11-16 12:45:46.1-0530", 100_000_000),
            ("2023-11-16 18:15:46.", 0),
            ("2023-11-16 18:15:46.123456789", 123_456_789),
            ("2023-11-16 18:15:46+00", 0),
        ] {
            assert_eq!(nanoseconds_since_1970(text), Ok(second + nanos), "{text}");
        }
        assert_eq!(nanoseconds_since_1970("1970-01-01 00:00:00"), Ok(0));
        assert_eq!(nanoseconds_since_1970("2024-02-29 00:00:00"), Ok(1_709_164_800 * SECOND));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2023-11-16",
            "2023-13-16 18:15:46",
            "2023-02-29 18:15:46",
            "2023-11-16 24:15:46",
            "2023-11-16 18:15:46.1234567890",
            "2023-11-16 18:15:46 UTC",
            "2023-11-16 18:15:46+25:00",
            "2023-11-16 18:15:4",
            "0000-11-16 18:15:46",
            "-023-11-16 18:15:46",
            "2023-11-16 18:15:46é",
        ] {
            assert!(nanoseconds_since_1970(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn days_are_counted_one_by_one(days in 0_i64..84_000) {
            // By definition: walk the calendar.
            let (mut year, mut month, mut day) = (1970, 1, 1);
            for _ in 0..days {
                day += 1;
                if day > days_in(year, month) {
                    (month, day) = (month + 1, 1);
                }
                if month > 12 {
                    (year, month) = (year + 1, 1);
                }
            }
            prop_assert_eq!(days_since_1970(year, month, day), days);
        }
    }
}
