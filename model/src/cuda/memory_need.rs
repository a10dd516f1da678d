//! Computes how much of a GPU's memory a model takes, before any of it is allocated.

use super::attention_work::AttentionWork;
use super::blas;
use super::choice_table::ChoiceTable;
use super::error::CudaError;
use super::inputs::InputLayout;
use super::options::CudaOptions;
use super::workspace::Workspace;
use crate::checkpoint::ModelConfig;

/// The bytes that a model takes on a device, not counting its graphs, the code of its kernels, and what the driver adds by
/// rounding each piece up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// The bytes of its weights.
    pub weights: u64,
    /// The bytes of its KV arena.
    pub kv_cache: u64,
    /// The bytes of the buffers of a step.
    pub step: u64,
}

impl MemoryNeed {
    /// The need of a model on a device with these options, on a GPU of `multiprocessors`. `kv_cache` is the number of bytes
    /// of its KV arena, which is 0 for a second model in the arena of the first.
    ///
    /// # Errors
    ///
    /// There are no kernels for the model or the dtype.
    pub fn of(
        config: &ModelConfig,
        options: &CudaOptions,
        kv_cache: u64,
        multiprocessors: u32,
    ) -> Result<Self, CudaError> {
        let c = config;
        let (full, working) = (size_of::<f32>() as u64, options.dtype.size() as u64);
        let of_tensor = |shape: &[usize]| {
            let values: u64 = shape.iter().map(|&n| n as u64).product();
            values * if shape.len() == 1 { full } else { working }
        };
        // A tied embedding is counted once.
        let tensors: u64 = c.tensors().iter().map(|(_, shape)| of_tensor(shape)).sum();
        let rotations = options.max_model_len as u64 * c.head_dim as u64 * full;

        let (hidden, inner) = (c.hidden_size as u64, c.intermediate_size as u64);
        let (q, qkv) = (c.q_size() as u64, c.q_size() as u64 + 2 * c.kv_size() as u64);
        let row = hidden * full + (hidden + qkv + 2 * q + 3 * inner) * working;
        let logit_row = hidden * (full + working) + c.vocab_size as u64 * full;
        // The memory of a step does not depend on the number of blocks.
        let work = AttentionWork::of(c, options, 0, multiprocessors)?;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let weights = [
            (c.q_size() + 2 * c.kv_size(), hidden),
            (hidden, c.q_size()),
            (2 * inner, hidden),
            (hidden, inner),
            (c.vocab_size, hidden),
        ];
        let shared = Workspace::of(&work, options, multiprocessors, weights.into_iter());
        let words = InputLayout::of(options, &work).words()
            + options.most_rows()
            + ChoiceTable::new(options.logit_rows).words()
            + shared.values
            + shared.counters;
        let library = if options.deterministic { 0 } else { blas::WORKSPACE as u64 };
        let step = options.token_rows as u64 * row
            + options.logit_rows as u64 * logit_row
            + (words * size_of::<u32>()) as u64
            + library;
        Ok(Self { weights: tensors + rotations, kv_cache, step })
    }

    /// The bytes of all parts together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.kv_cache + self.step
    }
}
