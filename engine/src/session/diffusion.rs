//! Requests whose output is a canvas that is denoised block by block.

use std::fmt;
use std::sync::Arc;

use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_scheduler::Canvas;
use pagedraft_spec_decode::{
    CanvasPass, Denoising, ForcedPass, Guard, Remasking, Skip, SkipPolicy, SkipStates,
};
use serde::Serialize;

use super::options::{EngineOptions, SkipLayers};
use super::request::{Request, RequestPrune};
use crate::error::{EngineError, Result, bail, ensure};

/// Which positions a pass computes, and where later layers may be skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Decoder {
    /// All of prompt and canvas, in every pass.
    Baseline,
    /// All in the first pass of a block; then the block and what is behind it.
    PrefixCache,
    /// All in the first pass of a block; then the block alone.
    #[default]
    DualCache,
    /// The same, and tokens of the block that hardly change skip the later layers.
    DualCacheSkip,
}

impl fmt::Display for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Baseline => "baseline",
            Self::PrefixCache => "prefix-cache",
            Self::DualCache => "dual-cache",
            Self::DualCacheSkip => "dual-cache-skip",
        })
    }
}

/// How a request's canvas is denoised. The length of the canvas is the request's `max_tokens`.
#[derive(Clone, Debug, PartialEq)]
pub struct Diffusion {
    /// Which positions a pass computes.
    pub decoder: Decoder,
    /// The positions of a block.
    pub block_length: u32,
    /// The passes over all blocks together, if there is no threshold; by default one a token.
    pub steps: Option<u32>,
    /// If given, a pass fills every mask whose token is at least so probable, and always the most certain one.
    pub threshold: Option<f64>,
    /// Which masks are filled first.
    pub remasking: Remasking,
    /// Which tokens are stable, with [`Decoder::DualCacheSkip`].
    pub skip_policy: SkipPolicy,
    /// Which states are compared for that.
    pub skip_states: SkipStates,
    /// What happens to masks that are judged stable.
    pub skip_guard: Guard,
    /// Whether the second pass of a block is compared with the first one.
    pub compares_first: bool,
    /// Whether a block that its first pass fills gets another pass all the same.
    pub extra_pass: bool,
    /// Whether the output has every pass.
    pub return_steps: bool,
    /// The ids that the canvas begins with, one a position, the mask's id where a token is asked for; empty if that is everywhere. A block
    /// without masks still takes a pass.
    pub given: Arc<[u32]>,
    /// Passes whose fills were decided beforehand, for comparisons of what passes *would* fill.
    pub forced: Arc<[ForcedPass]>,
    /// Whether each pass of the output says what it would have filled every mask with.
    pub return_choices: bool,
}

impl Default for Diffusion {
    /// Blocks of 32 with both caches, a token a pass, and no layers skipped.
    fn default() -> Self {
        Self {
            decoder: Decoder::default(),
            block_length: 32,
            steps: None,
            threshold: None,
            remasking: Remasking::default(),
            skip_policy: SkipPolicy::Cosine { threshold: 0.98, outlier: 0.7 },
            skip_states: SkipStates::default(),
            skip_guard: Guard::default(),
            compares_first: true,
            extra_pass: false,
            return_steps: false,
            given: Arc::default(),
            forced: Arc::default(),
            return_choices: false,
        }
    }
}

/// A pass over a canvas, as the output of its request has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiffusionStep {
    /// The block, counted from 0.
    pub block: u32,
    /// The pass over this block, counted from 0.
    pub step: u32,
    /// The number of positions that were computed.
    pub rows: u32,
    /// The first of them.
    pub offset: u32,
    /// The number of masks that could have been filled.
    pub masked_before: u32,
    /// The number of the block's tokens that skipped the later layers.
    pub stable: u32,
    /// The number of the block's tokens that ran through all layers.
    pub active: u32,
    /// The number of masks that were judged stable.
    pub masked_stable: u32,
    /// The positions that were filled, ascending.
    pub pos: Vec<u32>,
    /// Their tokens.
    pub tok: Vec<u32>,
    /// What each mask would have been filled with: positions, ascending, each with its token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<(u32, u32)>,
}

