//! What is computed of one row between products: a layer norm, a sigmoid, a weighted sum. A row's result depends on that
//! row alone.

use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};

use crate::cpu::rowwise::{load_group, rotate, store_group};

struct LayerNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.x.len();
        // SAFETY: the caller has the features; groups stay inside the slices.
        unsafe {
            let mut sum = L::splat(0.0);
            for at in (0..width).step_by(LANES) {
                sum = sum.add(load_group(self.x, at));
            }
            let mean = L::splat(sum.sum() / width as f32);
            let mut squares = L::splat(0.0);
            for at in (0..width).step_by(LANES) {
                let x: L = load_group(self.x, at);
                // Behind the end there is nothing that could differ from the mean.
                let off = x.sub(mean).keep_first(width - at, 0.0);
                squares = off.mul_add(off, squares);
            }
            let scale = L::splat(1.0 / (squares.sum() / width as f32 + self.eps).sqrt());
            for at in (0..width).step_by(LANES) {
                let x: L = load_group(self.x, at);
                let (w, b): (L, L) = (load_group(self.weight, at), load_group(self.bias, at));
                store_group(x.sub(mean).mul(scale).mul_add(w, b), self.x, at);
            }
        }
    }
}

/// `x = (x - mean) / sqrt(variance + eps) * weight + bias`; sums are taken in 16 lanes over ascending columns, the lanes by
/// [`Lanes::sum`]. All slices have the same length.
pub(super) fn layer_norm(isa: Isa, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    assert!(x.len() == weight.len() && x.len() == bias.len());
    isa.run(LayerNorm { x, weight, bias, eps });
}

struct Sigmoid<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Sigmoid<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features; groups stay inside the slices.
        unsafe {
            let one = L::splat(1.0);
            for at in (0..self.0.len()).step_by(LANES) {
                let x: L = load_group(self.0, at);
                store_group(one.div(one.add(L::splat(0.0).sub(x).exp())), self.1, at);
            }
        }
    }
}

/// `out = 1 / (1 + exp(-x))`.
pub(super) fn sigmoid(isa: Isa, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    isa.run(Sigmoid(x, out));
}

struct AddScaled<'a>(f32, &'a [f32], &'a mut [f32]);

impl Kernel for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features; groups stay inside the slices.
        unsafe {
            let scale = L::splat(self.0);
            for at in (0..self.1.len()).step_by(LANES) {
                let (x, sum): (L, L) = (load_group(self.1, at), load_group(self.2, at));
                store_group(x.mul_add(scale, sum), self.2, at);
            }
        }
    }
}

/// `sum += scale * x`, one multiply-add a value.
pub(super) fn add_scaled(isa: Isa, scale: f32, x: &[f32], sum: &mut [f32]) {
    assert_eq!(x.len(), sum.len());
    isa.run(AddScaled(scale, x, sum));
}

/// Rotates `x` in place by the angles of one position (cosines, then sines): pairs half of `x` apart, or neighbours.
pub(super) fn rotate_pairs(isa: Isa, x: &mut [f32], rope: &[f32], interleaved: bool, room: &mut Vec<f32>) {
    let half = x.len() / 2;
    let (cos, sin) = rope.split_at(half);
    if !interleaved {
        rotate(isa, x, cos, sin);
        return;
    }
    room.clear();
    room.extend(x.iter().step_by(2));
    room.extend(x.iter().skip(1).step_by(2));
    rotate(isa, room, cos, sin);
    let (even, odd) = room.split_at(half);
    for (pair, (&even, &odd)) in x.chunks_exact_mut(2).zip(even.iter().zip(odd)) {
        pair.copy_from_slice(&[even, odd]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, salt: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i * 2_654_435_761u32.wrapping_add(salt)) >> 8) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    fn sets() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }

    #[test]
    fn a_layer_norm_agrees_with_f64_at_every_width() {
        for width in [2, 7, 16, 31, 32, 100, 128] {
            let (x, w, b) = (values(width, 1), values(width, 2), values(width, 3));
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
            for isa in sets() {
                let mut out = x.clone();
                layer_norm(isa, &mut out, &w, &b, 1e-6);
                for i in 0..width {
                    let normed = (f64::from(x[i]) - mean) / (variance + 1e-6).sqrt();
                    let want = normed * f64::from(w[i]) + f64::from(b[i]);
                    assert!((f64::from(out[i]) - want).abs() < 2e-5, "{isa} width {width} column {i}");
                }
            }
        }
    }

    #[test]
    fn neighbours_turn_by_the_angle_of_their_pair() {
        let x = values(16, 4);
        let angles: Vec<f64> = (0..8).map(|i| 0.3 * f64::from(i)).collect();
        let rope: Vec<f32> =
            angles.iter().map(|a| a.cos() as f32).chain(angles.iter().map(|a| a.sin() as f32)).collect();
        for isa in sets() {
            let mut out = x.clone();
            rotate_pairs(isa, &mut out, &rope, true, &mut Vec::new());
            for (i, angle) in angles.iter().enumerate() {
                let (a, b) = (f64::from(x[2 * i]), f64::from(x[2 * i + 1]));
                assert!((f64::from(out[2 * i]) - (a * angle.cos() - b * angle.sin())).abs() < 1e-6);
                assert!((f64::from(out[2 * i + 1]) - (b * angle.cos() + a * angle.sin())).abs() < 1e-6);
            }
        }
    }
}
