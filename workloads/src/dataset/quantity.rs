//! Numbers of tokens and times, as files write them.

use super::likeness::shown;

/// The greatest length of a prompt or output, in tokens.
pub(super) const MAX_TOKENS: u32 = 100_000_000;

/// A second in nanoseconds.
pub(super) const SECOND: i64 = 1_000_000_000;

/// The latest time in seconds since the earliest one. It is about 285 years, so that nanoseconds fit in 64
/// bits.
const MAX_SECONDS: u64 = 9_000_000_000;

/// A number of tokens, written as a whole number (`906`, or `906.0`).
pub(super) fn tokens(text: &str) -> Result<u32, String> {
    if !text.is_empty() && text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit()) {
        let value = text.bytes().fold(0, |n, b| n * 10 + u32::from(b - b'0'));
        return bounded(f64::from(value), text);
    }
    match text.parse::<f64>() {
        Ok(value) => bounded(value, text),
        Err(_) if text.is_empty() => Err("is empty; expected a number of tokens".into()),
        Err(_) => Err(format!("is {}; expected a number of tokens", shown(text))),
    }
}

/// The same for a number. `text` is what the file says.
pub(super) fn bounded(value: f64, text: &str) -> Result<u32, String> {
    if value > f64::from(MAX_TOKENS) {
        Err(format!("is {}, more than the {MAX_TOKENS} tokens that a length may be", shown(text)))
    } else if value >= 0.0 && value.fract() == 0.0 {
        Ok(value as u32)
    } else {
        Err(format!("is {}; expected a number of tokens: whole, and not negative", shown(text)))
    }
}

/// Seconds as nanoseconds. Decimals are read as they are written, so that large times keep their fractions.
pub(super) fn seconds(text: &str) -> Result<i64, String> {
    decimal(text).map_or_else(
        || match text.parse::<f64>() {
            Ok(value) => nanoseconds(value, SECOND, text),
            Err(_) => Err(format!("is {}; expected a time in seconds", shown(text))),
        },
        Ok,
    )
}

/// `value` units of `unit` nanoseconds. `text` is what the file says.
pub(super) fn nanoseconds(value: f64, unit: i64, text: &str) -> Result<i64, String> {
    let scaled = (value * unit as f64).round();
    if scaled > (MAX_SECONDS * SECOND as u64) as f64 {
        Err(format!("is {}, a time too far off to count in nanoseconds", shown(text)))
    } else if scaled >= 0.0 {
        Ok(scaled as i64)
    } else {
        Err(format!("is {}; expected a time that is not negative", shown(text)))
    }
}

/// `12`, `12.` or `12.345`, rounded to nanoseconds. `None` for anything else, and for a number that is too
/// great.
fn decimal(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole = whole.parse::<u64>().ok().filter(|&s| s < MAX_SECONDS)?;
    let mut nanos = 0;
    for place in 0..9 {
        nanos = nanos * 10 + fraction.as_bytes().get(place).map_or(0, |b| i64::from(b - b'0'));
    }
    nanos += i64::from(fraction.as_bytes().get(9).is_some_and(|&b| b >= b'5'));
    Some(whole as i64 * SECOND + nanos)
}
