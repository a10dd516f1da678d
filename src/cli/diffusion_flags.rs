//! The flags that say how a canvas is denoised.

use anyhow::ensure;
use clap::{Args, ValueEnum};
use pagedraft::session::{
    Decoder, Diffusion, DiffusionFault, DiffusionOptions, DiffusionOutput, RequestOutput, SkipLayers,
};
use pagedraft_spec_decode::{Guard, Remasking, SkipPolicy, SkipStates};

use super::engine_flags::note;

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum RemaskingName {
    /// The most probable tokens first
    #[default]
    LowConfidence,
    /// Masks in a drawn order
    Random,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum GuardName {
    /// They run through all layers all the same
    #[default]
    Guard,
    /// They skip the later layers, and are filled by their last choice
    Reuse,
    /// They skip the later layers, and can't be filled: blocks may end with masks
    None,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum StatesName {
    /// The outputs of the layers 1 to K - 1
    #[default]
    Out,
    /// Their inputs
    In,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum PolicyName {
    /// The cosine between the states of two passes is above --skip-threshold on average, and at least --skip-outlier in each layer
    #[default]
    Cosine,
    /// This share (--skip-threshold) of the block's tokens, those whose states changed the least since they last ran through all layers
    LeastMoved,
    /// This share (--skip-threshold) of the block's filled tokens, those around which the least was filled since they last ran through all
    /// layers. Masks are never stable, and no states are compared, so that --skip-layer-k may be 1
    Settled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compat {
    /// A block that its first pass fills gets another pass, as in Fast-dLLM
    FastDllm,
    /// The second pass of a block is not compared with the first one, as in the first program with token skip
    TokenSkip,
}

/// How the canvas of a model that fills masks is denoised.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Block diffusion")]
pub struct DiffusionFlags {
    /// Which positions each pass computes (a model that fills masks; default dual-cache)
    #[arg(long, value_enum)]
    decoder: Option<Decoder>,
    /// Tokens a block
    #[arg(long, value_name = "B", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    block_length: u32,
    /// Passes over all blocks together, where there is no --threshold (default: one a token)
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Fill every mask whose token is at least so probable, and always one
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    threshold: Option<f64>,
    /// Which masks are filled first
    #[arg(long, value_enum, default_value_t)]
    remasking: RemaskingName,
    /// Layers that every token of a block runs through (dual-cache-skip; default: half of them)
    #[arg(long, value_name = "K")]
    skip_layer_k: Option<u16>,
    /// When a token is stable; see --skip-policy
    #[arg(long, value_name = "X", default_value_t = 0.98, allow_negative_numbers = true)]
    skip_threshold: f64,
    /// The least cosine in any layer at which a token is stable
    #[arg(long, value_name = "X", default_value_t = 0.7, allow_negative_numbers = true)]
    skip_outlier: f64,
    /// What happens to masks that are judged stable
    #[arg(long, value_enum, default_value_t)]
    skip_guard: GuardName,
    /// Which states are compared
    #[arg(long, value_enum, default_value_t)]
    skip_states: StatesName,
    /// Which tokens are stable
    #[arg(long, value_enum, default_value_t)]
    skip_policy: PolicyName,
    /// Fail if the diagnosis warns: masks are left, or all tokens of a block with masks skipped layers
    #[arg(long)]
    strict: bool,
    /// Do as another program did
    #[arg(long, value_enum)]
    compat: Vec<Compat>,
    /// Add every pass to the output
    #[arg(long)]
    return_steps: bool,
}

/// The blocks and passes of some faults, the first ones by name.
fn places(canvas: &DiffusionOutput, of: impl Fn(&DiffusionFault) -> bool) -> String {
    const NAMED: usize = 4;
    let found: Vec<&DiffusionFault> = canvas.diagnosis.iter().filter(|fault| of(fault)).collect();
    let named = found.iter().take(NAMED).map(|fault| format!("block {} pass {}", fault.block, fault.step));
    let more = found.len().saturating_sub(NAMED);
    let more = (more > 0).then(|| format!("and {more} more"));
    named.chain(more).collect::<Vec<_>>().join(", ")
}

impl DiffusionFlags {
    /// The engine's options.
    pub fn options(&self) -> DiffusionOptions {
        DiffusionOptions {
            all: self.diffusion(),
            skip_layers: self.skip_layers(),
            required: self.decoder.is_some(),
        }
    }

    /// The layers that every token runs through.
    fn skip_layers(&self) -> SkipLayers {
        match (self.decoder, self.skip_layer_k) {
            (Some(Decoder::DualCacheSkip), Some(layers)) => SkipLayers::Behind(layers),
            (Some(Decoder::DualCacheSkip), None) => SkipLayers::BehindHalf,
            _ => SkipLayers::Never,
        }
    }

    fn diffusion(&self) -> Diffusion {
        Diffusion {
            decoder: self.decoder.unwrap_or_default(),
            block_length: self.block_length,
            steps: self.steps,
            threshold: self.threshold,
            remasking: match self.remasking {
                RemaskingName::LowConfidence => Remasking::LowConfidence,
                RemaskingName::Random => Remasking::Random,
            },
            skip_policy: match self.skip_policy {
                PolicyName::Cosine => {
                    SkipPolicy::Cosine { threshold: self.skip_threshold, outlier: self.skip_outlier }
                }
                PolicyName::LeastMoved => SkipPolicy::LeastMoved { share: self.skip_threshold },
                PolicyName::Settled => SkipPolicy::Settled { share: self.skip_threshold },
            },
            skip_states: match self.skip_states {
                StatesName::Out => SkipStates::Out,
                StatesName::In => SkipStates::In,
            },
            skip_guard: match self.skip_guard {
                GuardName::Guard => Guard::Guard,
                GuardName::Reuse => Guard::Reuse,
                GuardName::None => Guard::None,
            },
            compares_first: !self.compat.contains(&Compat::TokenSkip),
            extra_pass: self.compat.contains(&Compat::FastDllm),
            return_steps: self.return_steps,
            ..Diffusion::default()
        }
    }

    /// Tells what went wrong with canvases, on standard error.
    ///
    /// # Errors
    ///
    /// Something did, and --strict was given.
    pub fn diagnose(&self, outputs: &[RequestOutput]) -> anyhow::Result<()> {
        let mut warned = 0;
        for output in outputs {
            let Some(canvas) = &output.diffusion else { continue };
            let name = &output.request_id;
            let mut warn = |text: String| {
                warned += 1;
                note(&format!("request {name:?}: {text}"));
            };
            if canvas.masks_left > 0 {
                warn(format!(
                    "{} masks are left of {} tokens ({}): masks that were judged stable were not filled, because --skip-guard is none",
                    canvas.masks_left,
                    output.token_ids.len(),
                    places(canvas, |fault| fault.masks_left > 0)
                ));
            }
            let aside: u32 = canvas.diagnosis.iter().map(|fault| fault.stable_masks).sum();
            if aside > 0 {
                warn(format!(
                    "{aside} times a mask was judged stable and had no choice ({}): --skip-guard guard lets it run through all layers",
                    places(canvas, |fault| fault.stable_masks > 0)
                ));
            }
            if canvas.passes_all_stable > 0 {
                warn(format!(
                    "in {} of {} passes every token of a block skipped the later layers while masks were left ({}): --skip-threshold is too low",
                    canvas.passes_all_stable,
                    canvas.nfe,
                    places(canvas, |fault| fault.all_stable)
                ));
            }
            if canvas.watchdog_passes > 0 {
                warn(format!(
                    "{} passes filled nothing and were followed by a full one",
                    canvas.watchdog_passes
                ));
            }
        }
        ensure!(warned == 0 || !self.strict, "--strict: the diagnosis has {warned} warnings");
        Ok(())
    }
}
