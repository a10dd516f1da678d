//! A device runs operations that are data.
//!
//! An architecture writes its step as a list of [`Op`] over buffers of the device, once. *Eager*
//! runs the list; *graph* captures it for a shape and replays it: a CUDA graph on CUDA, an operation
//! tape on the CPU. What changes from step to step (token ids, positions, slots, block tables,
//! lengths) is not in the operations but in the device's persistent [`StepInputs`], so that a
//! captured list stays valid.

use pagedraft_attention::metadata::AttentionMetadata;
use pagedraft_block_manager::BlockCopy;

use serde::Serialize;

use crate::checkpoint::Tensor;
use crate::device_times::DeviceTimes;
use crate::error::ModelError;
use crate::graph::GraphKey;

/// What one step feeds to the model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepInputs {
    /// Token ids, one a token row.
    #[serde(rename = "input_tokens")]
    pub tokens: Vec<u32>,
    /// Position of each token in its sequence (rope), one a token row.
    #[serde(rename = "input_positions")]
    pub positions: Vec<u32>,
    /// The attention call.
    pub metadata: AttentionMetadata,
}

/// Handle of a buffer of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferId(u32);

impl BufferId {
    /// The `index`-th buffer that a device made.
    #[must_use]
    pub fn new(index: usize) -> Self {
        Self(index as u32)
    }

    /// Which of the device's it is, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How exact activations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// In f32 on every device: the residual stream, logits.
    Full,
    /// What goes into matrix products or comes out of them between two layers: a device may keep it in the dtype of the
    /// weights, to which the inputs of a product are rounded anyway.
    Working,
}

/// How the token of a row is chosen from its logits, by a device that [can](Device::chooses): the argmax at temperature 0,
/// else the argmax of filtered logits over temperature plus the noise of (seed, sample, position).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What logits are divided by.
    pub temperature: f32,
    /// Tokens kept at most; 0 is off.
    pub top_k: u32,
    /// Share of the probability that is kept; 1 is off.
    pub top_p: f32,
    /// Least share of the greatest probability that is kept; 0 is off.
    pub min_p: f32,
    /// Key of the noise.
    pub seed: u64,
    /// Which of the request's samples.
    pub sample: u32,
    /// Position of the token that is chosen.
    pub position: u32,
}

/// What [`Device::choose`] gives for a row that nothing can be chosen from: a NaN, plus infinity, or nothing finite.
pub const NO_CHOICE: u32 = u32::MAX;

/// What a matrix product does to the values that its output buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// The result replaces them.
    Store,
    /// The result is added to them, as a residual connection needs.
    Add,
}

/// One operation. `B` is the device's buffer handle; shapes are row-major, `rows` token rows.
///
/// Each is batch-invariant: a row of its output is a function of that row of its inputs alone (and,
/// for attention, of the KV that its sequence may see).
#[derive(Clone, Debug)]
pub enum Op<B> {
    /// `out[r] = table[tokens[r]]`; `table` is `[vocab, width]`.
    Embed {
        /// Embedding matrix.
        table: B,
        /// `[rows, width]`.
        out: B,
        /// Token rows.
        rows: usize,
    },
    /// `out[r] = weight * x[r] / sqrt(mean(x[r]^2) + eps)`.
    RmsNorm {
        /// `[rows, width]`.
        x: B,
        /// `[width]`.
        weight: B,
        /// `[rows, width]`.
        out: B,
        /// Added to the mean square.
        eps: f32,
        /// Token rows.
        rows: usize,
    },
    /// `out[r] (+)= x[r] W^T (+ bias)`; `matrix` is `[n, k]`.
    MatMul {
        /// `[rows, k]`.
        x: B,
        /// Weights.
        matrix: B,
        /// `[n]`.
        bias: Option<B>,
        /// `[rows, n]`.
        out: B,
        /// Store or add.
        into: WriteMode,
        /// Token rows.
        rows: usize,
    },
    /// Splits `qkv`, normalises q and k a head (where weights are given), rotates both by the row's
    /// position, writes q to `q` and k, v to the KV cache at the row's slot.
    RopeAndCache {
        /// `[rows, (heads + 2 kv_heads) head_dim]`: q, k, v.
        qkv: B,
        /// `[head_dim]` weights of the norms of q and k, with their eps.
        qk_norm: Option<(B, B, f32)>,
        /// `[max positions, head_dim]`: cosines, then sines of each position.
        rope: B,
        /// `[rows, heads head_dim]`.
        q: B,
        /// Layer whose cache is written.
        layer: u16,
        /// Token rows.
        rows: usize,
    },
    /// Attention of every row of `q` over the cache of its sequence, as the step's metadata says.
    Attention {
        /// `[rows, heads head_dim]`.
        q: B,
        /// `[rows, heads head_dim]`.
        out: B,
        /// Layer whose cache is read.
        layer: u16,
        /// Token rows.
        rows: usize,
    },
    /// `out[r] = silu(gate[r]) * up[r]`, `x` holding gate then up.
    SwiGlu {
        /// `[rows, 2 width]`.
        x: B,
        /// `[rows, width]`.
        out: B,
        /// Token rows.
        rows: usize,
    },
    /// `out[i] = x[selection[i]]`, the selection being the device's (see [`Device::select`]).
    Gather {
        /// `[.., width]`.
        x: B,
        /// `[rows, width]`.
        out: B,
        /// Rows selected.
        rows: usize,
    },
    /// Copies `rows` rows.
    Copy {
        /// `[rows, width]`.
        x: B,
        /// `[rows, width]`.
        out: B,
        /// Token rows.
        rows: usize,
    },
}

