//! The decoder's step as operations.

use std::ops::Range;

use pagedraft_attention::sparse::IndexShape;
use pagedraft_block_manager::KvGroup;

use super::op::{HeadColumns, Rotation, Router, SparseOp};
use crate::architecture::{Architecture, Indexed, Layered};
use crate::checkpoint::{INDEX_NORM_EPS, LATENT_NORM_EPS, ModelConfig};
use crate::device::{Op, WriteMode};
use crate::kv::{KvRef, PartShape};

/// A weight matrix and what is added to its product.
pub(super) struct Linear<B> {
    pub matrix: B,
    pub bias: Option<B>,
}

/// The indexer of a layer.
pub(super) struct Indexer<B> {
    /// Where its keys lie.
    pub kv: KvRef,
    pub q: B,
    pub key: B,
    pub key_norm: (B, B),
    /// In f32, whatever the dtype of the others.
    pub weights: B,
}

/// What follows attention in a layer.
pub(super) enum FeedForward<B> {
    Dense { gate_up: B, down: B },
    Experts { router: B, bias: B, gate_up: B, down: B, shared: Option<(B, B)> },
}

pub(super) struct Layer<B> {
    /// Where its latents lie.
    pub kv: KvRef,
    pub input_norm: B,
    pub q_a: Linear<B>,
    pub q_a_norm: B,
    pub q_b: B,
    pub kv_a: Linear<B>,
    pub kv_a_norm: B,
    /// `W_k[h]^T`, `[rank, nope]` a head.
    pub absorb: B,
    /// `W_v[h]`, `[value, rank]` a head.
    pub expand: B,
    pub o: Linear<B>,
    /// `None` of a layer that shares the indexer of an earlier one.
    pub indexer: Option<Indexer<B>>,
    pub post_norm: B,
    pub feed_forward: FeedForward<B>,
}

/// The activations of a step.
pub(super) struct Activations<B> {
    pub x: B,
    pub normed: B,
    pub q_a: B,
    pub q_a_normed: B,
    pub q: B,
    pub latent: B,
    pub index_q: B,
    pub index_key: B,
    pub index_weights: B,
    pub absorbed: B,
    pub summed: B,
    pub attended: B,
    /// Of the dense layers: gate and up, then their product.
    pub dense: (B, B),
    /// Of the shared expert.
    pub shared: (B, B),
    pub router_logits: B,
    pub expert_choices: B,
    pub expert_weights: B,
    /// Room for the rows of one expert.
    pub room: [B; 4],
    pub selected: B,
    pub selected_normed: B,
    pub logits: B,
    /// The keys chosen last, where no layer has a buffer of its own.
    pub selection: B,
}

/// A decoder with sparse attention over latents on a device: its weights, its activation buffers, and its step as operations.
pub struct SparseDecoder<B> {
    pub(super) config: ModelConfig,
    pub(super) sizes: Sizes,
    pub(super) groups: Vec<KvGroup>,
    pub(super) shapes: Vec<Vec<PartShape>>,
    pub(super) indexer_layers: Vec<u16>,
    pub(super) embed: B,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) norm: B,
    pub(super) head: B,
    pub(super) rope: B,
    pub(super) at: Activations<B>,
    pub(super) taps: Vec<B>,
    pub(super) selections: Vec<B>,
}

/// What the operations need of the configuration.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub q_columns: HeadColumns,
    pub rotated_columns: HeadColumns,
    pub value_columns: HeadColumns,
    pub index_columns: HeadColumns,
    pub index_interleaved: bool,
    pub index_scale: f32,
    pub index_hadamard: bool,
    pub index_topk: usize,
    pub rotated_values: usize,
    pub rank: usize,
    pub scale: f32,
    pub router: Router,
}

impl<B: Copy> SparseDecoder<B> {
    fn tap(&self, l: usize, rows: usize, ops: &mut Vec<Op<B>>) {
        if let Some(&out) = self.taps.get(l) {
            ops.push(Op::Copy { x: self.at.x, out, rows });
        }
    }

    fn rotation(&self, interleaved: bool) -> Rotation<B> {
        Rotation { table: self.rope, values: self.sizes.rotated_values, interleaved }
    }

