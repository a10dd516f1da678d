//! Attention over expanded latents, whole sequences at a time, with its gradient.
//!
//! Query rows are worked on in blocks, each against the keys up to its last row: that leaves out nearly half
//! of the products of a causal square, and a block's scores stay in the cache.

use crate::train::attention::{Rotary, rotate_pairs};
use crate::train::kernels::{exp, floats, with_floats};
use candle_core::{
    CpuStorage, CustomOp3, Device, InplaceOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail,
};
use std::sync::Arc;

/// Query rows of a block.
const BLOCK: usize = 128;

/// The keys that each query attends to: row by row (all sequences one after another), ascending.
pub struct Chosen {
    /// The lists, one a token row.
    pub rows: Vec<Vec<u32>>,
}

/// Sizes of one attention.
#[derive(Clone)]
pub struct Geometry {
    /// Sequences.
    pub batch: usize,
    /// Positions a sequence.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a query head that aren't rotated.
    pub nope: usize,
    /// Elements of a query head that are rotated, in neighbouring pairs, behind the others.
    pub rope: usize,
    /// Elements of a head's value.
    pub value: usize,
    /// Rotations by position.
    pub rotary: Arc<Rotary>,
    /// What products of queries and keys are multiplied with.
    pub scale: f32,
}

/// The weights of one attention: for each block of query rows `[batch * heads, rows, keys]`.
#[derive(Clone)]
pub struct Weights {
    heads: usize,
    blocks: Vec<Tensor>,
}

impl Weights {
    /// The mean over the heads of the weights of row `t` of sequence `batch`, for keys `0..=t`.
    pub fn mean_over_heads(&self, batch: usize, t: usize) -> Result<Vec<f32>> {
        let mut mean = vec![0f32; t + 1];
        let Some(block) = self.blocks.get(t / BLOCK) else { bail!("there is no query row {t}") };
        let (rows, keys) = (block.dim(1)?, block.dim(2)?);
        with_floats(block, |weights| {
            for head in 0..self.heads {
                let row = ((batch * self.heads + head) * rows + t % BLOCK) * keys;
                mean.iter_mut().zip(&weights[row..]).for_each(|(sum, w)| *sum += w / self.heads as f32);
            }
        })?;
        Ok(mean)
    }
}

/// Causal attention of queries `[batch * time, heads * (nope + rope)]` over the keys and values that the
/// latents were expanded to, `[batch * time, heads * (nope + value)]`, and one rotated key for all heads,
/// `[batch * time, rope]`. Rows of heads' outputs come back, and the weights. With `chosen`, each query sees
/// those keys alone.
pub fn attend(
    q: &Tensor,
    expanded: &Tensor,
    shared: &Tensor,
    geometry: Geometry,
    chosen: Option<&Chosen>,
) -> Result<(Tensor, Weights)> {
    let packed = with_floats(q, |q| {
        with_floats(expanded, |kv| with_floats(shared, |kp| geometry.pack(q, kv, kp)))
    })????;
    let scale = geometry.scale;
    let time = geometry.time;
    let mut blocks = Vec::with_capacity(time.div_ceil(BLOCK));
    let mut mixed = Vec::with_capacity(blocks.capacity());
    for first in (0..time).step_by(BLOCK) {
        let (rows, keys) = (BLOCK.min(time - first), (first + BLOCK).min(time));
        let block = packed.q.narrow(1, first, rows)?.matmul(&packed.k.narrow(1, 0, keys)?.t()?)?;
        let softmax = Softmax { first, rows, keys, scale, chosen, geometry: &geometry };
        block.inplace_op1(&softmax)?;
        mixed.push(block.matmul(&packed.v.narrow(1, 0, keys)?)?);
        blocks.push(block);
    }
    let weights = Weights { heads: geometry.heads, blocks };
    let out = geometry.merge(&Tensor::cat(&mixed, 1)?)?;
    let op = Attend { geometry, packed, weights: weights.clone(), scale, out };
    Ok((q.apply_op3(expanded, shared, op)?, weights))
}

/// Operands by head: `[batch * heads, time, ..]`.
struct Packed {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Geometry {
    /// Calls `f` with the index of each (sequence, head, position) and that of its token row.
    fn each(&self, mut f: impl FnMut(usize, usize, usize, usize)) {
        for batch in 0..self.batch {
            for head in 0..self.heads {
                for t in 0..self.time {
                    f((batch * self.heads + head) * self.time + t, batch * self.time + t, head, t);
                }
            }
        }
    }