/// What went wrong in a pass over a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DiffusionFault {
    /// The block, counted from 0.
    pub block: u32,
    /// The pass over this block, counted from 0.
    pub step: u32,
    /// The number of masks that were left in the block when it ended with this pass. The first pass of a later block may still fill some.
    pub masks_left: u32,
    /// The number of masks that had no choice in this pass, because they were judged stable.
    pub stable_masks: u32,
    /// Whether every token of the block was judged stable although there were masks.
    pub all_stable: bool,
}

impl DiffusionFault {
    /// What went wrong in a pass, if anything did.
    fn of(pass: &CanvasPass) -> Option<Self> {
        let fault = Self {
            block: pass.block,
            step: pass.step,
            masks_left: if pass.ends { pass.masks_left } else { 0 },
            stable_masks: pass.left_aside,
            all_stable: pass.is_all_stable(),
        };
        (fault.masks_left > 0 || fault.stable_masks > 0 || fault.all_stable).then_some(fault)
    }
}

/// What became of a canvas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiffusionOutput {
    /// The number of passes. Those of a block that was begun again after a preemption count once.
    pub nfe: u32,
    /// The number of masks that are left.
    pub masks_left: u32,
    /// The sum over all passes and layers of the tokens that ran through.
    pub token_layers: u64,
    /// The number of passes that could fill nothing and were followed by a full one.
    pub watchdog_passes: u32,
    /// The number of passes in which a mask was judged stable.
    pub passes_with_stable_masks: u32,
    /// The number of passes in which all tokens of the block skipped the later layers and masks were left.
    pub passes_all_stable: u32,
    /// The passes in which something went wrong.
    pub diagnosis: Vec<DiffusionFault>,
    /// Every pass, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<DiffusionStep>>,
}

/// The canvas of one sample.
#[derive(Clone, Debug)]
pub(super) struct CanvasOutput {
    prompt_len: u32,
    mask: u32,
    /// The ids that it began with.
    began: Vec<u32>,
    passes: Vec<CanvasPass>,
    return_steps: bool,
}

impl CanvasOutput {
    /// Takes in a pass. If a block is begun again, what was known of its passes is dropped.
    pub fn take(&mut self, pass: &CanvasPass) {
        if pass.step == 0 {
            self.passes.retain(|known| known.block < pass.block);
        }
        self.passes.push(pass.clone());
    }

    /// The ids of the canvas.
    pub fn ids(&self) -> Vec<u32> {
        let mut ids = self.began.clone();
        for (&position, &token) in self.passes.iter().flat_map(|pass| pass.pos.iter().zip(&pass.tok)) {
            if let Some(id) = ids.get_mut((position - self.prompt_len) as usize) {
                *id = token;
            }
        }
        ids
    }

    /// What became of it so far.
    pub fn output(&self) -> DiffusionOutput {
        let count = |of: &dyn Fn(&&CanvasPass) -> bool| self.passes.iter().filter(of).count() as u32;
        let step = |pass: &CanvasPass| DiffusionStep {
            block: pass.block,
            step: pass.step,
            rows: pass.rows,
            offset: pass.offset,
            masked_before: pass.masked_before,
            stable: pass.stable,
            active: pass.active,
            masked_stable: pass.masked_stable,
            pos: pass.pos.clone(),
            tok: pass.tok.clone(),
            choices: pass.choices.clone(),
        };
        DiffusionOutput {
            nfe: self.passes.len() as u32,
            masks_left: self.ids().iter().filter(|&&id| id == self.mask).count() as u32,
            token_layers: self.passes.iter().map(|pass| pass.token_layers).sum(),
            watchdog_passes: count(&|pass| pass.watchdog),
            passes_with_stable_masks: count(&|pass| pass.masked_stable > 0),
            passes_all_stable: count(&|pass| pass.is_all_stable()),
            diagnosis: self.passes.iter().filter_map(DiffusionFault::of).collect(),
            steps: self.return_steps.then(|| self.passes.iter().map(step).collect()),
        }
    }
}

