use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// A part of a sample that is drawn. Each part has its own random numbers, so that a longer haystack
/// changes no needle.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Needles = 1,
    Haystack,
    Places,
    Example,
    ExamplePlaces,
    Queries,
    Words,
    Names,
}

/// The random numbers of one sample. They are a function of (task, seed, index), whatever the length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draws {
    pub(super) task: u64,
    pub(super) seed: u64,
    pub(super) index: u64,
}

impl Draws {
    /// The random numbers of a part, from their beginning.
    pub(super) fn of(&self, part: Part) -> ChaCha8Rng {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([self.task, self.seed, self.index, part as u64]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(key)
    }

    /// The random numbers that all samples of a task and seed share.
    pub(super) fn common(&self, part: Part) -> ChaCha8Rng {
        Self { index: u64::MAX, ..*self }.of(part)
    }
}

/// Draws `count` of the numbers below `below`, in ascending order; all of them if there are no more. If
/// they are few among many, each one is drawn until it is new.
pub(super) fn distinct(rng: &mut impl Rng, below: usize, count: usize) -> Vec<usize> {
    let mut drawn = BTreeSet::new();
    while drawn.len() < count.min(below) {
        drawn.insert(rng.random_range(0..below));
    }
    drawn.into_iter().collect()
}
