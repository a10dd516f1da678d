//! The matrix product, one output element at a time. It is slow and obvious.

use crate::checkpoint::Dtype;
use crate::cpu::panel::TILE;
use half::{bf16, f16};
use pagedraft_attention::isa::Isa;

/// `x`, rounded to `dtype`.
pub fn rounded(x: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => x,
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// The sum of `x[i] * w[i]` as `isa` computes it with weights of `dtype`.
pub fn dot(isa: Isa, dtype: Dtype, x: &[f32], w: &[f32]) -> f32 {
    let padded = x.len().next_multiple_of(TILE);
    let prepare = |v: &[f32]| -> Vec<f32> {
        let mut v: Vec<f32> = v.iter().map(|&v| rounded(v, dtype)).collect();
        v.resize(padded, 0.0);
        v
    };
    let (x, w) = (prepare(x), prepare(w));
    match (isa, dtype) {
        (Isa::Amx, Dtype::Bf16) => tiles(&x, &w),
        (Isa::Avx512Bf16, Dtype::Bf16) => pairs(&x, &w),
        (Isa::Portable, _) => x.iter().zip(&w).fold(0.0, |sum, (x, w)| x * w + sum),
        _ => x.iter().zip(&w).fold(0.0, |sum, (x, w)| x.mul_add(*w, sum)),
    }
}

/// Follows the description of `VDPBF16PS`: of each pair the odd input first.
fn pairs(x: &[f32], w: &[f32]) -> f32 {
    let flush = |v: f32| if v.is_subnormal() { 0.0f32.copysign(v) } else { v };
    let mut sum = 0.0f32;
    for (x, w) in x.chunks(2).zip(w.chunks(2)) {
        for i in [1, 0] {
            sum = flush(flush(x[i]).mul_add(flush(w[i]), sum));
        }
    }
    sum
}

/// Follows Intel's description of `TDPBF16PS`, for one tile of 32 inputs after another.
fn tiles(x: &[f32], w: &[f32]) -> f32 {
    let flush = |v: f32| if v.is_subnormal() { 0.0f32.copysign(v) } else { v };
    let mut sum = 0.0f32;
    for (x, w) in x.chunks(TILE).zip(w.chunks(TILE)) {
        let mut halves = [0.0f32; 2];
        for (x, w) in x.chunks(2).zip(w.chunks(2)) {
            for (half, (x, w)) in halves.iter_mut().zip(x.iter().zip(w)) {
                *half = flush(flush(*x).mul_add(flush(*w), *half));
            }
        }
        sum = flush(sum + flush(halves[0] + halves[1]));
    }
    sum
}