impl Diffusion {
    /// The canvas that the scheduler is asked for.
    pub(super) fn canvas(&self, len: u32) -> Canvas {
        Canvas { len, block: self.block_length, suffix: self.decoder == Decoder::PrefixCache }
    }

    /// The canvas of a sample before its first pass.
    pub(super) fn empty_output(&self, prompt_len: u32, len: u32, mask: u32) -> CanvasOutput {
        let mut began = self.given.to_vec();
        began.resize(len as usize, mask);
        CanvasOutput { prompt_len, mask, began, passes: Vec::new(), return_steps: self.return_steps }
    }

    /// What the executor is told. The model is cut behind `skip_layers` layers if they can be skipped.
    pub(super) fn denoising(&self, len: u32, mask: u32, skip_layers: Option<u16>) -> Denoising {
        let blocks = (len / self.block_length.max(1)).max(1);
        Denoising {
            len,
            block: self.block_length,
            passes: (self.steps.unwrap_or(len) / blocks).max(1),
            threshold: self.threshold,
            remasking: self.remasking,
            mask,
            always_full: self.decoder == Decoder::Baseline,
            extra_pass: self.extra_pass,
            skip: skip_layers.filter(|_| self.decoder == Decoder::DualCacheSkip).map(|layers| Skip {
                layers,
                states: self.skip_states,
                policy: self.skip_policy,
                guard: self.skip_guard,
                compares_first: self.compares_first,
            }),
            given: self.given.clone(),
            forced: self.forced.clone(),
            keep_choices: self.return_choices,
        }
    }

    fn check(&self, len: u32, mask: u32, vocab: usize) -> Result<()> {
        ensure!(
            self.given.is_empty() || self.given.len() == len as usize,
            "{} ids are given for a canvas of {len} tokens: give one for each position, the mask's where a token is asked for",
            self.given.len()
        );
        let forced = self.forced.iter().flat_map(|pass| pass.fills.iter().map(|&(_, token)| token));
        if let Some(bad) = self.given.iter().copied().find(|&id| id as usize >= vocab) {
            bail!("the canvas begins with the token id {bad}, and the model's ids are below {vocab}");
        }
        if let Some(bad) = forced.into_iter().find(|&id| id as usize >= vocab || id == mask) {
            bail!(
                "a pass is made to fill in the token id {bad}: give ids below {vocab} that are not the mask's, {mask}"
            );
        }
        let block = self.block_length;
        ensure!(
            block > 0 && len.is_multiple_of(block),
            "{len} tokens (--gen-length, max_tokens) are not a multiple of --block-length {block}: the canvas consists of whole blocks"
        );
        let blocks = len / block;
        if let Some(steps) = self.steps.filter(|_| self.threshold.is_none()) {
            ensure!(
                steps >= blocks && steps.is_multiple_of(blocks),
                "--steps {steps} cannot be shared out evenly among {blocks} blocks: give a multiple of {blocks}, or --threshold"
            );
        }
        let finite = |what: &str, value: f64| {
            ensure!(value.is_finite(), "{what} {value} is not a finite number");
            Ok(())
        };
        if let Some(threshold) = self.threshold {
            finite("--threshold", threshold)?;
        }
        match self.skip_policy {
            SkipPolicy::Cosine { threshold, outlier } => {
                finite("--skip-threshold", threshold)?;
                finite("--skip-outlier", outlier)
            }
            SkipPolicy::LeastMoved { share } => {
                ensure!(
                    (0.0..=1.0).contains(&share),
                    "--skip-threshold {share}: with --skip-policy least-moved it is the share of a block's tokens that skip layers, from 0 to 1"
                );
                Ok(())
            }
            SkipPolicy::Settled { share } => {
                ensure!(
                    (0.0..=1.0).contains(&share),
                    "--skip-threshold {share}: with --skip-policy settled it is the share of a block's filled tokens that skip layers, from 0 to 1"
                );
                Ok(())
            }
        }
    }
}

