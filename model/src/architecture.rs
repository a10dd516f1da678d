//! A model as programs of operations.

use std::ops::Range;

use pagedraft_attention::sparse::IndexShape;
use pagedraft_block_manager::KvGroup;

use crate::checkpoint::ModelConfig;
use crate::device::Op;
use crate::kv::{KvRef, PartShape};

/// The queries of a layer, and the keys that they read.
#[derive(Clone, Copy, Debug)]
pub struct Attended<B> {
    /// `[token rows, heads head_dim]`, rotated.
    pub q: B,
    /// The keys.
    pub kv: KvRef,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
}

/// The queries of a layer's indexer, and the keys that they score.
#[derive(Clone, Copy, Debug)]
pub struct Indexed<B> {
    /// `[token rows, heads width]`, rotated.
    pub q: B,
    /// `[token rows, heads]`: what the heads' parts of a score are multiplied by.
    pub weights: B,
    /// The keys.
    pub kv: KvRef,
    /// How a score is computed.
    pub shape: IndexShape,
}

/// A model whose weights and buffers lie on a device. `B` is the device's buffer handle.
///
/// It says which KV groups it keeps, and writes its step as *segments* of operations. Between two segments the host may look
/// at the residual stream and decide which token rows go on. Each segment is run, and captured as a graph, on its own. The
/// first segment begins with the embedding; behind the last one, the residual stream is what the final norm takes.
pub trait Architecture<B>: Send {
    /// The model's configuration.
    fn config(&self) -> &ModelConfig;

    /// The KV groups that the model keeps. Their ids count up from 0; operations name them by these ids.
    fn kv(&self) -> &[KvGroup];

    /// What each part of each group holds, in the order of [`kv`](Self::kv) and of the group's parts.
    fn shapes(&self) -> &[Vec<PartShape>];

    /// How many segments a step has; at least 1.
    fn num_segments(&self) -> usize {
        1
    }

    /// Appends the operations of segment `index` (from 0) for `rows` token rows.
    fn segment(&self, index: usize, rows: usize, ops: &mut Vec<Op<B>>);

    /// Appends the operations from the residual stream behind the last segment to the logits of `rows` selected rows.
    fn head(&self, rows: usize, ops: &mut Vec<Op<B>>);

    /// What the last layer of a segment attended with and to, readable once the segment has run. `None` of a model that does not tell.
    fn attended(&self, segment: usize) -> Option<Attended<B>> {
        let _ = segment;
        None
    }

    /// What the indexer that chose the keys of a segment's last layer scored with and what it scored, readable once the segment has run.
    /// `None` of a model whose attention is not sparse.
    fn indexed(&self, segment: usize) -> Option<Indexed<B>> {
        let _ = segment;
        None
    }

    /// The residual stream, `[token rows, hidden]`: what segments hand on to each other.
    fn residual(&self) -> B;

    /// The logits of the rows selected, `[selected rows, vocab]`.
    fn logits(&self) -> B;

    /// The final norm's output for the rows selected, `[selected rows, hidden]`.
    fn final_hidden(&self) -> B;

    /// The buffers given to [`set_taps`](Self::set_taps); empty before.
    fn taps(&self) -> &[B];

    /// Takes buffers in which every later step keeps the residual stream as it enters each layer, and as it leaves the last: up to
    /// `num_layers + 1` buffers of `[token rows, hidden]` in f32, for the first layers if they are fewer.
    fn set_taps(&mut self, taps: Vec<B>);

    /// The layers whose indexers choose keys, ascending; empty of a model whose attention is not sparse.
    fn indexer_layers(&self) -> &[u16] {
        &[]
    }

    /// The most keys that an indexer chooses for a token row.
    fn selected_keys(&self) -> usize {
        0
    }

    /// The buffers given to [`set_selections`](Self::set_selections); empty before.
    fn selections(&self) -> &[B] {
        &[]
    }

    /// Takes a buffer of [choices](crate::Device::choices) for each of the [indexer layers](Self::indexer_layers), in which every
    /// later step keeps the keys that the layer chose. Otherwise all layers use one buffer, and only the last choice is kept.
    fn set_selections(&mut self, selections: Vec<B>) {
        let _ = selections;
    }
}

/// A decoder whose layers can be run a range at a time.
pub trait Layered<B>: Architecture<B> {
    /// Appends the look-up of the token ids of `rows` token rows: it begins the residual stream.
    fn embed(&self, rows: usize, ops: &mut Vec<Op<B>>);

    /// Appends the operations of some layers, from residual stream to residual stream.
    fn layers(&self, range: Range<usize>, rows: usize, ops: &mut Vec<Op<B>>);

    /// What layer `layer` attended with and to: see [`Architecture::attended`].
    fn attended_in(&self, layer: usize) -> Option<Attended<B>> {
        let _ = layer;
        None
    }

    /// What chose the keys of layer `layer`: see [`Architecture::indexed`].
    fn indexed_in(&self, layer: usize) -> Option<Indexed<B>> {
        let _ = layer;
        None
    }
}
