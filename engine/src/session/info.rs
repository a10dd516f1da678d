//! What a session tells about its engine.

use pagedraft_block_manager::Salt;
use pagedraft_model::{CaptureReport, Dtype, Quantization};

use super::placement::InstructionSet;

/// How an engine was built.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The model's name: its directory, or `builtin:NAME`.
    pub model_id: String,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Parameters of the model.
    pub parameters: u64,
    /// The type of weights and KV.
    pub dtype: Dtype,
    /// How the matrices of its layers are quantised.
    pub quantization: Quantization,
    /// The same of the draft model; `None` where no model drafts.
    pub draft_quantization: Option<Quantization>,
    /// The instruction set of the kernels.
    pub isa: InstructionSet,
    /// Why the engine is not on a GPU, if `auto` was asked for.
    pub no_gpu: Option<String>,
    /// Whether results depend on the request alone.
    pub deterministic: bool,
    /// The number of threads of the device.
    pub threads: usize,
    /// The greatest length of a sequence.
    pub max_model_len: u32,
    /// The number of KV blocks in the pool.
    pub num_blocks: u32,
    /// How many tokens a KV block holds.
    pub block_size: u32,
    /// The bytes of a KV block, all layers together.
    pub block_bytes: usize,
    /// The number of KV groups that share the pool, a draft model's included.
    pub kv_groups: usize,
    /// The share of the KV memory that padding behind blocks wastes, if all of it belonged to the group that pads most.
    pub kv_padding_at_worst: f64,
    /// The salt of the hashes of KV blocks: it stands for the model, the dtypes and the KV groups.
    pub kv_salt: Salt,
    /// The tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// The id of the mask, of a model that fills masks in a canvas.
    pub mask_token_id: Option<u32>,
    /// The positions of a block of such a canvas, of a request that does not say.
    pub canvas_block: Option<u32>,
    /// How many layers every token of a canvas runs through, if the others can be skipped.
    pub skip_layers: Option<u16>,
    /// The number of layers of the checkpoint that are left out: those for multi-token prediction.
    pub skipped_layers: usize,
    /// Whether the weights are drawn from a seed.
    pub dummy_weights: bool,
    /// What capturing graphs took, the draft model's included; `None` if every step is eager.
    pub capture: Option<CaptureReport>,
    /// The numbers of token rows that the target's graphs were captured for, in ascending order; empty if
    /// every step is eager.
    pub graph_sizes: Vec<u32>,
}

impl SessionInfo {
    /// The types of weights and KV in words: `bfloat16`, or `bfloat16, weights int8`.
    #[must_use]
    pub fn types(&self) -> String {
        match self.quantization {
            Quantization::None => self.dtype.to_string(),
            quantised => format!("{}, weights {quantised}", self.dtype),
        }
    }
}
