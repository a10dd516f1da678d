//! Experts: the router (`noaux_tc`, one group) and the rows that go to each expert.

use crate::train::kernels::{floats, sigmoid, with_floats};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};

/// The experts of each row: `per_token` of them, those with the greatest `sigmoid(logit) + bias`, ties to the lowest.
pub fn choose(logits: &[f32], bias: &[f32], per_token: usize) -> Vec<usize> {
    let mut choices = Vec::with_capacity(logits.len() / bias.len() * per_token);
    for row in logits.chunks_exact(bias.len()) {
        let mut order: Vec<(f32, usize)> =
            row.iter().zip(bias).enumerate().map(|(expert, (x, b))| (sigmoid(*x) + b, expert)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        choices.extend(order[..per_token].iter().map(|&(_, expert)| expert));
    }
    choices
}

/// Weights `[rows, per_token]` of the chosen experts: their sigmoids, divided by the sum, times `scale`.
pub struct ExpertWeights {
    /// The experts of each row.
    pub choices: Vec<usize>,
    /// Experts a row.
    pub per_token: usize,
    /// What the weights are multiplied with.
    pub scale: f32,
}

impl CustomOp1 for ExpertWeights {
    fn name(&self) -> &'static str {
        "train-expert-weights"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = floats(storage, layout)?;
        let (rows, experts) = layout.shape().dims2()?;
        let mut y = Vec::with_capacity(self.choices.len());
        for (row, chosen) in logits.chunks_exact(experts).zip(self.choices.chunks_exact(self.per_token)) {
            let sum: f32 = chosen.iter().map(|&e| sigmoid(row[e])).sum();
            y.extend(chosen.iter().map(|&e| self.scale * sigmoid(row[e]) / sum));
        }
        Ok((CpuStorage::F32(y), Shape::from((rows, self.per_token))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, experts) = x.dims2()?;
        let mut dx = vec![0f32; x.elem_count()];
        with_floats(x, |x| {
            with_floats(grad, |grad| {
                let chosen = self.choices.chunks_exact(self.per_token).zip(grad.chunks_exact(self.per_token));
                for ((x, dx), (chosen, grad)) in
                    x.chunks_exact(experts).zip(dx.chunks_exact_mut(experts)).zip(chosen)
                {
                    let sum: f32 = chosen.iter().map(|&e| sigmoid(x[e])).sum();
                    let mean: f32 =
                        chosen.iter().zip(grad).map(|(&e, g)| g * sigmoid(x[e])).sum::<f32>() / sum;
                    for (&e, g) in chosen.iter().zip(grad) {
                        let s = sigmoid(x[e]);
                        dx[e] = self.scale * (g - mean) / sum * s * (1.0 - s);
                    }
                }
            })
        })??;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}

/// Sums the experts' outputs of each row, weighted. `from[row * per_token + i]` is the row of the outputs
/// that belongs to the row's choice `i`.
pub struct Combine {
    /// See above.
    pub from: Vec<usize>,
    /// Experts a row.
    pub per_token: usize,
}

impl CustomOp2 for Combine {
    fn name(&self) -> &'static str {
        "train-combine"
    }

    fn cpu_fwd(
        &self,
        outputs: &CpuStorage,
        ol: &Layout,
        weights: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (outputs, weights) = (floats(outputs, ol)?, floats(weights, wl)?);
        let (_, width) = ol.shape().dims2()?;
        let mut y = vec![0f32; self.from.len() / self.per_token * width];
        for (index, (from, weight)) in self.from.iter().zip(weights).enumerate() {
            let y = &mut y[index / self.per_token * width..][..width];
            y.iter_mut().zip(&outputs[from * width..]).for_each(|(sum, x)| *sum += weight * x);
        }
        Ok((CpuStorage::F32(y), Shape::from((self.from.len() / self.per_token, width))))
    }

    fn bwd(
        &self,
        outputs: &Tensor,
        weights: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, width) = outputs.dims2()?;
        let mut dx = vec![0f32; outputs.elem_count()];
        let mut dw = vec![0f32; weights.elem_count()];
        with_floats(outputs, |x| {
            with_floats(weights, |w| {
                with_floats(grad, |grad| {
                    for (index, &from) in self.from.iter().enumerate() {
                        let grad = &grad[index / self.per_token * width..][..width];
                        let x = &x[from * width..][..width];
                        dw[index] = x.iter().zip(grad).map(|(x, g)| x * g).sum();
                        let dx = &mut dx[from * width..][..width];
                        dx.iter_mut().zip(grad).for_each(|(d, g)| *d = w[index] * g);
                    }
                })
            })
        })???;
        Ok((
            Some(Tensor::from_vec(dx, outputs.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(dw, weights.shape(), &Device::Cpu)?),
        ))
    }
}
