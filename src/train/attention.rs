//! Attention over whole sequences, with its gradient: heads, rotary embedding, softmax over the keys that a query sees.

use super::kernels::{exp, floats, with_floats};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Cosines and sines of the rotary embedding (Su et al., 2021; half-split layout): `[time, dim / 2]`.
pub struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// Tables for positions `0..time` of heads of `dim` elements.
    pub fn new(time: usize, dim: usize, theta: f64) -> Self {
        let lanes = 0..dim / 2;
        Self::of(time, &lanes.map(|lane| theta.powf(-2.0 * lane as f64 / dim as f64)).collect::<Vec<_>>())
    }

    /// Tables for positions `0..time` of heads whose pairs turn by `frequencies`, in radians a position.
    pub fn of(time: usize, frequencies: &[f64]) -> Self {
        let angles = (0..time).flat_map(|t| frequencies.iter().map(move |frequency| t as f64 * frequency));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { cos, sin }
    }
}

/// Between `[batch * time, heads * dim]` and `[batch, heads, time, dim]`, rotating on the way.
#[derive(Clone)]
pub struct Heads {
    /// Sequences.
    pub batch: usize,
    /// Positions a sequence.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Elements a head.
    pub dim: usize,
    /// The rotation (none for values and outputs).
    pub rotary: Option<Arc<Rotary>>,
    /// From heads back to rows (and rotating backwards), which is also the gradient of the split.
    pub merge: bool,
}

impl Heads {
    fn shape(&self) -> Shape {
        if self.merge {
            Shape::from((self.batch * self.time, self.heads * self.dim))
        } else {
            Shape::from((self.batch, self.heads, self.time, self.dim))
        }
    }

    fn run(&self, x: &[f32]) -> Vec<f32> {
        let (heads, time, dim) = (self.heads, self.time, self.dim);
        let mut y = vec![0f32; x.len()];
        let sequence = time * heads * dim;
        y.par_chunks_mut(sequence).zip(x.par_chunks(sequence)).for_each(|(y, x)| {
            for t in 0..time {
                for h in 0..heads {
                    let (row, head) = ((t * heads + h) * dim, (h * time + t) * dim);
                    let (from, to) = if self.merge { (head, row) } else { (row, head) };
                    let (x, y) = (&x[from..from + dim], &mut y[to..to + dim]);
                    match &self.rotary {
                        None => y.copy_from_slice(x),
                        Some(rotary) => rotate(x, y, rotary, t, if self.merge { -1.0 } else { 1.0 }),
                    }
                }
            }
        });
        y
    }
}

/// `x` rotated by its position (backwards with a `sign` of -1) into `y`, pairs half the vector apart.
pub fn rotate(x: &[f32], y: &mut [f32], rotary: &Rotary, position: usize, sign: f32) {
    let half = x.len() / 2;
    let cos = &rotary.cos[position * half..][..half];
    let sin = &rotary.sin[position * half..][..half];
    for i in 0..half {
        let (a, b, c, s) = (x[i], x[i + half], cos[i], sign * sin[i]);
        y[i] = a * c - b * s;
        y[i + half] = b * c + a * s;
    }
}

/// The same with neighbouring pairs (2i, 2i + 1).
pub fn rotate_pairs(x: &[f32], y: &mut [f32], rotary: &Rotary, position: usize, sign: f32) {
    let half = x.len() / 2;
    let cos = &rotary.cos[position * half..][..half];
    let sin = &rotary.sin[position * half..][..half];
    for i in 0..half {
        let (a, b, c, s) = (x[2 * i], x[2 * i + 1], cos[i], sign * sin[i]);
        y[2 * i] = a * c - b * s;
        y[2 * i + 1] = b * c + a * s;
    }
}

impl CustomOp1 for Heads {
    fn name(&self) -> &'static str {
        "train-heads"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.run(floats(storage, layout)?)), self.shape()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { merge: !self.merge, ..self.clone() };
        let dx = with_floats(grad, |g| back.run(g))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// Attention: `q` `[n, group * time, dim]` (the query heads that share a key head stacked), `k` and `v` `[n, time, ..]`; scores are
/// multiplied with `scale`. A `causal` query sees the keys up to its own position, another one all of its sequence. One node of the
/// graph, which keeps the weights it used, in place of four with a gradient each as large as the weights.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, causal: bool) -> Result<Tensor> {
    let softmax = SeenSoftmax { time: k.dim(1)?, scale, causal };
    let scores = q.detach().matmul(&k.detach().t()?)?;
    let weights = scores.apply_op1_no_bwd(&softmax)?;
    let mixed = weights.matmul(&v.detach())?;
    q.apply_op3(k, v, Attend { softmax, weights, mixed })
}

struct Attend {
    softmax: SeenSoftmax,
    weights: Tensor,
    mixed: Tensor,
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "train-attend"
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
        let mixed = with_floats(&self.mixed, <[f32]>::to_vec)?;
        Ok((CpuStorage::F32(mixed), self.mixed.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _mixed: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dv = self.weights.t()?.matmul(grad)?;
        let dweights = grad.matmul(&v.detach().t()?)?;
        let dscores = self.softmax.gradient(&self.weights, &dweights)?;
        let dq = dscores.matmul(&k.detach())?;
        let dk = dscores.t()?.matmul(&q.detach())?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}

/// `softmax(scale * x)` over the keys that a query sees, of rows `[.., time, time]`; 0 for the others.
struct SeenSoftmax {
    /// Positions a sequence: the length of a row, and the period of the query position.
    pub time: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Whether query t sees the keys `0..=t` alone.
    pub causal: bool,
}

impl CustomOp1 for SeenSoftmax {
    fn name(&self) -> &'static str {
        "train-seen-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let mut y = vec![0f32; x.len()];
        let rows = y.par_chunks_mut(self.time).zip(x.par_chunks(self.time)).with_min_len(64);
        rows.enumerate().for_each(|(row, (y, x))| {
            let seen = self.seen(row);
            let (x, y) = (&x[..seen], &mut y[..seen]);
            let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (y, x) in y.iter_mut().zip(x) {
                *y = exp((x - top) * self.scale);
            }
            let inverse = 1.0 / y.iter().sum::<f32>();
            for y in y {
                *y *= inverse;
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

impl SeenSoftmax {
    /// The number of keys that the query of a row sees.
    fn seen(&self, row: usize) -> usize {
        if self.causal { row % self.time + 1 } else { self.time }
    }

    /// The gradient of the scores, from the weights and theirs.
    fn gradient(&self, y: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let dx = with_floats(y, |y| {
            with_floats(grad, |g| {
                let mut dx = vec![0f32; y.len()];
                let n = self.time;
                let rows = dx.par_chunks_mut(n).zip(y.par_chunks(n)).zip(g.par_chunks(n));
                rows.with_min_len(64).enumerate().for_each(|(row, ((dx, y), g))| {
                    let seen = self.seen(row);
                    let dot: f32 = y[..seen].iter().zip(&g[..seen]).map(|(y, g)| y * g).sum();
                    for ((dx, y), g) in dx[..seen].iter_mut().zip(y).zip(g) {
                        *dx = self.scale * y * (g - dot);
                    }
                });
                dx
            })
        })??;
        Tensor::from_vec(dx, y.shape(), y.device())
    }
}
