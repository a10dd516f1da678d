//! When requests are sent.

mod times;

pub use times::ArrivalTimes;

use serde::{Deserialize, Serialize};

/// How the intended arrival times of requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", tag = "process")]
pub enum Arrivals {
    /// The times are those of the trace, `speed` times as fast.
    Recorded {
        /// The factor; 2 means twice as fast.
        speed: f64,
    },
    /// All requests arrive at the beginning. With a limit of concurrency, each is sent as soon as there is
    /// room.
    AtOnce,
    /// The gaps are equal: request `i` arrives at `i / rate`. This is computed from `i`, so that rounding
    /// errors do not add up.
    Constant {
        /// Requests a second.
        rate: f64,
    },
    /// The gaps are drawn from a gamma distribution of shape `burstiness` and scale `1 / (rate *
    /// burstiness)`. Shape 1 gives exponential gaps, which is a Poisson process; a smaller shape gives
    /// bursts, and a greater one more even gaps. The gaps' coefficient of variation is `1 /
    /// sqrt(burstiness)`.
    ///
    /// As in `vllm bench serve`, the drawn gaps are then scaled by one factor, so that the last of `items`
    /// requests comes at exactly `items / rate`. The rate sent is therefore the rate asked for, and two
    /// seeds offer the same load. It also means that the gaps are not independent draws, but draws given
    /// their sum. For Poisson this is the same as `items - 1` points thrown evenly into the run and one at
    /// its end. The seed changes when requests bunch, not how many come.
    Gamma {
        /// Requests a second.
        rate: f64,
        /// The distribution's shape.
        burstiness: f64,
    },
    /// The gaps are exponential, and their rate goes from `from` to `to` over the workload: request `i` of
    /// `n` has the rate of progress `i / (n - 1)`. The gaps are scaled by one factor, so that the last
    /// request comes at `n / rate_asked`, which is the expected time of such a ramp.
    Ramp {
        /// The rate at the beginning, in requests per second.
        from: f64,
        /// The rate at the end, in requests per second.
        to: f64,
        /// Whether the rate grows by a constant factor instead of a constant amount.
        exponential: bool,
    },
}

impl Arrivals {
    /// The arrival times of a workload of `items` requests. Drawn times are drawn twice from the same
    /// stream, the first time to sum them, so that nothing needs to be kept. Above a thousand million
    /// requests the expected sum is taken instead.
    ///
    /// # Errors
    ///
    /// A rate, a speed or a burstiness that is not a positive number, a burstiness below 0.001, a rate at which the last request
    /// would come after more than 100 years: what is wrong, by the flag's name.
    pub fn times(&self, items: u64, seed: u64) -> Result<ArrivalTimes, String> {
        match *self {
            Self::Recorded { speed } => positive("--speed", speed)?,
            Self::AtOnce => {}
            Self::Constant { rate } => positive("--request-rate", rate)?,
            Self::Gamma { rate, burstiness } => {
                positive("--request-rate", rate)?;
                positive("--burstiness", burstiness)?;
                if burstiness < LEAST_BURSTINESS {
                    return Err(format!(
                        "--burstiness is {burstiness}; it must be at least {LEAST_BURSTINESS}: gaps drawn from a smaller shape are \
                         too small to be told from 0"
                    ));
                }
            }
            Self::Ramp { from, to, .. } => {
                positive("--ramp-up-start-rps", from)?;
                positive("--ramp-up-end-rps", to)?;
            }
        }
        let last = self.rate_asked().map_or(0.0, |rate| items as f64 / rate);
        let flag = if matches!(self, Self::Ramp { .. }) { "--ramp-up-start-rps" } else { "--request-rate" };
        within_a_century(flag, last)?;
        ArrivalTimes::new(*self, items, seed)
    }

    /// The rate that is asked for, in requests per second, if there is one. For a ramp it is the number of
    /// requests over the expected duration.
    #[must_use]
    pub fn rate_asked(&self) -> Option<f64> {
        match *self {
            Self::Recorded { .. } | Self::AtOnce => None,
            Self::Constant { rate } | Self::Gamma { rate, .. } => Some(rate),
            Self::Ramp { from, to, exponential } => {
                // This is the inverse of the mean gap, and the mean gap is the integral of 1 / rate(x) over
                // the progress x from 0 to 1.
                let log = (to / from).ln();
                Some(if (to - from).abs() <= 1e-9 * from.abs() {
                    from
                } else if exponential {
                    from * (log / (to - from)) * to
                } else {
                    (to - from) / log
                })
            }
        }
    }
}

/// With a smaller shape most draws underflow to 0, and the few others no longer follow the distribution.
const LEAST_BURSTINESS: f64 = 1e-3;

/// Later arrivals are refused. Beyond about 580 years nanoseconds overflow, and nobody means such times.
const MOST_SECONDS: f64 = 100.0 * 365.25 * 86_400.0;

/// Refuses a workload whose last arrival, `last` seconds after its first, is too far away.
pub(crate) fn within_a_century(flag: &str, last: f64) -> Result<(), String> {
    if last <= MOST_SECONDS {
        Ok(())
    } else {
        Err(format!("{flag} is too small: the last request would come more than 100 years after the first"))
    }
}

fn positive(flag: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(format!("{flag} is {value}; it must be a number greater than 0"))
    }
}
