//! Which cell goes down when a frame is needed.

use std::fmt;
use std::str::FromStr;

/// How frames are chosen that are to be emptied: the one of the least [score](Uses::score) first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The one that was touched longest ago.
    Lru,
    /// Of those that the last step did not select, the one that was touched in the fewest steps, older steps counting less and less
    /// (LRFU, Lee et al. 2001): what most steps select stays although a few in between did without it. What the last step selected
    /// goes after all others, because most of it is selected again. Where a step runs in passes, what its earlier passes used goes
    /// before what the last step selected and this one has not yet come to: that is needed again sooner.
    #[default]
    Frequency,
}

/// Steps after which a use counts half.
pub const HALF_LIFE: f64 = 8.0;

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lru => "lru",
            Self::Frequency => "frequency",
        })
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = [Self::Lru, Self::Frequency].into_iter().find(|policy| policy.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is none of lru, frequency"))
    }
}

/// When something was used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uses {
    /// The step of the last use; steps count from 1.
    last: u64,
    /// The uses, each halved for every [`HALF_LIFE`] steps that it lies before the last one.
    weight: f64,
}

impl Uses {
    /// Notes a use in step `now`. Several uses in one step are one.
    #[inline]
    pub fn note(&mut self, now: u64) {
        if now != self.last {
            self.weight = 1.0 + self.weight * (-((now - self.last.min(now)) as f64) / HALF_LIFE).exp2();
            self.last = now;
        }
    }

    /// The less, the sooner it goes down in step `now`.
    #[must_use]
    pub fn score(&self, policy: Policy, now: u64) -> f64 {
        let age = now.saturating_sub(self.last) as f64;
        match policy {
            Policy::Lru => -age,
            // A weight is between 1 and 13. So the scores of the last two selections are above 0, those of the last but one above the
            // others, and all older ones below 0.
            Policy::Frequency if age == 0.0 => self.weight,
            Policy::Frequency if age <= 1.0 => self.weight + 16.0,
            Policy::Frequency => self.weight.log2() - age / HALF_LIFE - 12.0,
        }
    }
}
