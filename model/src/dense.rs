//! The dense decoders (Llama, Mistral, Qwen2, Qwen3), written once as operations on a [`Device`].
//!
//! A block is `x += o(attention(rope(qkv(norm(x)))))`, `x += down(silu(gate(norm(x))) * up(norm(x)))`; the
//! residual stream `x` is f32 whatever the weights' dtype. Qwen2 adds biases to q, k and v; Qwen3 norms q and
//! k a head before they are rotated. Rotation pairs dimension i with i + head_dim / 2. Layers of equal windows share a
//! [KV group](kv_groups).

use std::ops::Range;

use pagedraft_block_manager::{KvGroup, PartKind};

use crate::architecture::{Architecture, Attended, Layered};
use crate::checkpoint::{Checkpoint, ModelConfig, Part};
use crate::device::{Device, Op, Precision, WriteMode};
use crate::error::ModelError;
use crate::kv::{KvRef, PartShape};
use crate::layer_groups;

pub use crate::layer_groups::{heads_shape, kv_groups};

/// The greatest step a model is built for: its activation buffers have these many rows.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Token rows of one step.
    pub token_rows: usize,
    /// Rows whose logits are computed at a time.
    pub logit_rows: usize,
    /// Positions a sequence may have.
    pub max_model_len: usize,
}

struct Layer<B> {
    kv: KvRef,
    input_norm: B,
    qkv: B,
    qkv_bias: Option<B>,
    qk_norm: Option<(B, B, f32)>,
    o: B,
    o_bias: Option<B>,
    post_norm: B,
    gate_up: B,
    gate_up_bias: Option<B>,
    down: B,
    down_bias: Option<B>,
}

/// A dense decoder on a device: its weights, its activation buffers, and its step as operations.
pub struct DenseDecoder<B> {
    config: ModelConfig,
    groups: Vec<KvGroup>,
    shapes: Vec<Vec<PartShape>>,
    scale: f32,
    embed: B,
    layers: Vec<Layer<B>>,
    norm: B,
    head: B,
    rope: B,
    x: B,
    normed: B,
    qkv: B,
    q: B,
    attended: B,
    gate_up: B,
    activated: B,
    selected: B,
    selected_normed: B,
    logits: B,
    taps: Vec<B>,
}

impl<B: Copy> DenseDecoder<B> {
    /// Loads every weight of `checkpoint` onto `device`, and makes the buffers of a step of `limits`. The model keeps the
    /// [KV groups](kv_groups) that its windows ask for.
    ///
    /// # Errors
    ///
    /// A tensor is missing or has another shape than `config` says, or there is not enough memory.
    pub fn load<D: Device<Buf = B>>(
        device: &mut D,
        checkpoint: &Checkpoint,
        limits: StepLimits,
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let token_bytes = device.token_bytes(heads_shape(config))?;
        let groups = kv_groups(&config.windows, limits.max_model_len, token_bytes);
        Self::load_grouped(device, checkpoint, limits, groups)
    }

    /// [`load`](Self::load) with other KV groups: each layer is in one part of keys and values. Groups may have parts for
    /// residual rows besides, which only other architectures' operations name.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load); a layer that is in no group; a part of a kind that the model has no use for.
    pub fn load_grouped<D: Device<Buf = B>>(
        device: &mut D,
        checkpoint: &Checkpoint,
        limits: StepLimits,
        groups: Vec<KvGroup>,
    ) -> Result<Self, ModelError> {
        let c = checkpoint.config().clone();
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (q_width, kv_width) = (c.q_size(), c.kv_size());
        let shapes = layer_groups::shapes(&c, &groups)?;
        let places = layer_groups::places(&groups, PartKind::Heads, c.num_layers)?;
        let mut layers = Vec::with_capacity(c.num_layers);
        for (l, kv) in places.into_iter().enumerate() {
            let matrices = |parts: &[Part]| {
                parts.iter().map(|&p| checkpoint.weight(l, p)).collect::<Result<Vec<_>, _>>()
            };
            let vector = |part| checkpoint.weight(l, part)?.to_vec_f32();
            // The biases of stacked parts are stacked too. Either all of the parts have one or none has (Qwen2's o).
            let bias = |parts: &[Part]| -> Result<Option<Vec<f32>>, ModelError> {
                let mut all = Vec::new();
                for &part in parts {
                    if let Some(tensor) = checkpoint.bias(l, part)? {
                        all.extend(tensor.to_vec_f32()?);
                    }
                }
                Ok((!all.is_empty()).then_some(all))
            };
            let (qkv, gate_up) = ([Part::Q, Part::K, Part::V], [Part::Gate, Part::Up]);
            let qk_norm = if c.qk_norm {
                Some((
                    device.vector(vector(Part::QNorm)?)?,
                    device.vector(vector(Part::KNorm)?)?,
                    c.rms_norm_eps,
                ))
            } else {
                None
            };
            layers.push(Layer {
                kv,
                input_norm: device.vector(vector(Part::InputNorm)?)?,
                qkv: device.matrix(&matrices(&qkv)?)?,
                qkv_bias: bias(&qkv)?.map(|b| device.vector(b)).transpose()?,
                qk_norm,
                o: device.matrix(&matrices(&[Part::O])?)?,
                o_bias: bias(&[Part::O])?.map(|b| device.vector(b)).transpose()?,
                post_norm: device.vector(vector(Part::PostAttentionNorm)?)?,
                gate_up: device.matrix(&matrices(&gate_up)?)?,
                gate_up_bias: bias(&gate_up)?.map(|b| device.vector(b)).transpose()?,
                down: device.matrix(&matrices(&[Part::Down])?)?,
                down_bias: bias(&[Part::Down])?.map(|b| device.vector(b)).transpose()?,
            });
        }
        let (embed, head) = if c.tie_word_embeddings {
            device.table_and_matrix(&checkpoint.embedding()?)?
        } else {
            (device.table(&checkpoint.embedding()?)?, device.head(&checkpoint.lm_head()?)?)
        };
        let (rows, logit_rows) = (limits.token_rows, limits.logit_rows);
        Ok(Self {
            embed,
            head,
            norm: device.vector(checkpoint.final_norm()?.to_vec_f32()?)?,
            rope: device.vector(rotations(&c, limits.max_model_len))?,
            x: device.activations(rows, hidden, Precision::Full)?,
            normed: device.activations(rows, hidden, Precision::Working)?,
            qkv: device.activations(rows, q_width + 2 * kv_width, Precision::Working)?,
            q: device.activations(rows, q_width, Precision::Working)?,
            attended: device.activations(rows, q_width, Precision::Working)?,
            gate_up: device.activations(rows, 2 * inner, Precision::Working)?,
            activated: device.activations(rows, inner, Precision::Working)?,
            selected: device.activations(logit_rows, hidden, Precision::Full)?,
            selected_normed: device.activations(logit_rows, hidden, Precision::Working)?,
            logits: device.activations(logit_rows, c.vocab_size, Precision::Full)?,
            taps: Vec::new(),
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            layers,
            groups,
            shapes,
            config: c,
        })
    }

