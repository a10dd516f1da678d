//! A device runs operations that are data.
//!
//! An architecture writes each segment of its step as a list of [`Op`] over buffers of the device. An *eager* step runs the
//! list. A *graph* captures the list for a shape and replays it later: it is a CUDA graph on CUDA, and a tape of operations
//! on the CPU. What changes from step to step (token ids, positions, slots, block tables, lengths) is not in the operations
//! but in the device's persistent [`StepInputs`], so that a captured list stays valid.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pagedraft_attention::mass::MassOver;
use pagedraft_attention::sparse::{ChosenScores, IndexShape, KeepScores};
use pagedraft_block_manager::{BlockCopy, BlockId, KvGroup};

use crate::checkpoint::Tensor;
use crate::choice::Choice;
use crate::device_times::DeviceTimes;
use crate::dsa::{FillMatrices, MatrixStack, SparseOp};
use crate::error::ModelError;
use crate::graph::GraphKey;
use crate::kv::{KvRef, KvRows, PartShape};
use crate::step_inputs::StepInputs;
use crate::tiers::Tiers;

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
    /// An activation inside a layer. The device may store it in the weights' dtype, because the matrix product that reads it
    /// rounds its inputs to that dtype anyway.
    Working,
}

/// Where the result of a matrix product goes.
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
    /// position, writes q to `q` and k, v to the KV cache at the row's slot in the group.
    RopeAndCache {
        /// `[rows, (heads + 2 kv_heads) head_dim]`: q, k, v.
        qkv: B,
        /// `[head_dim]` weights of the norms of q and k, with their eps.
        qk_norm: Option<(B, B, f32)>,
        /// `[max positions, head_dim]`: cosines, then sines of each position.
        rope: B,
        /// `[rows, heads head_dim]`.
        q: B,
        /// The keys and values that are written.
        kv: KvRef,
        /// Token rows.
        rows: usize,
    },
    /// Attention of every row of `q` over the cache of its sequence, as the step's metadata of the group says.
    Attention {
        /// `[rows, heads head_dim]`.
        q: B,
        /// `[rows, heads head_dim]`.
        out: B,
        /// The keys and values that are read.
        kv: KvRef,
        /// What products of queries and keys are multiplied by.
        scale: f32,
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
    /// Copies rows of `x` into the slots of a part that holds [rows](PartShape::Rows), so that a later step can
    /// [fetch](Op::Fetch) them. A row whose slot is -1 is not held.
    Hold {
        /// `[rows, width]`, in f32.
        x: B,
        /// The rows that are written.
        kv: KvRef,
        /// Token rows.
        rows: usize,
    },
    /// Copies rows that an earlier step [held](Op::Hold) back into `x`. A row whose slot is -1 stays as it is.
    Fetch {
        /// `[rows, width]`, in f32.
        x: B,
        /// The rows that are read.
        kv: KvRef,
        /// Token rows.
        rows: usize,
    },
    /// An operation of sparse attention over latents, or of experts.
    Sparse(SparseOp<B>),
}

/// Queries of the last tokens of a sequence, and the keys that they read.
#[derive(Clone, Copy, Debug)]
pub struct Mass<'a> {
    /// The keys.
    pub kv: KvRef,
    /// The sequence's blocks in their group.
    pub table: &'a [BlockId],
    /// Tokens of the sequence.
    pub keys: usize,
    /// `[queries, heads head_dim]`, rotated.
    pub q: &'a [f32],
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// How the weights of several heads become one number.
    pub over: MassOver,
}

/// Queries of an indexer, those of the last tokens of a sequence, and the keys that they score.
#[derive(Clone, Copy, Debug)]
pub struct IndexMass<'a> {
    /// The keys.
    pub kv: KvRef,
    /// The sequence's blocks in their group.
    pub table: &'a [BlockId],
    /// Tokens of the sequence.
    pub keys: usize,
    /// For each query `[heads width]`, rotated, and behind it the weights of the heads.
    pub queries: &'a [f32],
    /// How a score is computed.
    pub shape: IndexShape,
}

/// Something that holds buffers, weights and KV, and runs operations over them.
pub trait Device {
    /// Handle of a buffer, weights included.
    type Buf: Copy + std::fmt::Debug + Send + 'static;
    /// A captured list of operations.
    type Graph;

    /// Bytes that one token takes in one layer of a part of this shape.
    ///
    /// # Errors
    ///
    /// A shape that the device has no place for.
    fn token_bytes(&self, shape: PartShape) -> Result<usize, ModelError>;

