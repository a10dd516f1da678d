//! Looks up n-grams: proposes what followed the last few tokens when they last occurred.

use std::ops::ControlFlow;

use super::matches::Matches;
use super::{Proposer, ProposerError, Proposing};
use crate::drafts::Drafts;
use crate::error::ExecuteError;

/// Proposes what followed the request's last tokens where they occurred before, in its prompt or its output (prompt
/// look-up decoding, Saxena 2023; vLLM calls the lengths `prompt_lookup_min` and `prompt_lookup_max`).
///
/// The longest match counts, from `max_n` down to `min_n` tokens, and among equally long ones the most recent. A match
/// may overlap the tokens that it is matched with. The drafts are the tokens after the match. There are fewer than
/// asked for if the sequence ends before.
///
/// It takes one pass backwards over the known tokens of a row, whatever `max_n` is. A match of `max_n` tokens ends the
/// pass early. A whole pass over 4,096 random tokens takes 9 µs, and 13 µs if there are only two different tokens and
/// `max_n` is 64 (medians of 201, one core of a 2-core Xeon that others used too). It allocates nothing.
#[derive(Clone, Debug)]
pub struct NgramProposer {
    min_n: usize,
    max_n: usize,
    matches: Matches,
}

impl NgramProposer {
    /// Looks up n-grams of `min_n` to `max_n` tokens.
    ///
    /// # Errors
    ///
    /// [`ProposerError::Ngram`] for a `min_n` of 0 or above `max_n`.
    pub fn new(min_n: usize, max_n: usize) -> Result<Self, ProposerError> {
        if min_n == 0 || min_n > max_n {
            return Err(ProposerError::Ngram { min: min_n, max: max_n });
        }
        Ok(Self { min_n, max_n, matches: Matches::default() })
    }

    /// The drafts after `tokens`, at most `max`. Empty if nothing matches.
    #[must_use]
    pub fn look_up<'a>(&mut self, tokens: &'a [u32], max: usize) -> &'a [u32] {
        match self.shift(tokens) {
            Some(shift) => &tokens[tokens.len() - shift..][..shift.min(max)],
            None => &[],
        }
    }

    /// How many tokens before the end of `tokens` the best match ends.
    fn shift(&mut self, tokens: &[u32]) -> Option<usize> {
        if tokens.len() <= self.min_n {
            return None;
        }
        let mut best = None;
        let mut longest = self.min_n - 1;
        self.matches.each(tokens, self.max_n, |shift, n| {
            if n > longest {
                (best, longest) = (Some(shift), n);
            }
            if longest >= self.max_n { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        best
    }
}

impl Proposer for NgramProposer {
    fn name(&self) -> &'static str {
        "ngram"
    }

    fn propose(&mut self, step: &Proposing<'_>, drafts: &mut Drafts) -> Result<(), ExecuteError> {
        for i in 0..step.len() {
            let row = step.row(i)?;
            drafts.set(i, self.look_up(row.tokens, row.max));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{Noise, Purpose, SamplingParams};

    /// The same by trying every length, the longest first, and for each every earlier occurrence, the
    /// latest first.
    fn slow(tokens: &[u32], min_n: usize, max_n: usize, max: usize) -> &[u32] {
        for n in (min_n..=max_n).rev().filter(|&n| n < tokens.len()) {
            let last = &tokens[tokens.len() - n..];
            for start in (0..tokens.len() - n).rev() {
                if tokens[start..].starts_with(last) {
                    let behind = &tokens[start + n..];
                    return &behind[..behind.len().min(max)];
                }
            }
        }
        &[]
    }

    #[test]
    fn drafts_are_those_of_a_search_by_every_length_and_place() {
        let mut found = 0;
        for seed in 0..6000u64 {
            let params = SamplingParams { seed, ..SamplingParams::default() };
            let draw = |lane, below: u32| Noise::new(&params, 0).bits(Purpose::Choice, lane) % below;
            let (alphabet, len) = (1 + draw(0, 4), draw(1, 60) as usize);
            let min_n = 1 + draw(2, 4) as usize;
            let max_n = min_n + draw(3, 5) as usize;
            let max = 1 + draw(4, 6) as usize;
            let tokens: Vec<u32> = (0..len as u32).map(|i| draw(8 + i, alphabet)).collect();
            let drafts = NgramProposer::new(min_n, max_n).unwrap().look_up(&tokens, max).to_vec();
            assert_eq!(
                drafts,
                slow(&tokens, min_n, max_n, max),
                "seed {seed}: n {min_n}..={max_n}, {tokens:?}"
            );
            found += usize::from(!drafts.is_empty());
        }
        assert!(found > 3000, "only {found} of the searches found anything");
    }

    #[test]
    fn the_tokens_behind_a_match_may_run_into_the_end() {
        let mut ngram = NgramProposer::new(2, 3).unwrap();
        assert_eq!(ngram.look_up(&[1, 2, 1, 2], 5), [1, 2]);
        assert_eq!(ngram.look_up(&[9, 1, 2, 7, 8, 1, 2], 2), [7, 8]);
        assert_eq!(ngram.look_up(&[5, 5, 5, 5, 5], 4), [5]);
        assert!(ngram.look_up(&[1, 2, 3, 4], 4).is_empty());
        assert!(ngram.look_up(&[1], 4).is_empty() && ngram.look_up(&[], 4).is_empty());
    }

    #[test]
    fn lengths_beyond_the_sequence_change_nothing() {
        let mut ngram = NgramProposer::new(1, usize::MAX).unwrap();
        assert_eq!(ngram.look_up(&[1, 2, 9, 1, 2], 2), [9, 1]);
        let mut ngram = NgramProposer::new(usize::MAX, usize::MAX).unwrap();
        assert!(ngram.look_up(&[1, 1, 1, 1], 2).is_empty());
    }

    #[test]
    fn lengths_that_are_none_are_refused() {
        for (min, max) in [(0, 3), (0, 0), (3, 2)] {
            assert!(matches!(NgramProposer::new(min, max), Err(ProposerError::Ngram { .. })));
        }
    }

    #[test]
    #[ignore = "a measurement: run it alone, with --nocapture"]
    fn the_cost_of_a_pass_over_4096_tokens() {
        // The last sequence has a match at every other place, and none of them ends the pass.
        for (what, alphabet, max_n) in [("32000 tokens", 32000u32, 4), ("2 tokens", 2, 64)] {
            let params = SamplingParams { seed: 7, ..SamplingParams::default() };
            let draw = |i: u32| Noise::new(&params, i).bits(Purpose::Choice, 0) % alphabet;
            let tokens: Vec<u32> = (0..4096).map(draw).collect();
            let mut ngram = NgramProposer::new(2, max_n).unwrap();
            let mut times = Vec::new();
            for _ in 0..201 {
                let start = std::time::Instant::now();
                std::hint::black_box(ngram.look_up(std::hint::black_box(&tokens), 4));
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            times.sort_by(f64::total_cmp);
            println!("{what}: median {:.1} µs, worst {:.1} µs", times[100], times[200]);
        }
    }
}
