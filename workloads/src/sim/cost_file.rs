//! Reads cost models from JSON field by field, so that an error names the field.

use std::collections::BTreeMap;
use std::path::Path;

use pagedraft_scheduler::CostCurve;
use serde_json::{Map, Value};

use super::{Acceptance, CostModel, DraftCost, Freeze, Overhead};
use crate::Error;

/// The most bytes of a file. A longer one is not a cost model.
const MOST_BYTES: u64 = 16 << 20;

impl CostModel {
    /// Reads a file and checks it.
    ///
    /// # Errors
    ///
    /// Those of [`from_json`](Self::from_json), or the file can't be read. They name the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        use std::io::Read;
        let read = |source| Error::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        let bytes = file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(read)?;
        let wrong = |what| Error::CostModel { path: path.to_owned(), what };
        if bytes as u64 > MOST_BYTES {
            return Err(wrong(format!("it is larger than {} MiB: give a cost model", MOST_BYTES >> 20)));
        }
        Self::from_json(&text).map_err(wrong)
    }

    /// Reads JSON and checks it. The points of a curve may be in any order. Comments (`//`) are not
    /// allowed.
    ///
    /// # Errors
    ///
    /// Says what is wrong, and in which field.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
        let mut of = Fields::new(String::new(), value)?;
        let model = Self {
            name: of.string("name")?,
            target: of.needed("target", curve)?,
            us_per_step: of.us("us_per_step")?,
            us_per_row: of.us("us_per_row")?,
            us_per_token: of.us("us_per_token")?,
            us_per_metadata_row: of.us("us_per_metadata_row")?,
            us_per_logit_row: of.us("us_per_logit_row")?,
            us_per_sampled_row: of.us("us_per_sampled_row")?,
            us_per_prefill: of.us("us_per_prefill")?,
            us_per_single_read: of.us("us_per_single_read")?,
            us_per_prefill_pair: of.us("us_per_prefill_pair")?,
            us_per_begun: of.us("us_per_begun")?,
            us_per_ended: of.us("us_per_ended")?,
            us_per_eager_step: of.us("us_per_eager_step")?,
            us_to_wake: of.us("us_to_wake")?,
            us_per_row_before: of.us("us_per_row_before")?,
            us_after_idle: of.us("us_after_idle")?,
            us_per_row_after_idle: of.us("us_per_row_after_idle")?,
            us_per_idle_s: of.us("us_per_idle_s")?,
            us_per_row_and_idle_s: of.us("us_per_row_and_idle_s")?,
            schedule: of.given("schedule", overhead)?,
            metadata: of.given("metadata", overhead)?,
            proposers: of.given("proposers", |path, value| map(path, value, draft_cost))?,
            acceptance: of.given("acceptance", |path, value| map(path, value, acceptance))?,
            freezes: of.given("freezes", |path, value| list(path, value, freeze))?,
        };
        // What calibration writes about itself is meant for people, so it is ignored.
        of.take("calibration");
        of.end()?;
        model.check()?;
        Ok(model)
    }

    /// Checks that the model can be used: the target has a point, every number is finite and none is
    /// negative, the points of a curve ascend and none is cheaper than the one before, and shares lie
    /// between 0 and 1.
    ///
    /// # Errors
    ///
    /// Says which field is wrong, and what to write there.
    pub fn check(&self) -> Result<(), String> {
        if self.target.points.is_empty() {
            return Err("target.points is empty: give at least one [token rows, microseconds]".into());
        }
        check_curve("target", &self.target)?;
        let us = [
            ("us_per_step", self.us_per_step),
            ("us_per_row", self.us_per_row),
            ("us_per_token", self.us_per_token),
            ("us_per_metadata_row", self.us_per_metadata_row),
            ("us_per_logit_row", self.us_per_logit_row),
            ("us_per_sampled_row", self.us_per_sampled_row),
            ("us_per_prefill", self.us_per_prefill),
            ("us_per_single_read", self.us_per_single_read),
            ("us_per_prefill_pair", self.us_per_prefill_pair),
            ("us_per_begun", self.us_per_begun),
            ("us_per_ended", self.us_per_ended),
            ("us_per_eager_step", self.us_per_eager_step),
            ("us_to_wake", self.us_to_wake),
            ("us_per_row_before", self.us_per_row_before),
            ("us_after_idle", self.us_after_idle),
            ("us_per_row_after_idle", self.us_per_row_after_idle),
            ("us_per_idle_s", self.us_per_idle_s),
            ("us_per_row_and_idle_s", self.us_per_row_and_idle_s),
        ];
        us.into_iter().try_for_each(|(name, us)| check_us(name, us))?;
        check_overhead("schedule", &self.schedule)?;
        check_overhead("metadata", &self.metadata)?;
        for (name, proposer) in &self.proposers {
            let at = format!("proposers.{name}");
            check_curve(&format!("{at}.pass"), &proposer.pass)?;
            check_us(&format!("{at}.us_per_step"), proposer.us_per_step)?;
            check_us(&format!("{at}.us_per_row"), proposer.us_per_row)?;
        }
        for (name, acceptance) in &self.acceptance {
            let at = format!("acceptance.{name}");
            if acceptance.by_position.is_empty() {
                return Err(format!(
                    "{at}.by_position is empty: give the share of first drafts that are accepted"
                ));
            }
            for (i, &share) in acceptance.by_position.iter().enumerate() {
                check_share(&format!("{at}.by_position[{i}]"), share)?;
            }
            check_share(&format!("{at}.given"), acceptance.given)?;
        }
        for (i, freeze) in self.freezes.iter().enumerate() {
            for (name, s) in [("at_s", freeze.at_s), ("for_s", freeze.for_s)] {
                if !(s.is_finite() && (0.0..=MOST_S).contains(&s)) {
                    return Err(format!("freezes[{i}].{name} is {s}: give seconds, from 0 to {MOST_S:e}"));
                }
            }
        }
        Ok(())
    }
}