/// The layers behind which the model is cut so that tokens can skip the later ones: one or none.
///
/// # Errors
///
/// The model does not denoise, or has fewer layers.
pub(super) fn cuts(options: &EngineOptions, config: &ModelConfig) -> Result<Vec<u16>> {
    let all = config.num_layers as u16;
    let Some(layers) = options.diffusion.skip_layers.of(all) else { return Ok(Vec::new()) };
    if layers > all {
        return Err(EngineError::input(format!("--skip-layer-k {layers}: the model has {all} layers")));
    }
    Ok(layers.checked_sub(1).filter(|_| layers < all).into_iter().collect())
}

/// Refuses what an engine of a model that denoises cannot do.
///
/// # Errors
///
/// Names the option.
pub(super) fn check_options(options: &EngineOptions, config: &ModelConfig) -> Result<()> {
    if config.mask_token_id.is_none() {
        ensure_no_canvas(options)?;
        return Ok(());
    }
    let refused = [
        (
            options.speculation.draft.is_some(),
            "--draft",
            "the tokens of a canvas are not proposed one after another",
        ),
        (
            options.prune != super::PruneOptions::default(),
            "--prune-spec and --prune-layers",
            "every token of the prompt is seen by the canvas",
        ),
        (options.shadow_rate > 0.0, "--shadow-rate", "passes over canvases are not shadowed"),
    ];
    match refused.into_iter().find(|(asked, ..)| *asked) {
        None => Ok(()),
        Some((_, flag, why)) => {
            let error = format!("{flag}: {} fills masks in a canvas, and {why}", options.model);
            Err(EngineError::input_hint(error, "leave it out"))
        }
    }
}

fn ensure_no_canvas(options: &EngineOptions) -> Result<()> {
    if options.diffusion.required || options.diffusion.skip_layers != SkipLayers::Never {
        let (decoder, model) = (options.diffusion.all.decoder, &options.model);
        return Err(EngineError::input(format!(
            "--decoder {decoder}: {model} is a causal model and has no canvas; use a model of model_type llada, such as builtin:llada"
        )));
    }
    Ok(())
}

/// Refuses a request that does not fit the kind of model.
///
/// # Errors
///
/// Says what is asked for in vain.
pub(super) fn check_request(
    request: &Request,
    mask: Option<u32>,
    skip_layers: Option<u16>,
    vocab: usize,
) -> Result<()> {
    let (mask, diffusion) = match (mask, &request.diffusion) {
        (None, None) => return Ok(()),
        (None, Some(diffusion)) => bail!(
            "--decoder {}: the model is causal and has no canvas; use a model of model_type llada, such as builtin:llada",
            diffusion.decoder
        ),
        (Some(_), None) => bail!("the model fills masks in a canvas, and nobody says how"),
        (Some(mask), Some(diffusion)) => (mask, diffusion),
    };
    diffusion.check(request.max_tokens, mask, vocab)?;
    ensure!(
        diffusion.decoder != Decoder::DualCacheSkip || skip_layers.is_some(),
        "--decoder dual-cache-skip: the engine was not opened for it, so its model is not cut"
    );
    if let Some(at) = request.prompt.iter().position(|&token| token == mask) {
        bail!(
            "token {at} of the prompt is the mask (id {mask}), which stands for what is not known yet: a prompt has only known tokens"
        );
    }
    let sampling = &request.sampling;
    let refused = [
        (
            sampling.logprobs.is_some(),
            "logprobs",
            "a token is chosen among masks, not by one distribution after another",
        ),
        (sampling.prompt_logprobs.is_some(), "prompt_logprobs", "the model does not predict the prompt"),
        (!sampling.keeps_all(), "top_k, top_p and min_p", "all tokens of the vocabulary are candidates"),
        (!request.stop.is_empty(), "stop", "a canvas is not written from left to right"),
        (!request.stop_token_ids.is_empty(), "stop_token_ids", "a canvas is always filled to its end"),
        (request.return_indexer_topk, "return_indexer_topk", "nothing chooses keys"),
        (
            matches!(request.prune, RequestPrune::Choice(_)),
            "prune",
            "every token of the prompt is seen by the canvas",
        ),
    ];
    match refused.into_iter().find(|(asked, ..)| *asked) {
        None => Ok(()),
        Some((_, field, why)) => bail!("{field} means nothing for a model that fills masks: {why}"),
    }
}
