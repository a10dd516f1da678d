//! Tests of sampling, against slow and obvious references.

mod changes;
mod choose;
mod filter;
mod logprobs;
mod noise;
mod params;

use super::*;

/// A source of test inputs: SplitMix64. The seed is printed, so that a failure names its case.
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        println!("seed {seed}");
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Logits that spread by about `scale`.
    pub fn logits(&mut self, count: usize, scale: f64) -> Vec<f32> {
        let one = |random: &mut Random| {
            let bell = random.unit() + random.unit() + random.unit() - 1.5;
            (2.0 * scale * bell) as f32
        };
        (0..count).map(|_| one(self)).collect()
    }
}

/// Parameters with every filter off, to which a test adds its own.
pub(super) fn at(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..SamplingParams::default() }
}