    /// Says which KV the operations of an architecture name: its groups, and what each part of each group holds. The device
    /// was made with the place of each group in the arena; it finds that the sizes agree. To be called before anything is
    /// bound, and once.
    ///
    /// # Errors
    ///
    /// Groups or shapes that the device cannot compute with, or that take other bytes than the arena gives them.
    fn attach(&mut self, groups: &[KvGroup], shapes: &[Vec<PartShape>]) -> Result<(), ModelError>;

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
    /// device's dtype, or quantised if the device quantises.
    ///
    /// # Errors
    ///
    /// Not enough memory, or tensors that do not stack.
    fn matrix(&mut self, stacked: &[Tensor<'_>]) -> Result<Self::Buf, ModelError>;

    /// The output head for [`Op::MatMul`], rounded to the device's dtype: it is never quantised.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn head(&mut self, tensor: &Tensor<'_>) -> Result<Self::Buf, ModelError> {
        self.matrix(std::slice::from_ref(tensor))
    }

    /// A matrix whose rows are looked up by [`Op::Embed`].
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn table(&mut self, tensor: &Tensor<'_>) -> Result<Self::Buf, ModelError>;

    /// A tensor as a [`table`](Self::table) and as the [`head`](Self::head). It is one buffer for both on a
    /// device that lays them out alike.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn table_and_matrix(&mut self, tensor: &Tensor<'_>) -> Result<(Self::Buf, Self::Buf), ModelError> {
        Ok((self.table(tensor)?, self.head(tensor)?))
    }

    /// Several matrices of one shape, for [`SparseOp`]. `fill(i, row, values)` writes row `row` of matrix i.
    ///
    /// # Errors
    ///
    /// Not enough memory, an error of `fill`, or a device without these operations.
    fn matrices(&mut self, stack: MatrixStack, fill: &FillMatrices<'_>) -> Result<Self::Buf, ModelError> {
        let _ = (stack, fill);
        Err(no_sparse_operations())
    }

    /// A weight matrix for [`Op::MatMul`] that is kept, and computed with, in f32 whatever the device's dtype is.
    ///
    /// # Errors
    ///
    /// Not enough memory, or a device without such products.
    fn full_matrix(&mut self, tensor: &Tensor<'_>) -> Result<Self::Buf, ModelError> {
        let _ = tensor;
        Err(no_sparse_operations())
    }

    /// A buffer for the `per_row` keys, or experts, that are chosen for each of `rows` token rows, and for what is to be kept of the
    /// scores of keys.
    ///
    /// # Errors
    ///
    /// Not enough memory, or a device without such choices.
    fn choices(&mut self, rows: usize, per_row: usize, keep: KeepScores) -> Result<Self::Buf, ModelError> {
        let _ = (rows, per_row, keep);
        Err(no_sparse_operations())
    }

    /// What the last step chose for a token row in a buffer of [`choices`](Self::choices), ascending.
    ///
    /// # Errors
    ///
    /// A row that the buffer does not have, or another buffer.
    fn read_choices(&mut self, buffer: Self::Buf, row: usize) -> Result<&[u32], ModelError> {
        let _ = (buffer, row);
        Err(no_sparse_operations())
    }

    /// The scores of these keys. `None` if the buffer does not keep them, or if a score is not finite.
    ///
    /// # Errors
    ///
    /// Those of [`read_choices`](Self::read_choices).
    fn read_scores(&mut self, buffer: Self::Buf, row: usize) -> Result<Option<ChosenScores<'_>>, ModelError> {
        let _ = (buffer, row);
        Err(no_sparse_operations())
    }

    /// Puts the step's inputs where the operations read them. For the replay of a graph they are padded to its key: a pad row
    /// has token 0 at position 0 and slot -1 in every group, a pad sequence has length 0.
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

    /// Has the system back the KV cache and the buffers of the largest step with memory now. Otherwise it would do so when
    /// each part is first written, in the middle of a step. Contents of the KV cache stay.
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