    /// Where the keys that the indexer of a layer chooses are written.
    fn selection(&self, layer: usize) -> B {
        let place = self.indexer_layers.iter().rposition(|&own| usize::from(own) <= layer);
        place.and_then(|place| self.selections.get(place)).copied().unwrap_or(self.at.selection)
    }

    fn attention(&self, l: usize, layer: &Layer<B>, rows: usize, ops: &mut Vec<Op<B>>) {
        let (at, s, rotation) = (&self.at, self.sizes, self.rotation(true));
        let store = WriteMode::Store;
        let latents = layer.kv;
        let eps = LATENT_NORM_EPS;
        ops.push(Op::RmsNorm {
            x: at.x,
            weight: layer.input_norm,
            out: at.normed,
            eps: self.config.rms_norm_eps,
            rows,
        });
        ops.push(linear(at.normed, &layer.q_a, at.q_a, store, rows));
        ops.push(Op::RmsNorm { x: at.q_a, weight: layer.q_a_norm, out: at.q_a_normed, eps, rows });
        ops.push(product(at.q_a_normed, layer.q_b, at.q, rows));
        let columns = s.rotated_columns;
        ops.push(Op::Sparse(SparseOp::Rotate { x: at.q, columns, rotation, rows }));
        ops.push(linear(at.normed, &layer.kv_a, at.latent, store, rows));
        ops.push(Op::Sparse(SparseOp::CacheLatents {
            x: at.latent,
            weight: layer.kv_a_norm,
            eps,
            rotation,
            kv: latents,
            rows,
        }));
        let selection = self.selection(l);
        if let Some(indexer) = &layer.indexer {
            self.index(indexer, selection, rows, ops);
        }
        ops.push(Op::Sparse(SparseOp::HeadMatMul {
            x: at.q,
            columns: s.q_columns,
            matrices: layer.absorb,
            out: at.absorbed,
            rows,
        }));
        ops.push(Op::Sparse(SparseOp::Attend {
            absorbed: at.absorbed,
            q: at.q,
            columns,
            kv: latents,
            selection,
            scale: s.scale,
            rank: s.rank,
            out: at.summed,
            rows,
        }));
        ops.push(Op::Sparse(SparseOp::HeadMatMul {
            x: at.summed,
            columns: s.value_columns,
            matrices: layer.expand,
            out: at.attended,
            rows,
        }));
        ops.push(linear(at.attended, &layer.o, at.x, WriteMode::Add, rows));
    }

    fn index(&self, indexer: &Indexer<B>, selection: B, rows: usize, ops: &mut Vec<Op<B>>) {
        let (at, s) = (&self.at, self.sizes);
        let (columns, rotation) = (s.index_columns, self.rotation(s.index_interleaved));
        ops.push(product(at.q_a_normed, indexer.q, at.index_q, rows));
        ops.push(Op::Sparse(SparseOp::Rotate { x: at.index_q, columns, rotation, rows }));
        ops.push(product(at.normed, indexer.key, at.index_key, rows));
        ops.push(Op::Sparse(SparseOp::CacheIndexKeys {
            x: at.index_key,
            norm: indexer.key_norm,
            eps: INDEX_NORM_EPS,
            rotation,
            hadamard: s.index_hadamard,
            kv: indexer.kv,
            rows,
        }));
        ops.push(product(at.normed, indexer.weights, at.index_weights, rows));
        ops.push(Op::Sparse(SparseOp::Select {
            q: at.index_q,
            weights: at.index_weights,
            scale: s.index_scale,
            heads: columns.heads,
            hadamard: s.index_hadamard,
            kv: indexer.kv,
            out: selection,
            rows,
        }));
    }

