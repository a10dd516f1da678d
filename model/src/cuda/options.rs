//! The options of a device on a GPU.

use super::error::CudaError;
use crate::checkpoint::{Dtype, ModelConfig};

/// The type that keys and values are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvStorage {
    /// The type of the weights.
    #[default]
    Model,
    /// Numbers of 8 bits (e4m3), with an f32 scale for each token and head.
    Fp8,
}

/// The options of a device on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// The type of the weights and of the operands of matrix products: bfloat16 or float16.
    pub dtype: Dtype,
    /// The type of keys and values.
    pub kv: KvStorage,
    /// The number of tokens per KV block.
    pub block_size: u32,
    /// The greatest number of token rows in a step.
    pub token_rows: usize,
    /// The greatest number of rows whose logits are computed at a time.
    pub logit_rows: usize,
    /// The greatest number of positions of a sequence.
    pub max_model_len: usize,
    /// Whether a row's bits are a function of the row alone. If not, products are computed by cuBLASLt.
    pub deterministic: bool,
    /// Whether a kernel is set up while the one before it still runs (sm_90 and newer).
    pub overlap: bool,
}

impl CudaOptions {
    /// The greatest number of rows that can be selected, and for which products have a workspace.
    #[must_use]
    pub fn most_rows(&self) -> usize {
        self.token_rows.max(self.logit_rows)
    }
}

/// The bytes of one layer's part of a KV block: the keys and values of each head, then the scales of both.
#[must_use]
pub fn part_bytes(config: &ModelConfig, dtype: Dtype, kv: KvStorage, block_size: u32) -> usize {
    let (element, scales) = match kv {
        KvStorage::Model => (dtype.size(), 0),
        KvStorage::Fp8 => (1, 2 * size_of::<f32>()),
    };
    config.num_kv_heads * block_size as usize * (2 * config.head_dim * element + scales)
}

/// The most tokens that a vocabulary may have, because top-p adds up their weights in 64 bits.
const MOST_TOKENS: usize = 1 << 18;

/// Refuses options for which there are no kernels, in an engine for sequences of up to `max_model_len` positions.
///
/// # Errors
///
/// The error says what was asked for, and what there are kernels for.
pub fn check(
    config: &ModelConfig,
    dtype: Dtype,
    block_size: u32,
    max_model_len: usize,
) -> Result<(), CudaError> {
    let refuse = |what: String| Err(CudaError::Unsupported { what });
    if config.dsa.is_some() {
        return refuse(format!(
            "the model is a {}; there are no CUDA kernels for sparse attention over latents: use --device cpu",
            config.architecture
        ));
    }
    let windows = config.windows.iter().flatten().copied();
    if let Some(window) = windows.filter(|&w| (w as usize) < max_model_len).min() {
        return refuse(format!(
            "the model has layers with a sliding window of {window} tokens; the CUDA kernels have no windows: use --device cpu, \
             or --max-model-len {window}"
        ));
    }
    if dtype == Dtype::F32 {
        return refuse(
            "--device cuda computes in bfloat16 or float16, not in float32: use --dtype".to_owned(),
        );
    }
    if !matches!(block_size, 16 | 32 | 64) {
        return refuse(format!("KV blocks of {block_size} tokens: there are kernels for 16, 32 and 64"));
    }
    let (heads, kv_heads, d) = (config.num_heads, config.num_kv_heads, config.head_dim);
    if !d.is_multiple_of(16) || d > 128 {
        return refuse(format!(
            "the model has heads of {d} values; the CUDA kernels are made for multiples of 16 up to 128: use --device cpu"
        ));
    }
    if !heads.is_multiple_of(kv_heads) || heads / kv_heads > 16 {
        return refuse(format!(
            "the model has {heads} query heads for {kv_heads} key heads; the CUDA kernels are made for up to 16 to one: use \
             --device cpu"
        ));
    }
    if config.vocab_size > MOST_TOKENS {
        return refuse(format!(
            "the model's vocab_size is {}; the CUDA kernels are made for up to {MOST_TOKENS}: use --device cpu",
            config.vocab_size
        ));
    }
    for (name, width) in [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("vocab_size", config.vocab_size),
    ] {
        // The head's output is f32, of which four are written at once. Rows of other widths are copied in groups of eight
        // values.
        let multiple = if name == "vocab_size" { 4 } else { 8 };
        if !width.is_multiple_of(multiple) {
            return refuse(format!(
                "the model's {name} is {width}; the CUDA kernels need a multiple of {multiple}: use --device cpu"
            ));
        }
    }
    Ok(())
}
