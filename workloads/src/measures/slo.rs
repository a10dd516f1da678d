use serde::{Deserialize, Serialize};

/// The latency goals of a request, in milliseconds. All goals that are given must be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Slo {
    /// The goal for the time to the first token.
    pub ttft_ms: Option<f64>,
    /// The goal for the time per output token.
    pub tpot_ms: Option<f64>,
    /// The goal for the end-to-end latency.
    pub e2el_ms: Option<f64>,
}

impl Slo {
    /// Reads goals such as `ttft=200,tpot=50,e2el=5000`, in milliseconds. They may be in any order, and any
    /// may be missing.
    ///
    /// # Errors
    ///
    /// Says what can't be read, for the person who typed it. The caller adds that it was `--slo`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is not KEY=MS; an example is ttft=200,tpot=50"))?;
            let key = key.trim();
            let goal = match key {
                "ttft" => &mut slo.ttft_ms,
                "tpot" => &mut slo.tpot_ms,
                "e2el" => &mut slo.e2el_ms,
                _ => return Err(format!("`{key}` is none of ttft, tpot, e2el")),
            };
            let ms: f64 = value
                .trim()
                .parse()
                .map_err(|_| format!("{key} is `{value}`, which is not a number of milliseconds"))?;
            if !(ms.is_finite() && ms > 0.0) {
                return Err(format!("{key} is {value}; it must be a number of milliseconds greater than 0"));
            }
            if goal.replace(ms).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(slo)
    }

    /// Whether there is no goal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read_in_any_order() {
        let all = Slo { ttft_ms: Some(200.0), tpot_ms: Some(0.5), e2el_ms: Some(5000.0) };
        assert_eq!(Slo::parse("tpot=.5,ttft=200, e2el = 5e3"), Ok(all));
        assert_eq!(Slo::parse("ttft=1"), Ok(Slo { ttft_ms: Some(1.0), ..Slo::default() }));
        assert!(Slo::default().is_empty() && !all.is_empty());
    }

    #[test]
    fn what_is_no_goal_is_refused_with_the_part_that_is_wrong() {
        for (text, names) in [
            ("", "``"),
            ("ttft", "`ttft`"),
            ("itl=5", "`itl`"),
            ("ttft=fast", "`fast`"),
            ("ttft=NaN", "NaN"),
            ("tpot=-1", "-1"),
            ("tpot=0", "0"),
            ("tpot=inf", "inf"),
            ("ttft=1,ttft=1", "twice"),
            ("ttft=1,", "``"),
        ] {
            let error = Slo::parse(text).unwrap_err();
            assert!(error.contains(names), "{text}: {error}");
        }
    }
}