    /// What `each` gives for some rows of a buffer: `each(r, row)` for row r. Rows may be taken in any order, and at the same time.
    ///
    /// # Errors
    ///
    /// Rows that the buffer does not have, or a fault of the device.
    fn map_rows(
        &mut self,
        buffer: Self::Buf,
        rows: Range<usize>,
        each: &(dyn Fn(usize, &[f32]) -> f32 + Sync),
    ) -> Result<Vec<f32>, ModelError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.read(buffer, rows.end)?;
        let width = all.len() / rows.end;
        Ok(rows.map(|r| each(r, &all[r * width..(r + 1) * width])).collect())
    }

    /// How much attention the last queries of a sequence pay to each of its keys in one layer; see [`MassCall`](pagedraft_attention::mass::MassCall).
    ///
    /// # Errors
    ///
    /// Keys that the model does not have, a table that does not fit, or a device that cannot tell.
    fn attention_mass(&mut self, mass: &Mass<'_>) -> Result<Vec<f32>, ModelError> {
        let _ = mass;
        let what = "this device does not tell what its queries attend to: use --device cpu".to_owned();
        Err(ModelError::BadInputs { what })
    }

    /// For each key of a sequence the sum of its index scores in one layer, over those of the last queries that see it: in their order, of
    /// the very scores by which [`SparseOp::Select`] chooses.
    ///
    /// # Errors
    ///
    /// Keys that the model does not have, a table that does not fit, or a device without indexers.
    fn index_mass(&mut self, mass: &IndexMass<'_>) -> Result<Vec<f32>, ModelError> {
        let _ = mass;
        Err(no_sparse_operations())
    }

    /// What the slots of a layer hold, into `into`: a row of zeros for slot -1.
    ///
    /// # Errors
    ///
    /// A layer or a slot that does not exist, or a device that does not tell.
    fn read_kv(&mut self, kv: KvRef, slots: &[i64], into: &mut KvRows) -> Result<(), ModelError> {
        let _ = (kv, slots, into);
        let what = "this device does not tell what its KV cache holds: use --device cpu to trace tensors";
        Err(ModelError::BadInputs { what: what.to_owned() })
    }

    /// Whether the device chooses tokens itself, so that no logits have to leave it.
    fn chooses(&self) -> bool {
        false
    }

    /// The token of each choice, from row `rows[i]` of `logits`; [`NO_CHOICE`](crate::NO_CHOICE) for a row that has none.
    /// Empty if the device does not [choose](Self::chooses).
    ///
    /// # Errors
    ///
    /// More choices than the device was built for, or a fault of the device.
    fn choose(&mut self, logits: Self::Buf, rows: &[u32], choices: &[Choice]) -> Result<&[u32], ModelError> {
        let _ = (logits, rows, choices);
        Ok(&[])
    }

    /// Whether it has a clock of its own. A device that runs operations after the call has returned needs one.
    fn has_clock(&self) -> bool {
        false
    }

    /// What each stage of the steps took since this was last asked, by the device's [own clock](Self::has_clock); `None` if it
    /// has none. It waits for everything that was issued, so it is to be asked between steps. If it meets a fault, the next
    /// [`read`](Self::read) returns it.
    fn busy(&mut self) -> Option<DeviceTimes> {
        None
    }

    /// Whether a row's bits are a function of the row, as [operations](Op) promise.
    fn is_deterministic(&self) -> bool {
        true
    }

    /// Says whether the device keeps that promise from now on, or lets its libraries choose by the batch how they compute.
    /// Graphs compute as they were captured.
    ///
    /// # Errors
    ///
    /// The device has one way to compute only, or a library is not there.
    fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        if yes == self.is_deterministic() {
            return Ok(());
        }
        Err(ModelError::BadInputs { what: "this device computes in one way only".to_owned() })
    }

    /// From now on [`run`](Self::run) and [`replay`](Self::replay) end early, with [`ModelError::Interrupted`], while `flag` is set. A
    /// device may look at it as seldom as once a layer. One whose steps are short, a GPU, need not look at all.
    fn interrupt_on(&mut self, flag: Arc<AtomicBool>) {
        let _ = flag;
    }

    /// Copies whole KV blocks, all parts and layers of them, before anything of the step is written. Copies name groups of the
    /// arena. They may be groups of another model in the same arena.
    ///
    /// # Errors
    ///
    /// A group that the arena does not have, or a block outside its group.
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError>;

    /// The tiers that latents lie in, if the device keeps them so.
    fn tiers(&mut self) -> Option<&mut Tiers> {
        None
    }
}

/// What a device without [`SparseOp`] says.
fn no_sparse_operations() -> ModelError {
    let what = "this device has no sparse attention over latents and no experts: use --device cpu".to_owned();
    ModelError::BadInputs { what }
}
