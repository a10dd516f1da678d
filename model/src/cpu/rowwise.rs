//! The operations between matrix products, which work on one row at a time: norms, rotations (RoPE),
//! SwiGLU.
//!
//! A row's result depends on that row alone. Widths need not be multiples of 16: the last group is computed
//! in a copy that is padded with zeros, by the same lane arithmetic.

use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};

/// Loads up to 16 values of `x` from `at` on. Lanes behind the end of `x` are 0.
#[inline(always)]
pub(super) unsafe fn load_group<L: Lanes>(x: &[f32], at: usize) -> L {
    let left = x.len() - at;
    if left >= LANES {
        // SAFETY: 16 values are left, and the caller has enabled the features.
        return unsafe { L::load(x.as_ptr().add(at)) };
    }
    let mut group = [0.0f32; LANES];
    group[..left].copy_from_slice(&x[at..]);
    // SAFETY: the array has 16 values.
    unsafe { L::load(group.as_ptr()) }
}

/// Stores up to 16 lanes to `x` from `at` on, as many as there is room for.
#[inline(always)]
pub(super) unsafe fn store_group<L: Lanes>(lanes: L, x: &mut [f32], at: usize) {
    let left = x.len() - at;
    if left >= LANES {
        // SAFETY: there is room for 16 values, and the caller has enabled the features.
        unsafe { lanes.store(x.as_mut_ptr().add(at)) };
        return;
    }
    // SAFETY: the caller has enabled the features.
    let group = unsafe { lanes.to_array() };
    x[at..].copy_from_slice(&group[..left]);
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.x.len();
        // SAFETY: the caller has enabled the features, and groups stay inside the slices.
        unsafe {
            let mut squares = L::splat(0.0);
            for at in (0..width).step_by(LANES) {
                let x: L = load_group(self.x, at);
                squares = x.mul_add(x, squares);
            }
            let scale = L::splat(1.0 / (squares.sum() / width as f32 + self.eps).sqrt());
            for at in (0..width).step_by(LANES) {
                let x: L = load_group(self.x, at);
                let w: L = load_group(self.weight, at);
                store_group(x.mul(scale).mul(w), self.out, at);
            }
        }
    }
}

/// `out = weight * x / sqrt(mean(x^2) + eps)`. The squares are summed in 16 lanes over ascending columns,
/// and the lanes by [`Lanes::sum`]. All slices have the same length.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    isa.run(RmsNorm { x, weight, eps, out });
}

/// Applies [`rms_norm`] to one head in place.
pub fn rms_norm_head(isa: Isa, head: &mut [f32], weight: &[f32], eps: f32) {
    const USUAL: usize = 256;
    let mut copy = [0.0; USUAL];
    match copy.get_mut(..head.len()) {
        Some(copy) => {
            copy.copy_from_slice(head);
            rms_norm(isa, copy, weight, eps, head);
        }
        None => {
            let copy = head.to_vec();
            rms_norm(isa, &copy, weight, eps, head);
        }
    }
}

struct Rotate<'a> {
    head: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let half = self.head.len() / 2;
        let (low, high) = self.head.split_at_mut(half);
        // SAFETY: the caller has enabled the features, and groups stay inside the slices.
        unsafe {
            for at in (0..half).step_by(LANES) {
                let (a, b): (L, L) = (load_group(low, at), load_group(high, at));
                let (c, s): (L, L) = (load_group(self.cos, at), load_group(self.sin, at));
                let minus_b = L::splat(0.0).sub(b);
                store_group(minus_b.mul_add(s, a.mul(c)), low, at);
                store_group(a.mul_add(s, b.mul(c)), high, at);
            }
        }
    }
}

/// Rotates one head in place: the values i and i + half by angle i, whose cosine and sine are given. `cos`
/// and `sin` have `half` values each.
pub fn rotate(isa: Isa, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(head.len() == 2 * cos.len() && cos.len() == sin.len());
    isa.run(Rotate { head, cos, sin });
}

struct SwiGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has enabled the features, and groups stay inside the slices.
        unsafe {
            let one = L::splat(1.0);
            for at in (0..self.gate.len()).step_by(LANES) {
                let (g, u): (L, L) = (load_group(self.gate, at), load_group(self.up, at));
                let e = L::splat(0.0).sub(g).exp();
                store_group(g.div(one.add(e)).mul(u), self.out, at);
            }
        }
    }
}

/// `out = gate / (1 + exp(-gate)) * up`. All slices have the same length.
pub fn swiglu(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    isa.run(SwiGlu { gate, up, out });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, salt: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i * 2_654_435_761u32.wrapping_add(salt)) >> 8) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    #[test]
    fn a_norm_agrees_with_f64_at_every_width() {
        for width in [1, 7, 16, 31, 64, 100, 257] {
            let (x, w) = (values(width, 1), values(width, 2));
            let ms = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
            for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                let mut out = vec![0.0; width];
                rms_norm(isa, &x, &w, 1e-5, &mut out);
                for i in 0..width {
                    let want = f64::from(w[i]) * f64::from(x[i]) / (ms + 1e-5).sqrt();
                    assert!((f64::from(out[i]) - want).abs() < 1e-6, "{isa} width {width} column {i}");
                }
            }
        }
    }

    #[test]
    fn a_rotation_turns_pairs_half_a_head_apart() {
        for half in [4, 8, 16, 40] {
            let x = values(2 * half, 3);
            let angles: Vec<f64> = (0..half).map(|i| i as f64 * 0.37).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
            for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                let mut head = x.clone();
                rotate(isa, &mut head, &cos, &sin);
                for i in 0..half {
                    let (a, b) = (f64::from(x[i]), f64::from(x[i + half]));
                    let (c, s) = (angles[i].cos(), angles[i].sin());
                    assert!((f64::from(head[i]) - (a * c - b * s)).abs() < 1e-6);
                    assert!((f64::from(head[i + half]) - (b * c + a * s)).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn swiglu_agrees_with_f64_and_survives_large_gates() {
        let mut gate = values(50, 4);
        gate.extend([90.0, -90.0, 200.0, -200.0, 0.0]);
        let up = values(gate.len(), 5);
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            let mut out = vec![0.0; gate.len()];
            swiglu(isa, &gate, &up, &mut out);
            for i in 0..gate.len() {
                let g = f64::from(gate[i]);
                let want = g / (1.0 + (-g).exp()) * f64::from(up[i]);
                assert!(
                    (f64::from(out[i]) - want).abs() <= 1e-6 * want.abs().max(1.0),
                    "{isa} gate {g}: {} {want}",
                    out[i]
                );
            }
        }
    }

    #[test]
    fn instruction_sets_with_fused_multiply_add_agree_bit_for_bit() {
        let (x, w) = (values(77, 6), values(77, 7));
        let mut seen: Option<Vec<u32>> = None;
        for isa in [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Neon]
            .into_iter()
            .filter(|i| i.available())
        {
            let (mut a, mut b) = (vec![0.0; 77], vec![0.0; 77]);
            rms_norm(isa, &x, &w, 1e-6, &mut a);
            swiglu(isa, &x, &w, &mut b);
            let bits: Vec<u32> = a.iter().chain(&b).map(|v| v.to_bits()).collect();
            assert_eq!(*seen.get_or_insert_with(|| bits.clone()), bits, "{isa}");
        }
    }
}
