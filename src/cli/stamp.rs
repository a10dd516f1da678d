//! Names of runs.

use std::time::{SystemTime, UNIX_EPOCH};

/// `compare-20261122-003721` of the run `compare`, in UTC.
pub fn stamp(of: &str, now: SystemTime) -> String {
    format!("{of}-{}", compact(now))
}

/// `20261122-003721`.
pub fn compact(now: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = calendar(now);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// `2026-11-22T00:37:21Z`.
pub fn date(now: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = calendar(now);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month, day, hour, minute and second in UTC.
fn calendar(now: SystemTime) -> [u64; 6] {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    [year, month, day, hour, minute, second]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
