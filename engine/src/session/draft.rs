//! The draft model of an engine: checks that it fits the target, and makes its parts.

use std::sync::Arc;

use pagedraft_block_manager::{GroupId, KvGroup};
use pagedraft_model::checkpoint::Checkpoint;
use pagedraft_model::cuda::{Gpu, MemoryNeed};
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_model::{AnyDevice, CaptureReport, ModelError, Quantization, Runner};
use pagedraft_spec_decode::proposer::{DraftModel, DraftOptions};

use super::checkpoint;
use super::kv_salt::KvModel;
use super::options::{DraftRef, EngineOptions, ModelRef};
use super::placement::{Place, Placement};
use super::probes::probe;
use super::step_limits::{capture_sizes, step_limits};
use crate::error::{Context, Result, ensure};
use crate::prune::LazyProbe;

/// A draft model that fits its target and is not loaded yet.
pub(super) struct DraftParts {
    pub model: ModelRef,
    pub checkpoint: Checkpoint,
}

/// A draft model that fits its target, and where it will run.
pub(super) struct PlacedDraft {
    model: ModelRef,
    checkpoint: Checkpoint,
    placement: Placement,
    block_bytes: u128,
}

impl DraftParts {
    /// Opens the draft model that the options name, if they name one.
    pub fn open(options: &EngineOptions, target: &Checkpoint, max_model_len: u32) -> Result<Option<Self>> {
        let Some(DraftRef::Model(model)) = &options.speculation.draft else { return Ok(None) };
        let checkpoint = checkpoint::open(model, options)?;
        let config = checkpoint.config();
        ensure!(
            config.mask_token_id.is_none(),
            "{model} fills masks in a canvas, and a draft model proposes one token after another: name a causal model"
        );
        check_vocabularies(options, (model, &checkpoint), target)?;
        let longest = config.max_position_embeddings;
        ensure!(
            longest >= max_model_len as usize,
            "the draft {model} goes up to {longest} tokens, the engine up to {max_model_len}: use --max-model-len {longest}, \
             or another draft"
        );
        Ok(Some(Self { model: model.clone(), checkpoint }))
    }

    /// Places the draft model beside its target.
    pub fn place(self, options: &EngineOptions, beside: &Placement) -> Result<PlacedDraft> {
        let Self { model, checkpoint } = self;
        let placement = beside.beside(options, checkpoint.config())?;
        let block_bytes = placement.block_bytes(checkpoint.config())?;
        Ok(PlacedDraft { model, checkpoint, placement, block_bytes })
    }
}

impl PlacedDraft {
    /// The KV group of the draft, which may lag behind the target's. Layers with windows are in it too: one group has one length, which
    /// is how far the draft lags.
    ///
    /// # Errors
    ///
    /// There are no kernels for the dtype or the block size.
    pub fn group(&self, id: GroupId) -> Result<KvGroup> {
        let config = self.checkpoint.config();
        let own = match config.dsa {
            Some(_) => self.placement.kv_groups(config, config.max_position_embeddings)?.into_iter().next(),
            None => None,
        };
        let own = match own {
            Some(own) => own,
            None => {
                let layers = u16::try_from(config.num_layers).unwrap_or(u16::MAX);
                KvGroup::dense(layers, self.placement.token_bytes(config)?)
            }
        };
        let mut group = KvGroup { id, name: "draft".to_owned(), lags: true, ..own };
        let (fingerprint, dtype) = (self.checkpoint.fingerprint(), self.placement.dtype());
        let quantization = self.placement.quantization();
        group.salt = KvModel { fingerprint, dtype, quantization, kv_dtype: dtype }.group_salt(&group);
        Ok(group)
    }