    fn feed_forward(&self, layer: &Layer<B>, rows: usize, ops: &mut Vec<Op<B>>) {
        let at = &self.at;
        let eps = self.config.rms_norm_eps;
        ops.push(Op::RmsNorm { x: at.x, weight: layer.post_norm, out: at.normed, eps, rows });
        let mut swiglu = |gate_up, down, (wide, narrow): (B, B)| {
            ops.push(product(at.normed, gate_up, wide, rows));
            ops.push(Op::SwiGlu { x: wide, out: narrow, rows });
            let (bias, into) = (None, WriteMode::Add);
            ops.push(Op::MatMul { x: narrow, matrix: down, bias, out: at.x, into, rows });
        };
        match layer.feed_forward {
            FeedForward::Dense { gate_up, down } => swiglu(gate_up, down, at.dense),
            FeedForward::Experts { router, bias, gate_up, down, shared } => {
                if let Some((gate_up, down)) = shared {
                    swiglu(gate_up, down, at.shared);
                }
                ops.push(product(at.normed, router, at.router_logits, rows));
                let (choices, weights) = (at.expert_choices, at.expert_weights);
                ops.push(Op::Sparse(SparseOp::Route {
                    logits: at.router_logits,
                    bias,
                    router: self.sizes.router,
                    out: choices,
                    weights,
                    rows,
                }));
                let (x, room, out) = (at.normed, at.room, at.x);
                ops.push(Op::Sparse(SparseOp::Experts {
                    x,
                    choices,
                    weights,
                    gate_up,
                    down,
                    room,
                    out,
                    rows,
                }));
            }
        }
    }
}

fn product<B>(x: B, matrix: B, out: B, rows: usize) -> Op<B> {
    Op::MatMul { x, matrix, bias: None, out, into: WriteMode::Store, rows }
}

fn linear<B: Copy>(x: B, linear: &Linear<B>, out: B, into: WriteMode, rows: usize) -> Op<B> {
    Op::MatMul { x, matrix: linear.matrix, bias: linear.bias, out, into, rows }
}

impl<B: Copy + Send> Architecture<B> for SparseDecoder<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn kv(&self) -> &[KvGroup] {
        &self.groups
    }

    fn shapes(&self) -> &[Vec<PartShape>] {
        &self.shapes
    }

    fn segment(&self, index: usize, rows: usize, ops: &mut Vec<Op<B>>) {
        if index == 0 {
            self.embed(rows, ops);
            self.layers(0..self.layers.len(), rows, ops);
        }
    }

    fn head(&self, rows: usize, ops: &mut Vec<Op<B>>) {
        let at = &self.at;
        let eps = self.config.rms_norm_eps;
        ops.push(Op::Gather { x: at.x, out: at.selected, rows });
        ops.push(Op::RmsNorm { x: at.selected, weight: self.norm, out: at.selected_normed, eps, rows });
        ops.push(product(at.selected_normed, self.head, at.logits, rows));
    }

    fn indexed(&self, _: usize) -> Option<Indexed<B>> {
        self.indexed_in(self.layers.len().checked_sub(1)?)
    }

    fn residual(&self) -> B {
        self.at.x
    }

    fn logits(&self) -> B {
        self.at.logits
    }

    fn final_hidden(&self) -> B {
        self.at.selected_normed
    }

    fn taps(&self) -> &[B] {
        &self.taps
    }

    fn set_taps(&mut self, taps: Vec<B>) {
        self.taps = taps;
    }

    fn indexer_layers(&self) -> &[u16] {
        &self.indexer_layers
    }

    fn selected_keys(&self) -> usize {
        self.sizes.index_topk
    }

    fn selections(&self) -> &[B] {
        &self.selections
    }

    fn set_selections(&mut self, selections: Vec<B>) {
        self.selections = selections;
    }
}

impl<B: Copy + Send> Layered<B> for SparseDecoder<B> {
    fn embed(&self, rows: usize, ops: &mut Vec<Op<B>>) {
        ops.push(Op::Embed { table: self.embed, out: self.at.x, rows });
    }

    fn layers(&self, range: Range<usize>, rows: usize, ops: &mut Vec<Op<B>>) {
        let layers = self.layers.iter().enumerate();
        for (l, layer) in layers.take(range.end).skip(range.start) {
            self.tap(l, rows, ops);
            self.attention(l, layer, rows, ops);
            self.feed_forward(layer, rows, ops);
        }
        if range.end == self.layers.len() {
            self.tap(range.end, rows, ops);
        }
    }

    fn indexed_in(&self, layer: usize) -> Option<Indexed<B>> {
        let indexer = self.layers.get(..=layer)?.iter().rev().find_map(|layer| layer.indexer.as_ref())?;
        let s = self.sizes;
        let shape =
            IndexShape { heads: s.index_columns.heads, scale: s.index_scale, hadamard: s.index_hadamard };
        Some(Indexed { q: self.at.index_q, weights: self.at.index_weights, kv: indexer.kv, shape })
    }
}
