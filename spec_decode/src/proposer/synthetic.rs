//! Proposes drafts of a stated quality at a stated price, to study what speculation is worth.

use std::time::{Duration, Instant};

use super::{ProposeRow, Proposer, ProposerError, Proposing};
use crate::drafts::Drafts;
use crate::error::ExecuteError;
use crate::sampling::{Noise, Purpose};

/// The microseconds that one round takes, by the number of rows that draft in it.
type RoundUs = Box<dyn Fn(usize) -> f64 + Send>;

/// Proposes the recorded continuation of a request ([`Registered::recorded`](crate::Registered::recorded)), and makes
/// each token wrong with probability 1 - `rate`. Under coupled acceptance, a draft whose predecessors were accepted is
/// then accepted with probability `rate`, independently of all others.
///
/// Which drafts are wrong, and how, is a function of the request's (prompt, seed, sample, position) alone. Neither the
/// schedule nor the batch changes it, and two requests with one seed are wrong at different positions. A request
/// without a recording, or past the end of its recording, gets no drafts.
///
/// A round proposes one token for every row that still drafts, as a draft model would. The price of a round can be set
/// with [`set_round_us`](Self::set_round_us); the proposer then waits that long, with the processor busy.
pub struct SyntheticProposer {
    rate: f64,
    vocab: u32,
    round_us: Option<RoundUs>,
    buffer: Vec<u32>,
    target: Duration,
}

impl SyntheticProposer {
    /// Makes a proposer whose drafts are right with probability `rate`, from 0 to 1. A wrong draft is another token
    /// below `vocab`. Proposing takes no time unless a price is set.
    ///
    /// # Errors
    ///
    /// [`ProposerError::Rate`] for a rate outside [0, 1], and [`ProposerError::SmallVocab`] for a `vocab` below 2.
    pub fn new(rate: f64, vocab: u32) -> Result<Self, ProposerError> {
        if !(0.0..=1.0).contains(&rate) {
            return Err(ProposerError::Rate { found: rate });
        }
        if vocab < 2 {
            return Err(ProposerError::SmallVocab { found: vocab });
        }
        Ok(Self { rate, vocab, round_us: None, buffer: Vec::new(), target: Duration::ZERO })
    }

    /// Sets the price of one round: `round_us(rows)` microseconds if `rows` rows draft in it. A price below 0 or NaN
    /// counts as 0.
    pub fn set_round_us(&mut self, round_us: RoundUs) {
        self.round_us = Some(round_us);
    }

    /// The time that the last call of [`propose`](Proposer::propose) was made to take: the sum of its rounds.
    #[must_use]
    pub fn target(&self) -> Duration {
        self.target
    }

    fn fill(&mut self, row: &ProposeRow<'_>) {
        self.buffer.clear();
        let prompt_len = row.registered.prompt_len as usize;
        let generated = row.tokens.len().checked_sub(prompt_len);
        let recorded = row.registered.recorded.as_deref().unwrap_or_default();
        let Some(behind) = generated.and_then(|generated| recorded.get(generated..)) else { return };
        let mut sampling = row.registered.sampling.clone();
        sampling.seed ^= fingerprint(&row.tokens[..prompt_len]);
        for (position, &token) in (row.tokens.len() as u32..).zip(behind).take(row.max) {
            let noise = Noise::new(&sampling, position);
            // The number is above 0 and below 1, so that rates of 0 and 1 are exact.
            let right = noise.uniform(Purpose::Proposal, 0) < self.rate;
            self.buffer.push(if right { token } else { self.wrong(token, noise) });
        }
    }

    fn wrong(&self, token: u32, noise: Noise) -> u32 {
        let step = 1 + noise.bits(Purpose::Proposal, 1) % (self.vocab - 1);
        ((u64::from(token) + u64::from(step)) % u64::from(self.vocab)) as u32
    }

    fn price(&self, drafts: &Drafts) -> Duration {
        let Some(round_us) = &self.round_us else { return Duration::ZERO };
        let drafting = |depth| (0..drafts.num_rows()).filter(|&i| drafts.row(i).len() > depth).count();
        let us: f64 = (0..drafts.longest()).map(|depth| round_us(drafting(depth)).max(0.0)).sum();
        Duration::try_from_secs_f64(us * 1e-6).unwrap_or_default()
    }
}

impl Proposer for SyntheticProposer {
    fn name(&self) -> &'static str {
        "synthetic"
    }

    fn propose(&mut self, step: &Proposing<'_>, drafts: &mut Drafts) -> Result<(), ExecuteError> {
        let start = Instant::now();
        for i in 0..step.len() {
            let row = step.row(i)?;
            self.fill(&row);
            drafts.set(i, &self.buffer);
        }
        self.target = self.price(drafts);
        wait_until(start, self.target);
        Ok(())
    }
}

/// A number that depends on a prompt's length and its ends, so that two requests with one seed are wrong at different
/// positions.
fn fingerprint(prompt: &[u32]) -> u64 {
    const ENDS: usize = 16;
    let (head, tail) = (prompt.iter().take(ENDS), prompt.iter().rev().take(ENDS));
    head.chain(tail).fold(prompt.len() as u64, |sum, &token| {
        (sum ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

/// Returns when `target` has passed since `start`. It sleeps while more than two milliseconds are left, because a sleep
/// may take a millisecond longer than asked, and spins for the rest.
fn wait_until(start: Instant, target: Duration) {
    const SPIN: Duration = Duration::from_millis(1);
    while let Some(left) = target.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        if left > 2 * SPIN {
            std::thread::sleep(left - 2 * SPIN);
        } else {
            std::hint::spin_loop();
        }
    }
}