    /// Loads the model beside its target. Returns what capturing its graphs took, too.
    pub fn load(
        &self,
        options: &EngineOptions,
        target: &Runner<AnyDevice>,
        place: Place<'_>,
        max_model_len: u32,
    ) -> Result<(DraftModel<AnyDevice>, Option<CaptureReport>)> {
        let config = self.checkpoint.config();
        let limits = step_limits(options, max_model_len);
        let failed = || format!("the draft model {} does not load", self.model);
        let device = self.placement.open(config, limits, place).with_context(failed)?;
        let mut runner = Runner::load(device, &self.checkpoint, limits).with_context(failed)?;
        let mut capture = None;
        if !options.enforce_eager {
            // A sequence feeds one token, or two if all its drafts were accepted.
            capture = Some(runner.capture(&capture_sizes(options, limits, 2, false))?);
        }
        let group = place.groups.first().copied().unwrap_or_default();
        let draft = DraftModel::new(
            runner,
            DraftOptions {
                group,
                block_size: options.block_size,
                num_blocks: place.arena.plan().group(group).map_or(0, |group| group.num_blocks),
                catch_up_tokens: options.max_num_batched_tokens as usize,
                target_vocab: target.config().vocab_size,
            },
        )?;
        Ok((draft, capture))
    }

    /// The memory of a GPU that the model takes.
    pub fn need(
        &self,
        options: &EngineOptions,
        kv_cache: u64,
        max_model_len: u32,
        gpu: &Gpu,
    ) -> Result<MemoryNeed> {
        let config = self.checkpoint.config();
        let limits = step_limits(options, max_model_len);
        self.placement.need(config, kv_cache, limits, gpu)
    }

    /// A probe of the model, and what stands for its weights.
    pub fn into_probe(self, longest: u32, block_size: u32) -> (Arc<LazyProbe>, String) {
        let mut name = format!("{} {}", self.checkpoint.fingerprint(), self.placement.dtype());
        if self.placement.quantization() != Quantization::None {
            name.push_str(&format!(" {}", self.placement.quantization()));
        }
        (probe(self.checkpoint, self.placement, longest, block_size), name)
    }

    /// How the matrices of the draft model are quantised.
    pub fn quantization(&self) -> Quantization {
        self.placement.quantization()
    }

    /// The bytes of a KV block of the draft model, all layers together.
    pub fn block_bytes(&self) -> u128 {
        self.block_bytes
    }
}

/// If two models without tokenizers differ by at most this many ids, they count as one vocabulary with
/// different padding. Embeddings are padded to a multiple of 1,024 at most.
const MOST_PADDING: usize = 1024;

/// Refuses a draft model whose token ids mean other tokens than the target's. If both models have
/// tokenizers, these decide, and the sizes of the embeddings do not matter: models of one family pad them
/// differently, and no id is proposed that either of them lacks.
fn check_vocabularies(
    options: &EngineOptions,
    (model, draft): (&ModelRef, &Checkpoint),
    target: &Checkpoint,
) -> Result<()> {
    let (own, targets) = (draft.config(), target.config());
    if let (Some(draft), Some(target)) = (tokenizer(draft)?, tokenizer(target)?) {
        ensure!(
            draft.same_vocabulary(&target),
            "the tokenizer of the draft {model} has other tokens than that of the target {} (vocabularies of {} and {}): a \
             draft's token ids must mean the target's tokens, so use a draft of the same family",
            options.model,
            own.vocab_size,
            targets.vocab_size
        );
        return Ok(());
    }
    let padding = own.vocab_size.abs_diff(targets.vocab_size);
    ensure!(
        padding == 0 || own.architecture == targets.architecture && padding <= MOST_PADDING,
        "the draft {model} is a {} with {} tokens, the target {} a {} with {}, and not both have a tokenizer.json that could \
         show that their ids mean the same: use a draft of the same family, or put the tokenizers there",
        own.architecture,
        own.vocab_size,
        options.model,
        targets.architecture,
        targets.vocab_size
    );
    Ok(())
}

/// The tokenizer of a model, if it has one.
fn tokenizer(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>, ModelError> {
    match checkpoint.tokenizer() {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(ModelError::NoTokenizer { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
