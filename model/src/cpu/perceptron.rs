//! What a scoring perceptron does with a row between its [products](super::products()).

use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};

use super::rowwise::{load_group, store_group};
use crate::Dtype;

/// Adds a bias to each value and applies GELU, `x Phi(x)`: off by less than 4e-7 |x|, and the same bits on every instruction set.
///
/// # Panics
///
/// If the lengths differ, or this machine lacks the instruction set.
pub fn biased_gelu(isa: Isa, x: &mut [f32], bias: &[f32]) {
    assert_eq!(x.len(), bias.len(), "a bias of another length");
    isa.run(BiasedGelu { x, bias });
}

struct BiasedGelu<'a> {
    x: &'a mut [f32],
    bias: &'a [f32],
}

impl Kernel for BiasedGelu<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // The compiler makes lanes of f64 of this, with the instruction set that it runs in.
        for (x, bias) in self.x.iter_mut().zip(self.bias) {
            *x = gelu(*x + bias);
        }
    }
}

/// erf is that of Abramowitz and Stegun 7.1.28, which has neither a branch nor an exponential, so that several values are computed at once.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    const A: [f64; 6] = [
        0.070_523_078_4,
        0.042_282_012_3,
        0.009_270_527_2,
        0.000_152_014_3,
        0.000_276_567_2,
        0.000_043_063_8,
    ];
    let x = f64::from(x);
    let z = (x * std::f64::consts::FRAC_1_SQRT_2).abs();
    let root = 1.0 + z * (A[0] + z * (A[1] + z * (A[2] + z * (A[3] + z * (A[4] + z * A[5])))));
    let fourth = (root * root) * (root * root);
    // Of what lies beyond |x|.
    let tail = 0.5 / ((fourth * fourth) * (fourth * fourth));
    (x * if x < 0.0 { tail } else { 1.0 - tail }) as f32
}

/// Rounds each value to the nearest one of `dtype`, ties to even.
///
/// # Panics
///
/// If this machine lacks the instruction set.
pub fn round_to(isa: Isa, dtype: Dtype, x: &mut [f32]) {
    if dtype != Dtype::F32 {
        isa.run(RoundTo { dtype, x });
    }
}

struct RoundTo<'a> {
    dtype: Dtype,
    x: &'a mut [f32],
}

impl Kernel for RoundTo<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut half = [0u16; LANES];
        for at in (0..self.x.len()).step_by(LANES) {
            // SAFETY: the caller has enabled the features, groups stay inside the slice, and `half` has room for one.
            unsafe {
                let x: L = load_group(self.x, at);
                let rounded = match self.dtype {
                    Dtype::F32 => x,
                    Dtype::F16 => {
                        x.store_f16(half.as_mut_ptr());
                        L::load_f16(half.as_ptr())
                    }
                    Dtype::Bf16 => {
                        x.store_bf16(half.as_mut_ptr());
                        L::load_bf16(half.as_ptr())
                    }
                };
                store_group(rounded, self.x, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_is_the_exact_one_but_for_its_last_digits_on_every_instruction_set() {
        let values: Vec<f32> = (-80_000..=80_000).map(|i| i as f32 * 1e-4).collect();
        let odd = [f32::NAN, 1e30, -1e30, 0.0];
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let mut first = None;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut found = values.clone();
            biased_gelu(isa, &mut found, &vec![0.0; values.len()]);
            for (&x, &found) in values.iter().zip(&found) {
                let wide = f64::from(x);
                let exact = 0.5 * wide * (1.0 + libm::erf(wide * std::f64::consts::FRAC_1_SQRT_2));
                assert!(
                    (f64::from(found) - exact).abs() <= 4e-7 * wide.abs(),
                    "{isa:?}, {x}: {found} for {exact}"
                );
            }
            assert_eq!(bits(&found), *first.get_or_insert_with(|| bits(&found)), "{isa:?}");
            let mut found = odd;
            biased_gelu(isa, &mut found, &[0.0; 4]);
            assert!(found[0].is_nan());
            assert_eq!(found[1..], [1e30, 0.0, 0.0], "{isa:?}");
            let mut found = [0.5, 2.0];
            biased_gelu(isa, &mut found, &[0.5, -1.0]);
            assert_eq!(found[0], found[1], "{isa:?}");
        }
    }

    #[test]
    fn values_are_rounded_as_the_types_round_them() {
        let values: Vec<f32> = (0..1003u32)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
            .filter(|x| x.is_finite())
            .collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let mut found = values.clone();
                round_to(isa, dtype, &mut found);
                for (&x, &found) in values.iter().zip(&found) {
                    let expected = match dtype {
                        Dtype::F32 => x,
                        Dtype::F16 => half::f16::from_f32(x).to_f32(),
                        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
                    };
                    assert_eq!(found.to_bits(), expected.to_bits(), "{isa:?} {dtype:?} {x:e}");
                }
            }
        }
    }
}
