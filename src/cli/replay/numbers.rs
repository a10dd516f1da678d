//! Parses numbers and names of flags.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a library type from the name by which it is serialised.
pub fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).map_err(|e| e.to_string())
}

/// The name by which a library type is serialised.
pub fn name_of(of: &impl Serialize) -> String {
    match serde_json::to_value(of) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// Reads a number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "a number above 0, such as 2 or 0.5".to_owned())
}

/// Reads a number of seconds that is not negative.
pub fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| "a number of seconds, not negative".to_owned())
}

/// Reads a number from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a number from 0 to 1".to_owned())
}

/// Reads a rate in requests per second; `inf` is infinite.
pub fn rate(text: &str) -> Result<f64, String> {
    if text == "inf" {
        return Ok(f64::INFINITY);
    }
    positive(text).map_err(|_| "requests a second, a number above 0, or inf".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagedraft_workloads::dataset::Workload;

    #[test]
    fn numbers_that_cannot_be_meant_are_refused() {
        for bad in ["0", "-1", "nan", "infinity", "x", ""] {
            assert!(positive(bad).is_err() && rate(bad).is_err(), "{bad}");
        }
        assert_eq!((rate("inf"), rate("1e3")), (Ok(f64::INFINITY), Ok(1000.0)));
        assert!(seconds("-0.5").is_err() && share("1.01").is_err() && seconds("NaN").is_err());
    }

    #[test]
    fn names_are_those_of_the_library() {
        assert_eq!(named::<Workload>("longbench-v2"), Ok(Workload::LongbenchV2));
        assert!(named::<Workload>("longbench_v2").is_err());
        assert_eq!(name_of(&Workload::SpecBench), "spec-bench");
    }
}
