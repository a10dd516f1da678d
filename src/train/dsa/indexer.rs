//! The lightning indexer: its scores, what it chooses, and how it learns what attention looks at.
//!
//! `I[t, s] = scale * sum over heads h of w[t, h] * max(0, q[t, h] . k[s])`, the first values of `q` and `k` rotated in
//! halves (DeepSeek-V3.2-Exp). The indexer is trained on inputs that are cut from the graph, by the divergence of
//! `softmax(I)` from the attention's weights summed over the heads, which is the warm-up of that model's report.

use super::latent::Chosen;
use crate::train::attention::{Rotary, rotate};
use crate::train::kernels::{exp, floats, with_floats};
use crate::train::noise::Noise;
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// Sizes of an indexer over whole sequences.
#[derive(Clone)]
pub struct Geometry {
    /// Positions a sequence.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Elements a head.
    pub dim: usize,
    /// How many of them are rotated.
    pub rope: usize,
    /// Rotations by position.
    pub rotary: Arc<Rotary>,
}

impl Geometry {
    /// The factor of the scores.
    fn scale(&self) -> f32 {
        1.0 / ((self.heads as f32).sqrt() * (self.dim as f32).sqrt())
    }

    /// Rotates vectors of `dim` elements in place; `position` says where each is.
    fn turn(&self, x: &mut [f32], position: impl Fn(usize) -> usize, sign: f32) {
        let mut turned = vec![0f32; self.rope];
        for (index, x) in x.chunks_exact_mut(self.dim).enumerate() {
            rotate(&x[..self.rope], &mut turned, &self.rotary, position(index), sign);
            x[..self.rope].copy_from_slice(&turned);
        }
    }

    fn matrix(&self, values: &[f32]) -> Result<Tensor> {
        Tensor::from_slice(values, (values.len() / self.dim, self.dim), &Device::Cpu)
    }

    /// `max(0, q . k)` of `rows` query rows against `keys`: `[rows * heads, keys]`.
    fn products(&self, q: &[f32], keys: &[f32]) -> Result<Vec<f32>> {
        let mut products = with_floats(&self.matrix(q)?.matmul(&self.matrix(keys)?.t()?)?, <[f32]>::to_vec)?;
        products.iter_mut().for_each(|x| *x = x.max(0.0));
        Ok(products)
    }

    /// The `topk` keys of each row with the greatest scores, ties to the lowest; all keys where there are no more.
    pub fn choose(&self, q: &Tensor, k: &Tensor, w: &Tensor, topk: usize) -> Result<Chosen> {
        let [mut q, mut k, w] = [q, k, w].map(|x| with_floats(x, <[f32]>::to_vec));
        let (q, k, w) = (q.as_mut(), k.as_mut(), w?);
        let (Ok(q), Ok(k)) = (q, k) else { candle_core::bail!("the indexer's operands can't be read") };
        self.turn(q, |index| index / self.heads % self.time, 1.0);
        self.turn(k, |index| index % self.time, 1.0);
        let (time, heads, dim) = (self.time, self.heads, self.dim);
        let mut rows = Vec::with_capacity(k.len() / dim);
        let mut scored: Vec<(f32, u32)> = Vec::with_capacity(time);
        for (sequence, k) in k.chunks_exact(time * dim).enumerate() {
            for first in (0..time).step_by(128) {
                let last = (first + 128).min(time);
                if last <= topk {
                    rows.extend((first..last).map(|t| (0..=t as u32).collect::<Vec<_>>()));
                    continue;
                }
                let from = (sequence * time + first) * heads;
                let part = &q[from * dim..][..(last - first) * heads * dim];
                let products = self.products(part, &k[..last * dim])?;
                for t in first..last {
                    let w = &w[(sequence * time + t) * heads..][..heads];
                    let products = &products[(t - first) * heads * last..][..heads * last];
                    scored.clear();
                    scored.extend((0..=t).map(|s| {
                        let score: f32 = w.iter().enumerate().map(|(h, w)| w * products[h * last + s]).sum();
                        (score, s as u32)
                    }));
                    rows.push(best(&mut scored, topk));
                }
            }
        }
        Ok(Chosen { rows })
    }
}

