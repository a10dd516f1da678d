//! Draws numbers by position instead of from a stream, so that a request that is preempted and computed
//! again draws the same.

/// Simulated tokens are `0..VOCABULARY`.
const VOCABULARY: u64 = 32_000;

/// The purpose of a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// To decide whether a draft at this position is accepted.
    Accept = 1,
    /// To decide whether a row that ends here gets drafts.
    Give = 2,
}

/// The random numbers of one request. Each is a function of (seed, index in the workload, position,
/// purpose).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new(seed: u64, index: u64) -> Self {
        Self(mix(mix(seed) ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93)))
    }

    /// The request's token at a position.
    #[inline]
    pub(super) fn token(self, position: u32) -> u32 {
        (((self.bits(u64::from(position)) >> 32) * VOCABULARY) >> 32) as u32
    }

    /// A token that differs from the one at a position: a draft that is rejected.
    pub(super) fn other_token(self, position: u32) -> u32 {
        (self.token(position) + 1) % VOCABULARY as u32
    }

    /// A number of at least 0 and below 1.
    #[inline]
    pub(super) fn uniform(self, purpose: Purpose, position: u32) -> f64 {
        let bits = self.bits((purpose as u64) << 32 | u64::from(position));
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }

    #[inline]
    fn bits(self, of: u64) -> u64 {
        mix(self.0.wrapping_add(of.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_evenly_and_depend_on_every_key() {
        let n = 40_000u32;
        let mean =
            |draws: Draws, purpose| (0..n).map(|i| draws.uniform(purpose, i)).sum::<f64>() / f64::from(n);
        for (seed, index) in [(0, 0), (0, 1), (1, 0), (7, 1 << 40)] {
            let draws = Draws::new(seed, index);
            for purpose in [Purpose::Accept, Purpose::Give] {
                assert!((mean(draws, purpose) - 0.5).abs() < 0.01, "seed {seed}, request {index}");
            }
            assert_ne!(draws.uniform(Purpose::Accept, 3), draws.uniform(Purpose::Give, 3));
            assert!((0..n).all(|i| draws.token(i) < 32_000 && draws.other_token(i) != draws.token(i)));
        }
        let of = |seed, index| Draws::new(seed, index).uniform(Purpose::Accept, 9);
        assert!(of(0, 0) != of(1, 0) && of(0, 0) != of(0, 1) && of(1, 0) != of(0, 1));
    }
}