/// The most microseconds (eleven days). More are a mistake, and sums of them would not be valid times.
const MOST_US: f64 = 1e12;
/// The most seconds (30 years). More are a mistake.
const MOST_S: f64 = 1e9;

fn check_us(at: &str, us: f64) -> Result<(), String> {
    if us.is_finite() && (0.0..=MOST_US).contains(&us) {
        return Ok(());
    }
    Err(format!("{at} is {us}: give microseconds, from 0 to {MOST_US:e}"))
}

fn check_share(at: &str, share: f64) -> Result<(), String> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    Err(format!("{at} is {share}: give a share, from 0 to 1"))
}

fn check_overhead(at: &str, overhead: &Overhead) -> Result<(), String> {
    check_us(&format!("{at}.us_per_step"), overhead.us_per_step)?;
    check_us(&format!("{at}.us_per_row"), overhead.us_per_row)?;
    check_us(&format!("{at}.us_per_token"), overhead.us_per_token)
}

fn check_curve(at: &str, curve: &CostCurve) -> Result<(), String> {
    check_us(&format!("{at}.us_per_context"), curve.us_per_context)?;
    check_us(&format!("{at}.us_per_read"), curve.us_per_read)?;
    for (i, &(_, us)) in curve.points.iter().enumerate() {
        check_us(&format!("{at}.points[{i}]"), us)?;
    }
    for pair in curve.points.windows(2) {
        let [(rows, us), (next_rows, next_us)] = pair else { continue };
        if next_rows == rows {
            return Err(format!("{at}.points has {rows} token rows twice: give each number of rows once"));
        }
        if next_rows < rows {
            return Err(format!(
                "{at}.points has {next_rows} token rows behind {rows}: put them in ascending order"
            ));
        }
        if next_us < us {
            return Err(format!(
                "{at}.points has {next_us} us for {next_rows} token rows and {us} us for {rows}: more rows can't cost less"
            ));
        }
    }
    Ok(())
}

fn curve(path: &str, value: Value) -> Result<CostCurve, String> {
    let mut of = Fields::new(path.to_owned(), value)?;
    let mut points = of.needed("points", |path, value| list(path, value, point))?;
    points.sort_by_key(|&(rows, _)| rows);
    let curve =
        CostCurve { points, us_per_context: of.us("us_per_context")?, us_per_read: of.us("us_per_read")? };
    of.end()?;
    Ok(curve)
}

fn point(path: &str, value: Value) -> Result<(u32, f64), String> {
    let what = || format!("{path} is {}: give [token rows, microseconds]", shown(&value));
    let Value::Array(pair) = &value else { return Err(what()) };
    let [rows, us] = pair.as_slice() else { return Err(what()) };
    let rows = rows.as_u64().and_then(|rows| u32::try_from(rows).ok()).ok_or_else(what)?;
    Ok((rows, us.as_f64().ok_or_else(what)?))
}

