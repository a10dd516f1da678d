//! The draft model of an engine: whether it goes with the target, and its parts.

use anyhow::{Context, ensure};
use pagedraft_attention::KvLayout;
use pagedraft_model::Dtype;
use pagedraft_model::checkpoint::Checkpoint;
use pagedraft_model::cpu::CpuDevice;

use super::load;
use super::options::{DraftRef, EngineOptions, ModelRef};

/// A draft model that was checked against its target, not loaded yet.
pub(super) struct DraftParts {
    pub model: ModelRef,
    pub checkpoint: Checkpoint,
    pub dtype: Dtype,
    pub layout: KvLayout,
}

impl DraftParts {
    /// The draft model that the options name, if they name one.
    pub fn open(
        options: &EngineOptions,
        target: &Checkpoint,
        max_model_len: u32,
    ) -> anyhow::Result<Option<Self>> {
        let Some(DraftRef::Model(model)) = &options.speculation.draft else { return Ok(None) };
        let checkpoint = load::checkpoint(model, options).context("--draft")?;
        let config = checkpoint.config();
        let (own, targets) = (config.vocab_size, target.config().vocab_size);
        ensure!(
            own == targets,
            "the draft {model} has a vocabulary of {own} tokens, the target {} one of {targets}: a draft's token ids must mean \
             the target's tokens, so use a draft of the same family",
            options.model
        );
        if let (Ok(a), Ok(b)) = (checkpoint.tokenizer(), target.tokenizer()) {
            ensure!(
                a.same_vocabulary(&b),
                "the draft {model} and the target {} have vocabularies of one size, but of other tokens: use a draft of the \
                 same family",
                options.model
            );
        }
        let longest = config.max_position_embeddings;
        ensure!(
            longest >= max_model_len as usize,
            "the draft {model} goes up to {longest} tokens, the engine up to {max_model_len}: use --max-model-len {longest}, \
             or another draft"
        );
        let dtype = options.dtype.unwrap_or(config.torch_dtype);
        let layout = CpuDevice::kv_layout(config, dtype, options.block_size)?;
        Ok(Some(Self { model: model.clone(), checkpoint, dtype, layout }))
    }

    /// Bytes of a KV block of the draft, all layers together.
    pub fn block_bytes(&self) -> u128 {
        self.layout.block_bytes() as u128 * self.checkpoint.config().num_layers as u128
    }
}
