//! Models that are run over a prompt to see which of its tokens are attended to, for pruning.

use std::sync::Arc;

use pagedraft_block_manager::{Arena, BlockSize, GroupId, KvGroup};
use pagedraft_model::checkpoint::Checkpoint;
use pagedraft_model::{AnyArena, Runner, StepLimits, cut};

use super::placement::{Place, Placement};
use crate::error::{Context, ensure};
use crate::prune::{LOOK_AHEAD, LazyProbe, Probe};

/// The most tokens that a probe computes at once.
const TOKEN_ROWS: usize = 1024;

/// A probe of a model, which is loaded, with KV memory for one text of `longest` tokens, when it is first asked.
pub(super) fn probe(
    checkpoint: Checkpoint,
    placement: Placement,
    longest: u32,
    block_size: u32,
) -> Arc<LazyProbe> {
    let make = move || {
        let config = checkpoint.config();
        let plain = config.dsa.is_none() && config.windows.iter().all(Option::is_none);
        ensure!(plain, "it has layers with sparse attention or with a sliding window");
        let tokens = longest + LOOK_AHEAD as u32;
        let num_blocks = tokens.div_ceil(block_size);
        let group = KvGroup::dense(config.num_layers as u16, placement.token_bytes(config)?);
        let plan = Arena::plan(BlockSize::new(block_size)?, num_blocks, &[group])?;
        let arena = AnyArena::new(&plan, None)?;
        let limits = StepLimits {
            token_rows: TOKEN_ROWS.min(tokens as usize),
            logit_rows: 1,
            max_model_len: tokens as usize,
        };
        let place = Place { arena: &arena, groups: &[GroupId(0)], gpu: None, beside: None };
        let mut device = placement.open(config, limits, place)?;
        let model = cut::layerwise(&mut device, &checkpoint, limits)?;
        Probe::new(Runner::with(device, model, limits)?, block_size, num_blocks)
    };
    let named = move || make().context("the model that scores prompts does not load");
    Arc::new(LazyProbe::new(named))
}