    fn tensor(&self, values: Vec<f32>, dim: usize) -> Result<Tensor> {
        Tensor::from_vec(values, (self.batch * self.heads, self.time, dim), &Device::Cpu)
    }

    fn pack(&self, q: &[f32], kv: &[f32], kp: &[f32]) -> Result<Packed> {
        let (nope, rope, value, heads) = (self.nope, self.rope, self.value, self.heads);
        let (dim, wide) = (nope + rope, nope + value);
        let all = self.batch * heads * self.time;
        let (mut qs, mut ks, mut vs) =
            (vec![0f32; all * dim], vec![0f32; all * dim], vec![0f32; all * value]);
        self.each(|at, row, head, t| {
            let (q, kv) =
                (&q[(row * heads + head) * dim..][..dim], &kv[(row * heads + head) * wide..][..wide]);
            let (out_q, out_k) = (&mut qs[at * dim..][..dim], &mut ks[at * dim..][..dim]);
            out_q[..nope].copy_from_slice(&q[..nope]);
            rotate_pairs(&q[nope..], &mut out_q[nope..], &self.rotary, t, 1.0);
            out_k[..nope].copy_from_slice(&kv[..nope]);
            rotate_pairs(&kp[row * rope..][..rope], &mut out_k[nope..], &self.rotary, t, 1.0);
            vs[at * value..][..value].copy_from_slice(&kv[nope..]);
        });
        Ok(Packed { q: self.tensor(qs, dim)?, k: self.tensor(ks, dim)?, v: self.tensor(vs, value)? })
    }

    /// From `[batch * heads, time, value]` to token rows.
    fn merge(&self, mixed: &Tensor) -> Result<Tensor> {
        let (heads, value) = (self.heads, self.value);
        let rows = with_floats(mixed, |mixed| {
            let mut rows = vec![0f32; mixed.len()];
            self.each(|at, row, head, _| {
                rows[(row * heads + head) * value..][..value].copy_from_slice(&mixed[at * value..][..value]);
            });
            rows
        })?;
        Tensor::from_vec(rows, (self.batch * self.time, heads * value), &Device::Cpu)
    }

    fn split(&self, rows: &Tensor) -> Result<Tensor> {
        let (heads, value) = (self.heads, self.value);
        let split = with_floats(rows, |rows| {
            let mut split = vec![0f32; rows.len()];
            self.each(|at, row, head, _| {
                split[at * value..][..value].copy_from_slice(&rows[(row * heads + head) * value..][..value]);
            });
            split
        })?;
        self.tensor(split, value)
    }
}

/// Scores into weights, in place; keys that a row does not see get 0.
struct Softmax<'a> {
    first: usize,
    rows: usize,
    keys: usize,
    scale: f32,
    chosen: Option<&'a Chosen>,
    geometry: &'a Geometry,
}

impl InplaceOp1 for Softmax<'_> {
    fn name(&self) -> &'static str {
        "train-latent-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(scores) = storage else { bail!("scores must be f32") };
        if layout.contiguous_offsets() != Some((0, scores.len())) {
            bail!("scores must be contiguous");
        }
        let mut few = Vec::new();
        for (index, row) in scores.chunks_exact_mut(self.keys).enumerate() {
            let t = self.first + index % self.rows;
            match self.chosen {
                None => {
                    softmax(&mut row[..=t], self.scale);
                    row[t + 1..].fill(0.0);
                }
                Some(chosen) => {
                    let batch = index / self.rows / self.geometry.heads;
                    let keys = &chosen.rows[batch * self.geometry.time + t];
                    few.clear();
                    few.extend(keys.iter().map(|&key| row[key as usize]));
                    softmax(&mut few, self.scale);
                    row.fill(0.0);
                    keys.iter().zip(&few).for_each(|(&key, &weight)| row[key as usize] = weight);
                }
            }
        }
        Ok(())
    }
}

/// `softmax(scale * x)` in place.
fn softmax(row: &mut [f32], scale: f32) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp((*x - top) * scale);
    }
    let inverse = 1.0 / row.iter().sum::<f32>();
    row.iter_mut().for_each(|x| *x *= inverse);
}

/// Gradients of weights into those of scores, in place, from the weights.
struct SoftmaxGradient {
    first: usize,
    rows: usize,
    keys: usize,
    scale: f32,
}

