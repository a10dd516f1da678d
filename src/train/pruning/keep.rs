//! Which of a prompt's tokens go on: by count, as a served request is pruned, and softly, so that there is a gradient.

use crate::prune::PruneSpec;
use crate::train::noise::Noise;
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};

/// The logarithm that stands for a token that nobody sees.
const HIDDEN: f32 = -1e9;

/// A prompt on its way through the prune points.
pub struct Way<'a> {
    spec: &'a PruneSpec,
    prompt: u32,
    /// Prompt positions that are still there, ascending.
    pub kept: Vec<u32>,
}

/// What a prune point decides.
pub struct Cut {
    /// The positions whose scores decided, the best first (equal scores: the lowest position first).
    pub candidates: Vec<u32>,
    /// How many of these go on.
    pub taken: usize,
    /// Half-way between the lowest score that goes on and the highest that does not.
    pub threshold: f32,
}

impl<'a> Way<'a> {
    /// A prompt of `prompt` tokens before the first prune point.
    pub fn new(spec: &'a PruneSpec, prompt: usize) -> Self {
        Self { spec, prompt: prompt as u32, kept: (0..prompt as u32).collect() }
    }

    /// Prunes behind a layer that keeps the share `ratio`, by the scores of all positions. `None` if nothing is dropped.
    pub fn cut(&mut self, ratio: f64, scores: &[f32]) -> Result<Option<Cut>> {
        let n = self.kept.len() as u32;
        let count = self.spec.count(ratio, n, self.prompt) as usize;
        let stays = |&position: &u32| self.spec.stays(position, n, self.prompt);
        let (mut kept, mut candidates): (Vec<u32>, Vec<u32>) = self.kept.iter().partition(|p| stays(p));
        if count >= self.kept.len() || candidates.is_empty() {
            return Ok(None);
        }
        let score = |position: u32| scores[position as usize];
        let bad = candidates.iter().find(|&&position| score(position).is_nan());
        ensure!(bad.is_none(), "the score of position {bad:?} is no number: lower --lr");
        candidates.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        let taken = count.saturating_sub(kept.len());
        let at = |index: usize| candidates.get(index).map(|&position| score(position));
        let below = at(taken).unwrap_or(f32::NEG_INFINITY);
        let threshold = 0.5 * (taken.checked_sub(1).and_then(at).unwrap_or(below) + below);
        kept.extend(&candidates[..taken]);
        kept.sort_unstable();
        self.kept = kept;
        Ok(Some(Cut { candidates, taken, threshold }))
    }

    /// How visible each of `time` tokens is if those that were dropped are hidden: logarithms.
    pub fn hard(&self, time: usize) -> Result<Tensor> {
        let mut visible = vec![0.0; time];
        visible[..self.prompt as usize].fill(HIDDEN);
        self.kept.iter().for_each(|&position| visible[position as usize] = 0.0);
        Ok(Tensor::from_vec(visible, time, &Device::Cpu)?)
    }
}

impl Cut {
    /// How visible each token is if candidates are kept by chance: logarithms that add up over the prune points, `[time]`.
    ///
    /// A candidate of score s is kept with the probability that `(s - threshold) / temperature` and Gumbel noise make of keeping
    /// and dropping (Jang et al., 2017; of two choices, the difference of their noise is logistic). The number of tokens kept is
    /// therefore about the one that is served, and only the order of scores can lower a loss. Noise is keyed by `noise`.
    pub fn soft(&self, scores: &Tensor, temperature: f64, noise: &mut Noise) -> Result<Tensor> {
        let time = scores.dim(0)?;
        let (mut chance, mut asked) = (vec![0f32; time], vec![0f32; time]);
        for &position in &self.candidates {
            let u = noise.uniform().clamp(1e-6, 1.0 - 1e-6);
            chance[position as usize] = (u / (1.0 - u)).ln();
            asked[position as usize] = 1.0;
        }
        let constant = |values: Vec<f32>| Tensor::from_vec(values, time, &Device::Cpu);
        let logit = scores.affine(1.0, -f64::from(self.threshold))?;
        let logit = (logit + constant(chance)?)?.affine(1.0 / temperature, 0.0)?;
        Ok((log_sigmoid(&logit)? * constant(asked)?)?)
    }
}

/// `ln(1 / (1 + e^-x))`, without overflow.
pub fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    let tail = x.abs()?.neg()?.exp()?.affine(1.0, 1.0)?.log()?;
    Ok((x.neg()?.relu()? + tail)?.neg()?)
}
