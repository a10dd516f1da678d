//! Scores that another run of a model tells: the draft model's look ahead, or what the answer attends to.

use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::probe::Probe;
use crate::error::Result;

/// A probe that is made when it is first asked.
pub struct LazyProbe {
    make: Box<dyn Fn() -> Result<Probe> + Send + Sync>,
    probe: Mutex<Option<Probe>>,
}

impl LazyProbe {
    /// A probe that `make` makes.
    pub fn new(make: impl Fn() -> Result<Probe> + Send + Sync + 'static) -> Self {
        Self { make: Box::new(make), probe: Mutex::new(None) }
    }

    /// Asks the probe.
    ///
    /// # Errors
    ///
    /// It cannot be made, or those of `ask`.
    pub fn ask<T>(&self, ask: impl FnOnce(&mut Probe) -> Result<T>) -> Result<T> {
        let mut probe = self.probe.lock();
        let probe = match &mut *probe {
            Some(probe) => probe,
            none => none.insert((self.make)()?),
        };
        ask(probe)
    }
}

impl fmt::Debug for LazyProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyProbe").finish_non_exhaustive()
    }
}

/// Tokens behind the prompt that show what matters in it.
#[derive(Clone, Debug)]
pub enum Teller {
    /// The draft model's own. Its name is told too.
    Draft(String),
    /// The answer, as the dense model gave it.
    Answer(Arc<[u32]>),
}

/// The scores of one prompt, which are made when the first of them is asked for: a request whose kept tokens are in the cache never asks.
#[derive(Debug)]
pub struct Told {
    probe: Arc<LazyProbe>,
    prompt: Vec<u32>,
    teller: Teller,
    /// The scores behind each layer, or those behind all of them.
    scores: OnceLock<Result<Vec<Vec<f32>>, String>>,
}

impl Told {
    /// The scores of `prompt`.
    #[must_use]
    pub fn new(probe: Arc<LazyProbe>, prompt: Vec<u32>, teller: Teller) -> Self {
        Self { probe, prompt, teller, scores: OnceLock::new() }
    }

    /// Who tells.
    #[must_use]
    pub fn teller(&self) -> &Teller {
        &self.teller
    }

    /// The score of the token at `position` behind `layer`; no number if there is none.
    pub fn score(&self, layer: u16, position: u32) -> f32 {
        let scores = self.scores.get_or_init(|| self.make().map_err(|error| format!("{error:#}")));
        let of_layer = scores.as_ref().ok().and_then(|all| all.get(usize::from(layer)).or(all.last()));
        of_layer.and_then(|scores| scores.get(position as usize)).copied().unwrap_or(f32::NAN)
    }

    /// Why there are no scores.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.scores.get()?.as_ref().err().map(String::as_str)
    }

    fn make(&self) -> Result<Vec<Vec<f32>>> {
        match &self.teller {
            Teller::Draft(_) => {
                let ahead = self.probe.ask(|probe| probe.look_ahead(&self.prompt))?;
                Ok(vec![chunks(&neighbours(&ahead))])
            }
            Teller::Answer(answer) => {
                let tokens: Vec<u32> = self.prompt.iter().chain(answer.iter()).copied().collect();
                let mut mass = self.probe.ask(|probe| probe.answer_mass(&tokens, self.prompt.len()))?;
                // Whoever is dropped behind a layer is missing in all later ones: their sum decides.
                for layer in (1..mass.len()).rev() {
                    let (before, behind) = mass.split_at_mut(layer);
                    before[layer - 1].iter_mut().zip(&behind[0]).for_each(|(sum, x)| *sum += x);
                }
                mass.remove(0);
                Ok(mass)
            }
        }
    }
}

/// Each score's mean with the six on either side of it, as SpecPrefill pools them.
fn neighbours(scores: &[f32]) -> Vec<f32> {
    (0..scores.len())
        .map(|at| {
            let near = &scores[at.saturating_sub(6)..scores.len().min(at + 7)];
            near.iter().sum::<f32>() / near.len() as f32
        })
        .collect()
}

/// The mean of each chunk of 32, for every token of it: SpecPrefill keeps or drops whole chunks.
fn chunks(scores: &[f32]) -> Vec<f32> {
    let mut scores = scores.to_vec();
    average(&mut scores, 32);
    scores
}

/// Gives every token the mean of its block of `size`.
pub(super) fn average(scores: &mut [f32], size: usize) {
    for block in scores.chunks_mut(size) {
        let mean = block.iter().sum::<f32>() / block.len() as f32;
        block.fill(mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_means_of_what_is_there() {
        let scores: Vec<f32> = (0..70).map(|i| i as f32).collect();
        let near = neighbours(&scores);
        assert_eq!((near[0], near[20], near[69]), (3.0, 20.0, 66.0));
        let chunks = chunks(&scores);
        assert_eq!((chunks[0], chunks[31], chunks[32], chunks[69]), (15.5, 15.5, 47.5, 66.5));
    }
}