impl InplaceOp2 for SoftmaxGradient {
    fn name(&self) -> &'static str {
        "train-latent-softmax-gradient"
    }

    fn cpu_fwd(
        &self,
        storage: &mut CpuStorage,
        gl: &Layout,
        weights: &CpuStorage,
        wl: &Layout,
    ) -> Result<()> {
        let weights = floats(weights, wl)?;
        let CpuStorage::F32(gradients) = storage else { bail!("gradients must be f32") };
        if gl.contiguous_offsets() != Some((0, gradients.len())) {
            bail!("gradients must be contiguous");
        }
        let rows = gradients.chunks_exact_mut(self.keys).zip(weights.chunks_exact(self.keys)).enumerate();
        for (index, (gradient, weight)) in rows {
            let seen = self.first + index % self.rows + 1;
            let dot: f32 = gradient[..seen].iter().zip(weight).map(|(g, w)| g * w).sum();
            gradient[seen..].fill(0.0);
            for (g, w) in gradient[..seen].iter_mut().zip(weight) {
                *g = self.scale * w * (*g - dot);
            }
        }
        Ok(())
    }
}

struct Attend {
    geometry: Geometry,
    packed: Packed,
    weights: Weights,
    scale: f32,
    out: Tensor,
}

impl Attend {
    /// Gradients of the packed operands.
    fn packed_gradients(&self, grad: &Tensor) -> Result<[Vec<f32>; 3]> {
        let (g, time) = (&self.geometry, self.geometry.time);
        let dim = g.nope + g.rope;
        let upper = g.split(grad)?;
        let all = g.batch * g.heads * time;
        let (mut dk, mut dv) = (vec![0f32; all * dim], vec![0f32; all * g.value]);
        let mut dq = Vec::with_capacity(self.weights.blocks.len());
        let add = |sum: &mut [f32], part: &Tensor, dim: usize, keys: usize| -> Result<()> {
            with_floats(part, |part| {
                for (sum, part) in sum.chunks_exact_mut(time * dim).zip(part.chunks_exact(keys * dim)) {
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                }
            })
        };
        for (block, first) in self.weights.blocks.iter().zip((0..time).step_by(BLOCK)) {
            let (rows, keys) = (BLOCK.min(time - first), (first + BLOCK).min(time));
            let upper = upper.narrow(1, first, rows)?;
            add(&mut dv, &block.t()?.matmul(&upper)?, g.value, keys)?;
            let scores = upper.matmul(&self.packed.v.narrow(1, 0, keys)?.t()?)?;
            let op = SoftmaxGradient { first, rows, keys, scale: self.scale };
            scores.inplace_op2(block, &op)?;
            dq.push(scores.matmul(&self.packed.k.narrow(1, 0, keys)?)?);
            add(&mut dk, &scores.t()?.matmul(&self.packed.q.narrow(1, first, rows)?)?, dim, keys)?;
        }
        Ok([with_floats(&Tensor::cat(&dq, 1)?, <[f32]>::to_vec)?, dk, dv])
    }
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "train-latent-attend"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(with_floats(&self.out, <[f32]>::to_vec)?), self.out.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        expanded: &Tensor,
        shared: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = &self.geometry;
        let [dq, dk, dv] = self.packed_gradients(grad)?;
        let (nope, rope, value, heads) = (g.nope, g.rope, g.value, g.heads);
        let (dim, wide) = (nope + rope, nope + value);
        let mut out_q = vec![0f32; q.elem_count()];
        let mut out_kv = vec![0f32; expanded.elem_count()];
        let mut out_kp = vec![0f32; shared.elem_count()];
        let mut turned = vec![0f32; rope];
        g.each(|at, row, head, t| {
            let (dq, dk) = (&dq[at * dim..][..dim], &dk[at * dim..][..dim]);
            let out = &mut out_q[(row * heads + head) * dim..][..dim];
            out[..nope].copy_from_slice(&dq[..nope]);
            rotate_pairs(&dq[nope..], &mut out[nope..], &g.rotary, t, -1.0);
            let out = &mut out_kv[(row * heads + head) * wide..][..wide];
            out[..nope].copy_from_slice(&dk[..nope]);
            out[nope..].copy_from_slice(&dv[at * value..][..value]);
            rotate_pairs(&dk[nope..], &mut turned, &g.rotary, t, -1.0);
            out_kp[row * rope..][..rope].iter_mut().zip(&turned).for_each(|(sum, d)| *sum += d);
        });
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
        Ok((Some(tensor(out_q, q)?), Some(tensor(out_kv, expanded)?), Some(tensor(out_kp, shared)?)))
    }
}