/// Something that holds buffers, weights and KV, and runs operations over them.
pub trait Device {
    /// Handle of a buffer, weights included.
    type Buf: Copy + std::fmt::Debug;
    /// A captured list of operations.
    type Graph;

    /// A buffer of `rows x width` values, zeroed.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn activations(
        &mut self,
        rows: usize,
        width: usize,
        precision: Precision,
    ) -> Result<Self::Buf, ModelError>;

    /// A vector or a small table of f32 (norm weights, biases, rotations).
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn vector(&mut self, values: Vec<f32>) -> Result<Self::Buf, ModelError>;

    /// A weight matrix for [`Op::MatMul`]: the tensors, each `[n_i, k]`, stacked along n and rounded to the
    /// device's dtype.
    ///
    /// # Errors
    ///
    /// Not enough memory, or tensors that do not stack.
    fn matrix(&mut self, stacked: &[Tensor<'_>]) -> Result<Self::Buf, ModelError>;

    /// A matrix whose rows are looked up by [`Op::Embed`].
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn table(&mut self, tensor: &Tensor<'_>) -> Result<Self::Buf, ModelError>;

    /// A tensor as a [`table`](Self::table) and as a [`matrix`](Self::matrix) of its own: one buffer for both where they are
    /// laid out alike.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn table_and_matrix(&mut self, tensor: &Tensor<'_>) -> Result<(Self::Buf, Self::Buf), ModelError> {
        Ok((self.table(tensor)?, self.matrix(std::slice::from_ref(tensor))?))
    }

    /// Puts the step's inputs where the operations read them; for the replay of a graph padded to its key: token 0 at
    /// position 0 in slot -1, sequences of length 0.
    ///
    /// # Errors
    ///
    /// Inputs that are inconsistent, larger than the key, or larger than what the device was built for.
    fn bind(&mut self, inputs: &StepInputs, key: Option<GraphKey>) -> Result<(), ModelError>;

    /// Sets the rows that [`Op::Gather`] takes.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    fn select(&mut self, rows: &[u32]) -> Result<(), ModelError>;

    /// Runs the operations in order, eagerly.
    ///
    /// # Errors
    ///
    /// More rows than a buffer has; a fault of the device; what the buffers then hold is unspecified.
    fn run(&mut self, ops: &[Op<Self::Buf>]) -> Result<(), ModelError>;

    /// Records the operations for later [`replay`](Device::replay)s over the same buffers, with inputs bound for `key`.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    fn capture(&mut self, ops: &[Op<Self::Buf>], key: GraphKey) -> Result<Self::Graph, ModelError>;

    /// Has the KV cache and the buffers of the largest step backed by memory now, where the system would do so when each part
    /// is first written. Contents of the KV cache stay.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn touch(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    /// Memory that a graph takes, in bytes.
    fn graph_bytes(&self, graph: &Self::Graph) -> usize;

    /// Runs a captured list on the inputs bound now.
    ///
    /// # Errors
    ///
    /// A fault of the device, or inputs that were not bound for the graph's key.
    fn replay(&mut self, graph: &Self::Graph) -> Result<(), ModelError>;

    /// The first `rows` rows of a buffer, on the host, row-major.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    fn read(&mut self, buffer: Self::Buf, rows: usize) -> Result<&[f32], ModelError>;

    /// Whether the device chooses tokens itself, so that no logits have to leave it.
    fn chooses(&self) -> bool {
        false
    }

    /// The token of each choice, from row `rows[i]` of `logits`; [`NO_CHOICE`] where there is none. Empty where the device
    /// [does not](Self::chooses).
    ///
    /// # Errors
    ///
    /// More choices than the device was built for, or a fault of the device.
    fn choose(&mut self, logits: Self::Buf, rows: &[u32], choices: &[Choice]) -> Result<&[u32], ModelError> {
        let _ = (logits, rows, choices);
        Ok(&[])
    }

    /// Whether it has a clock of its own, as one has that runs operations after it was called.
    fn has_clock(&self) -> bool {
        false
    }

    /// What each stage of the steps took since this was last asked, by the device's [own clock](Self::has_clock); `None` where it
    /// has none. Waits for what was issued: to be asked between steps, not in them. A fault that it meets is told by the next
    /// [`read`](Self::read).
    fn busy(&mut self) -> Option<DeviceTimes> {
        None
    }

    /// Whether a row's bits are a function of the row, as [operations](Op) promise.
    fn is_deterministic(&self) -> bool {
        true
    }

    /// From now on keeps that promise, or lets the device's libraries choose by the batch how they compute. Graphs compute as
    /// they were captured.
    ///
    /// # Errors
    ///
    /// A device with one way to compute; a library that is not there.
    fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        if yes == self.is_deterministic() {
            return Ok(());
        }
        Err(ModelError::BadInputs { what: "this device computes in one way only".to_owned() })
    }

    /// Copies whole KV blocks, in every layer, before anything of the step is written.
    ///
    /// # Errors
    ///
    /// A block outside the pool.
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError>;
}
