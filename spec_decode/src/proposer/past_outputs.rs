//! Outputs of requests that ended, to look tokens up in.

use std::collections::{HashMap, VecDeque};

use super::continuation::Occurrence;

/// Tokens by which a place is found. Shorter matches are not.
const KEY: usize = 3;
/// Places that are compared, at most: the latest ones.
const MOST_PLACES: usize = 128;

/// The latest outputs, of a bounded number of tokens. The oldest ones make room for new ones.
///
/// It takes about 60 bytes for each token: the token, and where the tokens before it occurred.
#[derive(Debug, Default)]
pub(super) struct PastOutputs {
    most: usize,
    held: usize,
    outputs: VecDeque<Box<[u32]>>,
    /// The number of the oldest output that is there.
    first: u64,
    /// For each run of `KEY` tokens the places behind it, the oldest first: the number of an output, and an index in it.
    places: HashMap<[u32; KEY], VecDeque<(u64, u32)>>,
}

impl PastOutputs {
    /// Holds up to `most` tokens.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Whether it holds anything at all.
    pub fn is_on(&self) -> bool {
        self.most > 0
    }

    /// Adds an output; of one that is longer than the room for all, the last tokens.
    pub fn push(&mut self, output: &[u32]) {
        let output = &output[output.len().saturating_sub(self.most)..];
        if output.len() <= KEY {
            return;
        }
        while self.held + output.len() > self.most {
            self.pop();
        }
        let number = self.first + self.outputs.len() as u64;
        for (at, key) in keys(output) {
            self.places.entry(key).or_default().push_back((number, at));
        }
        self.held += output.len();
        self.outputs.push_back(output.into());
    }

    /// Drops the oldest output.
    fn pop(&mut self) {
        let Some(output) = self.outputs.pop_front() else { return };
        for (_, key) in keys(&output) {
            // Places are in the order of outputs, so that those of the oldest one are the first.
            if let Some(places) = self.places.get_mut(&key) {
                places.pop_front();
                if places.is_empty() {
                    self.places.remove(&key);
                }
            }
        }
        self.held -= output.len();
        self.first += 1;
    }

    /// Where up to `longest` of the last of these tokens occurred, the latest place first.
    pub fn occurrences(&self, tokens: &[u32], longest: usize) -> Vec<Occurrence<'_>> {
        let places = tokens.last_chunk().and_then(|key| self.places.get(key));
        let latest = places.into_iter().flat_map(|places| places.iter().rev()).take(MOST_PLACES);
        let occurrence = |&(number, at): &(u64, u32)| {
            let (before, behind) = self.outputs.get((number - self.first) as usize)?.split_at(at as usize);
            let pairs = before.iter().rev().zip(tokens.iter().rev()).take(longest);
            Some(Occurrence { matched: pairs.take_while(|(a, b)| a == b).count(), behind })
        };
        latest.filter_map(occurrence).collect()
    }
}

/// The places of an output that have something behind them, each with the tokens before it.
fn keys(output: &[u32]) -> impl Iterator<Item = (u32, [u32; KEY])> + '_ {
    let keys = output.windows(KEY).filter_map(|key| key.first_chunk().copied());
    (KEY as u32..output.len() as u32).zip(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{Noise, Purpose, SamplingParams};

    /// The same by comparing at every place of every output.
    fn slow(outputs: &[Vec<u32>], tokens: &[u32], longest: usize) -> Vec<(usize, Vec<u32>)> {
        let mut found = Vec::new();
        for output in outputs.iter().rev() {
            for at in (1..output.len()).rev() {
                let most = longest.min(at).min(tokens.len());
                let same = |n: &usize| output[..at].ends_with(&tokens[tokens.len() - n..]);
                let matched = (0..=most).rev().find(same).unwrap_or(0);
                if matched >= KEY {
                    found.push((matched, output[at..].to_vec()));
                }
            }
        }
        found.truncate(MOST_PLACES);
        found
    }

    #[test]
    fn places_are_those_of_a_search_and_old_outputs_make_room() {
        let mut found = 0;
        for seed in 0..300u64 {
            let params = SamplingParams { seed, ..SamplingParams::default() };
            let mut lane = 0;
            let mut draw = |below: u32| {
                lane += 1;
                Noise::new(&params, 0).bits(Purpose::Choice, lane) % below
            };
            let most = 20 + draw(100) as usize;
            let (mut past, mut kept) = (PastOutputs::new(most), Vec::<Vec<u32>>::new());
            for _ in 0..12 {
                let len = draw(60);
                let output: Vec<u32> = (0..len).map(|_| draw(3)).collect();
                past.push(&output);
                let output = output[output.len().saturating_sub(most)..].to_vec();
                if output.len() > KEY {
                    kept.push(output);
                }
                while kept.iter().map(Vec::len).sum::<usize>() > most {
                    kept.remove(0);
                }
                assert_eq!(past.held, kept.iter().map(Vec::len).sum::<usize>(), "seed {seed}");
                let tokens: Vec<u32> = (0..draw(12)).map(|_| draw(3)).collect();
                let longest = KEY + draw(6) as usize;
                let places: Vec<_> = past
                    .occurrences(&tokens, longest)
                    .iter()
                    .map(|place| (place.matched, place.behind.to_vec()))
                    .collect();
                assert_eq!(places, slow(&kept, &tokens, longest), "seed {seed}: {tokens:?} in {kept:?}");
                found += places.len();
            }
            while !past.outputs.is_empty() {
                past.pop();
            }
            assert!(past.places.is_empty() && past.held == 0, "seed {seed}");
        }
        assert!(found > 1000, "only {found} places were found");
    }
}
