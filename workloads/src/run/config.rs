//! Decides whether a resumed run has the configuration that it was begun with.

use std::collections::BTreeSet;

use serde_json::Value;

/// Fields, at any depth, that may differ when a run is resumed.
const FREE: [&str; 4] = ["date", "out", "resume", "revision"];
/// The most differences that a message lists. Further ones are counted.
const TOLD: usize = 12;

/// A message that lists the fields in which two configurations differ; `None` if they belong to the same
/// run.
pub(super) fn differences(there: &Value, now: &Value) -> Option<String> {
    let mut found = Vec::new();
    compare("", Some(there), Some(now), &mut found);
    if found.is_empty() {
        return None;
    }
    let more = found.len().saturating_sub(TOLD);
    found.truncate(TOLD);
    let mut text = found.join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    Some(text)
}

fn compare(name: &str, there: Option<&Value>, now: Option<&Value>, found: &mut Vec<String>) {
    match (there, now) {
        (Some(Value::Object(there)), Some(Value::Object(now))) => {
            let keys: BTreeSet<&String> = there.keys().chain(now.keys()).collect();
            for key in keys.into_iter().filter(|key| !FREE.contains(&key.as_str())) {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                compare(&name, there.get(key), now.get(key), found);
            }
        }
        _ if there == now => {}
        _ => {
            let told = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
            found.push(format!("{name} is {} there and {} now", told(there), told(now)));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_differ_are_told_with_both_values() {
        let there = json!({"a": 1, "engine": {"block_size": 16, "revision": "x"}, "date": 1, "gone": true});
        let now = json!({"a": 1, "engine": {"block_size": 32, "revision": "y"}, "date": 2, "new": null});
        assert_eq!(differences(&there, &there), None);
        assert_eq!(
            differences(&there, &now).unwrap(),
            "engine.block_size is 16 there and 32 now; gone is true there and nothing now; new is nothing there and null now"
        );
    }

    #[test]
    fn many_differences_are_counted() {
        let of = |value: u32| (0..20).map(|i| (format!("f{i:02}"), json!(value))).collect::<Value>();
        let told = differences(&of(1), &of(2)).unwrap();
        assert!(told.starts_with("f00 is 1 there and 2 now; ") && told.ends_with("; and 8 more"), "{told}");
    }
}
