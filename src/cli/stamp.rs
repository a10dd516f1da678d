//! Names runs by their time.

use std::time::SystemTime;

use jiff::Timestamp;

/// A name such as `compare-20261122-003721` for a run of the kind `of`, in UTC.
pub fn stamp(of: &str, now: SystemTime) -> String {
    format!("{of}-{}", compact(now))
}

/// A time such as `20261122-003721`.
pub fn compact(now: SystemTime) -> String {
    timestamp(now).strftime("%Y%m%d-%H%M%S").to_string()
}

/// A time such as `2026-11-22T00:37:21Z`.
pub fn date(now: SystemTime) -> String {
    timestamp(now).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time outside the calendar counts as 1970.
fn timestamp(now: SystemTime) -> Timestamp {
    Timestamp::try_from(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn runs_are_named_after_their_time() {
        let at = |seconds| stamp("compare", UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "compare-19700101-000000");
        assert_eq!(at(951_782_399), "compare-20000228-235959");
        assert_eq!(at(951_782_400), "compare-20000229-000000");
        assert_eq!(at(1_709_251_199), "compare-20240229-235959");
        assert_eq!(at(1_795_307_841), "compare-20261122-003721");
        assert_eq!(date(UNIX_EPOCH + Duration::from_secs(1_795_307_841)), "2026-11-22T00:37:21Z");
    }
}
