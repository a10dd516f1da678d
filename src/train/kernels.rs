//! Differentiable operations fused for the CPU, as candle custom operations.
//!
//! candle's own `rms_norm`, `rope` and `softmax_last_dim` have no backward pass, and what one would
//! compose from its elementwise operations allocates and walks a fresh buffer for each. Every
//! operation here takes contiguous f32 tensors, makes one pass forward and one backward, and sums in
//! an order that does not depend on the number of threads.

use super::noise::scramble;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

/// Rows summed together before partial sums are added up, in order.
const ROWS_PER_PARTIAL: usize = 64;

/// The elements of a contiguous f32 operand.
pub fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("the operands of a fused kernel must be contiguous"),
    }
}

/// Calls `f` on the elements of a CPU tensor (copied only if it is not contiguous).
pub fn with_floats<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(floats(cpu, layout)?)),
        _ => bail!("the trainer runs on the CPU only"),
    }
}

/// `e^x` for `x <= 0` to about two units in the last place: written so that loops over it vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let scaled = x.max(-87.0) * std::f32::consts::LOG2_E;
    let whole = (scaled + 12_582_912.0) - 12_582_912.0;
    let part = scaled - whole;
    let mut p = 1.540_353e-4_f32;
    for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, std::f32::consts::LN_2, 1.0] {
        p = p * part + c;
    }
    f32::from_bits((((whole as i32) + 127) << 23) as u32) * p
}

/// `y = x / sqrt(mean(x^2) + eps) * w` over rows of `w`'s length. Shapes: `x` `[rows, n]`, `w` `[n]`.
pub struct RmsNorm {
    /// What is added to the mean square.
    pub eps: f32,
}

fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let square: f32 = row.iter().map(|x| x * x).sum();
    1.0 / (square / row.len() as f32 + eps).sqrt()
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "train-rms-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xl: &Layout,
        ws: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (floats(xs, xl)?, floats(ws, wl)?);
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(w.len()).zip(x.par_chunks(w.len())).with_min_len(64).for_each(|(y, x)| {
            let r = inverse_rms(x, self.eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * r * w;
            }
        });
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = w.elem_count();
        let (dx, dw) = with_floats(x, |x| {
            with_floats(w, |w| {
                with_floats(grad, |g| {
                    let mut dx = vec![0f32; x.len()];
                    let rows = n * ROWS_PER_PARTIAL;
                    let partials: Vec<Vec<f32>> = dx
                        .par_chunks_mut(rows)
                        .zip(x.par_chunks(rows))
                        .zip(g.par_chunks(rows))
                        .map(|((dx, x), g)| {
                            let mut dw = vec![0f32; n];
                            for ((dx, x), g) in dx.chunks_mut(n).zip(x.chunks(n)).zip(g.chunks(n)) {
                                let r = inverse_rms(x, self.eps);
                                let mut dot = 0f32;
                                for i in 0..n {
                                    dot += g[i] * w[i] * x[i];
                                    dw[i] += g[i] * x[i] * r;
                                }
                                let pull = dot * r * r * r / n as f32;
                                for i in 0..n {
                                    dx[i] = g[i] * w[i] * r - x[i] * pull;
                                }
                            }
                            dw
                        })
                        .collect();
                    let mut dw = vec![0f32; n];
                    for partial in &partials {
                        for (dw, p) in dw.iter_mut().zip(partial) {
                            *dw += p;
                        }
                    }
                    (dx, dw)
                })
            })
        })???;
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dw, w.shape(), w.device())?),
        ))
    }
}

/// `x w^T`: candle's own product with a transposed weight adds up the weight's gradient through
/// strided views, which costs more than the product.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let y = x.detach().matmul(&w.detach().t()?)?;
    x.apply_op2(w, Linear { y })
}

/// Carries a product that was worked out before, and its gradient.
struct Linear {
    y: Tensor,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "train-linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(with_floats(&self.y, <[f32]>::to_vec)?), self.y.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = grad.matmul(&w.detach())?;
        // A frozen weight takes no gradient.
        let dw = w.track_op().then(|| grad.t()?.matmul(&x.detach())).transpose()?;
        Ok((Some(dx), dw))
    }
}

/// `silu(gate) * up`, elementwise (Shazeer, 2020).
pub struct SwiGlu;

/// The logistic function.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    (if x >= 0.0 { 1.0 } else { e }) / (1.0 + e)
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "train-swiglu"
    }

    fn cpu_fwd(
        &self,
        gs: &CpuStorage,
        gl: &Layout,
        us: &CpuStorage,
        ul: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (floats(gs, gl)?, floats(us, ul)?);
        let mut y = vec![0f32; gate.len()];
        y.par_iter_mut().zip(gate).zip(up).with_min_len(4096).for_each(|((y, g), u)| {
            *y = g * sigmoid(*g) * u;
        });
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dg, du) = with_floats(gate, |gate| {
            with_floats(up, |up| {
                with_floats(grad, |d| {
                    let (mut dg, mut du) = (vec![0f32; d.len()], vec![0f32; d.len()]);
                    let outputs = dg.par_iter_mut().zip(&mut du).zip(d).zip(gate).zip(up);
                    outputs.with_min_len(4096).for_each(|((((dg, du), d), g), u)| {
                        let s = sigmoid(*g);
                        *dg = d * u * s * (1.0 + g * (1.0 - s));
                        *du = d * g * s;
                    });
                    (dg, du)
                })
            })
        })???;
        Ok((
            Some(Tensor::from_vec(dg, gate.shape(), gate.device())?),
            Some(Tensor::from_vec(du, up.shape(), up.device())?),
        ))
    }
}

/// Zeroes each element with probability `rate` and scales the others by `1 / (1 - rate)`; which ones
/// is a function of `key` and the element's index.
#[derive(Clone, Copy)]
pub struct Dropout {
    /// The key of the mask.
    pub key: u64,
    /// The probability of a zero, in `[0, 1)`.
    pub rate: f32,
}

impl Dropout {
    fn run(&self, x: &[f32]) -> Vec<f32> {
        let (limit, scale) = ((self.rate * 65536.0) as u64, 1.0 / (1.0 - self.rate));
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(4096).zip(x.par_chunks(4096)).enumerate().for_each(|(chunk, (y, x))| {
            for (quad, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
                let bits = scramble(self.key ^ (chunk * 1024 + quad) as u64);
                for (lane, (y, x)) in y.iter_mut().zip(x).enumerate() {
                    let kept = (bits >> (16 * lane)) & 0xffff >= limit;
                    *y = if kept { x * scale } else { 0.0 };
                }
            }
        });
        y
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "train-dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.run(floats(storage, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_floats(grad, |g| self.run(g))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// Rows `rows` of a matrix.
pub struct Take {
    /// Which rows, in the order of the result.
    pub rows: Vec<usize>,
}

impl CustomOp1 for Take {
    fn name(&self) -> &'static str {
        "train-take"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let (_, width) = layout.shape().dims2()?;
        let mut y = Vec::with_capacity(self.rows.len() * width);
        self.rows.iter().for_each(|row| y.extend_from_slice(&x[row * width..][..width]));
        Ok((CpuStorage::F32(y), Shape::from((self.rows.len(), width))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = x.dims2()?;
        let mut dx = vec![0f32; x.elem_count()];
        with_floats(grad, |grad| {
            for (row, grad) in self.rows.iter().zip(grad.chunks_exact(width)) {
                dx[row * width..][..width].iter_mut().zip(grad).for_each(|(sum, g)| *sum += g);
            }
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}