/// The positions of the `count` greatest scores, ascending.
fn best(scored: &mut [(f32, u32)], count: usize) -> Vec<u32> {
    let count = count.min(scored.len());
    if count < scored.len() {
        scored.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }
    let mut positions: Vec<u32> = scored[..count].iter().map(|&(_, position)| position).collect();
    positions.sort_unstable();
    positions
}

/// As many keys a row as the indexer would choose, drawn at random: what a choice is worth shows against it.
pub fn random(batch: usize, time: usize, topk: usize, seed: u64) -> Chosen {
    let row = |index: usize| {
        let mut noise = Noise::new(seed, "random keys", index as u64);
        let mut drawn: Vec<(f32, u32)> = (0..=(index % time) as u32).map(|s| (noise.uniform(), s)).collect();
        best(&mut drawn, topk)
    };
    Chosen { rows: (0..batch * time).map(row).collect() }
}

/// A query row that the indexer learns from.
pub struct Lesson {
    /// Its sequence.
    pub batch: usize,
    /// Its position.
    pub t: usize,
    /// What attention looks at: weights of keys `0..=t`.
    pub wanted: Vec<f32>,
    /// Its share in the loss; those of all lessons sum to 1.
    pub share: f32,
}

/// The mean divergence of the indexer's softmax from what attention looked at, in nats: `q` `[lessons, heads * dim]`
/// and `w` `[lessons, heads]` of the lessons' rows, `k` `[batch * time, dim]` normed. A key without weight that attention
/// did not see (`chosen`) is left out of the softmax.
pub fn divergence(
    (q, k, w): (&Tensor, &Tensor, &Tensor),
    geometry: &Geometry,
    lessons: &[Lesson],
    chosen: Option<&Chosen>,
) -> Result<Tensor> {
    let g = geometry;
    let (heads, dim, time) = (g.heads, g.dim, g.time);
    let mut qs = with_floats(q, <[f32]>::to_vec)?;
    let mut ks = with_floats(k, <[f32]>::to_vec)?;
    let ws = with_floats(w, <[f32]>::to_vec)?;
    g.turn(&mut qs, |index| lessons[index / heads].t, 1.0);
    g.turn(&mut ks, |index| index % time, 1.0);
    let (mut dq, mut dk) = (vec![0f32; qs.len()], vec![0f32; ks.len()]);
    let mut dw = vec![0f32; ws.len()];
    let mut value = 0f64;
    let mut index = 0;
    while index < lessons.len() {
        let batch = lessons[index].batch;
        let count = lessons[index..].iter().take_while(|lesson| lesson.batch == batch).count();
        let keys = &ks[batch * time * dim..][..time * dim];
        let queries = &qs[index * heads * dim..][..count * heads * dim];
        let mut products = g.products(queries, keys)?;
        for (i, lesson) in lessons[index..index + count].iter().enumerate() {
            let row = &mut products[i * heads * time..][..heads * time];
            let w = &ws[(index + i) * heads..][..heads];
            let seen = lesson.t + 1;
            let chosen = chosen.map(|chosen| &chosen.rows[batch * time + lesson.t]);
            let (loss, slope) = lesson_slope(row, w, lesson, chosen, (g.scale(), time));
            value += f64::from(loss);
            for h in 0..heads {
                let row = &mut row[h * time..][..time];
                dw[(index + i) * heads + h] = row[..seen].iter().zip(&slope).map(|(x, s)| x * s).sum();
                for (x, s) in row[..seen].iter_mut().zip(&slope) {
                    *x = if *x > 0.0 { s * w[h] } else { 0.0 };
                }
                row[seen..].fill(0.0);
            }
        }
        let slopes = Tensor::from_vec(products, (count * heads, time), &Device::Cpu)?;
        let part = slopes.matmul(&g.matrix(keys)?)?;
        with_floats(&part, |part| dq[index * heads * dim..][..part.len()].copy_from_slice(part))?;
        let part = slopes.t()?.matmul(&g.matrix(queries)?)?;
        with_floats(&part, |part| dk[batch * time * dim..][..part.len()].copy_from_slice(part))?;
        index += count;
    }
    g.turn(&mut dq, |index| lessons[index / heads].t, -1.0);
    g.turn(&mut dk, |index| index % time, -1.0);
    let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
    let gradients = [tensor(dq, q)?, tensor(dk, k)?, tensor(dw, w)?];
    q.apply_op3(k, w, Divergence { value: value as f32, gradients })
}

