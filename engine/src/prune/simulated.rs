//! The rule by which the prompts of a simulated engine are pruned.

use std::sync::Arc;

use pagedraft_block_manager::Salt;
use pagedraft_scheduler::SharesKept;
use pagedraft_spec_decode::Thin;
use pagedraft_workloads::sim::PromptRule;

use super::pruner::Pruner;
use super::spec::{Positions, PruneScorer, PruneSpec};
use crate::error::Result;

/// Prunes prompts without a model. Scores that only a model could give are drawn as the scorer `random` draws them.
#[derive(Debug)]
pub struct SimulatedPruner {
    spec: Arc<PruneSpec>,
    cuts: Arc<[u16]>,
}

impl SimulatedPruner {
    /// Prunes as `spec` says in a model that is cut behind `cuts`.
    ///
    /// # Errors
    ///
    /// The spec names a layer behind which the model is not cut.
    pub fn new(spec: PruneSpec, cuts: Arc<[u16]>) -> Result<Self> {
        let scorer = match spec.scorer {
            PruneScorer::FirstLast => PruneScorer::FirstLast,
            _ => PruneScorer::Random,
        };
        let spec = Arc::new(PruneSpec { scorer, modules: None, ..spec });
        Pruner::new(Arc::clone(&spec), (None, None), 1, Arc::clone(&cuts))?;
        Ok(Self { spec, cuts })
    }

    fn pruner(&self, prompt_len: u32) -> Result<Pruner, String> {
        let pruner = Pruner::new(Arc::clone(&self.spec), (None, None), prompt_len, Arc::clone(&self.cuts));
        pruner.map_err(|error| format!("{error:#}"))
    }
}

impl PromptRule for SimulatedPruner {
    fn counts(&self, prompt_len: u32) -> Result<Vec<u32>, String> {
        let pruner = self.pruner(prompt_len)?;
        Ok(if pruner.scores() { pruner.counts().to_vec() } else { Vec::new() })
    }

    fn positions(&self, prompt_len: u32) -> Result<Vec<Vec<u32>>, String> {
        let pruner = self.pruner(prompt_len)?;
        let mut positions: Vec<u32> = (0..prompt_len).collect();
        let cuts = (0..).zip(pruner.counts()).map(|(cut, &count)| {
            let scores: Vec<f32> =
                positions.iter().map(|&position| pruner.score(cut, position, &[])).collect();
            let kept = pruner.keep(cut, &scores, &positions, count as usize)?;
            positions = kept.into_iter().map(|index| positions[index as usize]).collect();
            Ok(positions.clone())
        });
        cuts.collect()
    }

    fn shares_kept(&self, prompt: &[u32]) -> Result<SharesKept, String> {
        Ok(self.pruner(prompt.len() as u32)?.shares_kept(prompt, Salt::NONE))
    }

    fn is_compact(&self) -> bool {
        self.spec.positions == Positions::Compact
    }
}
