//! Dates with times of day, as traces write them.

use jiff::fmt::temporal::Pieces;
use jiff::tz::Offset;

use super::likeness::shown;

/// Returns the nanoseconds from 1970-01-01 00:00:00 to `YYYY-MM-DD HH:MM:SS`. The seconds may have up to
/// nine decimals, `T` may stand in place of the space, and an offset from UTC (`Z`, `+00:00`, `+0000`,
/// `+00`) may follow; without one the time is taken as UTC.
pub(super) fn nanoseconds_since_1970(text: &str) -> Result<i64, String> {
    parse(text).ok_or_else(|| {
        format!("is {}; expected a time as `2023-11-16 18:15:46.6805900` (years 1970 to 2199)", shown(text))
    })
}

fn parse(text: &str) -> Option<i64> {
    // This check is needed because `jiff` also reads dates without times, and times without seconds.
    const SHAPE: &[u8] = b"0000-00-00 00:00:00";
    let head = text.as_bytes().get(..SHAPE.len())?;
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        b' ' => matches!(byte, b' ' | b'T'),
        _ => byte == shape,
    };
    // `jiff` would take a leap second as the second before it, so 60 seconds are refused here.
    if !head.iter().zip(SHAPE).all(fits) || head.ends_with(b"60") {
        return None;
    }
    let pieces = Pieces::parse(text.strip_suffix('.').unwrap_or(text)).ok()?;
    let at = pieces.date().to_datetime(pieces.time()?);
    let offset = pieces.to_numeric_offset().unwrap_or(Offset::UTC);
    let valid = (1970..2200).contains(&at.year())
        && offset.seconds().unsigned_abs() < 86_400
        && pieces.time_zone_annotation().is_none();
    let since = offset.to_timestamp(at).ok().filter(|_| valid)?;
    i64::try_from(since.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::quantity::SECOND;
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
            "2023-11-16 18:15:46[UTC]",
            "2023-11-16 18:15",
            "2023-11-16 18:15:60",
            "2023-11-16 18:60:46",
            "2023-11-16 18:15:46,5 ",
            "2200-01-01 00:00:00",
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
            // The definition: walks the calendar year by year.
            let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let days_in = |year: i64, month: i64| match month {
                2 if leap(year) => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
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
            let text = format!("{year:04}-{month:02}-{day:02} 00:00:01");
            prop_assert_eq!(nanoseconds_since_1970(&text), Ok((days * 86_400 + 1) * SECOND));
        }
    }
}
