//! The rule by which one request's prompt is pruned.

use std::sync::Arc;

use pagedraft_block_manager::{BlockHash, Salt};
use pagedraft_scheduler::SharesKept;
use pagedraft_spec_decode::{Thin, Watched};

use super::modules::Modules;
use super::spec::{PruneScorer, PruneSpec};
use super::told::{Teller, Told, average};
use crate::error::{Result, ensure};

/// The last tokens of a prompt whose attention `last-window` follows, as UniPrefill (2605.06221) does.
const WINDOW: u32 = 128;

/// The last tokens of a prompt whose index scores `indexer` adds up.
const INDEXED: u32 = 64;

/// The tokens that share a score of `last-window`.
const WINDOW_BLOCK: usize = 64;

/// A prompt's way through a model that is cut behind some layers.
#[derive(Clone, Debug)]
pub struct Pruner {
    spec: Arc<PruneSpec>,
    modules: Option<Arc<Modules>>,
    /// The scores of the prompt, where another run of a model tells them.
    told: Option<Arc<Told>>,
    prompt_len: u32,
    /// The layers behind which the model is cut.
    cuts: Arc<[u16]>,
    /// How many of the prompt's tokens go on behind each cut.
    counts: Vec<u32>,
}

impl Pruner {
    /// Prunes a prompt of `prompt_len` tokens in a model that is cut behind `cuts`.
    ///
    /// # Errors
    ///
    /// The spec names a layer behind which the model is not cut.
    pub fn new(
        spec: Arc<PruneSpec>,
        (modules, told): (Option<Arc<Modules>>, Option<Arc<Told>>),
        prompt_len: u32,
        cuts: Arc<[u16]>,
    ) -> Result<Self> {
        for (layer, _) in &spec.layers {
            ensure!(
                cuts.contains(layer),
                "it prunes behind layer {layer}, and this engine cuts its model behind {cuts:?} only: name the layer in --prune-layers"
            );
        }
        let mut n = prompt_len;
        let ratio =
            |cut: &u16| spec.layers.iter().find(|(layer, _)| layer == cut).map_or(1.0, |(_, ratio)| *ratio);
        let counts = cuts
            .iter()
            .map(|cut| {
                n = spec.count(ratio(cut), n, prompt_len);
                n
            })
            .collect();
        Ok(Self { spec, modules, told, prompt_len, cuts, counts })
    }

    /// How many of the prompt's tokens go on behind each cut.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// The spec.
    #[must_use]
    pub fn spec(&self) -> &PruneSpec {
        &self.spec
    }

    /// Whether any layer keeps less than all, so that tokens are scored.
    #[must_use]
    pub fn scores(&self) -> bool {
        self.spec.layers.iter().any(|&(_, ratio)| ratio < 1.0)
    }

    /// The cuts at which tokens are scored: their index, and the layer.
    pub fn points(&self) -> impl Iterator<Item = (usize, u16)> {
        let prunes = |layer: u16| self.spec.layers.iter().any(|&(l, ratio)| l == layer && ratio < 1.0);
        self.cuts.iter().copied().enumerate().filter(move |&(_, layer)| prunes(layer))
    }

    /// What the prompt's kept tokens and their KV are shared by: requests that drop the same tokens of the same prompt, in an engine and for
    /// a tenant with block hashes of the salt `kv`.
    #[must_use]
    pub fn shares_kept(&self, prompt: &[u32], kv: Salt) -> SharesKept {
        let spec = format!("{:?}", PruneSpec { modules: None, ..(*self.spec).clone() });
        let modules = self.modules.as_ref().map(|modules| modules.fingerprint().to_string());
        let told = self.told.as_ref().map(|told| match told.teller() {
            Teller::Draft(model) => model.clone(),
            Teller::Answer(tokens) => format!("{tokens:?}"),
        });
        let salt = Salt::of(&[
            ("kv", &kv.to_string()),
            ("spec", &spec),
            ("modules", &modules.unwrap_or_default()),
            ("told", &told.unwrap_or_default()),
        ]);
        let hash = BlockHash::of(&BlockHash::ROOT, prompt, &salt);
        let tails = self.points().map(|(cut, _)| {
            let reached = cut.checked_sub(1).map_or(self.prompt_len, |before| self.counts[before]);
            self.spec.tail(reached)
        });
        SharesKept { name: Salt::from(hash), tail: tails.min().unwrap_or(0) }
    }

    fn prunes_behind(&self, segment: u16) -> Option<u16> {
        self.points().find(|&(cut, _)| cut == usize::from(segment)).map(|(_, layer)| layer)
    }
}

/// A fixed number for each position and layer, between 0 and 1.
fn chance(position: u32, layer: u16) -> f32 {
    let mut z =
        (u64::from(position) << 16 | u64::from(layer)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}

impl Thin for Pruner {
    fn reads_rows(&self, segment: u16) -> bool {
        self.spec.scorer == PruneScorer::Learned && self.prunes_behind(segment).is_some()
    }

    fn watch(&self, segment: u16) -> Option<(Watched, u32)> {
        self.prunes_behind(segment)?;
        match self.spec.scorer {
            PruneScorer::LastWindow => Some((Watched::Attention, WINDOW)),
            PruneScorer::Indexer => Some((Watched::Index, INDEXED)),
            _ => None,
        }
    }

    fn score_attended(&self, _: u16, mass: &mut [f32]) {
        if self.spec.scorer == PruneScorer::LastWindow {
            average(mass, WINDOW_BLOCK);
        }
    }

    fn score(&self, segment: u16, position: u32, row: &[f32]) -> f32 {
        let Some(layer) = self.prunes_behind(segment) else { return 0.0 };
        match self.spec.scorer {
            PruneScorer::Random => chance(position, layer),
            PruneScorer::FirstLast => -(position.min(self.prompt_len - 1 - position) as f32),
            PruneScorer::Draft | PruneScorer::Oracle => {
                self.told.as_ref().map_or(f32::NAN, |told| told.score(layer, position))
            }
            PruneScorer::Learned => {
                self.modules.as_ref().map_or(f32::NAN, |modules| modules.score(layer, row))
            }
            PruneScorer::LastWindow | PruneScorer::Indexer => f32::NAN,
        }
    }

    fn keep(
        &self,
        segment: u16,
        scores: &[f32],
        positions: &[u32],
        count: usize,
    ) -> Result<Vec<u32>, String> {
        let all = 0..positions.len() as u32;
        let Some(layer) = self.prunes_behind(segment) else { return Ok(all.collect()) };
        if let Some(at) = scores.iter().position(|score| score.is_nan()) {
            let why = self.told.as_ref().and_then(|told| told.error());
            return Err(format!(
                "behind layer {layer} the score of its token {} is not a number{}",
                positions[at],
                why.map(|why| format!(" ({why})")).unwrap_or_default()
            ));
        }
        let stays =
            |&i: &u32| self.spec.stays(positions[i as usize], positions.len() as u32, self.prompt_len);
        let (mut kept, mut others): (Vec<u32>, Vec<u32>) = all.partition(stays);
        // Scores are compared as numbers, so that 0 and -0 are equal; equal ones go lowest position first.
        let best = |&a: &u32, &b: &u32| {
            let (x, y) = (scores[a as usize], scores[b as usize]);
            y.partial_cmp(&x).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b))
        };
        let room = count.saturating_sub(kept.len());
        if room < others.len() {
            if room > 0 {
                others.select_nth_unstable_by(room - 1, best);
            }
            others.truncate(room);
        }
        kept.append(&mut others);
        kept.sort_unstable();
        Ok(kept)
    }
}
