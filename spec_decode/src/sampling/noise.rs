//! The noise of a request is a function of seed, sample, position and purpose.

use super::params::SamplingParams;
use super::philox::philox4x32;
use super::series::ln;

/// The purpose of a random number. Numbers for different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The Gumbel noise of the coupled choice, with one lane for each token id.
    Choice = 0,
    /// The decision whether a draft is accepted, in rejection sampling.
    Acceptance = 1,
    /// The token drawn in place of a rejected draft.
    Residual = 2,
    /// A proposer's own draws, if it does not share the target's noise.
    Proposal = 3,
}

/// The random numbers of one position of one sample.
///
/// Lane `i` is word `i % 4` of Philox4x32-10 with the seed as key and (i / 4, position, sample, purpose) as counter, so
/// no two positions, samples or purposes share a counter.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    seed: u64,
    sample: u32,
    position: u32,
}

/// [`Noise::gumbel`] is always below this.
pub(super) const GUMBEL_MAX: f64 = 23.0;

impl Noise {
    /// The noise at `position`, which is the index, counted from the start of the prompt, of the token being chosen.
    pub fn new(params: &SamplingParams, position: u32) -> Noise {
        Noise { seed: params.seed, sample: params.sample, position }
    }

    /// The 32 random bits of a lane.
    pub fn bits(&self, purpose: Purpose, lane: u32) -> u32 {
        self.four(purpose, lane / 4)[(lane % 4) as usize]
    }

    /// The bits of the four lanes from `4 * block` on.
    pub(super) fn four(&self, purpose: Purpose, block: u32) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox4x32([block, self.position, self.sample, purpose as u32], key)
    }

    /// A uniform number in the open interval (0, 1): one of 2^32 evenly spaced values.
    pub fn uniform(&self, purpose: Purpose, lane: u32) -> f64 {
        uniform(self.bits(purpose, lane))
    }

    /// The standard Gumbel noise `-ln(-ln u)` of a token. Its tail ends at 22.9, so a token with a probability below
    /// about 2^-32 is never drawn.
    pub fn gumbel(&self, token: u32) -> f64 {
        gumbel(self.bits(Purpose::Choice, token))
    }
}

fn uniform(bits: u32) -> f64 {
    (f64::from(bits) + 0.5) / 4_294_967_296.0
}

pub(super) fn gumbel(bits: u32) -> f64 {
    -ln(-ln(uniform(bits)))
}

/// An upper bound of [`gumbel`] for the same bits, at a hundredth of its cost: -ln u >= 1 - u >= 2^-(1 + leading zeros
/// of the complement).
pub(super) fn gumbel_bound(bits: u32) -> f64 {
    // The last term covers the rounding of `gumbel`.
    f64::from(1 + (!bits).leading_zeros()) * std::f64::consts::LN_2 + 1e-9
}
