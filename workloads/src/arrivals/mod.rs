//! When requests are sent.

mod times;

pub use times::ArrivalTimes;

use serde::{Deserialize, Serialize};

/// How intended arrivals come about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", tag = "process")]
pub enum Arrivals {
    /// As the trace has them, `speed` times as fast.
    Recorded {
        /// 2 is twice as fast.
        speed: f64,
    },
    /// All at the beginning (or, with a limit of concurrency, as soon as there is room).
    AtOnce,
    /// Gaps of equal length: request `i` at `i / rate`, computed from `i`, so that nothing adds up.
    Constant {
        /// Requests a second.
        rate: f64,
    },
    /// Gaps drawn from a gamma distribution of shape `burstiness` and scale `1 / (rate * burstiness)` (shape 1: exponential,
    /// a Poisson process; less: bursts; more: more even; the gaps' coefficient of variation is `1 / sqrt(burstiness)`).
    ///
    /// As `vllm bench serve` does it, the drawn gaps are then scaled by one factor so that the last of `items` requests comes
    /// at exactly `items / rate`. So the rate asked is the rate sent, and two seeds offer the same load. It also means that these
    /// are not `items` independent draws: they are draws given their sum. For Poisson, that is `items - 1` points thrown
    /// evenly into the run and one at its end; what varies from seed to seed is when requests bunch, not how many come.
    Gamma {
        /// Requests a second.
        rate: f64,
        /// The distribution's shape.
        burstiness: f64,
    },
    /// Exponential gaps whose rate goes from `from` to `to` over the workload's requests: request `i` of `n` has that of progress
    /// `i / (n - 1)`. Scaled by one factor so that the last request comes at `n / rate_asked`, the expected time of such a ramp.
    Ramp {
        /// Requests a second at the beginning.
        from: f64,
        /// Requests a second at the end.
        to: f64,
        /// Whether it grows by a constant factor, not by a constant amount.
        exponential: bool,
    },
}

impl Arrivals {
    /// The times of a workload of `items` requests. Drawn times are drawn twice from the same stream, once for their sum, so that
    /// nothing is kept; above a thousand million requests the sum is taken to be what is expected.
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

    /// Requests a second that are asked for, where they are; of a ramp, requests by expected duration.
    #[must_use]
    pub fn rate_asked(&self) -> Option<f64> {
        match *self {
            Self::Recorded { .. } | Self::AtOnce => None,
            Self::Constant { rate } | Self::Gamma { rate, .. } => Some(rate),
            Self::Ramp { from, to, exponential } => {
                // The inverse of the mean gap: of the integral of 1 / rate(x) over progress x from 0 to 1.
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

/// Of a smaller shape most draws underflow to 0, and the few others are not what the law says any more.
const LEAST_BURSTINESS: f64 = 1e-3;

/// Later arrivals are refused: beyond some 580 years nanoseconds overflow, and nobody means them.
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