/// The divergence of one row, and the slope of the loss by each of its scores' sums over heads (before the factor).
fn lesson_slope(
    products: &[f32],
    w: &[f32],
    lesson: &Lesson,
    chosen: Option<&Vec<u32>>,
    (scale, time): (f32, usize),
) -> (f32, Vec<f32>) {
    let seen = lesson.t + 1;
    let mut scores = vec![f32::NEG_INFINITY; seen];
    let score = |s: usize| scale * w.iter().enumerate().map(|(h, w)| w * products[h * time + s]).sum::<f32>();
    match chosen {
        None => scores.iter_mut().enumerate().for_each(|(s, x)| *x = score(s)),
        Some(keys) => keys.iter().for_each(|&s| scores[s as usize] = score(s as usize)),
    }
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|x| if x.is_finite() { exp(x - top) } else { 0.0 }).sum();
    let norm = top + sum.ln();
    let mut loss = 0f32;
    let slope = scores.iter().zip(&lesson.wanted).map(|(x, wanted)| {
        if !x.is_finite() {
            return 0.0;
        }
        if *wanted > 0.0 {
            loss += wanted * (wanted.ln() - (x - norm));
        }
        lesson.share * scale * (exp(x - norm) - wanted)
    });
    let slope = slope.collect();
    (lesson.share * loss, slope)
}

/// Carries gradients that were worked out together with the loss.
struct Divergence {
    value: f32,
    gradients: [Tensor; 3],
}

impl CustomOp3 for Divergence {
    fn name(&self) -> &'static str {
        "train-index-divergence"
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
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let factor = f64::from(grad.to_scalar::<f32>()?);
        let [dq, dk, dw] = &self.gradients;
        let scaled = |d: &Tensor| d.affine(factor, 0.0);
        Ok((Some(scaled(dq)?), Some(scaled(dk)?), Some(scaled(dw)?)))
    }
}

/// LayerNorm with weight and bias over rows of the weight's length: the norm of the indexer's keys.
pub struct LayerNorm {
    /// What is added to the variance.
    pub eps: f32,
}

impl LayerNorm {
    /// The mean of a row and the inverse of its deviation.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = row.iter().sum::<f32>() / n;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "train-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (floats(x, xl)?, floats(w, wl)?, floats(b, bl)?);
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(w.len()) {
            let (mean, inverse) = self.moments(row);
            y.extend(row.iter().zip(w).zip(b).map(|((x, w), b)| (x - mean) * inverse * w + b));
        }
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let n = w.elem_count();
        let (mut dx, mut dw, mut db) = (vec![0f32; x.elem_count()], vec![0f32; n], vec![0f32; n]);
        with_floats(x, |x| {
            with_floats(w, |w| {
                with_floats(grad, |grad| {
                    for ((dx, x), g) in
                        dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(grad.chunks_exact(n))
                    {
                        let (mean, inverse) = self.moments(x);
                        let (mut sum, mut along) = (0f32, 0f32);
                        for i in 0..n {
                            let unit = (x[i] - mean) * inverse;
                            dw[i] += g[i] * unit;
                            db[i] += g[i];
                            sum += g[i] * w[i];
                            along += g[i] * w[i] * unit;
                        }
                        let (sum, along) = (sum / n as f32, along / n as f32);
                        for i in 0..n {
                            let unit = (x[i] - mean) * inverse;
                            dx[i] = inverse * (g[i] * w[i] - sum - unit * along);
                        }
                    }
                })
            })
        })???;
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
        Ok((Some(tensor(dx, x)?), Some(tensor(dw, w)?), Some(tensor(db, b)?)))
    }
}
