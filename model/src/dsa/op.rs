//! The operations of sparse attention over latents, and of experts.

use crate::error::ModelError;
use crate::kv::KvRef;

/// Matrices of one shape, each `[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixStack {
    /// How many there are.
    pub count: usize,
    /// Outputs of each.
    pub n: usize,
    /// Inputs of each.
    pub k: usize,
}

/// Writes a row of a matrix of a [stack](MatrixStack): which matrix, which row, and where its values go.
pub type FillMatrices<'a> = dyn Fn(usize, usize, &mut [f32]) -> Result<(), ModelError> + Sync + 'a;

/// Where the values of each head lie in a row: those of head h begin at `h * stride + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadColumns {
    /// How many heads there are.
    pub heads: usize,
    /// Values from one head to the next.
    pub stride: usize,
    /// Where a head's values begin.
    pub offset: usize,
}

/// Rotary positions: which values are turned by which angles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation<B> {
    /// `[max positions, values]`: cosines, then sines of each position.
    pub table: B,
    /// How many values are turned.
    pub values: usize,
    /// Whether neighbours are turned, in place of values half of them apart.
    pub interleaved: bool,
}

/// How a token finds its experts (`noaux_tc`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Experts.
    pub experts: usize,
    /// Experts a token.
    pub per_token: usize,
    /// Groups that the experts form.
    pub groups: usize,
    /// Groups from which a token's experts come.
    pub groups_kept: usize,
    /// Whether the weights are divided by their sum.
    pub normalised: bool,
    /// What the weights are multiplied with.
    pub scale: f32,
}

/// One operation; `B` is the device's buffer handle, `rows` are token rows. Each is batch-invariant, as every
/// [`Op`](crate::Op) is.
#[derive(Clone, Copy, Debug)]
pub enum SparseOp<B> {
    /// Rotates some values of each head of `x` in place, by the row's position.
    Rotate {
        /// `[rows, ..]`.
        x: B,
        /// Where the values of each head that are rotated begin.
        columns: HeadColumns,
        /// By what.
        rotation: Rotation<B>,
        /// Token rows.
        rows: usize,
    },
    /// Norms the latent of each row, rotates the key behind it, and stores both at the row's slot.
    CacheLatents {
        /// `[rows, rank + rotated values]`; changed in place.
        x: B,
        /// `[rank]`: weights of the norm.
        weight: B,
        /// Its eps.
        eps: f32,
        /// By what the key, the last values of a row, is rotated.
        rotation: Rotation<B>,
        /// Where they are stored.
        kv: KvRef,
        /// Token rows.
        rows: usize,
    },
    /// Norms (layer norm) the indexer's key of each row, rotates its first values, transforms it if so wanted, and stores it at
    /// the row's slot.
    CacheIndexKeys {
        /// `[rows, width]`; changed in place.
        x: B,
        /// `[width]`: weights of the norm, and what is added.
        norm: (B, B),
        /// Its eps.
        eps: f32,
        /// By what the first values are rotated.
        rotation: Rotation<B>,
        /// Whether the key is multiplied with a Hadamard matrix.
        hadamard: bool,
        /// Where it is stored.
        kv: KvRef,
        /// Token rows.
        rows: usize,
    },
    /// `out[r, h] = x[r, h] W_h^T` for each head h.
    HeadMatMul {
        /// `[rows, ..]`.
        x: B,
        /// A head's inputs.
        columns: HeadColumns,
        /// A matrix `[n, k]` a head.
        matrices: B,
        /// `[rows, heads n]`.
        out: B,
        /// Token rows.
        rows: usize,
    },
    /// Chooses for each row the keys of the greatest scores `sum_h scale w_h max(0, q_h . k)`, as many as `out` has room
    /// for; all, if there are no more. Equal scores: the lowest position. Written in ascending order.
    Select {
        /// `[rows, heads width]`, rotated.
        q: B,
        /// `[rows, heads]`.
        weights: B,
        /// What weights are multiplied with.
        scale: f32,
        /// Heads.
        heads: usize,
        /// Whether queries are multiplied with a Hadamard matrix, as the keys were.
        hadamard: bool,
        /// The indexer's keys.
        kv: KvRef,
        /// [Choices](crate::Device::choices).
        out: B,
        /// Token rows.
        rows: usize,
    },
    /// `out[r, h] = sum over the chosen keys of softmax(scale (absorbed_h | rotated_h) . latent) latent[..rank]`.
    Attend {
        /// `[rows, heads rank]`.
        absorbed: B,
        /// `[rows, ..]`: where the rotated parts of the queries are.
        q: B,
        /// The rotated part of each head.
        columns: HeadColumns,
        /// The latents.
        kv: KvRef,
        /// The keys chosen: [choices](crate::Device::choices).
        selection: B,
        /// What products are multiplied with.
        scale: f32,
        /// Values of a latent that are summed.
        rank: usize,
        /// `[rows, heads rank]`.
        out: B,
        /// Token rows.
        rows: usize,
    },
    /// Chooses experts for each row. With s = sigmoid(logits) and c = s + bias: the groups of the greatest sums of their
    /// two greatest c are kept, in them the experts of the greatest c are chosen. Weights are s, if so configured divided
    /// by their sum + 1e-20, times the scale. Equal values: the lowest group or expert.
    Route {
        /// `[rows, experts]`.
        logits: B,
        /// `[experts]`.
        bias: B,
        /// How.
        router: Router,
        /// [Choices](crate::Device::choices) of `per_token` experts, ascending.
        out: B,
        /// `[rows, per_token]`: the weights of the experts chosen.
        weights: B,
        /// Token rows.
        rows: usize,
    },
    /// `out[r] += sum over the experts chosen, ascending, of weight * down_e(silu(gate_e x) * up_e x)`.
    Experts {
        /// `[rows, hidden]`.
        x: B,
        /// What [`Route`](Self::Route) chose.
        choices: B,
        /// `[rows, per_token]`.
        weights: B,
        /// A matrix `[2 inner, hidden]` an expert: gate, then up.
        gate_up: B,
        /// A matrix `[hidden, inner]` an expert.
        down: B,
        /// Room for the rows of one expert: `[rows, hidden]`, `[rows, 2 inner]`, `[rows, inner]`, and the sums, `[rows,
        /// hidden]`.
        room: [B; 4],
        /// `[rows, hidden]`.
        out: B,
        /// Token rows.
        rows: usize,
    },
}