    fn tap(&self, l: usize, rows: usize, ops: &mut Vec<Op<B>>) {
        if let Some(&out) = self.taps.get(l) {
            ops.push(Op::Copy { x: self.x, out, rows });
        }
    }
}

impl<B: Copy + Send> Architecture<B> for DenseDecoder<B> {
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
        let eps = self.config.rms_norm_eps;
        ops.push(Op::Gather { x: self.x, out: self.selected, rows });
        ops.push(Op::RmsNorm { x: self.selected, weight: self.norm, out: self.selected_normed, eps, rows });
        ops.push(Op::MatMul {
            x: self.selected_normed,
            matrix: self.head,
            bias: None,
            out: self.logits,
            into: WriteMode::Store,
            rows,
        });
    }

    fn attended(&self, _: usize) -> Option<Attended<B>> {
        self.attended_in(self.layers.len().checked_sub(1)?)
    }

    fn residual(&self) -> B {
        self.x
    }

    fn logits(&self) -> B {
        self.logits
    }

    fn final_hidden(&self) -> B {
        self.selected_normed
    }

    fn taps(&self) -> &[B] {
        &self.taps
    }

    fn set_taps(&mut self, taps: Vec<B>) {
        self.taps = taps;
    }
}

impl<B: Copy + Send> Layered<B> for DenseDecoder<B> {
    fn embed(&self, rows: usize, ops: &mut Vec<Op<B>>) {
        ops.push(Op::Embed { table: self.embed, out: self.x, rows });
    }

    fn layers(&self, range: Range<usize>, rows: usize, ops: &mut Vec<Op<B>>) {
        let eps = self.config.rms_norm_eps;
        let (x, scale) = (self.x, self.scale);
        let matmul = |x, matrix, bias, out, into| Op::MatMul { x, matrix, bias, out, into, rows };
        let layers = self.layers.iter().enumerate();
        for (l, layer) in layers.take(range.end).skip(range.start) {
            self.tap(l, rows, ops);
            ops.push(Op::RmsNorm { x, weight: layer.input_norm, out: self.normed, eps, rows });
            ops.push(matmul(self.normed, layer.qkv, layer.qkv_bias, self.qkv, WriteMode::Store));
            ops.push(Op::RopeAndCache {
                qkv: self.qkv,
                qk_norm: layer.qk_norm,
                rope: self.rope,
                q: self.q,
                kv: layer.kv,
                rows,
            });
            ops.push(Op::Attention { q: self.q, out: self.attended, kv: layer.kv, scale, rows });
            ops.push(matmul(self.attended, layer.o, layer.o_bias, x, WriteMode::Add));
            ops.push(Op::RmsNorm { x, weight: layer.post_norm, out: self.normed, eps, rows });
            ops.push(matmul(self.normed, layer.gate_up, layer.gate_up_bias, self.gate_up, WriteMode::Store));
            ops.push(Op::SwiGlu { x: self.gate_up, out: self.activated, rows });
            ops.push(matmul(self.activated, layer.down, layer.down_bias, x, WriteMode::Add));
        }
        if range.end == self.layers.len() {
            self.tap(range.end, rows, ops);
        }
    }

    fn attended_in(&self, layer: usize) -> Option<Attended<B>> {
        let kv = self.layers.get(layer)?.kv;
        Some(Attended { q: self.q, kv, scale: self.scale })
    }
}

/// The rotations of `[positions, head_dim]`: for each position p the cosines of its `head_dim / 2` angles, then their sines. An
/// angle is the f32 product of position and inverse frequency, as the reference implementations have it.
fn rotations(config: &ModelConfig, positions: usize) -> Vec<f32> {
    let inv_freq = config.rope.inv_freq(config.head_dim);
    let mut table = Vec::with_capacity(positions * config.head_dim);
    for p in 0..positions {
        let angles = || inv_freq.iter().map(move |f| f64::from(p as f32 * f));
        table.extend(angles().map(|a| a.cos() as f32));
        table.extend(angles().map(|a| a.sin() as f32));
    }
    table
}
