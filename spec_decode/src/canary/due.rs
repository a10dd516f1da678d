//! Decides which steps are shadowed.

use crate::sampling::philox4x32;

/// Picks one step number of each run of 1 / rate numbers, at a place that the seed decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// The rate as a multiple of 2^-32, from 0 to 2^32.
    share: u64,
    seed: u64,
}

const ONE: u64 = 1 << 32;

impl Due {
    pub fn new(rate: f64, seed: u64) -> Self {
        // The conversion saturates and turns NaN into 0. Rounding up keeps a rate above 0 above 0.
        let share = (rate.clamp(0.0, 1.0) * ONE as f64).ceil() as u64;
        Self { share: share.min(ONE), seed }
    }

    pub fn at(self, number: u64) -> bool {
        if self.share == 0 {
            return false;
        }
        // Run n has the numbers whose product with the rate has the whole part n.
        let share = u128::from(self.share);
        let run = (u128::from(number) * share) >> 32;
        let start = (run << 32).div_ceil(share);
        let length = ((run + 1) << 32).div_ceil(share) - start;
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let [word, ..] = philox4x32([run as u32, (run >> 32) as u32, 0, PURPOSE], key);
        u128::from(number) == start + ((u128::from(word) * length) >> 32)
    }
}

/// It differs from the purposes of sampling, so that a request with the canary's seed gets other numbers.
const PURPOSE: u32 = 0x6361_6e61;