fn overhead(path: &str, value: Value) -> Result<Overhead, String> {
    let mut of = Fields::new(path.to_owned(), value)?;
    let overhead = Overhead {
        us_per_step: of.us("us_per_step")?,
        us_per_row: of.us("us_per_row")?,
        us_per_token: of.us("us_per_token")?,
    };
    of.end()?;
    Ok(overhead)
}

fn draft_cost(path: &str, value: Value) -> Result<DraftCost, String> {
    let mut of = Fields::new(path.to_owned(), value)?;
    let cost = DraftCost {
        pass: of.given("pass", curve)?,
        us_per_step: of.us("us_per_step")?,
        us_per_row: of.us("us_per_row")?,
        keeps_kv: of.given("keeps_kv", |path, value| {
            value.as_bool().ok_or_else(|| format!("{path} is {}: give true or false", shown(&value)))
        })?,
    };
    of.end()?;
    Ok(cost)
}

fn acceptance(path: &str, value: Value) -> Result<Acceptance, String> {
    let mut of = Fields::new(path.to_owned(), value)?;
    let acceptance = Acceptance {
        by_position: of.needed("by_position", |path, value| list(path, value, number))?,
        given: match of.take("given") {
            Some(value) => number(&of.at("given"), value)?,
            None => 1.0,
        },
    };
    of.end()?;
    Ok(acceptance)
}

fn freeze(path: &str, value: Value) -> Result<Freeze, String> {
    let mut of = Fields::new(path.to_owned(), value)?;
    let freeze = Freeze { at_s: of.needed("at_s", number)?, for_s: of.needed("for_s", number)? };
    of.end()?;
    Ok(freeze)
}

fn number(path: &str, value: Value) -> Result<f64, String> {
    value.as_f64().ok_or_else(|| format!("{path} is {}: give a number", shown(&value)))
}

fn list<T>(
    path: &str,
    value: Value,
    one: impl Fn(&str, Value) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let Value::Array(values) = value else {
        return Err(format!("{path} is {}: give a list", shown(&value)));
    };
    values.into_iter().enumerate().map(|(i, value)| one(&format!("{path}[{i}]"), value)).collect()
}

fn map<T>(
    path: &str,
    value: Value,
    one: impl Fn(&str, Value) -> Result<T, String>,
) -> Result<BTreeMap<String, T>, String> {
    let Value::Object(values) = value else {
        return Err(format!("{path} is {}: give an object", shown(&value)));
    };
    values
        .into_iter()
        .map(|(name, value)| Ok((name.clone(), one(&format!("{path}.{name}"), value)?)))
        .collect()
}

/// A value as messages show it, shortened if it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// The fields of an object, which are taken out one after the other.
struct Fields {
    path: String,
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    fn new(path: String, value: Value) -> Result<Self, String> {
        match value {
            Value::Object(left) => Ok(Self { path, left, known: Vec::new() }),
            value if path.is_empty() => Err(format!("it is {}: give an object", shown(&value))),
            value => Err(format!("{path} is {}: give an object", shown(&value))),
        }
    }

    fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.left.remove(name)
    }

    fn needed<T>(
        &mut self,
        name: &'static str,
        one: impl Fn(&str, Value) -> Result<T, String>,
    ) -> Result<T, String> {
        let at = self.at(name);
        one(&at, self.take(name).ok_or_else(|| format!("{at} is missing"))?)
    }

    fn given<T: Default>(
        &mut self,
        name: &'static str,
        one: impl Fn(&str, Value) -> Result<T, String>,
    ) -> Result<T, String> {
        let at = self.at(name);
        self.take(name).map_or_else(|| Ok(T::default()), |value| one(&at, value))
    }

    fn us(&mut self, name: &'static str) -> Result<f64, String> {
        self.given(name, number)
    }

    fn string(&mut self, name: &'static str) -> Result<String, String> {
        self.needed(name, |path, value| match value {
            Value::String(text) => Ok(text),
            value => Err(format!("{path} is {}: give a text", shown(&value))),
        })
    }

    fn end(&self) -> Result<(), String> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!(
                "{} is no field of a cost model; here are: {}",
                self.at(name),
                self.known.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests;
