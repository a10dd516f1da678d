//! When requests are sent.

use serde::{Deserialize, Serialize};

/// How intended arrivals come about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "process")]
pub enum Arrivals {
    /// As the trace has them, `speed` times as fast.
    Recorded {
        /// 2 is twice as fast.
        speed: f64,
    },
    /// All at the beginning (or, with a limit of concurrency, as soon as there is room).
    AtOnce,
    /// Gaps of equal length.
    Constant {
        /// Requests a second.
        rate: f64,
    },
    /// Gaps drawn from a gamma distribution of shape `burstiness` (1: exponential, a Poisson process; less: bursts; more:
    /// more even), scaled so that the workload's last request comes when the rate says.
    Gamma {
        /// Requests a second.
        rate: f64,
        /// The distribution's shape.
        burstiness: f64,
    },
    /// Poisson arrivals whose rate grows (or falls) over the workload's requests.
    Ramp {
        /// Requests a second at the beginning.
        from: f64,
        /// Requests a second at the end.
        to: f64,
        /// Whether it grows by a constant factor, not by a constant amount.
        exponential: bool,
    },
}

/// Intended arrivals, one after the other.
#[derive(Clone, Debug)]
pub struct ArrivalTimes {}

impl Arrivals {
    /// The times of a workload of `items` requests.
    ///
    /// # Errors
    ///
    /// A rate, a speed or a burstiness that is not a positive number: what is wrong, by the flag's name.
    pub fn times(&self, _items: u64, _seed: u64) -> Result<ArrivalTimes, String> {
        unimplemented!()
    }

    /// Requests a second that are asked for, where they are; of a ramp, on average.
    #[must_use]
    pub fn rate_asked(&self) -> Option<f64> {
        unimplemented!()
    }
}

impl ArrivalTimes {
    /// The next one in nanoseconds since the run began, `recorded_s` being the trace's own; `None`: as soon as there is room.
    /// Never earlier than the one before.
    pub fn next(&mut self, _recorded_s: Option<f64>) -> Option<u64> {
        unimplemented!()
    }
}
